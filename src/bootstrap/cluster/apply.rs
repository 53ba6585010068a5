//! Create or patch, for any kind: what `kubectl apply` does on the client's side, with the same annotation, so that either may go on
//! with what the other began.

use crate::{Error, Result};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
    discovery::{Scope, pinned_kind},
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use tokio::sync::Mutex;

/// Who owns the fields we write, as `metadata.managedFields` says it.
const MANAGER: &str = "installer";
/// The annotation in which the last applied object is kept.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What applying an object did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was not there.
    Created,
    /// It was different.
    Changed,
    /// It was so already.
    Same,
}

/// Applies objects and remembers what the server said about their kinds.
pub struct Applier {
    client: Client,
    kinds: Mutex<HashMap<GroupVersionKind, (ApiResource, Scope)>>,
}

impl Applier {
    /// Through `client`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            kinds: Mutex::default(),
        }
    }

    /// Makes `object` so; with `dry` only says what would happen.
    ///
    /// # Errors
    /// When the object is no object, its kind is unknown, or the server refuses.
    pub async fn apply(&self, object: &Value, dry: bool) -> Result<Applied> {
        let title = title(object);
        let name = object["metadata"]["name"]
            .as_str()
            .ok_or_else(|| Error::Wish(format!("{title} has no name")))?;
        let api = self.api(object, &title).await?;
        let failed = |doing: &str| Error::api(format!("{doing} {title}"));
        let Some(live) = api.get_opt(name).await.map_err(failed("reading"))? else {
            if !dry {
                let object: DynamicObject = typed(&annotated(object), &title)?;
                let params = PostParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PostParams::default()
                };
                api.create(&params, &object).await.map_err(failed("creating"))?;
            }
            return Ok(Applied::Created);
        };
        let live = serde_json::to_value(&live).map_err(|e| Error::Wish(format!("{title}: {e}")))?;
        let built_in = !object["apiVersion"]
            .as_str()
            .is_some_and(|v| v.contains('.') && !v.contains(".k8s.io/"));
        let Some(patch) = difference(object, &live, built_in) else {
            return Ok(Applied::Same);
        };
        if !dry {
            let params = PatchParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let patched = match built_in {
                true => api.patch(name, &params, &Patch::Strategic(&patch)).await,
                false => api.patch(name, &params, &Patch::Merge(&patch)).await,
            };
            patched.map_err(failed("changing"))?;
        }
        Ok(Applied::Changed)
    }

    /// An object as the server has it now, if it is there.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn live(&self, object: &Value) -> Result<Option<Value>> {
        let title = title(object);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let api = match self.api(object, &title).await {
            Ok(api) => api,
            // With its kind all its objects are gone.
            Err(error) if error.is_unknown_kind() => return Ok(None),
            Err(error) => return Err(error),
        };
        let live = api
            .get_opt(name)
            .await
            .map_err(Error::api(format!("reading {title}")))?;
        let json = |live: DynamicObject| serde_json::to_value(&live).map_err(|e| Error::Wish(format!("{title}: {e}")));
        live.map(json).transpose()
    }

    /// Takes an object away; whether it was there. What it owns goes in the background.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn remove(&self, object: &Value) -> Result<bool> {
        let title = title(object);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let api = match self.api(object, &title).await {
            Ok(api) => api,
            // With its kind all its objects are gone.
            Err(error) if error.is_unknown_kind() => return Ok(false),
            Err(error) => return Err(error),
        };
        match api.delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(Error::api(format!("removing {title}"))(error)),
        }
    }

    async fn api(&self, object: &Value, title: &str) -> Result<Api<DynamicObject>> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
        let gvk = GroupVersionKind::gvk(group, version, text("kind"));
        let known = self.kinds.lock().await.get(&gvk).cloned();
        let (resource, scope) = match known {
            Some(known) => known,
            None => {
                let (resource, capabilities) = pinned_kind(&self.client, &gvk)
                    .await
                    .map_err(Error::api(format!("finding the kind of {title}")))?;
                let found = (resource, capabilities.scope);
                self.kinds.lock().await.insert(gvk, found.clone());
                found
            }
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        Ok(match scope {
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
        })
    }
}

