//! Pods that want to be with, or away from, other pods.
//!
//! Everything is counted once per pod to schedule, by topology (`label=value`); asking a node is then a look-up.

use std::collections::HashMap;

use component::selector::{Labels, matches, requirement};
use k8s_openapi::api::core::v1::PodAffinityTerm;

use crate::cluster::{Cluster, NodeInfo, PodInfo};
use crate::filters::Reason;

/// Topology key and value.
type Topology = (String, String);

/// What the placed pods mean for one pod to schedule.
#[derive(Debug, Default)]
pub struct PodAffinity {
    /// Where a placed pod wants this one away.
    repelled: HashMap<Topology, i64>,
    /// Per required term: where matching pods are.
    wanted: Vec<(String, HashMap<String, i64>)>,
    /// Per required anti-affinity term: where matching pods are.
    avoided: Vec<(String, HashMap<String, i64>)>,
    /// The pod matches its own required terms: the first of its group may go anywhere.
    is_first_of_group: bool,
    /// Sums of weights.
    scores: HashMap<Topology, i64>,
}

/// Whether `term` of `owner` selects `pod`.
fn selects(cluster: &Cluster, term: &PodAffinityTerm, owner: &PodInfo, pod: &PodInfo) -> bool {
    let namespace = &pod.key.namespace;
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let empty = Labels::new();
    let in_namespace = match &term.namespace_selector {
        None if listed.is_empty() => *namespace == owner.key.namespace,
        None => listed.contains(namespace),
        Some(selector) => {
            listed.contains(namespace)
                || matches(
                    Some(selector),
                    Some(cluster.namespaces.get(namespace).unwrap_or(&empty)),
                )
        }
    };
    in_namespace && matches(term.label_selector.as_ref(), pod.labels()) && keys_agree(term, owner, pod)
}

/// `matchLabelKeys` and `mismatchLabelKeys`: values of the owner's own labels, as further requirements.
fn keys_agree(term: &PodAffinityTerm, owner: &PodInfo, pod: &PodInfo) -> bool {
    let own = |key: &String| owner.labels().and_then(|l| l.get(key)).cloned();
    let holds =
        |key: &String, operator: &str| own(key).is_none_or(|value| requirement(key, operator, &[value], pod.labels()));
    term.match_label_keys.iter().flatten().all(|k| holds(k, "In"))
        && term.mismatch_label_keys.iter().flatten().all(|k| holds(k, "NotIn"))
}

impl PodAffinity {
    /// Counts for `pod`.
    pub fn of(cluster: &Cluster, pod: &PodInfo) -> Self {
        let mut counts = Self::default();
        let (with, away) = (pod.required_terms(false), pod.required_terms(true));
        for (other, node) in cluster.pods_with_affinity() {
            for term in other.required_terms(true) {
                if let Some(value) = node.label(&term.topology_key)
                    && selects(cluster, term, other, pod)
                {
                    *counts
                        .repelled
                        .entry((term.topology_key.clone(), value.to_owned()))
                        .or_default() += 1;
                }
            }
            // Those that run already have preferences too; their required affinity counts as a preference of weight 1.
            let required = other.required_terms(false).iter().map(|t| (1, t));
            for (weight, term) in other.preferred_terms().chain(required) {
                if selects(cluster, term, other, pod) {
                    counts.add_score(node, term, weight);
                }
            }
        }
        let prefers: Vec<_> = pod.preferred_terms().collect();
        counts.wanted = with.iter().map(|t| (t.topology_key.clone(), HashMap::new())).collect();
        counts.avoided = away.iter().map(|t| (t.topology_key.clone(), HashMap::new())).collect();
        if with.is_empty() && away.is_empty() && prefers.is_empty() {
            return counts;
        }
        for node in cluster.nodes() {
            for other in node.pods.values() {
                // A pod counts only if it matches all the terms.
                if !with.is_empty() && with.iter().all(|t| selects(cluster, t, pod, other)) {
                    counts.wanted.iter_mut().for_each(|(key, at)| count(at, node, key));
                }
                for (term, (key, at)) in away.iter().zip(&mut counts.avoided) {
                    if selects(cluster, term, pod, other) {
                        count(at, node, key);
                    }
                }
                for (weight, term) in &prefers {
                    if selects(cluster, term, pod, other) {
                        counts.add_score(node, term, *weight);
                    }
                }
            }
        }
        let nobody = counts.wanted.iter().all(|(_, at)| at.is_empty());
        counts.is_first_of_group = nobody && with.iter().all(|t| selects(cluster, t, pod, pod));
        counts
    }

    fn add_score(&mut self, node: &NodeInfo, term: &PodAffinityTerm, weight: i64) {
        if let Some(value) = node.label(&term.topology_key) {
            *self
                .scores
                .entry((term.topology_key.clone(), value.to_owned()))
                .or_default() += weight;
        }
    }

