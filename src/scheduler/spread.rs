//! Topology spread constraints: as filter (`DoNotSchedule`) and as score (`ScheduleAnyway`), and a spread by host and
//! zone of the pods of one owner for those who ask for none.

use std::collections::{HashMap, HashSet};

use component::placement::{node_allowed, untolerated};
use component::selector::{matches, requirement};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::cluster::{Cluster, NodeInfo, PodInfo};
use crate::filters::Reason;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Who is spread by a constraint.
enum Peers<'a> {
    Selected(&'a TopologySpreadConstraint),
    SameOwner,
}

/// One constraint with the counts of its peers by topology value.
struct Counted<'a> {
    key: &'a str,
    max_skew: i64,
    min_domains: Option<usize>,
    peers: Peers<'a>,
    domains: HashMap<String, i64>,
}

impl Counted<'_> {
    fn is_peer(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        if other.key.namespace != pod.key.namespace || other.is_deleting() {
            return false;
        }
        match self.peers {
            Peers::SameOwner => pod.owner.is_some() && pod.owner == other.owner,
            Peers::Selected(constraint) => {
                let keys = constraint.match_label_keys.iter().flatten();
                let mut own = keys.filter_map(|k| Some((k, pod.labels()?.get(k)?.clone())));
                matches(constraint.label_selector.as_ref(), other.labels())
                    && own.all(|(key, value)| requirement(key, "In", &[value], other.labels()))
            }
        }
    }

    fn count(&mut self, cluster: &Cluster, pod: &PodInfo, eligible: impl Fn(&NodeInfo) -> bool) {
        for node in cluster.nodes().filter(|n| eligible(n)) {
            let Some(value) = node.label(self.key) else { continue };
            let here = node.pods.values().filter(|other| self.is_peer(pod, other)).count();
            *self.domains.entry(value.to_owned()).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
        }
    }

    fn least(&self) -> i64 {
        if self.min_domains.is_some_and(|min| self.domains.len() < min) {
            return 0;
        }
        self.domains.values().copied().min().unwrap_or(0)
    }
}

/// The constraints of one pod to schedule, counted.
#[derive(Default)]
pub struct Spread<'a> {
    hard: Vec<Counted<'a>>,
    soft: Vec<Counted<'a>>,
    own: Vec<bool>,
}

/// Whether a node counts for a constraint.
fn counts(constraint: &TopologySpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = pod.spec() else { return false };
    let affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore")
        || node.node.as_ref().is_some_and(|n| node_allowed(spec, n));
    let taints = constraint.node_taints_policy.as_deref() != Some("Honor")
        || untolerated(
            node.taints(),
            spec.tolerations.as_deref().unwrap_or_default(),
            &["NoSchedule", "NoExecute"],
        )
        .is_none();
    affinity && taints
}

impl<'a> Spread<'a> {
    /// Counts for `pod`.
    pub fn of(cluster: &Cluster, pod: &'a PodInfo) -> Self {
        let mut spread = Self::default();
        let constraints = pod
            .spec()
            .and_then(|s| s.topology_spread_constraints.as_deref())
            .unwrap_or_default();
        if constraints.is_empty() {
            spread.by_default(cluster, pod);
            return spread;
        }
        let keys = |when: &str| -> Vec<&str> {
            constraints
                .iter()
                .filter(|c| c.when_unsatisfiable == when)
                .map(|c| c.topology_key.as_str())
                .collect()
        };
        let hard_keys = keys("DoNotSchedule");
        for constraint in constraints {
            let mut counted = Counted {
                key: &constraint.topology_key,
                max_skew: i64::from(constraint.max_skew),
                min_domains: constraint.min_domains.and_then(|n| usize::try_from(n).ok()),
                peers: Peers::Selected(constraint),
                domains: HashMap::new(),
            };
            let is_hard = constraint.when_unsatisfiable == "DoNotSchedule";
            counted.count(cluster, pod, |node| {
                // For a filter, only nodes that have all its labels can take the pod at all.
                counts(constraint, pod, node) && (!is_hard || hard_keys.iter().all(|k| node.label(k).is_some()))
            });
            if is_hard {
                spread.own.push(counted.is_peer(pod, pod));
                spread.hard.push(counted);
            } else {
                spread.soft.push(counted);
            }
        }
        spread
    }

