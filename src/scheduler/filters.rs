//! Filters that look at one node alone: may this pod run there at all?

use component::placement::{node_allowed, untolerated};
use k8s_openapi::api::core::v1::Toleration;

use crate::cluster::{HostPort, NodeInfo, PodInfo};

/// Why a node does not take a pod, in the words users know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Cordoned.
    Unschedulable,
    /// The pod names another node.
    NodeName,
    /// A taint (`key: value`) that the pod does not tolerate.
    Taint(String),
    /// Node selector or node affinity.
    NodeAffinity,
    /// A port of the host is taken.
    Ports,
    /// The node has all the pods it takes.
    TooManyPods,
    /// Too little of that resource is free.
    Insufficient(String),
    /// Required pod affinity.
    PodAffinity,
    /// Required pod anti-affinity of the pod.
    AntiAffinity,
    /// Required pod anti-affinity of a pod that runs already.
    ExistingAntiAffinity,
    /// A spread constraint.
    Spread,
    /// A spread constraint speaks of a label that the node lacks.
    SpreadLabel,
}

impl Reason {
    /// The words users know.
    pub fn text(&self) -> String {
        match self {
            Reason::Unschedulable => "node(s) were unschedulable".into(),
            Reason::NodeName => "node(s) didn't match the requested node name".into(),
            Reason::Taint(taint) => format!("node(s) had untolerated taint {{{taint}}}"),
            Reason::NodeAffinity => "node(s) didn't match Pod's node affinity/selector".into(),
            Reason::Ports => "node(s) didn't have free ports for the requested pod ports".into(),
            Reason::TooManyPods => "Too many pods".into(),
            Reason::Insufficient(resource) => format!("Insufficient {resource}"),
            Reason::PodAffinity => "node(s) didn't match pod affinity rules".into(),
            Reason::AntiAffinity => "node(s) didn't match pod anti-affinity rules".into(),
            Reason::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules".into(),
            Reason::Spread => "node(s) didn't match pod topology spread constraints".into(),
            Reason::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)".into()
            }
        }
    }

    /// Whether fewer pods on the node could help.
    pub fn is_preemptible(&self) -> bool {
        matches!(
            self,
            Reason::Ports
                | Reason::TooManyPods
                | Reason::Insufficient(_)
                | Reason::AntiAffinity
                | Reason::ExistingAntiAffinity
                | Reason::Spread
        )
    }
}

/// All reasons of one node-local kind why `node` does not take `pod`; empty if it does.
pub fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let (Some(spec), Some(object)) = (pod.spec(), &node.node) else {
        return vec![Reason::NodeName];
    };
    let tolerations: &[Toleration] = spec.tolerations.as_deref().unwrap_or_default();
    if let Some(name) = spec.node_name.as_deref()
        && !name.is_empty()
        && name != node.name
    {
        return vec![Reason::NodeName];
    }
    if object.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        let cordon = k8s_openapi::api::core::v1::Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        };
        if untolerated(std::slice::from_ref(&cordon), tolerations, &["NoSchedule"]).is_some() {
            return vec![Reason::Unschedulable];
        }
    }
    if let Some(taint) = untolerated(node.taints(), tolerations, &["NoSchedule", "NoExecute"]) {
        return vec![Reason::Taint(format!(
            "{}: {}",
            taint.key,
            taint.value.as_deref().unwrap_or_default()
        ))];
    }
    if !node_allowed(spec, object) {
        return vec![Reason::NodeAffinity];
    }
    if !pod.ports.is_empty()
        && node
            .pods
            .values()
            .any(|p| p.ports.iter().any(|a| pod.ports.iter().any(|b| collide(a, b))))
    {
        return vec![Reason::Ports];
    }
    fit(pod, node)
}