/// `deployment kube-system/dns`, for people.
pub fn title(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("object").to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or("?");
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

fn typed(value: &Value, title: &str) -> Result<DynamicObject> {
    serde_json::from_value(value.clone()).map_err(|e| Error::Wish(format!("{title}: {e}")))
}

/// The object with itself in the annotation. Secrets are not written twice.
fn annotated(object: &Value) -> Value {
    let mut object = object.clone();
    if object["kind"] == "Secret" {
        return object;
    }
    let text = object.to_string();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        annotations[LAST_APPLIED] = Value::String(text);
    }
    object
}

/// Names what is applied with an object: the text of the annotation, or a Secret's data, which is in no annotation.
pub fn fingerprint(object: &Value) -> String {
    if object["kind"] != "Secret" {
        return oci::Digest::of(object.to_string().as_bytes()).to_string();
    }
    let normal = normal(object);
    let data: BTreeMap<&String, &Value> = normal["data"].as_object().into_iter().flatten().collect();
    oci::Digest::of(serde_json::to_string(&data).unwrap_or_default().as_bytes()).to_string()
}

/// What of an object is not as it was applied last; empty: all is. `applied` is its [`fingerprint`], where it was noted.
pub fn drifted(live: &Value, applied: Option<&str>) -> Vec<String> {
    if live["kind"] == "Secret" {
        let differs = applied.is_some_and(|applied| applied != fingerprint(live));
        return differs.then(|| "data (secret)".to_owned()).into_iter().collect();
    }
    let Some(text) = live["metadata"]["annotations"][LAST_APPLIED].as_str() else {
        return vec![format!(
            "annotation {LAST_APPLIED}, which says what was applied, is gone"
        )];
    };
    if applied.is_some_and(|applied| applied != oci::Digest::of(text.as_bytes()).to_string()) {
        return vec!["somebody else has applied it since".to_owned()];
    }
    let mut fields = Vec::new();
    let last: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    differing(live, &normal(&last), "", &mut fields);
    fields
}

/// The outermost fields in which `live` lacks what `wanted` says.
fn differing(live: &Value, wanted: &Value, at: &str, out: &mut Vec<String>) {
    if contains(live, wanted) {
        return;
    }
    let before = out.len();
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            for (key, value) in wanted {
                let at = if at.is_empty() {
                    key.clone()
                } else {
                    format!("{at}.{key}")
                };
                differing(live.get(key).unwrap_or(&Value::Null), value, &at, out);
            }
        }
        (Value::Array(live), Value::Array(wanted)) if live.len() == wanted.len() => {
            for (index, (live, wanted)) in live.iter().zip(wanted).enumerate() {
                differing(live, wanted, &format!("{at}[{index}]"), out);
            }
        }
        _ => {}
    }
    if out.len() == before {
        out.push(at.to_owned());
    }
}

/// The patch that makes `live` what `wanted` says, nothing if it is so. What was applied last and is wanted no more goes; what
/// others added stays.
fn difference(wanted: &Value, live: &Value, by_name: bool) -> Option<Value> {
    let last: Value = live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let mut removals = Map::new();
    removed(&last, wanted, &mut removals);
    if removals.is_empty() && contains(live, &normal(wanted)) {
        return None;
    }
    let mut patch = changed(live, &normal(wanted), by_name).unwrap_or_else(|| json!({}));
    for field in ["apiVersion", "kind"] {
        patch[field] = wanted[field].clone();
    }
    patch["metadata"]["name"] = wanted["metadata"]["name"].clone();
    if let Some(text) = annotated(wanted)["metadata"]["annotations"].get(LAST_APPLIED) {
        patch["metadata"]["annotations"][LAST_APPLIED] = text.clone();
    }
    crate::render::merge(&mut patch, Value::Object(removals));
    Some(patch)
}

