//! Unknown and duplicate fields, and values of the wrong JSON type: what `fieldValidation` reports.

use crate::schema::{Field, Message, Shape, Type, message};
use crate::status::Status;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

/// JSON as received.
#[derive(Debug)]
pub struct Parsed {
    /// The value; of duplicate fields the last one counts.
    pub value: Value,
    /// Paths of fields that occur twice.
    pub duplicates: Vec<String>,
}

/// Parses JSON and notes duplicate fields.
///
/// # Errors
/// 400 when it is no JSON.
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, Status> {
    let (value, found) = parse(bytes, HashSet::new())?;
    Ok(Parsed {
        value,
        duplicates: found.duplicates,
    })
}

fn parse(bytes: &[u8], unknown: HashSet<String>) -> Result<(Value, Found), Status> {
    let found = RefCell::new(Found {
        unknown,
        ..Found::default()
    });
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let refuse =
        |e: serde_json::Error| Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"));
    let value = serde::de::DeserializeSeed::deserialize(Seed(&found), &mut parser).map_err(refuse)?;
    parser.end().map_err(refuse)?;
    Ok((value, found.into_inner()))
}

/// A field that strict validation refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OddField {
    /// The message has no such field.
    Unknown(String),
    /// It occurs twice.
    Duplicate(String),
}

impl fmt::Display for OddField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(path) => write!(f, "unknown field {path:?}"),
            Self::Duplicate(path) => write!(f, "duplicate field {path:?}"),
        }
    }
}

/// Odd fields in the order in which the text has them. `unknown` are the paths that [`prune`] found; what occurs twice and is
/// unknown is told as unknown only.
///
/// # Errors
/// 400 when it is no JSON.
pub fn odd_fields(bytes: &[u8], unknown: Vec<String>) -> Result<Vec<OddField>, Status> {
    Ok(parse(bytes, unknown.into_iter().collect())?.1.odd)
}

#[derive(Default)]
struct Found {
    path: Vec<String>,
    duplicates: Vec<String>,
    unknown: HashSet<String>,
    odd: Vec<OddField>,
}

impl Found {
    fn enter(&mut self, key: &str) {
        self.path.push(key.to_owned());
        if !self.unknown.is_empty() {
            let here = OddField::Unknown(join(&self.path));
            if matches!(&here, OddField::Unknown(path) if self.unknown.contains(path)) && !self.odd.contains(&here) {
                self.odd.push(here);
            }
        }
    }

    fn repeated(&mut self) {
        let path = join(&self.path);
        let below_unknown = (1..=self.path.len()).any(|n| self.unknown.contains(&join(&self.path[..n])));
        let duplicate = OddField::Duplicate(path.clone());
        if !below_unknown && !self.odd.contains(&duplicate) {
            self.odd.push(duplicate);
        }
        self.duplicates.push(path);
    }
}

struct Seed<'a>(&'a RefCell<Found>);

impl<'de> serde::de::DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Deserialize::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.0.borrow_mut().path.push(format!("[{}]", items.len()));
            let item = seq.next_element_seed(Seed(self.0))?;
            self.0.borrow_mut().path.pop();
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.0.borrow_mut().enter(&key);
            let value = map.next_value_seed(Seed(self.0))?;
            let mut found = self.0.borrow_mut();
            if out.insert(key, value).is_some() {
                found.repeated();
            }
            found.path.pop();
        }
        Ok(Value::Object(out))
    }
}

/// `spec.containers[0].image`.
fn join(parts: &[String]) -> String {
    let mut out = String::new();
    for part in parts {
        if !out.is_empty() && !part.starts_with('[') {
            out.push('.');
        }
        out.push_str(part);
    }
    out
}

/// Removes fields that the message does not have and returns their paths; a value of the wrong JSON type is refused (400).
///
/// A null is as good as nothing, and so is an empty list or map that need not be there: such fields go too, as they do in
/// Kubernetes' own types, and nulls in maps of strings become empty strings.
///
/// # Errors
/// 400 naming the field and what was found in it.
pub fn prune(message_name: &str, value: &mut Value) -> Result<Vec<String>, Status> {
    let mut unknown = Vec::new();
    if let Some(message) = message(message_name) {
        object(message, value, &mut Vec::new(), &mut unknown)?;
    }
    Ok(unknown)
}

fn wrong(path: &[String], found: &Value, wanted: &str) -> Status {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Status::bad_request(format!(
        "json: cannot unmarshal {found} into Go struct field {} of type {wanted}",
        join(path)
    ))
}

fn object(
    message: &'static Message,
    value: &mut Value,
    path: &mut Vec<String>,
    unknown: &mut Vec<String>,
) -> Result<(), Status> {
    let Some(map) = value.as_object_mut() else {
        return if value.is_null() {
            Ok(())
        } else {
            Err(wrong(path, value, message.name))
        };
    };
    let mut gone = Vec::new();
    for (key, inner) in map.iter_mut() {
        path.push(key.clone());
        match message.field(key) {
            Some(_) if inner.is_null() => gone.push(key.clone()),
            Some(field) => {
                shaped(field, inner, path, unknown)?;
                if says_nothing(field, inner) {
                    gone.push(key.clone());
                }
            }
            // Every object may say what it is.
            None if matches!(key.as_str(), "apiVersion" | "kind") => {}
            None => {
                unknown.push(join(path));
                gone.push(key.clone());
            }
        }
        path.pop();
    }
    for key in gone {
        map.remove(&key);
    }
    Ok(())
}

