//! On which nodes a DaemonSet's pods belong, and what its pods tolerate without saying so.

use component::placement::{node_allowed, untolerated};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::meta::name;

/// Whether a node should have a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Start one if there is none.
    pub(crate) run: bool,
    /// Leave one that is there.
    pub(crate) keep: bool,
}

/// What every daemon pod tolerates: nodes in trouble still need their daemons.
pub(crate) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let mut add = |key: &str, effect: &str| {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    };
    add("not-ready", "NoExecute");
    add("unreachable", "NoExecute");
    for key in ["disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"] {
        add(key, "NoSchedule");
    }
    if spec.host_network == Some(true) {
        add("network-unavailable", "NoSchedule");
    }
    all
}

/// Whether `set` wants a pod on `node`.
pub(crate) fn wanted(set: &DaemonSet, node: &Node) -> Wanted {
    let none = Wanted {
        run: false,
        keep: false,
    };
    let Some(spec) = set.spec.as_ref().and_then(|s| s.template.spec.as_ref()) else {
        return none;
    };
    let named = spec
        .node_name
        .as_deref()
        .is_none_or(|n| n.is_empty() || n == name(&node.metadata));
    if !named || !node_allowed(spec, node) {
        return none;
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = tolerations(spec);
    Wanted {
        run: untolerated(taints, &tolerations, &["NoSchedule", "NoExecute"]).is_none(),
        keep: untolerated(taints, &tolerations, &["NoExecute"]).is_none(),
    }
}

/// Ties a pod to one node by required affinity on its name, so that the scheduler still checks everything else.
pub(crate) fn pin(pod: &mut Pod, node: &str) {
    let Some(spec) = &mut pod.spec else { return };
    spec.tolerations = Some(tolerations(spec));
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // The template's own terms were checked when the node was chosen.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
}

/// The node a daemon pod is on, or is meant for.
pub(crate) fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let field = required
        .node_selector_terms
        .iter()
        .flat_map(|t| t.match_fields.iter().flatten())
        .find(|f| f.key == "metadata.name")?;
    match (field.operator.as_str(), field.values.as_deref()) {
        ("In", Some([node])) => Some(node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::DaemonSetSpec;
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};

    fn set(spec: PodSpec) -> DaemonSet {
        let mut set = DaemonSet {
            spec: Some(DaemonSetSpec::default()),
            ..DaemonSet::default()
        };
        set.spec.as_mut().unwrap().template.spec = Some(spec);
        set
    }

    fn node(taints: &[(&str, &str)]) -> Node {
        let taints = taints
            .iter()
            .map(|(key, effect)| Taint {
                key: (*key).into(),
                effect: (*effect).into(),
                ..Taint::default()
            })
            .collect();
        let mut node = Node {
            spec: Some(NodeSpec {
                taints: Some(taints),
                ..NodeSpec::default()
            }),
            ..Node::default()
        };
        node.metadata.name = Some("n1".into());
        node
    }

    #[test]
    fn daemons_run_on_nodes_in_trouble_but_not_on_forbidden_ones() {
        let (run, keep, neither) = (
            Wanted { run: true, keep: true },
            Wanted { run: false, keep: true },
            Wanted {
                run: false,
                keep: false,
            },
        );
        for (taints, host_network, expected) in [
            (vec![], false, run),
            (
                vec![
                    ("node.kubernetes.io/not-ready", "NoExecute"),
                    ("node.kubernetes.io/unschedulable", "NoSchedule"),
                ],
                false,
                run,
            ),
            (vec![("node.kubernetes.io/not-ready", "NoSchedule")], false, keep),
            (
                vec![("node.kubernetes.io/network-unavailable", "NoSchedule")],
                false,
                keep,
            ),
            (
                vec![("node.kubernetes.io/network-unavailable", "NoSchedule")],
                true,
                run,
            ),
            (
                vec![("node-role.kubernetes.io/control-plane", "NoSchedule")],
                false,
                keep,
            ),
            (vec![("mine", "NoExecute")], false, neither),
        ] {
            let spec = PodSpec {
                host_network: Some(host_network),
                ..PodSpec::default()
            };
            assert_eq!(wanted(&set(spec), &node(&taints)), expected, "{taints:?}");
        }
    }

    #[test]
    fn a_pinned_pod_is_meant_for_its_node() {
        let mut pod = Pod {
            spec: Some(PodSpec::default()),
            ..Pod::default()
        };
        pin(&mut pod, "n7");
        assert_eq!(target(&pod), Some("n7"));
        assert!(node_allowed(pod.spec.as_ref().unwrap(), &node(&[])) == (name(&node(&[]).metadata) == "n7"));
    }
}
