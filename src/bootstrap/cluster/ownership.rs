//! Which fields of an object are ours because we applied them, and which of them somebody has taken since. Pure.
//!
//! The server keeps the first in `metadata.managedFields` (KEP-555): whoever changes a field by other ways than ours owns it from
//! then on, and we do no more. What was ours right after an apply is noted ([`super::ledger`]), so what is lost can be told.

use super::apply::MANAGER;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use serde_json::Value;
use std::io::{Read as _, Write as _};

/// Longest text of [`pack`], in bytes. What would be longer is not noted, so that a Secret can hold what is noted of everything.
const PACKED_LIMIT: usize = 256 << 10;
/// Most that [`unpack`] reads, in bytes.
const UNPACKED_LIMIT: u64 = 64 << 20;

/// What is ours of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owned {
    /// When we applied something else than before, as the server noted it. Empty: nothing is noted.
    pub time: String,
    /// The fields, as `fieldsV1`.
    pub fields: Value,
}

impl Owned {
    /// What is ours of an object as a server has it.
    pub fn of(object: &Value) -> Self {
        let entries = object["metadata"]["managedFields"].as_array();
        let found = entries.into_iter().flatten().find(|entry| is_ours(entry));
        found.map_or_else(Self::default, |entry| Self {
            time: entry["time"].as_str().unwrap_or_default().to_owned(),
            fields: entry["fieldsV1"].clone(),
        })
    }

    /// Names it: the time, and a digest of the fields.
    pub fn fingerprint(&self) -> String {
        format!("{} {}", self.time, oci::Digest::of(self.fields.to_string().as_bytes()))
    }
}

/// Whether an entry of `managedFields` is about what we applied.
pub(super) fn is_ours(entry: &Value) -> bool {
    entry["operation"] == "Apply" && entry["manager"] == MANAGER && entry["subresource"].is_null()
}

/// The fields of many objects as a short text: base64 of their deflated list. Empty where that would be too long.
pub fn pack(all: &[Owned]) -> String {
    let list: Vec<&Value> = all.iter().map(|owned| &owned.fields).collect();
    let deflated = || {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&serde_json::to_vec(&list)?)?;
        encoder.finish()
    };
    let text = deflated().map(|bytes| STANDARD.encode(bytes)).unwrap_or_default();
    if text.len() > PACKED_LIMIT { String::new() } else { text }
}

/// What [`pack`] was given; nothing where it was too much.
pub fn unpack(text: &str) -> Vec<Value> {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    let mut list = Vec::new();
    let read = DeflateDecoder::new(bytes.as_slice())
        .take(UNPACKED_LIMIT)
        .read_to_end(&mut list);
    read.ok()
        .and_then(|_| serde_json::from_slice(&list).ok())
        .unwrap_or_default()
}

/// What of an object is not as it was applied. `noted` is the [`Owned::fingerprint`] of then, `fields` what was ours then, as far as
/// that was noted too.
pub fn drifted(live: &Value, noted: &str, fields: Option<&Value>) -> Vec<String> {
    let now = Owned::of(live);
    if now.fingerprint() == noted {
        return Vec::new();
    }
    if live["metadata"]["managedFields"].is_null() {
        return vec!["metadata.managedFields, which says what was applied".to_owned()];
    }
    // Without an entry, others have taken all that was ours.
    if !now.time.is_empty() && noted.split(' ').next() != Some(now.time.as_str()) {
        return vec![format!("somebody else has applied it as {MANAGER} since")];
    }
    let mut lost = Vec::new();
    if let Some(fields) = fields {
        collect_lost(fields, &now.fields, "", &mut lost);
    }
    if lost.is_empty() {
        lost.push("fields that were applied".to_owned());
    }
    if live["kind"] == "Secret" {
        // Not even the names of its keys are told.
        let is_data = |path: &String| path == "data" || path.starts_with("data.");
        let some = lost.iter().any(is_data);
        lost.retain(|path| !is_data(path));
        lost.extend(some.then(|| "data (secret)".to_owned()));
    }
    lost
}

/// The outermost fields that `then` has and `now` lacks. Both are `fieldsV1`: a member is a leaf, or has a `.` in it.
fn collect_lost(then: &Value, now: &Value, at: &str, lost: &mut Vec<String>) {
    for (key, below) in then.as_object().into_iter().flatten().filter(|(key, _)| *key != ".") {
        let path = path_of(at, key);
        let is_member = |set: &Value| {
            set.as_object()
                .is_some_and(|set| set.is_empty() || set.contains_key("."))
        };
        let left = now.get(key);
        if is_member(below) && !left.is_some_and(is_member) {
            lost.push(path);
        } else {
            collect_lost(below, left.unwrap_or(&Value::Null), &path, lost);
        }
    }
}