/// Whether a value is as good as its field not being there.
pub(crate) fn says_nothing(field: &Field, value: &Value) -> bool {
    match (field.shape, value) {
        (_, Value::Null) => true,
        _ if field.required => false,
        (Shape::List, Value::Array(items)) => items.is_empty(),
        (Shape::Map, Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

fn shaped(
    field: &'static Field,
    value: &mut Value,
    path: &mut Vec<String>,
    unknown: &mut Vec<String>,
) -> Result<(), Status> {
    if value.is_null() {
        return Ok(());
    }
    match field.shape {
        Shape::One => scalar(field.ty, value, path, unknown),
        Shape::List => {
            let Some(items) = value.as_array_mut() else {
                return Err(wrong(path, value, "[]"));
            };
            for (i, item) in items.iter_mut().enumerate() {
                path.push(format!("[{i}]"));
                scalar(field.ty, item, path, unknown)?;
                path.pop();
            }
            Ok(())
        }
        Shape::Map => {
            let Some(map) = value.as_object_mut() else {
                return Err(wrong(path, value, "map"));
            };
            for (key, item) in map.iter_mut() {
                if item.is_null() {
                    if matches!(field.ty, Type::String | Type::Bytes) {
                        *item = "".into();
                    }
                    continue;
                }
                path.push(key.clone());
                scalar(field.ty, item, path, unknown)?;
                path.pop();
            }
            Ok(())
        }
    }
}

fn scalar(ty: Type, value: &mut Value, path: &mut Vec<String>, unknown: &mut Vec<String>) -> Result<(), Status> {
    let (fits, wanted) = match ty {
        Type::Message(_) => {
            return ty
                .message()
                .map_or(Ok(()), |message| object(message, value, path, unknown));
        }
        Type::Raw | Type::Fields => (true, ""),
        Type::String | Type::Bytes => (value.is_string(), "string"),
        Type::Time | Type::MicroTime => (value.is_string() || value.is_null(), "Time"),
        Type::Int32 => (value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()), "int32"),
        Type::Int64 => (value.as_i64().is_some(), "int64"),
        Type::Bool => (value.is_boolean(), "bool"),
        Type::Double => (value.is_number(), "float64"),
        Type::Quantity => (value.is_string() || value.is_number(), "Quantity"),
        Type::IntOrString => (value.is_string() || value.as_i64().is_some(), "IntOrString"),
        Type::Strings => (
            value.as_array().is_some_and(|a| a.iter().all(Value::is_string)),
            "[]string",
        ),
    };
    if fits { Ok(()) } else { Err(wrong(path, value, wanted)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn odd_fields_are_told_in_the_order_of_the_text() {
        let text = br#"{"metadata": {"name": "a", "name": "b", "odd": 1}, "spec": {
            "replicas": 1, "strange": {"x": 1, "x": 2}, "strange": 2, "replicas": 2, "paused": true,
            "template": {"spec": {"containers": [{"name": "c", "extra": 1, "name": "d"}]}}}}"#;
        let mut value = parse_json(text).unwrap().value;
        let unknown = prune("apps.v1.Deployment", &mut value).unwrap();
        let told: Vec<_> = odd_fields(text, unknown)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            told,
            [
                "duplicate field \"metadata.name\"",
                "unknown field \"metadata.odd\"",
                "unknown field \"spec.strange\"",
                "duplicate field \"spec.replicas\"",
                "unknown field \"spec.template.spec.containers[0].extra\"",
                "duplicate field \"spec.template.spec.containers[0].name\"",
            ]
        );
    }

    #[test]
    fn unknown_fields_are_named_and_removed() {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "nam": 1},
            "spec": {"containers": [{"name": "c", "imagee": "x", "livenessProbe": {"exec": {"command": ["a"]}}}], "foo": 1}});
        let unknown = prune("core.v1.Pod", &mut pod).unwrap();
        assert_eq!(unknown, ["metadata.nam", "spec.containers[0].imagee", "spec.foo"]);
        assert_eq!(prune("core.v1.Pod", &mut pod).unwrap(), Vec::<String>::new());
        assert_eq!(
            pod["spec"]["containers"][0]["livenessProbe"]["exec"]["command"],
            json!(["a"])
        );
    }

    #[test]
    fn values_of_the_wrong_type_are_refused() {
        for spec in [
            json!({"containers": {}}),
            json!({"hostNetwork": "yes"}),
            json!({"nodeName": 5}),
            json!({"priority": 1.5}),
            json!({"nodeSelector": {"a": 1}}),
            json!("x"),
        ] {
            let mut pod = json!({"spec": spec});
            assert_eq!(prune("core.v1.Pod", &mut pod).unwrap_err().code, 400, "{pod}");
        }
        let mut empty = json!({"spec": {"containers": [], "hostNetwork": null, "nodeSelector": {"a": null}, "tolerations": [], "overhead": {}, "securityContext": {}}});
        assert!(prune("core.v1.Pod", &mut empty).is_ok());
        assert_eq!(
            empty,
            json!({"spec": {"containers": [], "nodeSelector": {"a": ""}, "securityContext": {}}})
        );
    }

    #[test]
    fn duplicate_fields_are_named_and_the_last_one_counts() {
        let parsed = parse_json(br#"{"a": 1, "b": [{"c": 1}, {"c": 1, "c": 2}], "a": 3}"#).unwrap();
        assert_eq!(parsed.duplicates, ["b[1].c", "a"]);
        assert_eq!(parsed.value, json!({"a": 3, "b": [{"c": 1}, {"c": 2}]}));
        for bad in [&b"{"[..], b"{} x", b""] {
            assert_eq!(parse_json(bad).unwrap_err().code, 400);
        }
    }
}
