//! Reading and writing `ObjectMeta` inside JSON values.

use serde_json::{Map, Value};

use crate::kinds::{self, Kind};

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|m| m.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Name; empty if there is none.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// Namespace; empty if there is none.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// UID; empty if there is none.
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// Resource version; empty if there is none.
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// Creation time as written.
pub fn creation_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "creationTimestamp")).filter(|s| !s.is_empty())
}

/// Deletion time as written.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "deletionTimestamp")).filter(|s| !s.is_empty())
}

/// Generation; 0 if there is none.
pub fn generation(object: &Value) -> i64 {
    object
        .get("metadata")
        .and_then(|m| m.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

/// Labels.
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("labels")?.as_object()
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// Finalizers in order.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    let list = object
        .get("metadata")
        .and_then(|m| m.get("finalizers"))
        .and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// `metadata` for writing; created if missing. Anything that is not an object is replaced by one.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// A field that holds an object, for writing; created if missing.
pub fn child_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let map = as_map(object);
    as_map(map.entry(field.to_owned()).or_insert(Value::Null))
}

/// The value as an object for writing; what is not one is replaced by an empty one.
pub fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(m) => m,
        _ => unreachable!("made an object above"),
    }
}

/// Sets one field of the metadata; null removes it.
pub fn set(object: &mut Value, field: &str, value: Value) {
    let m = metadata_mut(object);
    if value.is_null() {
        m.remove(field);
    } else {
        m.insert(field.to_owned(), value);
    }
}

/// Writes `apiVersion` and `kind` of a kind into an object.
pub fn set_type(object: &mut Value, kind: &Kind) {
    let m = as_map(object);
    m.insert("apiVersion".to_owned(), kind.api_version().into());
    m.insert("kind".to_owned(), kind.kind.into());
}

/// Group, version and kind that an object says it is.
pub fn type_of(object: &Value) -> Option<(&str, &str, &str)> {
    let (group, version) = kinds::split_api_version(object.get("apiVersion")?.as_str()?);
    Some((group, version, object.get("kind")?.as_str()?))
}

/// A name from a `generateName` prefix: five characters that make no words, the prefix cut so that all fit 63.
pub fn generated_name(prefix: &str) -> String {
    let mut end = prefix.len().min(58);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], random_suffix())
}

/// Five random characters out of those that Kubernetes uses for generated names.
pub fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| LETTERS[rand::random_range(0..LETTERS.len())] as char)
        .collect()
}

/// The texts of a list; what is no text is left out.
pub fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    serde_json::json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}