/// What of `wanted` is not so in `live`. What is so is left out, because a strategic patch of a whole list of ports confounds those that
/// have one number (a name server's for UDP and TCP). Containers are told apart `by_name` where the server does so too; other lists are
/// taken whole.
fn changed(live: &Value, wanted: &Value, by_name: bool) -> Option<Value> {
    if contains(live, wanted) {
        return None;
    }
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            let mut out = Map::new();
            for (key, value) in wanted {
                let before = live.get(key).unwrap_or(&Value::Null);
                let change = match key.as_str() {
                    "containers" | "initContainers" if by_name => containers(before, value),
                    _ => changed(before, value, by_name),
                };
                out.extend(change.map(|change| (key.clone(), change)));
            }
            Some(Value::Object(out))
        }
        (_, wanted) => Some(wanted.clone()),
    }
}

/// Of lists of the same containers only those that differ, by name.
fn containers(live: &Value, wanted: &Value) -> Option<Value> {
    let (Some(old), Some(new)) = (live.as_array(), wanted.as_array()) else {
        return changed(live, wanted, true);
    };
    let same = old.len() == new.len() && old.iter().zip(new).all(|(old, new)| old["name"] == new["name"]);
    if !same {
        return changed(live, wanted, true);
    }
    let differ = old.iter().zip(new).filter_map(|(old, new)| {
        let mut change = changed(old, new, true)?;
        change["name"] = new["name"].clone();
        Some(change)
    });
    let differ: Vec<Value> = differ.collect();
    (!differ.is_empty()).then_some(Value::Array(differ))
}

/// What a server stores instead of what was written: `stringData` becomes `data`.
fn normal(wanted: &Value) -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut wanted = wanted.clone();
    let Some(Value::Object(strings)) = wanted.as_object_mut().and_then(|object| object.remove("stringData")) else {
        return wanted;
    };
    for (key, value) in strings {
        wanted["data"][key] = Value::String(STANDARD.encode(value.as_str().unwrap_or_default()));
    }
    wanted
}

/// Nulls for all mapping keys of `last` that `wanted` lacks.
fn removed(last: &Value, wanted: &Value, out: &mut Map<String, Value>) {
    let (Value::Object(last), Value::Object(wanted)) = (last, wanted) else {
        return;
    };
    for (key, value) in last {
        match wanted.get(key) {
            None => {
                out.insert(key.clone(), Value::Null);
            }
            Some(wanted) => {
                let mut inner = Map::new();
                removed(value, wanted, &mut inner);
                if !inner.is_empty() {
                    out.insert(key.clone(), Value::Object(inner));
                }
            }
        }
    }
}

/// Whether `live` has everything that `wanted` says. Lists must be of one length, item by item; quantities and defaults that a
/// server writes in its own way are equal if they read the same.
fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, value)| match live.get(key) {
            Some(live) => contains(live, value),
            None => is_nothing(value),
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        (live, wanted) => live == wanted,
    }
}

