//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.
//!
//! Server-side apply, which depends on who owns what, is in [`crate::managed`].

use crate::schema::{Field, Merge, Message, Shape, message};
use crate::status::Status;
use serde_json::{Map, Value};

/// Applies a JSON patch (RFC 6902).
///
/// # Errors
/// 400 when it is no patch, 413 when it does too much, 422 when an operation does not fit the object.
pub fn json(current: &Value, patch: &Value) -> Result<Value, Status> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if patch.len() > MAX_OPERATIONS {
        let found = patch.len();
        return Err(too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {found}"
        )));
    }
    let mut object = current.clone();
    let mut copied = 0;
    for operation in patch.iter() {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            // Copies of copies would grow without end.
            copied += object.pointer(copy.from.as_str()).map_or(0, |v| v.to_string().len());
            if copied > MAX_COPIED {
                return Err(too_large(format!("a JSON patch may copy {MAX_COPIED} bytes at most")));
            }
        }
        json_patch::patch(&mut object, std::slice::from_ref(operation)).map_err(|e| {
            Status::new(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {e}"),
            )
        })?;
    }
    Ok(object)
}

/// Most operations of a JSON patch.
const MAX_OPERATIONS: usize = 10_000;
/// Most bytes that a JSON patch may copy in all.
const MAX_COPIED: usize = 3 << 20;

fn too_large(why: String) -> Status {
    Status::new(413, "RequestEntityTooLarge", why)
}

/// Applies a merge patch (RFC 7386).
///
/// # Errors
/// 400 when the patch is no object.
pub fn merge(current: &Value, patch: &Value) -> Result<Value, Status> {
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: a merge patch is an object"));
    }
    let mut object = current.clone();
    json_patch::merge(&mut object, patch);
    Ok(object)
}

/// Applies a strategic merge patch to an object of a message.
///
/// # Errors
/// 400 when the patch is no object, a directive is unknown, or an item of a list lacks its merge key.
pub fn strategic(message_name: &str, current: &Value, patch: &Value) -> Result<Value, Status> {
    let Some(patch) = patch.as_object() else {
        return Err(Status::bad_request(
            "error decoding patch: a strategic merge patch is an object",
        ));
    };
    let mut object = current.clone();
    let map = as_object(&mut object);
    merge_map(message(message_name), map, patch)?;
    Ok(object)
}

fn bad(why: impl Into<String>) -> Status {
    Status::bad_request(why.into())
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

fn items_of(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn merge_map(
    message: Option<&'static Message>,
    object: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), Status> {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *object = patch
                .iter()
                .filter(|(k, _)| *k != DIRECTIVE)
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            return Ok(());
        }
        Some("delete") => {
            object.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(bad(format!("Unknown patch directive: {other}"))),
    }
    if let Some(keys) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        object.retain(|key, _| keys.iter().any(|k| k == key));
    }
    let ordered: Vec<_> = patch
        .iter()
        .filter_map(|(k, v)| {
            let key = k.strip_prefix(SET_ORDER)?;
            Some((key, v.as_array()?, items_of(object.get(key)).to_vec()))
        })
        .collect();
    for (key, value) in patch {
        let field = |name: &str| message.and_then(|m| m.field(name));
        if let Some(name) = key.strip_prefix(DELETE_PRIMITIVES) {
            let gone = value.as_array().ok_or_else(|| bad(format!("{key} must be a list")))?;
            if let Some(list) = object.get_mut(name).and_then(Value::as_array_mut) {
                list.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            // Directives were read above; the order of lists is set last.
        } else if value.is_null() {
            object.remove(key);
        } else {
            merge_field(field(key), object.entry(key.clone()).or_insert(Value::Null), value)?;
        }
    }
    for (key, order, original) in ordered {
        let merge = message
            .and_then(|m| m.field(key))
            .map_or_else(Merge::default, |f| f.merge);
        if let Some(list) = object.get_mut(key).and_then(Value::as_array_mut) {
            set_order(list, order, &original, merge.key);
        }
    }
    Ok(())
}

fn merge_field(field: Option<&'static Field>, slot: &mut Value, patch: &Value) -> Result<(), Status> {
    let inner = field.and_then(|f| f.ty.message());
    match patch {
        Value::Object(map) => {
            let message = inner.filter(|_| field.is_some_and(|f| f.shape == Shape::One));
            // A map of objects has no directives of its own level but its values are objects of the message.
            if slot.is_object() {
                merge_map(message, as_object(slot), map)
            } else {
                fresh(message, slot, map)
            }
        }
        Value::Array(items) => match field.map(|f| f.merge) {
            Some(Merge { key: Some(key), .. }) => merge_list(inner, slot, items, key),
            Some(Merge { set: true, .. }) => {
                if !slot.is_array() {
                    *slot = Value::Array(Vec::new());
                }
                if let Some(list) = slot.as_array_mut() {
                    let original = list.clone();
                    for item in items {
                        if !list.contains(item) {
                            list.push(item.clone());
                        }
                    }
                    set_order(list, items, &original, None);
                }
                Ok(())
            }
            _ => {
                *slot = Value::Array(items.iter().filter(|i| i[DIRECTIVE].is_null()).cloned().collect());
                Ok(())
            }
        },
        other => {
            *slot = other.clone();
            Ok(())
        }
    }
}

/// What a patch adds where nothing was: the patch itself without its directives and nulls.
fn fresh(message: Option<&'static Message>, slot: &mut Value, patch: &Map<String, Value>) -> Result<(), Status> {
    if patch.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
        *slot = Value::Null;
        return Ok(());
    }
    merge_map(message, as_object(slot), patch)
}

