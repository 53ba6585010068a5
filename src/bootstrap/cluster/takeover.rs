//! Objects that were applied on the client's side, as versions before did and `kubectl apply` does: what was applied lies in an
//! annotation. Pure.
//!
//! They are taken over once: their fields become those of our field manager, so that what the manifest no longer says goes with the
//! next apply, and the annotation is removed. Without an apply yet, drift is read off the annotation.
//!
//! What a server filled in and the manifest excludes becomes ours in the same way: nobody wished it, so no wish takes it away.

use super::{
    apply::MANAGER,
    ownership::{Owned, is_ours},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The annotation in which client-side apply keeps the last applied object.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The same as a part of a JSON pointer (RFC 6901).
const LAST_APPLIED_POINTER: &str = "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration";
/// The field manager of `kubectl apply` without `--server-side`.
const KUBECTL: &str = "kubectl-client-side-apply";

/// Whether an object is still as client-side apply left it. What kubectl applied after us is kubectl's.
pub(crate) fn is_due(live: &Value) -> bool {
    let entries = live["metadata"]["managedFields"].as_array();
    let has = |manager: &str| entries.into_iter().flatten().any(|entry| is_update_by(entry, manager));
    let annotated = last_applied(live).is_some();
    has(MANAGER) || (annotated && Owned::of(live) == Owned::default() && (entries.is_none() || has(KUBECTL)))
}

/// The strategy of a workload that is not to roll, where the server has parameters of rolling updates that the configuration lacks.
fn excluded(live: &Value, config: &Value) -> Option<&'static str> {
    ["strategy", "updateStrategy"].into_iter().find(|field| {
        let (live, config) = (&live["spec"][field], &config["spec"][field]);
        let rolls = config["type"].as_str().is_none_or(|kind| kind == "RollingUpdate");
        !rolls && config["rollingUpdate"].is_null() && live["rollingUpdate"].is_object()
    })
}

/// Whether something has to become ours before `config` can be applied.
pub(super) fn is_needed(live: &Value, config: &Value) -> bool {
    is_due(live) || excluded(live, config).is_some()
}