/// Values that servers leave out.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(object: &Value, more: Value) -> Value {
        let mut live = annotated(object);
        crate::render::merge(&mut live, more);
        live
    }

    #[test]
    fn what_the_server_added_is_no_difference() {
        let wanted = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 53}]}});
        let server = json!({"metadata": {"uid": "u"}, "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 53, "targetPort": 53}]}});
        assert_eq!(difference(&wanted, &live(&wanted, server), true), None);
    }

    #[test]
    fn what_is_wanted_no_more_goes_and_what_others_added_stays() {
        let before = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}});
        let after = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}});
        let patch = difference(&after, &live(&before, json!({"data": {"z": "3"}})), true).unwrap();
        assert_eq!(patch["data"], json!({"y": null}));
    }

    #[test]
    fn a_changed_or_shorter_list_is_a_difference() {
        let before = json!({"kind": "X", "metadata": {"name": "a"}, "spec": {"l": [1, 2]}});
        for list in [json!([1]), json!([1, 3])] {
            let after = json!({"kind": "X", "metadata": {"name": "a"}, "spec": {"l": list}});
            assert!(difference(&after, &live(&before, json!({})), true).is_some());
        }
    }

    #[test]
    fn a_secrets_strings_are_compared_as_the_server_keeps_them_and_not_annotated() {
        let wanted = json!({"kind": "Secret", "metadata": {"name": "a"}, "stringData": {"k": "v"}});
        let stored = json!({"kind": "Secret", "metadata": {"name": "a"}, "data": {"k": "dg=="}});
        assert_eq!(difference(&wanted, &stored, true), None);
        assert!(annotated(&wanted)["metadata"].get("annotations").is_none());
    }

    #[test]
    fn what_somebody_changed_is_told_by_field_and_what_the_server_or_others_added_is_not() {
        let wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "x", "image": "i:1"}]}}}});
        let applied = fingerprint(&wanted);
        let change = |more: Value| drifted(&live(&wanted, more), Some(&applied));
        assert_eq!(
            change(json!({"status": {"replicas": 1}, "metadata": {"labels": {"theirs": "x"}}})),
            Vec::<String>::new()
        );
        assert_eq!(change(json!({"spec": {"replicas": 5}})), ["spec.replicas"]);
        let other = json!({"spec": {"template": {"spec": {"containers": [{"name": "x", "image": "evil"}]}}}});
        assert_eq!(change(other), ["spec.template.spec.containers[0].image"]);
        let two = json!({"spec": {"template": {"spec": {"containers": [{"name": "x"}, {"name": "y"}]}}}});
        assert_eq!(change(two), ["spec.template.spec.containers"]);
        let elsewhere = json!({"metadata": {"annotations": {LAST_APPLIED: "{}"}}});
        assert_eq!(change(elsewhere), ["somebody else has applied it since"]);
        assert_eq!(drifted(&wanted, None).len(), 1, "no annotation");
    }

    #[test]
    fn a_secrets_drift_is_told_without_what_is_in_it() {
        let wanted = json!({"kind": "Secret", "metadata": {"name": "a"}, "stringData": {"k": "hunter2", "a": "b"}});
        let stored =
            |value: &str| json!({"kind": "Secret", "metadata": {"name": "a"}, "data": {"a": "Yg==", "k": value}});
        let applied = fingerprint(&wanted);
        assert_eq!(drifted(&stored("aHVudGVyMg=="), Some(&applied)), Vec::<String>::new());
        assert_eq!(drifted(&stored("b3RoZXI="), Some(&applied)), ["data (secret)"]);
        assert_eq!(drifted(&stored("b3RoZXI="), None), Vec::<String>::new());
    }

    #[test]
    fn a_patch_says_only_what_differs_so_that_ports_of_one_number_stay_apart() {
        let ports = json!([{"containerPort": 53, "name": "dns", "protocol": "UDP"}, {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"}]);
        let deployment = |image: &str| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "dns"},
                "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "same"}, {"name": "dns", "image": image, "ports": ports.clone()}]}}}})
        };
        let patch = |wanted: &Value, more: Value, by_name| {
            difference(wanted, &live(&deployment("i:1"), more), by_name).unwrap()
        };
        let mut spec = patch(&deployment("i:1"), json!({"spec": {"replicas": 3}}), true);
        assert_eq!(spec["spec"].take(), json!({"replicas": 2}));
        assert!(spec["metadata"]["annotations"][LAST_APPLIED].is_string());
        let changed = patch(&deployment("i:2"), json!({}), true);
        assert_eq!(
            changed["spec"],
            json!({"template": {"spec": {"containers": [{"name": "dns", "image": "i:2"}]}}})
        );
        // A merge patch replaces lists as a whole.
        let whole = patch(&deployment("i:2"), json!({}), false);
        assert_eq!(
            whole["spec"]["template"]["spec"]["containers"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
    }
}