    fn by_default(&mut self, cluster: &Cluster, pod: &PodInfo) {
        if pod.owner.is_none() {
            return;
        }
        for (key, max_skew) in [(HOSTNAME, 3), (ZONE, 5)] {
            let mut counted = Counted {
                key,
                max_skew,
                min_domains: None,
                peers: Peers::SameOwner,
                domains: HashMap::new(),
            };
            counted.count(cluster, pod, |_| true);
            if !counted.domains.is_empty() {
                self.soft.push(counted);
            }
        }
    }

    /// Why the pod may not run on that node.
    pub fn check(&self, node: &NodeInfo) -> Option<Reason> {
        for (constraint, own) in self.hard.iter().zip(&self.own) {
            let Some(value) = node.label(constraint.key) else {
                return Some(Reason::SpreadLabel);
            };
            let here = constraint.domains.get(value).copied().unwrap_or(0);
            if here + i64::from(*own) - constraint.least() > constraint.max_skew {
                return Some(Reason::Spread);
            }
        }
        None
    }

    /// Scores of 0 (crowded) to 100 for those nodes; nothing if no constraint asks for scores.
    pub fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let lacks = |node: &NodeInfo| {
            self.soft
                .iter()
                .any(|c| matches!(c.peers, Peers::Selected(_)) && node.label(c.key).is_none())
        };
        // More domains weigh more, so that hosts do not drown zones.
        let weight = |c: &Counted<'_>| {
            let seen: HashSet<&str> = nodes.iter().filter_map(|n| n.label(c.key)).collect();
            #[allow(clippy::cast_precision_loss)]
            ((seen.len() + 2) as f64).ln()
        };
        let weights: Vec<f64> = self.soft.iter().map(weight).collect();
        let cost = |node: &&NodeInfo| {
            if lacks(node) {
                return None;
            }
            let of = |(c, weight): (&Counted<'_>, &f64)| {
                let here = node.label(c.key).and_then(|v| c.domains.get(v)).copied()?;
                #[allow(clippy::cast_precision_loss)]
                Some(here as f64 * weight + (c.max_skew - 1) as f64)
            };
            #[allow(clippy::cast_possible_truncation)]
            Some(self.soft.iter().zip(&weights).filter_map(of).sum::<f64>().round() as i64)
        };
        let costs: Vec<Option<i64>> = nodes.iter().map(cost).collect();
        let (least, most) = (
            costs.iter().flatten().min().copied()?,
            costs.iter().flatten().max().copied()?,
        );
        let normal = |cost: Option<i64>| match cost {
            None => 0,
            Some(_) if most == 0 => 100,
            Some(cost) => 100 * (most + least - cost) / most,
        };
        Some(costs.into_iter().map(normal).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{cluster, info, labels, node, pod};
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};

    fn web(name: &str, constraint: Option<(&str, i32, &str)>) -> Pod {
        let mut pod = pod(name, "0", "0");
        pod.metadata.labels = Some(labels(&[("app", "web")]));
        pod.metadata.owner_references = Some(vec![OwnerReference {
            uid: "set".into(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        pod.spec.as_mut().unwrap().topology_spread_constraints = constraint.map(|(key, max_skew, when)| {
            vec![TopologySpreadConstraint {
                topology_key: key.into(),
                max_skew,
                when_unsatisfiable: when.into(),
                label_selector: Some(LabelSelector {
                    match_labels: Some(labels(&[("app", "web")])),
                    ..LabelSelector::default()
                }),
                ..TopologySpreadConstraint::default()
            }]
        });
        pod
    }

    #[test]
    fn a_hard_constraint_keeps_the_skew() {
        let mut cluster = cluster(vec![
            node("a", "4", "1Gi", &[("zone", "1")]),
            node("b", "4", "1Gi", &[("zone", "2")]),
            node("c", "4", "1Gi", &[]),
        ]);
        cluster.place(info(web("w1", None)), "a");
        let pod = info(web("w2", Some(("zone", 1, "DoNotSchedule"))));
        let spread = Spread::of(&cluster, &pod);
        let got = ["a", "b", "c"].map(|n| spread.check(cluster.node(n).unwrap()));
        assert_eq!(got, [Some(Reason::Spread), None, Some(Reason::SpreadLabel)]);
    }

    #[test]
    fn pods_of_one_owner_are_spread_over_hosts_without_asking() {
        let mut cluster = cluster(vec![node("a", "4", "1Gi", &[]), node("b", "4", "1Gi", &[])]);
        cluster.place(info(web("w1", None)), "a");
        let pod = info(web("w2", None));
        let nodes: Vec<_> = cluster.nodes().collect();
        let scores = Spread::of(&cluster, &pod).scores(&nodes).unwrap();
        assert!(scores[1] > scores[0], "{scores:?}");
    }
}
