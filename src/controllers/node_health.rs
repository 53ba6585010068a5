//! What a node's heartbeats and conditions mean: whether it is alive, which taints it should carry, whether its zone is in
//! such trouble that nothing should be evicted. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A node is given up when nothing was heard from it for so long.
pub(crate) const GRACE: Duration = Duration::from_secs(40);
/// A node that never said anything gets longer.
pub(crate) const STARTUP_GRACE: Duration = Duration::from_secs(60);

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition type, the status that means trouble, the taint for it.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// A condition by type.
pub(crate) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
}

/// `True`, `False`, `Unknown`; nothing if the node never said.
pub(crate) fn readiness(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|c| c.status.as_str())
}

/// Whether the node said that it is ready.
pub(crate) fn is_ready(node: &Node) -> bool {
    readiness(node) == Some("True")
}

/// The conditions of a node that nothing is heard from, those that change only.
pub(crate) fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let change = |kind: &&str| {
        let (reason, message, heartbeat) = match condition(node, kind) {
            Some(c) if c.status == "Unknown" => return None,
            Some(c) => (
                "NodeStatusUnknown",
                "Kubelet stopped posting node status.",
                c.last_heartbeat_time.clone(),
            ),
            None => (
                "NodeStatusNeverUpdated",
                "Kubelet never posted node status.",
                node.metadata.creation_timestamp.clone(),
            ),
        };
        Some(NodeCondition {
            type_: (*kind).to_owned(),
            status: "Unknown".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: heartbeat,
            last_transition_time: Some(Time(now)),
        })
    };
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .iter()
        .filter_map(change)
        .collect()
}

/// The taints a node should have, given those it has. `evict`: whether trouble may also push pods off (`NoExecute`); if
/// `None`, such taints stay only while they fit.
pub(crate) fn taints(node: &Node, evict: Evict, now: Timestamp) -> Vec<Taint> {
    let have = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, trouble, key) in BY_CONDITION {
        if condition(node, kind).is_some_and(|c| c.status == trouble) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if let Some(key) = eviction_key(node) {
        let has = have.iter().any(|t| t.key == key && t.effect == "NoExecute");
        // A node that goes from not ready to unreachable or back was allowed before.
        let had = have
            .iter()
            .any(|t| (t.key == NOT_READY || t.key == UNREACHABLE) && t.effect == "NoExecute");
        if evict == Evict::Yes || (evict == Evict::NotYet && (has || had)) {
            wanted.push((key, "NoExecute"));
        }
    }
    let managed = |t: &Taint| {
        let key = t.key.as_str();
        match t.effect.as_str() {
            "NoSchedule" => key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, k)| *k == key),
            "NoExecute" => key == NOT_READY || key == UNREACHABLE,
            _ => false,
        }
    };
    let mut result: Vec<Taint> = have
        .into_iter()
        .filter(|t| !managed(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .collect();
    for (key, effect) in wanted {
        if !result.iter().any(|t| t.key == key && t.effect == effect) {
            result.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    result
}

/// Whether pods may be pushed off a node in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evict {
    /// Now.
    Yes,
    /// Its turn has not come: others first.
    NotYet,
    /// Everything is down: that is us, or the network, not the nodes.
    Never,
}

/// The `NoExecute` taint that fits the node's readiness.
pub(crate) fn eviction_key(node: &Node) -> Option<&'static str> {
    match readiness(node) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

/// How a zone fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZoneState {
    /// One eviction in ten seconds.
    Normal,
    /// More than half are gone: evict slowly in big zones, not at all in small ones.
    Partial,
    /// None is left.
    Full,
}

/// The zone of a node: region and zone labels.
pub(crate) fn zone_of(node: &Node) -> String {
    let label = |key: &str| {
        node.metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(key))
            .map_or("", String::as_str)
    };
    format!(
        "{}/{}",
        label("topology.kubernetes.io/region"),
        label("topology.kubernetes.io/zone")
    )
}

/// The state and the size of every zone.
pub(crate) fn zones<'a>(nodes: impl Iterator<Item = &'a Node>) -> BTreeMap<String, (ZoneState, usize)> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in nodes {
        let (ready, total) = counts.entry(zone_of(node)).or_default();
        *ready += usize::from(is_ready(node));
        *total += 1;
    }
    counts
        .into_iter()
        .map(|(zone, (ready, total))| (zone, (zone_state(ready, total), total)))
        .collect()
}

