//! Which pods to delete first when there are too many: the order that Kubernetes documents for ReplicaSets.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::meta::{annotation, since, uid};
use crate::pods::{is_active, is_ready, node_name, phase, ready_since};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods of `pods` to delete. `related` are all pods of the same owner's sets: of pods on crowded nodes one
/// more goes first.
pub(crate) fn victims(pods: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    if count >= pods.len() {
        return pods.to_vec();
    }
    let mut crowd: HashMap<&str, u32> = HashMap::new();
    for pod in related.iter().filter(|p| is_active(p)) {
        *crowd.entry(node_name(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut ranked: Vec<(Rank, &Arc<Pod>)> = pods.iter().map(|p| (Rank::of(p, &crowd, now), p)).collect();
    ranked.sort_by(|a, b| {
        a.0.compare(&b.0)
            .then_with(|| uid(&a.1.metadata).cmp(uid(&b.1.metadata)))
    });
    ranked.into_iter().take(count).map(|(_, p)| Arc::clone(p)).collect()
}

/// In the order of importance; the smaller goes first.
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    crowd: Reverse<u32>,
    /// Powers of two, so that age does not decide between pods of about the same age.
    ready_age: u32,
    restarts: Reverse<i32>,
    age: u32,
}

impl Rank {
    fn of(pod: &Pod, crowd: &HashMap<&str, u32>, now: Timestamp) -> Self {
        let restarts = pod
            .status
            .iter()
            .flat_map(|s| s.container_statuses.iter().flatten())
            .map(|c| c.restart_count)
            .max();
        Self {
            assigned: node_name(pod).is_some(),
            phase: match phase(pod) {
                "Pending" => 0,
                "Running" => 2,
                _ => 1,
            },
            ready: is_ready(pod),
            cost: annotation(&pod.metadata, DELETION_COST)
                .and_then(|c| c.parse().ok())
                .unwrap_or(0),
            crowd: Reverse(node_name(pod).and_then(|n| crowd.get(n)).copied().unwrap_or(0)),
            ready_age: magnitude(ready_since(pod), now),
            restarts: Reverse(restarts.unwrap_or(0)),
            age: magnitude(pod.metadata.creation_timestamp.as_ref().map(|t| t.0), now),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        (self.assigned, self.phase, self.ready, self.cost, self.crowd)
            .cmp(&(other.assigned, other.phase, other.ready, other.cost, other.crowd))
            .then_with(|| {
                if self.ready && other.ready {
                    self.ready_age.cmp(&other.ready_age)
                } else {
                    Ordering::Equal
                }
            })
            .then_with(|| (self.restarts, self.age).cmp(&(other.restarts, other.age)))
    }
}

fn magnitude(time: Option<Timestamp>, now: Timestamp) -> u32 {
    let age = time.map_or(0, |t| u64::try_from(since(t, now).as_nanos()).unwrap_or(u64::MAX));
    age.checked_ilog2().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn first(pods: Vec<Pod>) -> String {
        let now = Timestamp::from_second(10_000).unwrap();
        let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
        victims(&pods, &pods, 1, now)[0].metadata.name.clone().unwrap()
    }

    fn costly(mut pod: Pod, cost: &str) -> Pod {
        pod.metadata.annotations = Some([(DELETION_COST.to_owned(), cost.to_owned())].into());
        pod
    }

    fn created(mut pod: Pod, at: i64) -> Pod {
        pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(at).unwrap()));
        pod
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let cases = vec![
            (
                "unassigned",
                vec![pod("b", Some("n"), "Pending", None), pod("a", None, "Pending", None)],
                "a",
            ),
            (
                "pending",
                vec![
                    pod("b", Some("n"), "Running", None),
                    pod("a", Some("n"), "Pending", None),
                ],
                "a",
            ),
            (
                "not ready",
                vec![
                    pod("b", Some("n"), "Running", Some(1)),
                    pod("a", Some("n"), "Running", None),
                ],
                "a",
            ),
            (
                "cheap",
                vec![
                    costly(pod("b", Some("n"), "Running", Some(1)), "10"),
                    costly(pod("a", Some("m"), "Running", Some(1)), "-5"),
                ],
                "a",
            ),
            (
                "crowded",
                vec![
                    pod("a", Some("n"), "Running", Some(1)),
                    pod("b", Some("m"), "Running", Some(9_990)),
                    pod("c", Some("m"), "Running", Some(1)),
                ],
                "b",
            ),
            (
                "ready shorter",
                vec![
                    pod("b", Some("n"), "Running", Some(1)),
                    pod("a", Some("m"), "Running", Some(9_990)),
                ],
                "a",
            ),
            (
                "younger",
                vec![
                    created(pod("b", Some("n"), "Running", Some(1)), 1),
                    created(pod("a", Some("m"), "Running", Some(1)), 9_990),
                ],
                "a",
            ),
        ];
        for (what, pods, expected) in cases {
            assert_eq!(first(pods), expected, "{what}");
        }
    }
}
