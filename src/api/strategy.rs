//! What a server sets, keeps and resets around a write: the part of an object's life that no client may decide.
//!
//! Names, UIDs and times of creation are the caller's; validation comes after.

mod delete;
mod pod;
mod qos;
mod service;

use serde_json::{Map, Value, json};

use crate::defaults;
use crate::kinds::Kind;
use crate::metadata::{self, child_mut};

pub use delete::{Deletion, delete, ends, preconditions};
pub(crate) use pod::{APPARMOR_ANNOTATION, apparmor_profile};
pub use qos::qos_class;

/// Kinds whose metadata carry a generation that follows the spec.
fn has_generation(kind: &Kind) -> bool {
    matches!(
        kind.message,
        "core.v1.Pod"
            | "apps.v1.Deployment"
            | "apps.v1.ReplicaSet"
            | "apps.v1.DaemonSet"
            | "policy.v1.PodDisruptionBudget"
            | "discovery.v1.EndpointSlice"
            | "scheduling.v1.PriorityClass"
    )
}

/// Prepares an object for creation. Defaults are filled in first, as the class of a pod depends on them.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    defaults::apply(kind, object);
    let meta = metadata::metadata_mut(object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
    ] {
        meta.remove(field);
    }
    if has_generation(kind) {
        meta.insert("generation".to_owned(), 1.into());
    }
    let root = metadata::as_map(object);
    match kind.message {
        "core.v1.Pod" => pod::created(object),
        "core.v1.Namespace" => namespace_created(object),
        // A node's agent registers it together with what it has.
        "core.v1.Node" => {}
        _ if kind.has_status() => {
            root.remove("status");
        }
        _ => {}
    }
}

/// The `kubernetes` finalizer holds a namespace until its content is gone.
fn namespace_created(namespace: &mut Value) {
    let spec = child_mut(namespace, "spec");
    let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
    match finalizers {
        Value::Array(list) if list.iter().any(|f| f == "kubernetes") => {}
        Value::Array(list) => list.push("kubernetes".into()),
        other => *other = json!(["kubernetes"]),
    }
    metadata::as_map(namespace).insert("status".to_owned(), json!({"phase": "Active"}));
}

/// Which fields a way of writing can change, as paths of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All but these and what is below them.
    AllBut(&'static [&'static [&'static str]]),
    /// Only these and what is below them.
    Only(&'static [&'static [&'static str]]),
}

/// Which fields of an object of the kind a write can change, given the subresource it goes through: nobody comes to own what
/// [`prepare_update`] keeps. The server's own part of the metadata is not told here.
pub fn reach(kind: &Kind, subresource: Option<&str>) -> Reach {
    match (subresource, kind.message) {
        (None, "core.v1.Namespace") => Reach::AllBut(&[&["status"], &["spec", "finalizers"]]),
        (None, _) if kind.has_status() => Reach::AllBut(&[&["status"]]),
        (Some("status"), "core.v1.Pod") => Reach::AllBut(&[&["spec"], &["metadata", "ownerReferences"]]),
        (Some("status"), "apps.v1.Deployment") => Reach::AllBut(&[&["spec"], &["metadata", "labels"]]),
        (Some("status"), _) => Reach::AllBut(&[&["spec"]]),
        (Some("approval"), _) => Reach::AllBut(&[&["spec"], &["status", "certificate"]]),
        (Some("finalize"), _) => Reach::AllBut(&[&["status"]]),
        (Some("ephemeralcontainers"), _) => Reach::Only(&[&["spec", "ephemeralContainers"]]),
        (Some("scale"), _) => Reach::Only(&[&["spec", "replicas"]]),
        _ => Reach::AllBut(&[]),
    }
}

/// Prepares a change: keeps what this way of writing may not touch, and bumps the generation with the spec.
pub fn prepare_update(kind: &Kind, new: &mut Value, old: &Value, subresource: Option<&str>) {
    // What is left out means its default, so only after that it is known whether the spec differs.
    defaults::apply(kind, new);
    keep_metadata(new, old);
    match subresource {
        None => main_update(kind, new, old),
        Some("status") => status_update(kind, new, old),
        Some("approval") => {
            keep(new, old, "spec");
            let certificate = old["status"].get("certificate").cloned();
            put(child_mut(new, "status"), "certificate", certificate);
        }
        Some("finalize") => keep(new, old, "status"),
        Some("ephemeralcontainers") => {
            let containers = new["spec"].get("ephemeralContainers").cloned();
            let kept = ["resourceVersion", "managedFields"].map(|f| (f, new["metadata"].get(f).cloned()));
            *new = old.clone();
            put(child_mut(new, "spec"), "ephemeralContainers", containers);
            for (field, value) in kept {
                put(metadata::metadata_mut(new), field, value);
            }
        }
        Some(_) => {}
    }
    if kind.message == "certificates.v1.CertificateSigningRequest" {
        keep_decision(new, old, subresource);
    }
    let spec_written = matches!(subresource, None | Some("ephemeralcontainers" | "scale" | "resize"));
    if has_generation(kind) {
        let was = metadata::generation(old);
        let now = if spec_written && desire_changed(kind, new, old) {
            was + 1
        } else {
            was
        };
        metadata::set(new, "generation", if now > 0 { now.into() } else { Value::Null });
    }
}

fn put(map: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(v) if !v.is_null() => {
            map.insert(field.to_owned(), v);
        }
        _ => {
            map.remove(field);
        }
    }
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    put(metadata::as_map(new), field, old.get(field).cloned());
}

/// What of the metadata is the server's alone. A UID that is given is left, so that it can be compared.
fn keep_metadata(new: &mut Value, old: &Value) {
    let meta = metadata::metadata_mut(new);
    for field in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ] {
        put(meta, field, old["metadata"].get(field).cloned());
    }
    for field in ["uid", "name", "namespace"] {
        if meta.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
            put(meta, field, old["metadata"].get(field).cloned());
        }
    }
}

