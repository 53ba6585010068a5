//! What the status of a DaemonSet counts: nodes, each by the oldest of its pods.
//!
//! Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};

use crate::daemon_plan::{Places, is_updated, min_ready, oldest_first};
use crate::pods::{availability, is_ready};

/// The status, and when it changes by itself because a pod becomes available.
pub(crate) fn status_of(
    set: &DaemonSet,
    places: &Places,
    hash: &str,
    now: Timestamp,
) -> (DaemonSetStatus, Option<Duration>) {
    let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
    let mut next: Option<Duration> = None;
    for place in places.values() {
        let pods = oldest_first(&place.pods);
        if !place.wanted.run {
            misplaced += i32::from(!pods.is_empty());
            continue;
        }
        desired += 1;
        // A pod that is started beside an old one does not count until the old one is gone.
        let Some(pod) = pods.first() else { continue };
        current += 1;
        updated += i32::from(is_updated(pod, hash));
        if !is_ready(pod) {
            continue;
        }
        ready += 1;
        match availability(pod, min_ready(set), now) {
            Ok(()) => available += 1,
            Err(wait) => next = wait.into_iter().chain(next).min(),
        }
    }
    let old = set.status.clone().unwrap_or_default();
    let status = DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: misplaced,
        number_ready: ready,
        updated_number_scheduled: Some(updated),
        number_available: Some(available),
        number_unavailable: Some(desired - available),
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    (status, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::daemon_placement::Wanted;
    use crate::daemon_plan::{HASH_LABEL, Place};
    use crate::pods::tests::pod;
    use k8s_openapi::api::apps::v1::DaemonSetSpec;
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn daemon(name: &str, hash: &str, created: i64, ready: Option<i64>, leaves: bool) -> Arc<Pod> {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let mut pod = pod(name, Some("n"), "Running", ready);
        pod.metadata.labels = Some([(HASH_LABEL.to_owned(), hash.to_owned())].into());
        pod.metadata.creation_timestamp = Some(at(created));
        pod.metadata.deletion_timestamp = leaves.then(|| at(50));
        Arc::new(pod)
    }

    #[test]
    fn a_node_counts_by_the_oldest_of_its_living_pods() {
        let old = |leaves| daemon("a", "old", 1, Some(2), leaves);
        let new = |ready| daemon("b", "new", 10, ready, false);
        // Current, ready, updated, available.
        for (what, pods, expected) in [
            ("none", vec![], (0, 0, 0, 0)),
            ("an old one", vec![old(false)], (1, 1, 0, 1)),
            ("a new one beside it", vec![new(Some(11)), old(false)], (1, 1, 0, 1)),
            ("the old one leaves", vec![old(true), new(Some(11))], (1, 1, 1, 1)),
            ("it leaves too early", vec![old(true), new(None)], (1, 0, 1, 0)),
            ("the last leaves", vec![old(true)], (1, 1, 0, 1)),
            ("the new one", vec![new(Some(11))], (1, 1, 1, 1)),
            ("it is fresh", vec![new(Some(95))], (1, 1, 1, 0)),
            (
                "two of one second",
                vec![daemon("z", "new", 1, None, false), old(false)],
                (1, 1, 0, 1),
            ),
        ] {
            let wanted = Wanted { run: true, keep: true };
            let places = Places::from([("n".to_owned(), Place { wanted, pods })]);
            let set = DaemonSet {
                spec: Some(DaemonSetSpec {
                    min_ready_seconds: Some(10),
                    ..DaemonSetSpec::default()
                }),
                ..DaemonSet::default()
            };
            let (status, next) = status_of(&set, &places, "new", Timestamp::from_second(100).unwrap());
            let counts = (
                status.current_number_scheduled,
                status.number_ready,
                status.updated_number_scheduled.unwrap(),
                status.number_available.unwrap(),
            );
            assert_eq!(counts, expected, "{what}");
            assert_eq!(next.is_some(), expected.1 > expected.3, "{what}");
        }
    }
}