/// The JSON patch after which `config` can be applied at the time `now` (RFC 3339), if one is needed. It fails where somebody else has
/// changed the object meanwhile.
pub(super) fn patch(live: &Value, config: &Value, now: &str) -> Option<Value> {
    if !is_needed(live, config) {
        return None;
    }
    let metadata = &live["metadata"];
    let last = last_applied(live).filter(|_| is_due(live));
    let mut fields = Owned::of(live).fields;
    if fields.is_null() {
        fields = json!({});
    }
    let mut left = Vec::new();
    for entry in metadata["managedFields"].as_array().into_iter().flatten() {
        if is_update_by(entry, MANAGER) || (last.is_some() && is_update_by(entry, KUBECTL)) {
            // What the server filled in counts as written too: the annotation knows better what was wished.
            if last.is_none() {
                crate::render::merge(&mut fields, entry["fieldsV1"].clone());
            }
        } else if !is_ours(entry) {
            left.push(entry.clone());
        }
    }
    if let Some(kind) = last.as_ref().and_then(kind_of) {
        let config = super::apply::configuration(last.as_ref().unwrap_or(&Value::Null));
        crate::render::merge(&mut fields, api::managed::configured_fields(kind, &config));
    }
    if let Some(strategy) = excluded(live, config) {
        let strategy = format!("f:{strategy}");
        for entry in &mut left {
            if let Some(fields) = entry["fieldsV1"]["f:spec"][&strategy].as_object_mut() {
                fields.remove("f:rollingUpdate");
            }
        }
        let parameters = json!({"f:maxSurge": {}, "f:maxUnavailable": {}});
        crate::render::merge(
            &mut fields,
            json!({"f:spec": {strategy: {"f:rollingUpdate": parameters}}}),
        );
    }
    let version = last.as_ref().map_or(&live["apiVersion"], |last| &last["apiVersion"]);
    left.push(json!({
        "manager": MANAGER, "operation": "Apply", "apiVersion": version, "time": now,
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    }));
    let mut operations = vec![
        json!({"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}),
        json!({"op": "add", "path": "/metadata/managedFields", "value": left}),
    ];
    if last.is_some() {
        operations.push(json!({"op": "remove", "path": LAST_APPLIED_POINTER}));
    }
    Some(Value::Array(operations))
}

fn is_update_by(entry: &Value, manager: &str) -> bool {
    entry["operation"] == "Update" && entry["manager"] == manager && entry["subresource"].is_null()
}

fn last_applied(live: &Value) -> Option<Value> {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    serde_json::from_str(text).ok().filter(Value::is_object)
}

fn kind_of(object: &Value) -> Option<&'static api::Kind> {
    let (group, version) = api::kinds::split_api_version(object["apiVersion"].as_str()?);
    api::kinds::find_by_kind(group, version, object["kind"].as_str()?)
}

/// What a server stores instead of what was written: a Secret's `stringData` becomes `data`.
pub(super) fn normal(object: &Value) -> Value {
    let mut object = object.clone();
    if object["kind"] != "Secret" {
        return object;
    }
    let Some(Value::Object(strings)) = object.as_object_mut().and_then(|fields| fields.remove("stringData")) else {
        return object;
    };
    for (key, value) in strings {
        object["data"][key] = Value::String(STANDARD.encode(value.as_str().unwrap_or_default()));
    }
    object
}

/// What of an object that [`is_due`] is not as it was applied last; empty: all is. `noted` names what was applied: the text of the
/// annotation, or a Secret's data, which was in no annotation.
pub(crate) fn drifted(live: &Value, noted: Option<&str>) -> Vec<String> {
    if live["kind"] == "Secret" {
        let data: BTreeMap<&String, &Value> = live["data"].as_object().into_iter().flatten().collect();
        let now = oci::Digest::of(serde_json::to_string(&data).unwrap_or_default().as_bytes());
        let differs = noted.is_some_and(|noted| noted != now.as_str());
        return differs.then(|| "data (secret)".to_owned()).into_iter().collect();
    }
    let Some(text) = live["metadata"]["annotations"][LAST_APPLIED].as_str() else {
        return vec![format!(
            "annotation {LAST_APPLIED}, which says what was applied, is gone"
        )];
    };
    if noted.is_some_and(|noted| noted != oci::Digest::of(text.as_bytes()).as_str()) {
        return vec!["somebody else has applied it since".to_owned()];
    }
    let mut fields = Vec::new();
    collect_differing(live, &normal(&last_applied(live).unwrap_or_default()), "", &mut fields);
    fields
}

/// The outermost fields in which `live` lacks what `wanted` says.
pub(super) fn collect_differing(live: &Value, wanted: &Value, at: &str, out: &mut Vec<String>) {
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
                collect_differing(live.get(key).unwrap_or(&Value::Null), value, &at, out);
            }
        }
        (Value::Array(live), Value::Array(wanted)) if live.len() == wanted.len() => {
            for (index, (live, wanted)) in live.iter().zip(wanted).enumerate() {
                collect_differing(live, wanted, &format!("{at}[{index}]"), out);
            }
        }
        _ => {}
    }
    if out.len() == before {
        out.push(at.to_owned());
    }
}