/// A path one element longer: `f:NAME` is a field, `k:{…}` the item of a list with these keys, `v:…` the item with this value.
fn path_of(at: &str, element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("", element));
    match kind {
        "f" if at.is_empty() => rest.to_owned(),
        "f" => format!("{at}.{rest}"),
        "k" => {
            let keys: Value = serde_json::from_str(rest).unwrap_or_default();
            let keys = keys.as_object().into_iter().flatten();
            let keys: Vec<String> = keys.map(|(name, value)| format!("{name}={value}")).collect();
            format!("{at}[{}]", keys.join(","))
        }
        _ => format!("{at}[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(kind: &str, time: &str, fields: &Value) -> Value {
        json!({"kind": kind, "metadata": {"managedFields": [
            {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
            {"manager": MANAGER, "operation": "Apply", "subresource": "status", "fieldsV1": {"f:status": {}}},
            {"manager": MANAGER, "operation": "Apply", "time": time, "fieldsV1": fields}]}})
    }

    #[test]
    fn what_somebody_took_is_told_by_field() {
        let item = r#"k:{"containerPort":53,"protocol":"UDP"}"#;
        let container = |more: Value| json!({"f:containers": {r#"k:{"name":"x"}"#: {".": {}, "f:image": {}, "f:name": {}, "f:ports": more}}});
        let then = json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": container(json!({item: {".": {}, "f:name": {}}}))}},
            "f:metadata": {"f:finalizers": {"v:\"a\"": {}}}});
        let noted = Owned::of(&object("Deployment", "t1", &then)).fingerprint();
        let told = |kind: &str, time: &str, now: Value| drifted(&object(kind, time, &now), &noted, Some(&then));
        assert_eq!(told("Deployment", "t1", then.clone()), Vec::<String>::new());
        let mut now = then.clone();
        now["f:spec"].as_object_mut().unwrap().remove("f:replicas");
        assert_eq!(told("Deployment", "t1", now.clone()), ["spec.replicas"]);
        now["f:spec"]["f:template"]["f:spec"] = container(json!({item: {"f:name": {}}}));
        let port = r#"spec.template.spec.containers[name="x"].ports[containerPort=53,protocol="UDP"]"#;
        assert_eq!(
            told("Deployment", "t1", now),
            ["spec.replicas".to_owned(), port.to_owned()]
        );
        let mut now = then.clone();
        now.as_object_mut().unwrap().remove("f:metadata");
        assert_eq!(told("Deployment", "t1", now), [r#"metadata.finalizers["a"]"#]);
        let other = told("Deployment", "t2", then.clone());
        assert_eq!(other, ["somebody else has applied it as installer since"]);
        let none = drifted(&json!({"metadata": {}}), &noted, Some(&then));
        assert_eq!(none, ["metadata.managedFields, which says what was applied"]);
        let all = json!({"metadata": {"managedFields": []}});
        let lost = drifted(&all, &noted, Some(&json!({"f:data": {"f:x": {}}})));
        assert_eq!(lost, ["data.x"], "others have taken all");
        let unnamed = drifted(&object("Deployment", "t1", &json!({"f:x": {}})), &noted, None);
        assert_eq!(unnamed, ["fields that were applied"]);
    }

    #[test]
    fn fields_of_many_objects_are_noted_in_little_space() {
        let of = |name: &str| Owned {
            time: "t".to_owned(),
            fields: json!({"f:metadata": {"f:labels": {name: {}}}, "f:spec": {"f:template": {"f:spec": {"f:containers": {}}}}}),
        };
        let all: Vec<Owned> = (0..500).map(|i| of(&format!("f:{i}"))).collect();
        let text = pack(&all);
        assert!(text.len() < 8 << 10, "{}", text.len());
        let fields: Vec<Value> = all.into_iter().map(|owned| owned.fields).collect();
        assert_eq!(unpack(&text), fields);
        let digest = |i: u32| oci::Digest::of(&i.to_le_bytes()).to_string();
        let huge: Vec<Owned> = (0..20_000).map(|i| of(&digest(i))).collect();
        assert_eq!(pack(&huge), "");
        assert!(unpack("").is_empty() && unpack("x").is_empty());
    }

    #[test]
    fn of_a_secret_not_even_the_names_of_keys_are_told() {
        let then = json!({"f:data": {"f:password": {}, "f:user": {}}, "f:type": {}});
        let noted = Owned::of(&object("Secret", "t1", &then)).fingerprint();
        let now = object("Secret", "t1", &json!({"f:data": {"f:user": {}}}));
        assert_eq!(drifted(&now, &noted, Some(&then)), ["type", "data (secret)"]);
    }
}
