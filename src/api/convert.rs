//! Conversions between kinds that share objects: core and `events.k8s.io` events, and `Scale` of workloads.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::metadata;
use crate::selector::LabelSelector;

/// Fields of events as (core, events.k8s.io).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("source", "deprecatedSource"),
];

/// Whether objects of this kind travel in another form than they are stored in.
pub fn converts(kind: &Kind) -> bool {
    kind.group != kind.storage_group || kind.version != kind.storage_version
}

/// From the form on the wire to the form in storage.
pub fn to_storage(kind: &Kind, object: Value) -> Value {
    match (kind.message, kind.storage()) {
        ("events.v1.Event", Some(storage)) => event(object, storage, |(core, new)| (new, core)),
        _ => object,
    }
}

/// From the form in storage to the form on the wire.
pub fn from_storage(kind: &Kind, object: Value) -> Value {
    match kind.message {
        "events.v1.Event" => event(object, kind, |(core, new)| (core, new)),
        _ => object,
    }
}

/// The name in `to` of a top-level field that `from`, a kind whose objects are the same, names differently.
pub fn field_name(from: &Kind, to: &Kind, name: &str) -> Option<&'static str> {
    match (from.message, to.message) {
        ("core.v1.Event", "events.v1.Event") => {
            EVENT_FIELDS.iter().find(|(core, _)| *core == name).map(|(_, new)| *new)
        }
        ("events.v1.Event", "core.v1.Event") => {
            EVENT_FIELDS.iter().find(|(_, new)| *new == name).map(|(core, _)| *core)
        }
        _ => None,
    }
}

fn event(
    object: Value,
    to: &Kind,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(mut map) = object else { return object };
    for pair in EVENT_FIELDS {
        let (from, to) = direction(*pair);
        if let Some(v) = map.remove(from) {
            map.insert(to.to_owned(), v);
        }
    }
    let mut out = Value::Object(map);
    metadata::set_type(&mut out, to);
    out
}

/// `autoscaling/v1 Scale` of a workload; `None` if the kind has none.
pub fn scale_of(kind: &Kind, object: &Value) -> Option<Value> {
    kind.subresource("scale")?;
    let mut meta = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = object["metadata"].get(field) {
            meta.insert(field.to_owned(), v.clone());
        }
    }
    let selector = match object["spec"].get("selector") {
        Some(s) if s.get("matchLabels").is_some() || s.get("matchExpressions").is_some() => {
            LabelSelector::from_object(s).ok()
        }
        Some(s) => Some(LabelSelector::from_map(s)),
        None => None,
    };
    let mut spec = Map::new();
    if let Some(n) = object["spec"].get("replicas").filter(|n| n.as_i64() != Some(0)) {
        spec.insert("replicas".to_owned(), n.clone());
    }
    let mut status = json!({"replicas": object["status"].get("replicas").and_then(Value::as_i64).unwrap_or(0)});
    if let Some(s) = selector.map(|s| s.to_string()).filter(|s| !s.is_empty()) {
        status["selector"] = s.into();
    }
    Some(json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status}))
}

/// Writes the number of replicas and the precondition of a `Scale` into a copy of its workload.
pub fn with_scale(object: &Value, scale: &Value) -> Value {
    let mut out = object.clone();
    let replicas = scale["spec"].get("replicas").and_then(Value::as_i64).unwrap_or(0);
    metadata::child_mut(&mut out, "spec").insert("replicas".to_owned(), replicas.into());
    let version = metadata::resource_version(scale);
    if !version.is_empty() {
        metadata::set(&mut out, "resourceVersion", version.into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    #[test]
    fn events_survive_the_way_into_storage_and_back() {
        let kind = find("events.k8s.io", "v1", "events").unwrap();
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"},
            "regarding": {"kind": "Pod"}, "note": "n", "reportingController": "c", "deprecatedCount": 2,
        });
        let stored = to_storage(kind, event.clone());
        assert_eq!(stored["involvedObject"]["kind"], "Pod");
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(stored["count"], 2);
        assert_eq!(from_storage(kind, stored), event);
    }

    #[test]
    fn scale_shows_and_sets_replicas() {
        let kind = find("apps", "v1", "deployments").unwrap();
        let d = json!({"metadata": {"name": "a", "resourceVersion": "4"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}});
        let mut s = scale_of(kind, &d).unwrap();
        assert_eq!(s["status"], json!({"replicas": 0, "selector": "a=b"}));
        s["spec"]["replicas"] = 5.into();
        assert_eq!(with_scale(&d, &s)["spec"]["replicas"], 5);
    }
}
