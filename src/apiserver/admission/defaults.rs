//! DefaultTolerationSeconds, TaintNodesByCondition and RuntimeClass.

use super::{Attributes, Lookup, array};
use crate::error::{ApiError, Result};
use serde_json::{Value, json};

/// How long a pod stays on a node that has failed, in seconds, unless it says otherwise.
const STAY: i64 = 300;

/// Every pod tolerates a failed node for a while, so that a short failure moves nothing.
pub(super) fn tolerations(pod: &mut Value) {
    let Some(tolerations) = array(&mut pod["spec"], "tolerations") else {
        return;
    };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &Value| {
            let effect = t["effect"].as_str().unwrap_or_default();
            let named = t["key"].as_str().unwrap_or_default();
            (named == key || named.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        };
        if !tolerations.iter().any(covers) {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAY}));
        }
    }
}

/// A new node takes no pods until the node controller has seen it ready.
pub(super) fn node_taints(node: &mut Value) {
    let Some(taints) = array(&mut node["spec"], "taints") else {
        return;
    };
    let not_ready = |t: &Value| t["key"] == "node.kubernetes.io/not-ready" && t["effect"] == "NoSchedule";
    if !taints.iter().any(not_ready) {
        taints.push(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
    }
}

/// A runtime class adds its overhead and its nodes to the pod (KEP-585, KEP-688).
pub(super) fn runtime_class(lookup: &dyn Lookup, a: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    let Some(name) = pod["spec"]["runtimeClassName"]
        .as_str()
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
    else {
        return Ok(());
    };
    let refuse = |why: String| ApiError::forbidden("", "pods", a.name, &why);
    let class = lookup.get("node.k8s.io", "runtimeclasses", "", &name);
    let class = class.ok_or_else(|| refuse(format!("pod rejected: RuntimeClass {name:?} not found")))?;
    let overhead = &class["overhead"]["podFixed"];
    if !overhead.is_null() {
        if !pod["spec"]["overhead"].is_null() && pod["spec"]["overhead"] != *overhead {
            return Err(refuse(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned(),
            ));
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = &pod["spec"]["nodeSelector"][key];
        if !own.is_null() && own != value {
            return Err(refuse(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
            )));
        }
        if pod["spec"]["nodeSelector"].is_null() {
            pod["spec"]["nodeSelector"] = json!({});
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    if let (Some(more), Some(tolerations)) = (
        class["scheduling"]["tolerations"].as_array(),
        array(&mut pod["spec"], "tolerations"),
    ) {
        let missing: Vec<Value> = more.iter().filter(|t| !tolerations.contains(t)).cloned().collect();
        tolerations.extend(missing);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixed, create};
    use super::*;

    #[test]
    fn a_pod_stays_five_minutes_on_a_failed_node_unless_it_says_otherwise() {
        for (given, expected) in [
            (json!([]), 2),
            (json!([{"operator": "Exists"}]), 1),
            (
                json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]),
                2,
            ),
            (
                json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"}]),
                3,
            ),
        ] {
            let mut pod = json!({"spec": {"tolerations": given}});
            tolerations(&mut pod);
            assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), expected, "{pod}");
        }
    }

    #[test]
    fn a_new_node_is_tainted_once() {
        let mut node = json!({"metadata": {"name": "n"}, "spec": {}});
        node_taints(&mut node);
        node_taints(&mut node);
        assert_eq!(
            node["spec"]["taints"],
            json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
        );
    }

    #[test]
    fn a_runtime_class_adds_its_overhead_and_nodes() {
        let class = json!({"overhead": {"podFixed": {"cpu": "1"}}, "scheduling": {"nodeSelector": {"vm": "y"}, "tolerations": [{"key": "vm"}]}});
        let lookup = Fixed::default().with("runtimeclasses//vm", class);
        let admit = |mut pod: Value| runtime_class(&lookup, &create("pods", "d"), &mut pod).map(|()| pod);
        let pod = admit(json!({"spec": {"runtimeClassName": "vm"}})).unwrap();
        assert_eq!(pod["spec"]["overhead"], json!({"cpu": "1"}));
        assert_eq!(pod["spec"]["nodeSelector"], json!({"vm": "y"}));
        assert_eq!(pod["spec"]["tolerations"], json!([{"key": "vm"}]));
        assert!(admit(json!({"spec": {"runtimeClassName": "vm", "nodeSelector": {"vm": "n"}}})).is_err());
        assert!(admit(json!({"spec": {"runtimeClassName": "none"}})).is_err());
    }
}