fn merge_list(message: Option<&'static Message>, slot: &mut Value, items: &[Value], key: &str) -> Result<(), Status> {
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    let Some(list) = slot.as_array_mut() else { return Ok(()) };
    if items.iter().any(|i| i[DIRECTIVE] == "replace") {
        *list = items.iter().filter(|i| i[DIRECTIVE].is_null()).cloned().collect();
        return Ok(());
    }
    let original = list.clone();
    for item in items {
        let identity = &item[key];
        if identity.is_null() {
            return Err(bad(format!("map: {item} does not contain declared merge key: {key}")));
        }
        let at = list.iter().position(|existing| existing[key] == *identity);
        match (item[DIRECTIVE].as_str(), at) {
            (Some("delete"), at) => {
                if at.is_some() {
                    list.retain(|existing| existing[key] != *identity);
                }
            }
            (_, Some(at)) => {
                if let Some(patch) = item.as_object() {
                    merge_map(message, as_object(&mut list[at]), patch)?;
                }
            }
            (_, None) => {
                let mut new = Value::Null;
                if let Some(patch) = item.as_object() {
                    fresh(message, &mut new, patch)?;
                }
                list.push(new);
            }
        }
    }
    let patched: Vec<_> = items.iter().filter(|i| i[DIRECTIVE].is_null()).cloned().collect();
    set_order(list, &patched, &original, Some(key));
    Ok(())
}

