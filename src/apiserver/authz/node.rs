//! The Node authorizer: a kubelet may touch its own Node, its Lease and CSINode, the pods bound to it, and only those
//! Secrets, ConfigMaps, claims, volumes and service accounts that its pods refer to.
//!
//! The references are read from the pod cache when asked, not kept as a graph: a node has at most a few hundred pods.

use serde_json::Value;

use super::{Attributes, Decision};
use crate::authn::User;
use crate::cache::{Cache, KindCache, Object};

const PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";

/// The node name of a kubelet's identity.
pub fn node_name(user: &User) -> Option<&str> {
    user.name
        .strip_prefix(PREFIX)
        .filter(|n| !n.is_empty() && user.in_group(GROUP))
}

pub(super) fn decide(cache: &Cache, user: &User, a: &Attributes) -> Decision {
    let Some(node) = node_name(user) else {
        return Decision::NoOpinion(String::new());
    };
    if !a.resource_request {
        return Decision::NoOpinion(String::new());
    }
    if allowed(cache, node, a) {
        return Decision::Allow(format!("node {node}"));
    }
    Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
}

fn allowed(cache: &Cache, node: &str, a: &Attributes) -> bool {
    let read = matches!(a.verb.as_str(), "get" | "list" | "watch");
    let write = matches!(a.verb.as_str(), "create" | "update" | "patch" | "delete");
    match (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) {
        ("", "nodes", "") if a.verb == "create" => a.name.is_empty() || a.name == node,
        ("", "nodes", "") => (read || matches!(a.verb.as_str(), "update" | "patch")) && a.name == node,
        ("", "nodes", "status") => a.name == node && matches!(a.verb.as_str(), "get" | "update" | "patch"),
        ("", "services", "") => read,
        ("", "events", "") | ("events.k8s.io", "events", "") => {
            matches!(a.verb.as_str(), "create" | "update" | "patch")
        }
        ("", "pods", "") => pods(cache, node, a),
        ("", "pods", "status") => {
            matches!(a.verb.as_str(), "update" | "patch") && owns_pod(cache, node, &a.namespace, &a.name)
        }
        ("", "pods", "eviction") => a.verb == "create" && owns_pod(cache, node, &a.namespace, &a.name),
        ("", "secrets" | "configmaps", "") => read && !a.name.is_empty() && referenced(cache, node, a),
        ("", "persistentvolumeclaims", "") => {
            matches!(a.verb.as_str(), "get" | "list" | "watch") && referenced(cache, node, a)
        }
        ("", "persistentvolumes", "") => a.verb == "get",
        ("", "serviceaccounts", "token") => a.verb == "create" && referenced(cache, node, a),
        ("", "serviceaccounts", "") => a.verb == "get" && referenced(cache, node, a),
        ("coordination.k8s.io", "leases", "") => {
            (read || write)
                && a.namespace == "kube-node-lease"
                && (a.name == node || (a.verb == "create" && a.name.is_empty()))
        }
        ("storage.k8s.io", "csinodes", "") => (read || write) && (a.name == node || a.verb == "create"),
        ("storage.k8s.io", "csidrivers" | "volumeattachments", "") => read,
        ("node.k8s.io", "runtimeclasses", "") => read,
        ("certificates.k8s.io", "certificatesigningrequests", "") => a.verb == "create" || read,
        ("certificates.k8s.io", "certificatesigningrequests", "selfnodeclient") => a.verb == "create",
        ("authentication.k8s.io", "tokenreviews", "") => a.verb == "create",
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => a.verb == "create",
        _ => false,
    }
}

fn pods(cache: &Cache, node: &str, a: &Attributes) -> bool {
    match a.verb.as_str() {
        // Mirror pods; admission checks that they are bound to this node.
        "create" => true,
        "list" | "watch" => {
            a.field_selector.split(',').any(|t| {
                let t = t.trim();
                t.strip_prefix("spec.nodeName=")
                    .is_some_and(|v| v.trim_start_matches('=') == node)
            }) || (!a.name.is_empty() && owns_pod(cache, node, &a.namespace, &a.name))
        }
        "get" | "delete" => owns_pod(cache, node, &a.namespace, &a.name),
        _ => false,
    }
}