    /// Why the pod may not run on that node.
    pub fn check(&self, node: &NodeInfo) -> Option<Reason> {
        let at = |at: &HashMap<String, i64>, key: &str| node.label(key).and_then(|v| at.get(v)).copied().unwrap_or(0);
        let has_keys = self.wanted.iter().all(|(key, _)| node.label(key).is_some());
        let together =
            has_keys && (self.is_first_of_group || self.wanted.iter().all(|(key, counts)| at(counts, key) > 0));
        if !self.wanted.is_empty() && !together {
            return Some(Reason::PodAffinity);
        }
        if self.avoided.iter().any(|(key, counts)| at(counts, key) > 0) {
            return Some(Reason::AntiAffinity);
        }
        let repelled = self
            .repelled
            .iter()
            .any(|((key, value), n)| *n > 0 && node.label(key) == Some(value));
        repelled.then_some(Reason::ExistingAntiAffinity)
    }

    /// Whether anybody prefers anything.
    pub fn has_scores(&self) -> bool {
        !self.scores.is_empty()
    }

    /// The sum of preferences for that node, before normalisation.
    pub fn score(&self, node: &NodeInfo) -> i64 {
        self.scores
            .iter()
            .filter(|((key, value), _)| node.label(key) == Some(value))
            .map(|(_, weight)| weight)
            .sum()
    }
}

fn count(at: &mut HashMap<String, i64>, node: &NodeInfo, key: &str) {
    if let Some(value) = node.label(key) {
        *at.entry(value.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{cluster, info, labels, node, pod};
    use k8s_openapi::api::core::v1::{Affinity, Pod, PodAffinity as With, PodAntiAffinity as Away};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    fn term(app: &str, key: &str) -> Vec<PodAffinityTerm> {
        vec![PodAffinityTerm {
            label_selector: Some(LabelSelector {
                match_labels: Some(labels(&[("app", app)])),
                ..LabelSelector::default()
            }),
            topology_key: key.into(),
            ..PodAffinityTerm::default()
        }]
    }

    fn make(name: &str, app: &str, with: Option<Vec<PodAffinityTerm>>, away: Option<Vec<PodAffinityTerm>>) -> Pod {
        let mut pod = pod(name, "0", "0");
        pod.metadata.labels = Some(labels(&[("app", app)]));
        pod.spec.as_mut().unwrap().affinity = Some(Affinity {
            pod_affinity: with.map(|t| With {
                required_during_scheduling_ignored_during_execution: Some(t),
                ..With::default()
            }),
            pod_anti_affinity: away.map(|t| Away {
                required_during_scheduling_ignored_during_execution: Some(t),
                ..Away::default()
            }),
            ..Affinity::default()
        });
        pod
    }

    const HOST: &str = "kubernetes.io/hostname";

    #[test]
    fn pods_stay_together_or_apart_by_topology() {
        let mut cluster = cluster(vec![
            node("a", "4", "1Gi", &[("zone", "1")]),
            node("b", "4", "1Gi", &[("zone", "1")]),
            node("c", "4", "1Gi", &[("zone", "2")]),
        ]);
        cluster.place(info(make("db", "db", None, Some(term("noisy", HOST)))), "a");
        let ask = |pod: Pod| {
            let affinity = PodAffinity::of(&cluster, &info(pod));
            ["a", "b", "c"].map(|n| affinity.check(cluster.node(n).unwrap()))
        };
        let with = Some(Reason::PodAffinity);
        let away = Some(Reason::AntiAffinity);
        assert_eq!(
            ask(make("w", "web", Some(term("db", "zone")), None)),
            [None, None, with.clone()]
        );
        assert_eq!(
            ask(make("w", "web", None, Some(term("db", "zone")))),
            [away.clone(), away, None]
        );
        assert_eq!(
            ask(make("w", "noisy", None, None)),
            [Some(Reason::ExistingAntiAffinity), None, None]
        );
        assert_eq!(
            ask(make("w", "web", Some(term("web", "zone")), None)),
            [None, None, None],
            "the first of its group"
        );
        assert_eq!(
            ask(make("w", "web", Some(term("other", "zone")), None)),
            [with.clone(), with.clone(), with]
        );
    }

    #[test]
    fn terms_reach_into_named_and_selected_namespaces() {
        let mut cluster = cluster(vec![node("a", "4", "1Gi", &[])]);
        cluster.place(info(make("db", "db", None, None)), "a");
        cluster.namespaces.insert("default".into(), labels(&[("team", "x")]));
        let refused = |change: fn(&mut PodAffinityTerm)| {
            let mut terms = term("db", HOST);
            change(&mut terms[0]);
            let mut pod = make("w", "web", None, Some(terms));
            pod.metadata.namespace = Some("elsewhere".into());
            PodAffinity::of(&cluster, &info(pod))
                .check(cluster.node("a").unwrap())
                .is_some()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|t| t.namespaces = Some(vec!["default".into()])));
        assert!(refused(|t| t.namespace_selector = Some(LabelSelector::default())));
        assert!(refused(|t| t.namespace_selector = Some(LabelSelector {
            match_labels: Some(labels(&[("team", "x")])),
            ..Default::default()
        })));
        assert!(!refused(|t| t.namespace_selector = Some(LabelSelector {
            match_labels: Some(labels(&[("team", "y")])),
            ..Default::default()
        })));
    }
}