/// Whether `live` has everything that `wanted` says. Lists must be of one length, item by item; what a server leaves out is equal to
/// what it stands for.
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

    /// A ConfigMap as a version before left it, with further managers.
    fn annotated(managers: Value) -> Value {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}});
        let mut live = map.clone();
        live["metadata"]["resourceVersion"] = json!("7");
        live["metadata"]["annotations"] = json!({LAST_APPLIED: map.to_string(), "theirs": "x"});
        if managers.is_array() {
            live["metadata"]["managedFields"] = managers;
        }
        live
    }

    fn entry(manager: &str, operation: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn what_was_applied_on_the_clients_side_becomes_ours() {
        let written = json!({"f:data": {".": {}, "f:x": {}, "f:filled": {}}});
        let theirs = entry("kubectl-edit", "Update", json!({"f:data": {"f:z": {}}}));
        for managers in [
            json!([entry(MANAGER, "Update", written.clone()), theirs]),
            json!([entry(KUBECTL, "Update", written.clone()), theirs]),
        ] {
            let patch = patch(&annotated(managers), &Value::Null, "2026-01-01T00:00:00Z").unwrap();
            assert_eq!(patch[0]["value"], "7");
            let left = patch[1]["value"].as_array().unwrap();
            assert_eq!((left.len(), &left[0]), (2, &theirs));
            assert_eq!(left[1]["fieldsV1"], json!({"f:data": {"f:x": {}}}));
            assert_eq!(
                (&left[1]["operation"], &left[1]["time"]),
                (&json!("Apply"), &json!("2026-01-01T00:00:00Z"))
            );
            assert_eq!(patch[2], json!({"op": "remove", "path": LAST_APPLIED_POINTER}));
        }
        // From before a server noted who owns what.
        let patch = patch(&annotated(Value::Null), &Value::Null, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(patch[1]["value"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn a_secret_has_no_annotation_so_what_was_written_becomes_ours() {
        let live = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"resourceVersion": "7",
            "managedFields": [entry(MANAGER, "Update", json!({"f:data": {"f:k": {}}}))]}});
        let patch = patch(&live, &Value::Null, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(patch[1]["value"][0]["fieldsV1"], json!({"f:data": {"f:k": {}}}));
        assert_eq!(patch.as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn what_is_ours_already_or_somebody_elses_is_left_alone() {
        let ours = entry(MANAGER, "Apply", json!({"f:data": {"f:x": {}}}));
        let mut scaled = entry(MANAGER, "Update", json!({}));
        scaled["subresource"] = json!("scale");
        for managers in [
            json!([ours]),
            json!([ours, entry(KUBECTL, "Update", json!({"f:data": {"f:y": {}}}))]),
            json!([entry("other", "Update", json!({}))]),
            json!([scaled]),
        ] {
            assert!(!is_due(&annotated(managers.clone())), "{managers}");
        }
        let mut plain = annotated(Value::Null);
        plain["metadata"].as_object_mut().unwrap().remove("annotations");
        assert!(!is_due(&plain));
        // A version before was used again after ours.
        let both = annotated(json!([ours, entry(MANAGER, "Update", json!({"f:data": {"f:y": {}}}))]));
        let patch = patch(&both, &Value::Null, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(patch[1]["value"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn what_the_server_filled_in_and_the_manifest_excludes_becomes_ours() {
        let deployment = |strategy: Value| json!({"spec": {"strategy": strategy}});
        let mut live = deployment(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}));
        let theirs = json!({"f:spec": {"f:strategy": {"f:rollingUpdate": {"f:maxSurge": {}}}}});
        live["metadata"]["managedFields"] = json!([entry("kubectl-edit", "Update", theirs)]);
        for strategy in [
            json!({}),
            json!({"type": "RollingUpdate"}),
            json!({"type": "Recreate", "rollingUpdate": {}}),
        ] {
            assert!(!is_needed(&live, &deployment(strategy)));
        }
        let recreate = deployment(json!({"type": "Recreate"}));
        assert!(!is_needed(&recreate, &recreate));
        let patch = patch(&live, &recreate, "2026-01-01T00:00:00Z").unwrap();
        let fields = |entry: usize| &patch[1]["value"][entry]["fieldsV1"]["f:spec"]["f:strategy"];
        assert_eq!(fields(0), &json!({}));
        assert_eq!(
            fields(1)["f:rollingUpdate"],
            json!({"f:maxSurge": {}, "f:maxUnavailable": {}})
        );
    }

    #[test]
    fn drift_of_what_is_not_taken_over_yet_is_read_off_the_annotation() {
        let wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "x", "image": "i:1"}]}}}});
        let noted = oci::Digest::of(wanted.to_string().as_bytes()).to_string();
        let change = |more: Value| {
            let mut live = wanted.clone();
            live["metadata"]["annotations"] = json!({LAST_APPLIED: wanted.to_string()});
            crate::render::merge(&mut live, more);
            drifted(&live, Some(&noted))
        };
        let theirs = json!({"status": {"replicas": 1}, "metadata": {"labels": {"theirs": "x"}}});
        assert_eq!(change(theirs), Vec::<String>::new());
        assert_eq!(change(json!({"spec": {"replicas": 5}})), ["spec.replicas"]);
        let other = json!({"spec": {"template": {"spec": {"containers": [{"name": "x", "image": "evil"}]}}}});
        assert_eq!(change(other), ["spec.template.spec.containers[0].image"]);
        let elsewhere = json!({"metadata": {"annotations": {LAST_APPLIED: "{}"}}});
        assert_eq!(change(elsewhere), ["somebody else has applied it since"]);
        assert_eq!(drifted(&wanted, None).len(), 1, "no annotation");
        let secret = |value: &str| json!({"kind": "Secret", "data": {"a": "Yg==", "k": value}});
        let noted = oci::Digest::of(br#"{"a":"Yg==","k":"dg=="}"#).to_string();
        assert_eq!(drifted(&secret("dg=="), Some(&noted)), Vec::<String>::new());
        assert_eq!(drifted(&secret("b3RoZXI="), Some(&noted)), ["data (secret)"]);
        assert_eq!(drifted(&secret("b3RoZXI="), None), Vec::<String>::new());
    }
}