fn owns_pod(cache: &Cache, node: &str, namespace: &str, name: &str) -> bool {
    let Some(pods) = cache.kind("", "pods") else {
        return false;
    };
    // A pod that is gone is answered with 404, not 403, so that the kubelet learns of it.
    pods.get(namespace, name).is_none_or(|p| bound_to(&pods, &p, node))
}

fn bound_to(pods: &KindCache, pod: &Object, node: &str) -> bool {
    let at = pods.spec.fields.iter().position(|f| *f == "spec.nodeName");
    at.and_then(|i| pod.fields.get(i)).is_some_and(|n| **n == *node)
}

fn referenced(cache: &Cache, node: &str, a: &Attributes) -> bool {
    let Some(pods) = cache.kind("", "pods") else {
        return false;
    };
    let own = pods.list(&a.namespace, 0, |p| bound_to(&pods, p, node));
    own.items.iter().any(|p| refers(&p.value(), &a.resource, &a.name))
}

/// Whether a pod refers to the object.
fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let is = |v: &Value| v == name;
    match resource {
        "serviceaccounts" => is(&spec["serviceAccountName"]),
        "secrets" => {
            items(&spec["imagePullSecrets"]).any(|s| is(&s["name"]))
                || volumes(spec).any(|v| {
                    is(&v["secret"]["secretName"])
                        || [
                            "azureFile",
                            "cephfs",
                            "flexVolume",
                            "rbd",
                            "scaleIO",
                            "storageos",
                            "iscsi",
                        ]
                        .iter()
                        .any(|k| is(&v[k]["secretRef"]["name"]) || is(&v[k]["secretName"]))
                        || is(&v["csi"]["nodePublishSecretRef"]["name"])
                        || items(&v["projected"]["sources"]).any(|s| is(&s["secret"]["name"]))
                })
                || environment(spec, "secretKeyRef", "secretRef").any(&is)
        }
        "configmaps" => {
            volumes(spec).any(|v| {
                is(&v["configMap"]["name"]) || items(&v["projected"]["sources"]).any(|s| is(&s["configMap"]["name"]))
            }) || environment(spec, "configMapKeyRef", "configMapRef").any(&is)
        }
        "persistentvolumeclaims" => volumes(spec).any(|v| {
            is(&v["persistentVolumeClaim"]["claimName"])
                || (v["ephemeral"].is_object()
                    && format!(
                        "{}-{}",
                        pod["metadata"]["name"].as_str().unwrap_or_default(),
                        v["name"].as_str().unwrap_or_default()
                    ) == name)
        }),
        _ => false,
    }
}

fn items(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn volumes(spec: &Value) -> impl Iterator<Item = &Value> {
    items(&spec["volumes"])
}

fn environment<'a>(spec: &'a Value, key: &'a str, from: &'a str) -> impl Iterator<Item = &'a Value> {
    ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |c| items(&spec[c]))
        .flat_map(move |c| {
            let one = items(&c["env"]).map(move |e| &e["valueFrom"][key]["name"]);
            one.chain(items(&c["envFrom"]).map(move |e| &e[from]["name"]))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_of_a_pod_are_found_wherever_they_are() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"secret": {"secretName": "s"}},
                {"projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "s2"}}]}},
                {"persistentVolumeClaim": {"claimName": "pvc"}},
            ],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "s3"}}]}],
            "containers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "c2"}}}]}],
        }});
        for (resource, names) in [
            ("secrets", &["pull", "s", "s2", "s3"][..]),
            ("configmaps", &["c", "c2"]),
            ("serviceaccounts", &["sa"]),
            ("persistentvolumeclaims", &["pvc"]),
        ] {
            for n in names {
                assert!(refers(&pod, resource, n), "{resource} {n}");
            }
            assert!(!refers(&pod, resource, "other"));
        }
    }
}
