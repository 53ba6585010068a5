//! Cells of volumes, claims and storage classes.

use super::{join, list, word};
use serde_json::Value;

fn access_modes(modes: &Value) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    join(list(modes).iter().filter_map(Value::as_str).map(short))
}

pub(super) fn persistent_volume(o: &Value, name: Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let claim = &spec["claimRef"];
    let claim = match claim["name"].as_str() {
        Some(name) => format!("{}/{name}", claim["namespace"].as_str().unwrap_or_default()),
        None => String::new(),
    };
    vec![
        name,
        word(&spec["capacity"]["storage"], ""),
        access_modes(&spec["accessModes"]).into(),
        word(&spec["persistentVolumeReclaimPolicy"], ""),
        word(&status["phase"], ""),
        claim.into(),
        word(&spec["storageClassName"], ""),
        word(&spec["volumeAttributesClassName"], "<unset>"),
        word(&status["reason"], ""),
        age,
        word(&spec["volumeMode"], "<unset>"),
    ]
}

pub(super) fn persistent_volume_claim(o: &Value, name: Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let phase = if o["metadata"]["deletionTimestamp"].is_null() {
        word(&status["phase"], "")
    } else {
        "Terminating".into()
    };
    vec![
        name,
        phase,
        word(&spec["volumeName"], ""),
        word(&status["capacity"]["storage"], ""),
        access_modes(&status["accessModes"]).into(),
        word(&spec["storageClassName"], ""),
        word(&spec["volumeAttributesClassName"], "<unset>"),
        age,
        word(&spec["volumeMode"], "<unset>"),
    ]
}

pub(super) fn storage_class(o: &Value, name: Value, age: Value) -> Vec<Value> {
    let is_default = o["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
    let name = match name.as_str() {
        Some(name) if is_default => format!("{name} (default)").into(),
        _ => name,
    };
    vec![
        name,
        word(&o["provisioner"], ""),
        word(&o["reclaimPolicy"], "Delete"),
        word(&o["volumeBindingMode"], "Immediate"),
        o["allowVolumeExpansion"].as_bool().unwrap_or(false).to_string().into(),
        age,
    ]
}