fn zone_state(ready: usize, total: usize) -> ZoneState {
    let broken = total - ready;
    if ready == 0 && broken > 0 {
        ZoneState::Full
    } else if broken > 2 && broken * 100 >= total * 55 {
        ZoneState::Partial
    } else {
        ZoneState::Normal
    }
}

/// The pause between two nodes that are evicted in one zone; nothing if none is.
pub(crate) fn eviction_pause(state: ZoneState, size: usize) -> Option<Duration> {
    match state {
        ZoneState::Normal | ZoneState::Full => Some(Duration::from_secs(10)),
        ZoneState::Partial if size > 50 => Some(Duration::from_secs(100)),
        ZoneState::Partial => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};

    fn node(ready: &str, unschedulable: bool, taints: &[(&str, &str)]) -> Node {
        let condition = NodeCondition {
            type_: "Ready".into(),
            status: ready.into(),
            ..NodeCondition::default()
        };
        let taints = taints
            .iter()
            .map(|(k, e)| Taint {
                key: (*k).into(),
                effect: (*e).into(),
                ..Taint::default()
            })
            .collect();
        Node {
            spec: Some(NodeSpec {
                unschedulable: Some(unschedulable),
                taints: Some(taints),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                conditions: Some(vec![condition]),
                ..NodeStatus::default()
            }),
            ..Node::default()
        }
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let own = ("node-role.kubernetes.io/control-plane", "NoSchedule");
        let (not_ready, gone) = ((NOT_READY, "NoSchedule"), (UNREACHABLE, "NoSchedule"));
        let (not_ready_x, gone_x) = ((NOT_READY, "NoExecute"), (UNREACHABLE, "NoExecute"));
        let cases = vec![
            (
                node("True", false, &[own, not_ready, not_ready_x]),
                Evict::Yes,
                vec![own],
            ),
            (node("True", true, &[]), Evict::Yes, vec![(UNSCHEDULABLE, "NoSchedule")]),
            (
                node("False", false, &[own]),
                Evict::Yes,
                vec![own, not_ready, not_ready_x],
            ),
            (node("False", false, &[]), Evict::NotYet, vec![not_ready]),
            (node("Unknown", false, &[]), Evict::Never, vec![gone]),
            (
                node("Unknown", false, &[gone, gone_x]),
                Evict::NotYet,
                vec![gone, gone_x],
            ),
            (
                node("Unknown", false, &[not_ready, not_ready_x]),
                Evict::NotYet,
                vec![gone, gone_x],
            ),
            (node("Unknown", false, &[gone, gone_x]), Evict::Never, vec![gone]),
        ];
        for (node, evict, expected) in cases {
            let got = taints(&node, evict, Timestamp::UNIX_EPOCH);
            let got: Vec<_> = got.iter().map(|t| (t.key.as_str(), t.effect.as_str())).collect();
            assert_eq!(got, expected, "{evict:?}");
        }
    }

    #[test]
    fn a_zone_in_trouble_evicts_slowly_or_not_at_all() {
        for (ready, total, expected) in [
            (3, 3, ZoneState::Normal),
            (2, 3, ZoneState::Normal),
            (1, 3, ZoneState::Normal),
            (1, 4, ZoneState::Partial),
            (0, 1, ZoneState::Full),
            (5, 10, ZoneState::Normal),
            (4, 10, ZoneState::Partial),
        ] {
            assert_eq!(zone_state(ready, total), expected, "{ready}/{total}");
        }
        assert_eq!(eviction_pause(ZoneState::Partial, 4), None);
    }

    #[test]
    fn a_silent_node_becomes_unknown_once() {
        let conditions = unknown_conditions(&node("True", false, &[]), Timestamp::UNIX_EPOCH);
        let reasons: Vec<_> = conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap()))
            .collect();
        assert_eq!(reasons[0], ("Ready", "NodeStatusUnknown"));
        assert_eq!(reasons[1], ("MemoryPressure", "NodeStatusNeverUpdated"));
        assert!(
            unknown_conditions(&node("Unknown", false, &[]), Timestamp::UNIX_EPOCH)
                .iter()
                .all(|c| c.type_ != "Ready")
        );
    }
}
