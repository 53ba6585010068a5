//! Writing only what changed: the difference of two objects as a merge patch (RFC 7396).

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Error;

/// The merge patch that turns `old` into `new`; nothing if they are equal.
pub fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for key in old.keys().filter(|k| !new.contains_key(*k)) {
                patch.insert(key.clone(), Value::Null);
            }
            for (key, value) in new {
                match old.get(key) {
                    None => {
                        patch.insert(key.clone(), value.clone());
                    }
                    Some(before) => {
                        if let Some(change) = merge_diff(before, value) {
                            patch.insert(key.clone(), change);
                        }
                    }
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ if old == new => None,
        _ => Some(new.clone()),
    }
}

/// What part of an object to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status subresource.
    Status,
}

/// The patch for `part`, guarded by the resource version of `old`; nothing if that part is the same.
///
/// # Errors
/// If the objects cannot be encoded.
pub fn guarded_diff<K: Resource + Serialize>(old: &K, new: &K, part: Part) -> Result<Option<Value>, Error> {
    let (mut before, mut after) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    for value in [&mut before, &mut after] {
        if let Value::Object(fields) = value {
            match part {
                Part::Main => fields.retain(|k, _| k != "status"),
                Part::Status => fields.retain(|k, _| k == "status"),
            }
        }
    }
    let Some(mut patch) = merge_diff(&before, &after) else {
        return Ok(None);
    };
    if let (Value::Object(fields), Some(version)) = (&mut patch, &old.meta().resource_version) {
        let meta = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(meta) = meta {
            meta.insert("resourceVersion".into(), Value::String(version.clone()));
        }
    }
    Ok(Some(patch))
}

/// Writes the difference from `old` to `new` if there is one; a conflict means that `old` was stale.
///
/// # Errors
/// The API server's.
pub async fn update<K>(api: &Api<K>, old: &K, new: &K, part: Part) -> Result<Option<K>, Error>
where
    K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let Some(patch) = guarded_diff(old, new, part)? else {
        return Ok(None);
    };
    let name = old.meta().name.as_deref().unwrap_or_default();
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    let written = match part {
        Part::Main => api.patch(name, &params, &patch).await?,
        Part::Status => api.patch_status(name, &params, &patch).await?,
    };
    Ok(Some(written))
}

/// An [`Api`] for the namespace that `object` lives in.
pub fn api_of<K>(client: &kube::Client, object: &K) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client.clone(), object.meta().namespace.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn merge(target: &mut Value, patch: &Value) {
        let Value::Object(fields) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        if let Value::Object(target) = target {
            for (k, v) in fields {
                if v.is_null() {
                    target.remove(k);
                } else {
                    merge(target.entry(k.clone()).or_insert(Value::Null), v);
                }
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<u8>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_new_value(old in value(), new in value()) {
            let mut target = old.clone();
            if let Some(patch) = merge_diff(&old, &new) {
                merge(&mut target, &patch);
            }
            prop_assert_eq!(target, new);
        }
    }
}