/// Two ports collide unless their addresses differ and neither is the wildcard.
fn collide(a: &HostPort, b: &HostPort) -> bool {
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

fn fit(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.max_pods {
        reasons.push(Reason::TooManyPods);
    }
    let (need, used, have) = (&pod.requests, &node.requested, &node.allocatable);
    let mut lacks = |name: &str, need: i64, used: i64, have: i64| {
        if need > 0 && need > have - used {
            reasons.push(Reason::Insufficient(name.to_owned()));
        }
    };
    lacks("cpu", need.milli_cpu, used.milli_cpu, have.milli_cpu);
    lacks("memory", need.memory, used.memory, have.memory);
    lacks(
        "ephemeral-storage",
        need.ephemeral_storage,
        used.ephemeral_storage,
        have.ephemeral_storage,
    );
    for (name, need) in &need.extended {
        let of = |r: &crate::resources::Resources| r.extended.get(name).copied().unwrap_or(0);
        lacks(name, *need, of(used), of(have));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{cluster, info, labels, node, pod};
    use k8s_openapi::api::core::v1::{ContainerPort, Node, Pod, Taint};
    use std::sync::Arc;

    fn tainted(mut node: Node, key: &str, effect: &str) -> Node {
        let taint = Taint {
            key: key.into(),
            effect: effect.into(),
            ..Taint::default()
        };
        node.spec.as_mut().unwrap().taints = Some(vec![taint]);
        node
    }

    fn cordoned(mut node: Node) -> Node {
        node.spec.as_mut().unwrap().unschedulable = Some(true);
        node
    }

    fn with(mut pod: Pod, change: impl FnOnce(&mut k8s_openapi::api::core::v1::PodSpec)) -> Pod {
        change(pod.spec.as_mut().unwrap());
        pod
    }

    fn host_port(ip: &str, port: i32) -> Option<Vec<ContainerPort>> {
        Some(vec![ContainerPort {
            host_port: Some(port),
            host_ip: Some(ip.into()),
            ..ContainerPort::default()
        }])
    }

    #[test]
    fn each_node_says_why_not() {
        let n = || node("n1", "2", "1Gi", &[("disk", "ssd")]);
        let p = || pod("p", "1", "1Mi");
        let cases = vec![
            (p(), n(), vec![]),
            (
                pod("p", "3", "2Gi"),
                n(),
                vec![
                    Reason::Insufficient("cpu".into()),
                    Reason::Insufficient("memory".into()),
                ],
            ),
            (p(), cordoned(n()), vec![Reason::Unschedulable]),
            (p(), tainted(n(), "k", "NoSchedule"), vec![Reason::Taint("k: ".into())]),
            (p(), tainted(n(), "k", "PreferNoSchedule"), vec![]),
            (
                with(p(), |s| s.node_selector = Some(labels(&[("disk", "ssd")]))),
                n(),
                vec![],
            ),
            (
                with(p(), |s| s.node_selector = Some(labels(&[("disk", "hdd")]))),
                n(),
                vec![Reason::NodeAffinity],
            ),
        ];
        for (pod, node, expected) in cases {
            let cluster = cluster(vec![node]);
            assert_eq!(check(&info(pod), cluster.node("n1").unwrap()), expected);
        }
    }

    #[test]
    fn ports_collide_by_protocol_number_and_address() {
        for (held, wanted, expected) in [
            (("0.0.0.0", 80), ("10.0.0.1", 80), vec![Reason::Ports]),
            (("10.0.0.2", 80), ("10.0.0.1", 80), vec![]),
            (("", 80), ("", 81), vec![]),
            (("", 80), ("", 80), vec![Reason::Ports]),
        ] {
            let mut cluster = cluster(vec![node("n1", "2", "1Gi", &[])]);
            cluster.place(
                info(with(pod("a", "0", "0"), |s| {
                    s.containers[0].ports = host_port(held.0, held.1)
                })),
                "n1",
            );
            let pod = info(with(pod("b", "0", "0"), |s| {
                s.containers[0].ports = host_port(wanted.0, wanted.1)
            }));
            assert_eq!(
                check(&pod, cluster.node("n1").unwrap()),
                expected,
                "{held:?} {wanted:?}"
            );
        }
    }

    #[test]
    fn a_pod_that_asks_for_nothing_fits_on_a_full_node_that_has_room_for_pods() {
        let mut cluster = cluster(vec![node("n1", "1", "1Gi", &[])]);
        cluster.place(info(pod("a", "1", "1Gi")), "n1");
        assert_eq!(check(&info(pod("b", "0", "0")), cluster.node("n1").unwrap()), []);
        let mut small = node("n1", "1", "1Gi", &[]);
        small.status.as_mut().unwrap().allocatable.as_mut().unwrap().insert(
            "pods".into(),
            k8s_openapi::apimachinery::pkg::api::resource::Quantity("1".into()),
        );
        cluster.set_node(Arc::new(small));
        assert_eq!(
            check(&info(pod("b", "0", "0")), cluster.node("n1").unwrap()),
            [Reason::TooManyPods]
        );
    }
}