/// Brings a merged list into the order that Kubernetes gives it. Items of `patched` come in its order, the others in that of
/// `original`; where both were there before they keep their order towards each other, and what is new comes before what it
/// is compared with.
fn set_order(list: &mut Vec<Value>, patched: &[Value], original: &[Value], key: Option<&str>) {
    let index = |order: &[Value], item: &Value| {
        order.iter().position(|o| match key {
            Some(key) => o[key] == item[key],
            None => o == item,
        })
    };
    let all = std::mem::take(list);
    let (mut named, mut others): (Vec<_>, Vec<_>) = all.into_iter().partition(|i| index(patched, i).is_some());
    named.sort_by_key(|i| index(patched, i));
    others.sort_by_key(|i| index(original, i).unwrap_or(usize::MAX));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(n), Some(o)) = (named.peek(), others.peek()) {
        let other_first = match (index(original, o), index(original, n)) {
            (Some(o), Some(n)) => o < n,
            _ => false,
        };
        list.extend(if other_first { others.next() } else { named.next() });
    }
    list.extend(named);
    list.extend(others);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        json!({"spec": spec})
    }

    #[test]
    fn strategic_patches_merge_lists_by_their_key() {
        let current = pod(
            json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}], "hostNetwork": true}),
        );
        for (patch, expected) in [
            (
                json!({"containers": [{"name": "a", "image": "2"}]}),
                json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}], "hostNetwork": true}),
            ),
            (
                json!({"containers": [{"name": "c", "image": "3"}]}),
                json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}], "hostNetwork": true}),
            ),
            (
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b"}], "hostNetwork": true}),
            ),
            (
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
                json!({"containers": [{"name": "z"}], "hostNetwork": true}),
            ),
            (
                json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y"}]}]}),
                json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "2"}, {"name": "Y"}]}, {"name": "b"}], "hostNetwork": true}),
            ),
            (
                json!({"hostNetwork": null, "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
                json!({"containers": [{"name": "b"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}]}),
            ),
            (
                json!({"$patch": "replace", "containers": []}),
                json!({"containers": []}),
            ),
        ] {
            assert_eq!(
                strategic("core.v1.Pod", &current, &pod(patch.clone())).unwrap(),
                pod(expected),
                "{patch}"
            );
        }
    }

    #[test]
    fn merged_lists_have_kubernetes_order() {
        let names = |list: &str| -> Value { list.chars().map(|c| json!({"name": c.to_string()})).collect() };
        for (original, patch, order, expected) in [
            ("ab", "c", None, "cab"),
            ("ab", "cd", None, "cdab"),
            ("ab", "bc", None, "abc"),
            ("ab", "ca", None, "cab"),
            ("abc", "cb", None, "acb"),
            ("", "ba", None, "ba"),
            ("ab", "c", Some("abc"), "abc"),
            ("ab", "c", Some("acb"), "acb"),
            ("abc", "", Some("ca"), "bca"),
            ("axb", "c", Some("abc"), "axbc"),
        ] {
            let current = pod(json!({"containers": names(original)}));
            let mut change = json!({"containers": names(patch)});
            if let Some(order) = order {
                change["$setElementOrder/containers"] = names(order);
            }
            let patched = strategic("core.v1.Pod", &current, &pod(change)).unwrap();
            assert_eq!(
                patched["spec"]["containers"],
                names(expected),
                "{original} {patch} {order:?}"
            );
        }
    }

    #[test]
    fn scalars_lists_are_sets_only_where_kubernetes_says_so() {
        let current =
            json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"containers": [{"name": "c", "args": ["x"]}]}});
        let patch = json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}, "spec": {"containers": [{"name": "c", "args": ["y"]}]}});
        let patched = strategic("core.v1.Pod", &current, &patch).unwrap();
        assert_eq!(patched["metadata"]["finalizers"], json!(["c", "b"]));
        assert_eq!(patched["spec"]["containers"][0]["args"], json!(["y"]));
    }

    #[test]
    fn retained_keys_drop_the_others() {
        let current = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            strategic("apps.v1.Deployment", &current, &patch).unwrap(),
            json!({"spec": {"strategy": {"type": "Recreate"}}})
        );
    }

    #[test]
    fn maps_of_scalars_merge_and_null_removes() {
        let current = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "data": {"k": "v"}});
        let patch = json!({"metadata": {"labels": {"a": null, "c": "3"}}, "data": {"l": "w"}});
        let expected = json!({"metadata": {"labels": {"b": "2", "c": "3"}}, "data": {"k": "v", "l": "w"}});
        assert_eq!(strategic("core.v1.ConfigMap", &current, &patch).unwrap(), expected);
        assert_eq!(merge(&current, &patch).unwrap(), expected);
    }

    #[test]
    fn patches_that_would_grow_without_end_are_refused() {
        let current = json!({"data": {"k": "x".repeat(1000)}});
        let copies: Vec<Value> = (0..40)
            .map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/c{i}")}))
            .collect();
        assert_eq!(json(&current, &copies.into()).unwrap_err().code, 413);
        let many = vec![json!({"op": "test", "path": "/data", "value": 1}); MAX_OPERATIONS + 1];
        assert_eq!(json(&current, &many.into()).unwrap_err().code, 413);
        let once = json!([{"op": "copy", "from": "/data/k", "path": "/data/l"}]);
        assert_eq!(json(&current, &once).unwrap()["data"]["l"], current["data"]["k"]);
    }

    #[test]
    fn malformed_patches_are_refused() {
        let current = pod(json!({"containers": []}));
        assert_eq!(
            strategic("core.v1.Pod", &current, &pod(json!({"containers": [{"image": "x"}]})))
                .unwrap_err()
                .code,
            400
        );
        assert_eq!(strategic("core.v1.Pod", &current, &json!([])).unwrap_err().code, 400);
        assert_eq!(
            strategic("core.v1.Pod", &current, &json!({"$patch": "explode"}))
                .unwrap_err()
                .code,
            400
        );
        assert_eq!(merge(&current, &json!(1)).unwrap_err().code, 400);
        assert_eq!(json(&current, &json!({})).unwrap_err().code, 400);
        assert_eq!(
            json(&current, &json!([{"op": "remove", "path": "/absent"}]))
                .unwrap_err()
                .code,
            422
        );
        assert_eq!(
            json(&current, &json!([{"op": "add", "path": "/x", "value": 1}])).unwrap()["x"],
            1
        );
    }
}
