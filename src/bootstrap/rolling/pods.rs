//! Which pods leave a node that is about to be changed. Those stay that would not run anywhere else meanwhile: containers outlive a restart
//! of their agent and their runtime, so staying costs them less than leaving.

use crate::cluster::nodes;
use component::placement::{node_allowed, untolerated};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::ResourceExt as _;

use super::hold::is_cordoned;

/// The taint of a node that is cordoned.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Taints that mirror a node's `unschedulable` and its condition Ready
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/>).
const STATE_TAINTS: [&str; 3] = [
    UNSCHEDULABLE,
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

/// Why a pod stays though it could be evicted from `here`; nothing if it leaves.
pub(crate) fn stays(pod: &Pod, nodes: &[Node], here: &str) -> Option<&'static str> {
    let owners = pod.owner_references().iter();
    if !owners.into_iter().any(|owner| owner.controller == Some(true)) {
        return Some("nobody would make it anew");
    }
    let elsewhere = nodes.iter().filter(|node| node.name_any() != here);
    let takes_it = elsewhere.into_iter().any(|node| takes(node, pod));
    (!takes_it).then_some("no other node takes it")
}

/// Whether a pod that has ended: there is nothing to be moved.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a node may be given the pod, as far as that does not depend on how full it is.
fn takes(node: &Node, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let lasting = taints.unwrap_or_default().iter().filter(|taint| !mirrors_state(taint));
    let lasting: Vec<Taint> = lasting.cloned().collect();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    nodes::is_ready(node)
        && !is_cordoned(node)
        && untolerated(&lasting, tolerations, &["NoSchedule", "NoExecute"]).is_none()
        && node_allowed(spec, node)
}

/// Whether a controller derives the taint from the node's field or condition, which are looked at themselves: it comes and goes a moment
/// after them.
fn mirrors_state(taint: &Taint) -> bool {
    STATE_TAINTS.contains(&taint.key.as_str())
}

/// Whether pods can be placed on a node that works: its taints have followed its state.
pub(crate) fn takes_pods_again(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    // One that somebody has cordoned stays so, and rightly.
    let follows = |taint: &Taint| !mirrors_state(taint) || is_cordoned(node) && taint.key == UNSCHEDULABLE;
    taints.unwrap_or_default().iter().all(follows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, spec: &Value, ready: &str) -> Node {
        let object = json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(object).unwrap()
    }

    fn pod(more: &Value) -> Pod {
        let mut spec = json!({"containers": []});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "1", "controller": true}]);
        serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": owner}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_leaves_only_where_another_node_takes_it() {
        let master = json!({"taints": [{"key": "m", "effect": "NoSchedule"}]});
        let here = || node("n1", &json!({"unschedulable": true}), "True");
        let plain = json!({});
        let tolerant = json!({"tolerations": [{"key": "m", "operator": "Exists"}]});
        let bound = json!({"nodeSelector": {"disk": "n1"}});
        // A moment after it was let go, and after its agent was restarted.
        let follows = json!({"taints": [
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
        ]});
        // the other node, the pod → whether it leaves
        for (other, pod_spec, leaves) in [
            (node("n2", &json!({}), "True"), &plain, true),
            (node("n2", &json!({}), "False"), &plain, false),
            (node("n2", &json!({"unschedulable": true}), "True"), &plain, false),
            (node("m1", &master, "True"), &plain, false),
            (node("m1", &master, "True"), &tolerant, true),
            (node("n2", &json!({}), "True"), &bound, false),
            (node("n2", &follows, "True"), &plain, true),
            (node("n2", &follows, "False"), &plain, false),
        ] {
            let reason = stays(&pod(pod_spec), &[here(), other.clone()], "n1");
            assert_eq!(reason.is_none(), leaves, "{other:?} {pod_spec}: {reason:?}");
        }
        assert!(stays(&pod(&plain), &[here()], "n1").is_some(), "a cluster of one node");
    }

    #[test]
    fn a_node_takes_pods_again_when_its_taints_have_followed_its_state() {
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        let cordoned = "node.kubernetes.io/unschedulable";
        for (spec, takes) in [
            (json!({}), true),
            (json!({"taints": [taint("m")]}), true),
            (json!({"taints": [taint("m"), taint(cordoned)]}), false),
            (json!({"taints": [taint("node.kubernetes.io/not-ready")]}), false),
            (json!({"unschedulable": true, "taints": [taint(cordoned)]}), true),
            (
                json!({"unschedulable": true, "taints": [taint("node.kubernetes.io/not-ready")]}),
                false,
            ),
        ] {
            assert_eq!(takes_pods_again(&node("n1", &spec, "True")), takes, "{spec}");
        }
    }

    #[test]
    fn a_pod_that_nobody_would_make_anew_stays() {
        let mut alone = pod(&json!({}));
        alone.metadata.owner_references = None;
        let nodes = [node("n2", &json!({}), "True")];
        assert_eq!(stays(&alone, &nodes, "n1"), Some("nobody would make it anew"));
    }
}