fn main_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.has_status() {
        keep(new, old, "status");
    }
    match kind.message {
        "core.v1.Namespace" => {
            let finalizers = old["spec"].get("finalizers").cloned();
            put(child_mut(new, "spec"), "finalizers", finalizers);
        }
        "certificates.v1.CertificateSigningRequest" => keep(new, old, "spec"),
        "core.v1.Service" => service::drop_unused(new, old),
        // The server gave the pod these; a client that does not send them back does not mean to change them.
        "core.v1.Pod" => {
            for field in ["priority", "preemptionPolicy"] {
                let given = old["spec"].get(field).cloned();
                let spec = child_mut(new, "spec");
                if spec.get(field).is_none_or(Value::is_null) {
                    put(spec, field, given);
                }
            }
        }
        _ => {}
    }
}

fn status_update(kind: &Kind, new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    let meta = |field: &str| old["metadata"].get(field).cloned();
    match kind.message {
        "core.v1.Pod" => put(metadata::metadata_mut(new), "ownerReferences", meta("ownerReferences")),
        "apps.v1.Deployment" => put(metadata::metadata_mut(new), "labels", meta("labels")),
        _ => {}
    }
}

/// Approval and denial are decided through `approval` only: what a write of the status says of them is what was there. One
/// that adds or removes such a condition is left for validation to refuse.
fn keep_decision(new: &mut Value, old: &Value, subresource: Option<&str>) {
    if subresource != Some("status") {
        return;
    }
    for decision in ["Approved", "Denied"] {
        let of = |v: &Value| -> Vec<usize> {
            let list = v["status"]["conditions"].as_array().into_iter().flatten().enumerate();
            list.filter(|(_, c)| c["type"] == decision).map(|(i, _)| i).collect()
        };
        let (now, before) = (of(new), of(old));
        if now.len() == before.len() {
            for (i, j) in now.into_iter().zip(before) {
                new["status"]["conditions"][i] = old["status"]["conditions"][j].clone();
            }
        }
    }
}

