//! Nodes, namespaces, priorities, runtimes, storage classes, leases and events.

use serde_json::Value;

use super::rules::{
    Errors, entries, has, immutable, items, named, quantity, required, required_choice, required_name, same, supported,
    text,
};
use super::{FieldError, meta, names};

/// Highest priority that users may give.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

/// A Node.
pub(super) fn node(out: &mut Errors, n: &Value) {
    let taints = items(&n["spec"], "taints");
    for (i, t) in taints.iter().enumerate() {
        let at = format!("spec.taints[{i}]");
        required_name(out, format!("{at}.key"), text(t, "key"), names::qualified_name);
        named(out, format!("{at}.value"), text(t, "value"), names::label_value);
        required_choice(out, t, &at, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
        let twin = |x: &Value| text(x, "key") == text(t, "key") && text(x, "effect") == text(t, "effect");
        if taints[..i].iter().any(twin) {
            out.push(FieldError::duplicate(at, t));
        }
    }
    for list in ["capacity", "allocatable"] {
        for (name, v) in entries(&n["status"], list) {
            let at = format!("status.{list}.{name}");
            named(out, at.clone(), name, names::qualified_name);
            quantity(out, at, v);
        }
    }
}

/// What of a node may not change once it is there.
pub(super) fn node_update(out: &mut Errors, new: &Value, old: &Value) {
    node(out, new);
    let (n, o) = (&new["spec"], &old["spec"]);
    if !items(o, "podCIDRs").is_empty() && !same(&n["podCIDRs"], &o["podCIDRs"]) {
        out.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    if !text(o, "providerID").is_empty() && text(n, "providerID") != text(o, "providerID") {
        out.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
}

/// A Namespace.
pub(super) fn namespace(out: &mut Errors, n: &Value) {
    for (i, f) in items(&n["spec"], "finalizers").iter().enumerate() {
        meta::finalizer(out, format!("spec.finalizers[{i}]"), f.as_str().unwrap_or_default());
    }
}

/// A PriorityClass. The two of the system are admitted by admission, not refused here.
pub(super) fn priority_class(out: &mut Errors, p: &Value) {
    let name = text(&p["metadata"], "name");
    let built_in = matches!(name, "system-cluster-critical" | "system-node-critical");
    if name.starts_with("system-") && !built_in {
        let why = "priority class names with 'system-' prefix are reserved for system use only";
        out.push(FieldError::forbidden("metadata.name", why));
    }
    if !built_in && p["value"].as_i64().is_some_and(|n| n > USER_PRIORITY_MAX) {
        let why = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        out.push(FieldError::forbidden("value", why));
    }
    supported(out, p, "", "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
}

/// A priority keeps its value, since pods have taken it already.
pub(super) fn priority_class_update(out: &mut Errors, new: &Value, old: &Value) {
    if new["value"].as_i64().unwrap_or(0) != old["value"].as_i64().unwrap_or(0) {
        out.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    if text(new, "preemptionPolicy") != text(old, "preemptionPolicy") {
        let at = "preemptionPolicy";
        out.push(FieldError::invalid(at, &new[at], "field is immutable"));
    }
}

/// A RuntimeClass.
pub(super) fn runtime_class(out: &mut Errors, r: &Value, old: Option<&Value>) {
    required_name(out, "handler".to_owned(), text(r, "handler"), names::dns1123_label);
    for (name, v) in entries(&r["overhead"], "podFixed") {
        quantity(out, format!("overhead.podFixed.{name}"), v);
    }
    if let Some(old) = old {
        immutable(out, r, old, "", "handler");
    }
}

/// A StorageClass.
pub(super) fn storage_class(out: &mut Errors, s: &Value, old: Option<&Value>) {
    required_name(
        out,
        "provisioner".to_owned(),
        &text(s, "provisioner").to_lowercase(),
        names::qualified_name,
    );
    supported(out, s, "", "reclaimPolicy", &["Delete", "Retain"]);
    supported(out, s, "", "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
    let Some(old) = old else { return };
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if !same(&s[field], &old[field]) {
            out.push(FieldError::forbidden(
                field,
                format!("updates to {field} are forbidden."),
            ));
        }
    }
    immutable(out, s, old, "", "volumeBindingMode");
}

/// A Lease.
pub(super) fn lease(out: &mut Errors, l: &Value) {
    let s = &l["spec"];
    if s["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        out.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            &s["leaseDurationSeconds"],
            "must be greater than 0",
        ));
    }
    if s["leaseTransitions"].as_i64().is_some_and(|n| n < 0) {
        let why = "must be greater than or equal to 0";
        out.push(FieldError::invalid(
            "spec.leaseTransitions",
            &s["leaseTransitions"],
            why,
        ));
    }
}

/// A core Event: it lives where what it is about lives.
pub(super) fn event(out: &mut Errors, e: &Value) {
    let (own, about) = (
        text(&e["metadata"], "namespace"),
        text(&e["involvedObject"], "namespace"),
    );
    let cluster_scoped = about.is_empty() && matches!(own, "default" | "kube-system");
    if own != about && !cluster_scoped {
        out.push(FieldError::invalid_text(
            "involvedObject.namespace",
            about,
            "does not match event.namespace",
        ));
    }
}

/// An `events.k8s.io` Event, which must say more than a core one.
pub(super) fn events_event(out: &mut Errors, e: &Value) {
    let (own, about) = (text(&e["metadata"], "namespace"), text(&e["regarding"], "namespace"));
    if own != about && !(about.is_empty() && matches!(own, "default" | "kube-system")) {
        out.push(FieldError::invalid_text(
            "regarding.namespace",
            about,
            "does not match event.namespace",
        ));
    }
    if !has(e, "eventTime") {
        out.push(FieldError::required("eventTime", ""));
    }
    for field in ["reportingController", "reportingInstance", "reason", "action"] {
        required(out, e, "", field);
    }
    required_choice(out, e, "", "type", &["Normal", "Warning"]);
    if text(e, "note").len() > 1024 {
        out.push(FieldError::too_long("note", 1024));
    }
}

/// A Binding of a pod to a node.
pub(super) fn binding(out: &mut Errors, b: &Value) {
    let target = &b["target"];
    if !matches!(text(target, "kind"), "" | "Node") {
        out.push(FieldError::not_supported(
            "target.kind",
            text(target, "kind"),
            &["Node", "<empty>"],
        ));
    }
    required(out, target, "target", "name");
}
