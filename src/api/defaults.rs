//! The values that Kubernetes fills in where a client left them out.
//!
//! Defaults depend on nothing but the object itself; what needs look-ups is admission's work.

mod pod;
mod service;
mod workload;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::kinds::Kind;

/// Fills in what Kubernetes would.
pub fn apply(kind: &Kind, object: &mut Value) {
    let Value::Object(root) = object else { return };
    match kind.message {
        "core.v1.Pod" => pod::object(root),
        "core.v1.PodTemplate" => pod::template(root.get_mut("template")),
        "core.v1.Service" => service::service(root),
        "core.v1.Endpoints" => service::endpoints(root),
        "core.v1.Namespace" => namespace(root),
        "core.v1.Secret" => secret(root),
        "core.v1.Node" => node(root),
        "apps.v1.Deployment" => workload::deployment(root),
        "apps.v1.ReplicaSet" => workload::replica_set(root),
        "apps.v1.DaemonSet" => workload::daemon_set(root),
        "discovery.v1.EndpointSlice" => service::endpoint_slice(root),
        "rbac.v1.RoleBinding" | "rbac.v1.ClusterRoleBinding" => binding(root),
        "certificates.v1.CertificateSigningRequest" => certificate_request(root),
        "scheduling.v1.PriorityClass" => default(root, "preemptionPolicy", "PreemptLowerPriority"),
        "storage.v1.StorageClass" => {
            default(root, "reclaimPolicy", "Delete");
            default(root, "volumeBindingMode", "Immediate");
        }
        _ => {}
    }
}

/// Sets a field that is missing or null.
fn default(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    let slot = map.entry(field.to_owned()).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

/// Sets a text that is missing or empty, for fields whose Go type cannot tell the two apart.
fn default_text(map: &mut Map<String, Value>, field: &str, value: &str) {
    if text(map, field).is_empty() {
        map.insert(field.to_owned(), value.into());
    }
}

/// Sets a number that is missing or zero, for fields whose Go type cannot tell the two apart.
fn default_number(map: &mut Map<String, Value>, field: &str, value: i64) {
    if map.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
        map.insert(field.to_owned(), value.into());
    }
}

fn text<'a>(map: &'a Map<String, Value>, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn map_mut<'a>(map: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(field)?.as_object_mut()
}

/// The objects in a list.
fn each<'a>(map: &'a mut Map<String, Value>, field: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn namespace(root: &mut Map<String, Value>) {
    let Some(metadata) = map_mut(root, "metadata") else {
        return;
    };
    let name = text(metadata, "name").to_owned();
    if name.is_empty() {
        return;
    }
    default(metadata, "labels", json!({}));
    if let Some(labels) = map_mut(metadata, "labels") {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
    default(root, "status", json!({}));
    if let Some(status) = map_mut(root, "status") {
        default_text(status, "phase", "Active");
    }
}

/// `stringData` is only a way to write `data`.
fn secret(root: &mut Map<String, Value>) {
    default_text(root, "type", "Opaque");
    let Some(Value::Object(plain)) = root.remove("stringData") else {
        return;
    };
    if plain.is_empty() {
        return;
    }
    default(root, "data", json!({}));
    if let Some(data) = map_mut(root, "data") {
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
}

/// What a node can give to pods is all it has, unless it says otherwise.
fn node(root: &mut Map<String, Value>) {
    let Some(status) = map_mut(root, "status") else { return };
    if let Some(capacity) = status.get("capacity").cloned() {
        default(status, "allocatable", json!({}));
        let (Some(allocatable), Value::Object(capacity)) = (map_mut(status, "allocatable"), capacity) else {
            return;
        };
        for (name, quantity) in capacity {
            default(allocatable, &name, quantity);
        }
    }
}

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

fn binding(root: &mut Map<String, Value>) {
    if let Some(role) = map_mut(root, "roleRef") {
        default_text(role, "apiGroup", RBAC_GROUP);
    }
    for subject in each(root, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default_text(subject, "apiGroup", RBAC_GROUP);
        }
    }
}

fn certificate_request(root: &mut Map<String, Value>) {
    if let Some(spec) = map_mut(root, "spec") {
        default(spec, "usages", json!(["digital signature", "key encipherment"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    pub(super) fn check(group: &str, plural: &str, mut object: Value, expected: Value) {
        let kind = find(group, "v1", plural).unwrap();
        apply(kind, &mut object);
        assert_eq!(object, expected);
        apply(kind, &mut object);
        assert_eq!(object, expected, "defaulting twice changes something");
    }

    #[test]
    fn a_namespace_is_labelled_with_its_name() {
        check(
            "",
            "namespaces",
            json!({"metadata": {"name": "a"}}),
            json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}}, "status": {"phase": "Active"}}),
        );
    }

    #[test]
    fn subjects_and_roles_get_their_group() {
        check(
            RBAC_GROUP,
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
            json!({
                "roleRef": {"kind": "Role", "name": "r", "apiGroup": RBAC_GROUP},
                "subjects": [{"kind": "User", "name": "u", "apiGroup": RBAC_GROUP}, {"kind": "ServiceAccount", "name": "s"}],
            }),
        );
    }

    #[test]
    fn allocatable_is_capacity_where_it_is_not_said() {
        check(
            "",
            "nodes",
            json!({"status": {"capacity": {"cpu": "2", "memory": "1Gi"}, "allocatable": {"cpu": "1"}}}),
            json!({"status": {"capacity": {"cpu": "2", "memory": "1Gi"}, "allocatable": {"cpu": "1", "memory": "1Gi"}}}),
        );
    }
}