/// Whether what the object asks for differs.
fn desire_changed(kind: &Kind, new: &Value, old: &Value) -> bool {
    let differs = |a: &Value, b: &Value| without_nulls(a) != without_nulls(b);
    match kind.message {
        "apps.v1.Deployment" => {
            differs(&new["spec"], &old["spec"])
                || differs(&new["metadata"]["annotations"], &old["metadata"]["annotations"])
        }
        "discovery.v1.EndpointSlice" => {
            ["addressType", "endpoints", "ports"]
                .iter()
                .any(|f| differs(&new[*f], &old[*f]))
                || differs(&new["metadata"]["labels"], &old["metadata"]["labels"])
        }
        "scheduling.v1.PriorityClass" => false,
        _ => differs(&new["spec"], &old["spec"]),
    }
}

/// The value without fields that say nothing.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), without_nulls(v)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// Whether an update without a resource version is allowed.
pub fn allows_unconditional_update(kind: &Kind) -> bool {
    !matches!(
        kind.message,
        "core.v1.Namespace"
            | "core.v1.ServiceAccount"
            | "coordination.v1.Lease"
            | "node.v1.RuntimeClass"
            | "policy.v1.PodDisruptionBudget"
    )
}

/// Whether an update of an object that is not there creates it.
pub fn allows_create_on_update(kind: &Kind) -> bool {
    matches!(
        kind.message,
        "core.v1.Endpoints"
            | "core.v1.Event"
            | "events.v1.Event"
            | "core.v1.Service"
            | "coordination.v1.Lease"
            | "rbac.v1.Role"
            | "rbac.v1.ClusterRole"
            | "rbac.v1.RoleBinding"
            | "rbac.v1.ClusterRoleBinding"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    #[test]
    fn a_new_pod_is_pending_whatever_it_claims() {
        let kind = find("", "v1", "pods").unwrap();
        let mut pod = json!({"metadata": {"generation": 7, "deletionTimestamp": "x"}, "spec": {}, "status": {"phase": "Running"}});
        prepare_create(kind, &mut pod);
        assert_eq!(pod["metadata"], json!({"generation": 1}));
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    }

    #[test]
    fn limits_alone_guarantee() {
        let kind = find("", "v1", "pods").unwrap();
        let mut pod =
            json!({"metadata": {}, "spec": {"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}});
        prepare_create(kind, &mut pod);
        assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    }

    #[test]
    fn leaving_a_default_out_is_no_change() {
        let kind = find("apps", "v1", "replicasets").unwrap();
        let plain = json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}});
        let mut old = plain.clone();
        prepare_create(kind, &mut old);
        let mut new = plain;
        prepare_update(kind, &mut new, &old, None);
        assert_eq!(new["metadata"]["generation"], 1);
    }

    #[test]
    fn a_namespace_is_held_by_its_finalizer() {
        let kind = find("", "v1", "namespaces").unwrap();
        let mut n = json!({"metadata": {"name": "a"}});
        prepare_create(kind, &mut n);
        assert_eq!(n["spec"]["finalizers"], json!(["kubernetes"]));
        assert_eq!(n["status"]["phase"], "Active");
        let old = n.clone();
        n["spec"]["finalizers"] = json!([]);
        let mut finalized = n.clone();
        prepare_update(kind, &mut n, &old, None);
        assert_eq!(n["spec"]["finalizers"], json!(["kubernetes"]));
        prepare_update(kind, &mut finalized, &old, Some("finalize"));
        assert_eq!(finalized["spec"]["finalizers"], json!([]));
    }

    #[test]
    fn each_way_of_writing_touches_its_own_half() {
        let kind = find("apps", "v1", "replicasets").unwrap();
        let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let wish = json!({"metadata": {"name": "a"}, "spec": {"replicas": 2}, "status": {"replicas": 9}});
        let mut main = wish.clone();
        prepare_update(kind, &mut main, &old, None);
        assert_eq!(
            main,
            json!({"metadata": {"name": "a", "uid": "u", "generation": 4}, "spec": {"replicas": 2}, "status": {"replicas": 1}})
        );
        let mut status = wish;
        prepare_update(kind, &mut status, &old, Some("status"));
        assert_eq!(
            status,
            json!({"metadata": {"name": "a", "uid": "u", "generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 9}})
        );
    }

    #[test]
    fn what_is_out_of_reach_is_kept() {
        let filled = |text: &str| {
            json!({
                "metadata": {"name": "a", "labels": {"x": text}, "annotations": {"x": text}, "finalizers": [text], "ownerReferences": [{"uid": text}]},
                "spec": {"x": text, "finalizers": [text], "ephemeralContainers": [{"name": text}]},
                "status": {"x": text, "certificate": text},
            })
        };
        let paths = [
            &["metadata", "labels"][..],
            &["metadata", "annotations"],
            &["metadata", "finalizers"],
            &["metadata", "ownerReferences"],
            &["spec", "x"],
            &["spec", "finalizers"],
            &["spec", "ephemeralContainers"],
            &["status", "x"],
            &["status", "certificate"],
        ];
        for kind in crate::kinds::kinds().iter().filter(|k| k.has_status()) {
            let ways = [
                None,
                Some("status"),
                Some("approval"),
                Some("finalize"),
                Some("ephemeralcontainers"),
            ];
            for way in ways
                .into_iter()
                .filter(|w| w.is_none_or(|w| kind.subresource(w).is_some()))
            {
                let old = filled("old");
                let mut new = filled("new");
                prepare_update(kind, &mut new, &old, way);
                for path in paths {
                    let kept = new[path[0]][path[1]] == old[path[0]][path[1]];
                    let beyond = match reach(kind, way) {
                        Reach::AllBut(out) => out.iter().any(|o| path.starts_with(o)),
                        Reach::Only(within) => !within.iter().any(|o| path.starts_with(o)),
                    };
                    // The whole spec of a request is kept after its creation, but whoever created it owns it.
                    let request = kind.plural == "certificatesigningrequests" && way.is_none() && path[0] == "spec";
                    assert!(kept == beyond || request, "{} {way:?} {path:?}", kind.kind);
                }
            }
        }
    }

    #[test]
    fn status_cannot_approve_a_certificate() {
        let kind = find("certificates.k8s.io", "v1", "certificatesigningrequests").unwrap();
        let old = json!({"metadata": {"name": "a"}, "spec": {"request": "r"}});
        let wish =
            json!({"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Approved"}], "certificate": "c"}});
        let mut status = wish.clone();
        prepare_update(kind, &mut status, &old, Some("status"));
        let refused = crate::validation::validate_update(kind, &status, &old, Some("status"));
        let told: Vec<_> = refused.iter().map(ToString::to_string).collect();
        assert!(
            told.contains(
                &"status.conditions: Forbidden: updates may not add a condition of type \"Approved\"".to_owned()
            ),
            "{told:?}"
        );
        let mut approval = wish;
        prepare_update(kind, &mut approval, &old, Some("approval"));
        assert_eq!(approval["status"], json!({"conditions": [{"type": "Approved"}]}));
        assert_eq!(approval["spec"]["request"], "r");
        // What a decision says is not changed with the status either.
        let mut reworded = json!({"metadata": {"name": "a"}, "status": {"certificate": "c", "conditions": [
            {"type": "Failed"}, {"type": "Approved", "reason": "mine"}]}});
        prepare_update(kind, &mut reworded, &approval, Some("status"));
        assert_eq!(
            reworded["status"]["conditions"],
            json!([{"type": "Failed"}, {"type": "Approved"}])
        );
    }

    #[test]
    fn metadata_is_changed_through_subresources_where_kubernetes_does() {
        let with = |text: &str| {
            json!({"metadata": {"name": "a", "labels": {"x": text}, "annotations": {"x": text}, "finalizers": [text],
                "ownerReferences": [{"uid": text}]}, "spec": {}, "status": {}})
        };
        for kind in crate::kinds::kinds() {
            for way in ["status", "approval", "finalize"] {
                if kind.subresource(way).is_none() {
                    continue;
                }
                let mut new = with("new");
                prepare_update(kind, &mut new, &with("old"), Some(way));
                let kept: Vec<_> = ["labels", "annotations", "finalizers", "ownerReferences"]
                    .into_iter()
                    .filter(|f| new["metadata"][*f] == with("old")["metadata"][*f])
                    .collect();
                let expected: &[&str] = match (kind.kind, way) {
                    ("Deployment", "status") => &["labels"],
                    ("Pod", "status") => &["ownerReferences"],
                    _ => &[],
                };
                assert_eq!(kept, expected, "{}/{way}", kind.kind);
            }
        }
    }
}
