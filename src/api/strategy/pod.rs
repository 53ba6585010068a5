//! What a new pod begins with.

use serde_json::{Value, json};

use super::qos_class;
use crate::metadata::{self, child_mut};

/// Annotations that named the AppArmor profile of a container before there was a field for it; the container's name follows.
pub(crate) const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Sets the status of a new pod, and moves what old annotations ask for into fields.
pub(super) fn created(pod: &mut Value) {
    apparmor_fields(pod);
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(&pod["spec"])});
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": null,
        }]);
    }
    metadata::as_map(pod).insert("status".to_owned(), status);
}

/// The profile that an annotation's value means, in the form of the field. None if it means none.
pub(crate) fn apparmor_profile(annotation: &str) -> Option<Value> {
    match annotation {
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        "unconfined" => Some(json!({"type": "Unconfined"})),
        other => {
            let name = other.strip_prefix("localhost/").filter(|n| !n.is_empty())?;
            Some(json!({"type": "Localhost", "localhostProfile": name}))
        }
    }
}

/// Only fields are read when a container starts, so a profile that is asked for by annotation would be left out.
fn apparmor_fields(pod: &mut Value) {
    let annotations = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    if !annotations.keys().any(|k| k.starts_with(APPARMOR_ANNOTATION)) {
        return;
    }
    let of_pod = pod["spec"]["securityContext"]["appArmorProfile"].clone();
    for list in ["containers", "initContainers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for c in containers.into_iter().flatten() {
            let key = format!("{APPARMOR_ANNOTATION}{}", c["name"].as_str().unwrap_or_default());
            let profile = annotations.get(&key).and_then(Value::as_str).and_then(apparmor_profile);
            let Some(profile) = profile.filter(|p| *p != of_pod) else {
                continue;
            };
            if c["securityContext"]["appArmorProfile"].is_null() {
                child_mut(c, "securityContext").insert("appArmorProfile".to_owned(), profile);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_in_annotations_become_fields() {
        let annotated = |value: &str, context: Value| {
            let mut pod = json!({"metadata": {"annotations": {format!("{APPARMOR_ANNOTATION}c"): value}},
                "spec": {"securityContext": context, "containers": [{"name": "c"}, {"name": "d"}]}});
            created(&mut pod);
            assert!(pod["spec"]["containers"][1].get("securityContext").is_none());
            pod["spec"]["containers"][0]["securityContext"]["appArmorProfile"].clone()
        };
        for (value, of_pod, expected) in [
            ("runtime/default", json!({}), json!({"type": "RuntimeDefault"})),
            ("unconfined", json!({}), json!({"type": "Unconfined"})),
            (
                "localhost/x",
                json!({}),
                json!({"type": "Localhost", "localhostProfile": "x"}),
            ),
            ("localhost/", json!({}), json!(null)),
            (
                "runtime/default",
                json!({"appArmorProfile": {"type": "RuntimeDefault"}}),
                json!(null),
            ),
            (
                "unconfined",
                json!({"appArmorProfile": {"type": "RuntimeDefault"}}),
                json!({"type": "Unconfined"}),
            ),
        ] {
            assert_eq!(annotated(value, of_pod), expected, "{value}");
        }
    }

    #[test]
    fn a_field_is_kept_beside_an_annotation() {
        let mut pod = json!({"metadata": {"annotations": {format!("{APPARMOR_ANNOTATION}c"): "unconfined"}},
            "spec": {"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}]}});
        created(&mut pod);
        let context = &pod["spec"]["containers"][0]["securityContext"];
        assert_eq!(context["appArmorProfile"]["type"], "RuntimeDefault");
    }
}
