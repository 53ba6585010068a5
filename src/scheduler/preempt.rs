//! Preemption: which pods of lower priority would have to go for a pod to fit, and on which node that costs least. Pure.

use std::cmp::Reverse;
use std::sync::Arc;

use component::selector::matches;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cluster::{Cluster, NodeInfo, PodInfo};
use crate::decide::{Question, Unfit};

/// A node and the pods that would have to go.
#[derive(Debug)]
pub struct Plan {
    /// The node that is promised.
    pub node: String,
    /// Who must go; nobody, if those who must are going already.
    pub victims: Vec<Arc<PodInfo>>,
}

struct Candidate<'a> {
    node: &'a NodeInfo,
    victims: Vec<Arc<PodInfo>>,
    /// How many victims a budget would have protected.
    violations: usize,
}

/// Finds the cheapest node on which `pod` fits once pods of lower priority are gone.
pub fn plan(cluster: &Cluster, pod: &PodInfo, unfit: &Unfit, budgets: &[Arc<PodDisruptionBudget>]) -> Option<Plan> {
    if pod.spec().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return None;
    }
    let candidates = unfit
        .preemptible
        .iter()
        .filter_map(|name| candidate(cluster, cluster.node(name)?, pod, budgets));
    let highest = |c: &Candidate<'_>| c.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = |c: &Candidate<'_>| {
        c.victims
            .iter()
            .map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1)
            .sum::<i64>()
    };
    let started = |c: &Candidate<'_>| {
        c.victims
            .iter()
            .filter_map(|v| v.pod.status.as_ref()?.start_time.as_ref().map(|t| t.0))
            .min()
    };
    let cheapest =
        candidates.min_by_key(|c| (c.violations, highest(c), sum(c), c.victims.len(), Reverse(started(c))))?;
    Some(Plan {
        node: cheapest.node.name.clone(),
        victims: cheapest.victims,
    })
}

/// Whether room is being made on some node already: a pod of lower priority is on its way out there.
pub fn is_room_coming(cluster: &Cluster, pod: &PodInfo, node: &str) -> bool {
    cluster
        .node(node)
        .is_some_and(|n| n.pods.values().any(|p| p.is_deleting() && p.priority < pod.priority))
}

/// Takes all pods of lower priority away, and, if that helps, puts back as many as may stay: those that a budget protects
/// first, the more important before the others.
fn candidate<'a>(
    cluster: &Cluster,
    node: &'a NodeInfo,
    pod: &PodInfo,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Option<Candidate<'a>> {
    let mut lower: Vec<Arc<PodInfo>> = node
        .pods
        .values()
        .filter(|p| p.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return None;
    }
    let question = Question::new(cluster, pod);
    let mut room = node.clone();
    cluster
        .nominated(&node.name, pod.priority, &pod.uid)
        .for_each(|p| room.add(Arc::clone(p)));
    lower.iter().for_each(|p| room.remove(&p.uid));
    // Rules about other pods were counted with the victims in place, so what only those forbid stays forbidden.
    if !question.check(&room).is_empty() {
        return None;
    }
    lower.sort_by_key(|p| {
        (
            Reverse(p.priority),
            p.pod.status.as_ref().and_then(|s| s.start_time.as_ref().map(|t| t.0)),
        )
    });
    let mut left: Vec<i32> = budgets
        .iter()
        .map(|b| b.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0))
        .collect();
    let (protected, free): (Vec<_>, Vec<_>) = lower.into_iter().partition(|p| is_protected(p, budgets, &mut left));
    let (mut victims, mut violations) = (Vec::new(), 0);
    let protected = protected.into_iter().map(|p| (p, 1));
    for (p, violation) in protected.chain(free.into_iter().map(|p| (p, 0))) {
        room.add(Arc::clone(&p));
        if !question.check(&room).is_empty() {
            room.remove(&p.uid);
            victims.push(p);
            violations += violation;
        }
    }
    Some(Candidate {
        node,
        victims,
        violations,
    })
}

fn is_protected(pod: &PodInfo, budgets: &[Arc<PodDisruptionBudget>], left: &mut [i32]) -> bool {
    let mut protected = false;
    for (budget, left) in budgets.iter().zip(left) {
        let selects = budget.metadata.namespace.as_ref() == Some(&pod.key.namespace)
            && matches(budget.spec.as_ref().and_then(|s| s.selector.as_ref()), pod.labels());
        if selects {
            *left -= 1;
            protected |= *left < 0;
        }
    }
    protected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{cluster, info, labels, node, pod};
    use crate::decide::{Decision, schedule};
    use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    fn ranked(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
        let mut pod = pod(name, cpu, "1Mi");
        pod.spec.as_mut().unwrap().priority = Some(priority);
        pod.metadata.labels = Some(labels(&[("name", name)]));
        info(pod)
    }

    fn solve(cluster: &Cluster, pod: &PodInfo, budgets: &[Arc<PodDisruptionBudget>]) -> Option<(String, Vec<String>)> {
        let Decision::None(unfit) = schedule(cluster, pod, 0) else {
            panic!("it fits without")
        };
        let plan = plan(cluster, pod, &unfit, budgets)?;
        Some((plan.node, plan.victims.iter().map(|v| v.key.name.clone()).collect()))
    }

    #[test]
    fn the_least_important_go_and_no_more_than_needed() {
        let mut cluster = cluster(vec![node("a", "4", "4Gi", &[]), node("b", "4", "4Gi", &[])]);
        for (name, cpu, priority, node) in [("a1", "2", 5, "a"), ("a2", "2", 1, "a"), ("b1", "4", 9, "b")] {
            cluster.place(ranked(name, cpu, priority), node);
        }
        assert_eq!(
            solve(&cluster, &ranked("p", "2", 10), &[]),
            Some(("a".into(), vec!["a2".into()]))
        );
        assert_eq!(
            solve(&cluster, &ranked("p", "4", 10), &[]),
            Some(("a".into(), vec!["a1".into(), "a2".into()]))
        );
        assert_eq!(
            solve(&cluster, &ranked("p", "2", 1), &[]),
            None,
            "nobody is less important"
        );
        assert_eq!(
            solve(&cluster, &ranked("p", "5", 10), &[]),
            None,
            "no node is large enough"
        );
    }

    #[test]
    fn a_budget_sends_the_preemptor_elsewhere_if_it_can() {
        let mut cluster = cluster(vec![node("a", "2", "4Gi", &[]), node("b", "2", "4Gi", &[])]);
        cluster.place(ranked("guarded", "2", 0), "a");
        cluster.place(ranked("other", "2", 1), "b");
        let budget = |name: &str| {
            let selector = LabelSelector {
                match_labels: Some(labels(&[("name", name)])),
                ..LabelSelector::default()
            };
            let mut budget = PodDisruptionBudget {
                spec: Some(PodDisruptionBudgetSpec {
                    selector: Some(selector),
                    ..Default::default()
                }),
                status: Some(PodDisruptionBudgetStatus {
                    disruptions_allowed: Some(0),
                    ..Default::default()
                }),
                ..PodDisruptionBudget::default()
            };
            budget.metadata.namespace = Some("default".into());
            Arc::new(budget)
        };
        let pod = ranked("p", "2", 10);
        assert_eq!(solve(&cluster, &pod, &[]), Some(("a".into(), vec!["guarded".into()])));
        assert_eq!(
            solve(&cluster, &pod, &[budget("guarded")]),
            Some(("b".into(), vec!["other".into()]))
        );
    }
}
