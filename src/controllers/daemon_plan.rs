//! Which daemon pods to create and to delete: one per wanted node, and the pace of a rolling update.
//!
//! Pure: nodes and pods in, decisions out.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;

use crate::daemon_placement::Wanted;
use crate::meta::{is_deleting, scaled};
use crate::pods::{availability, is_active, is_ready, phase};

pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// One node as a DaemonSet sees it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) wanted: Wanted,
    pub(crate) pods: Vec<Arc<Pod>>,
}

/// All places by node name. Nodes that are gone but still have pods want none.
pub(crate) type Places = BTreeMap<String, Place>;

/// What to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Nodes to create a pod for.
    pub(crate) create: Vec<String>,
    /// Pods to delete.
    pub(crate) delete: Vec<Arc<Pod>>,
    /// Pods that failed, to be deleted with a growing pause per node, and to be reported.
    pub(crate) failed: Vec<(String, Arc<Pod>)>,
}

/// Whether a pod was made from the template of that revision.
pub(crate) fn is_updated(pod: &Pod, hash: &str) -> bool {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(HASH_LABEL))
        .is_some_and(|h| h == hash)
}

fn is_available(set: &DaemonSet, pod: &Pod, now: Timestamp) -> bool {
    availability(pod, min_ready(set), now).is_ok()
}

/// `spec.minReadySeconds`.
pub(crate) fn min_ready(set: &DaemonSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
}

/// Whether pods are replaced one after the other (the default), and how many may be surplus and unavailable.
pub(crate) fn rolling(set: &DaemonSet, desired: i32) -> Option<(i32, i32)> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") != "RollingUpdate" {
        return None;
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let surge = rolling
        .and_then(|r| r.max_surge.as_ref())
        .map_or(0, |v| scaled(v, desired, true));
    let unavailable = rolling
        .and_then(|r| r.max_unavailable.as_ref())
        .map_or(1, |v| scaled(v, desired, true));
    Some((surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable }))
}

/// The pods of a node, those that are being deleted last: the first one stands for the node.
pub(crate) fn oldest_first(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let age = |p: &Arc<Pod>| {
        let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (is_deleting(&p.metadata), created, p.metadata.name.clone())
    };
    let mut pods = pods.to_vec();
    pods.sort_by_cached_key(age);
    pods
}

/// One pod on each wanted node, none on the others.
pub(crate) fn manage(set: &DaemonSet, places: &Places, hash: &str, now: Timestamp) -> Plan {
    let surge = rolling(set, desired(places)).is_some_and(|(surge, _)| surge > 0);
    let mut plan = Plan::default();
    for (node, place) in places {
        if !place.wanted.keep {
            plan.delete
                .extend(place.pods.iter().filter(|p| !is_deleting(&p.metadata)).cloned());
            continue;
        }
        let (failed, alive): (Vec<_>, Vec<_>) = place
            .pods
            .iter()
            .filter(|p| !is_deleting(&p.metadata))
            .cloned()
            .partition(|p| phase(p) == "Failed");
        let leaving = place.pods.iter().any(|p| is_deleting(&p.metadata));
        if place.wanted.run && alive.is_empty() && failed.is_empty() && !leaving {
            plan.create.push(node.clone());
        }
        plan.failed.extend(failed.into_iter().map(|p| (node.clone(), p)));
        if alive.len() > 1 {
            plan.delete.extend(surplus(set, &alive, hash, surge, now));
        }
        // A pod that succeeded must run again.
        if let [only] = alive.as_slice()
            && phase(only) == "Succeeded"
        {
            plan.failed.push((node.clone(), Arc::clone(only)));
        }
    }
    plan
}

/// Of several living pods on one node: all but the oldest, or, while surging, the old one once the new one is available.
fn surplus(set: &DaemonSet, alive: &[Arc<Pod>], hash: &str, surge: bool, now: Timestamp) -> Vec<Arc<Pod>> {
    let (new, old): (Vec<_>, Vec<_>) = oldest_first(alive).into_iter().partition(|p| is_updated(p, hash));
    if !surge || new.is_empty() || old.is_empty() {
        return oldest_first(alive).into_iter().skip(1).collect();
    }
    let mut gone: Vec<Arc<Pod>> = new.iter().skip(1).chain(old.iter().skip(1)).cloned().collect();
    if is_available(set, &new[0], now) || !is_available(set, &old[0], now) {
        gone.push(Arc::clone(&old[0]));
    }
    gone
}

/// How many nodes want a pod.
pub(crate) fn desired(places: &Places) -> i32 {
    i32::try_from(places.values().filter(|p| p.wanted.run).count()).unwrap_or(i32::MAX)
}

/// The next step of a rolling update to the template with that hash.
pub(crate) fn roll(set: &DaemonSet, places: &Places, hash: &str, now: Timestamp) -> Plan {
    let Some((surge, unavailable)) = rolling(set, desired(places)) else {
        return Plan::default();
    };
    if surge == 0 {
        replace(set, places, hash, unavailable, now)
    } else {
        surge_in(set, places, hash, surge, now)
    }
}

/// Deletes old pods (their nodes then get new ones): broken ones first, then as many as may be unavailable.
fn replace(set: &DaemonSet, places: &Places, hash: &str, allowed: i32, now: Timestamp) -> Plan {
    let (mut unavailable, mut broken, mut serving) = (0, Vec::new(), Vec::new());
    for place in places.values().filter(|p| p.wanted.run) {
        let alive: Vec<&Arc<Pod>> = place.pods.iter().filter(|p| is_active(p)).collect();
        let [pod] = alive.as_slice() else {
            // None, or more than one that is being sorted out: that node has no sure service.
            unavailable += 1;
            continue;
        };
        match (is_updated(pod, hash), is_available(set, pod, now)) {
            (true, true) => {}
            (true, false) => unavailable += 1,
            (false, false) => {
                unavailable += 1;
                broken.push(Arc::clone(pod));
            }
            (false, true) => serving.push(Arc::clone(pod)),
        }
    }
    let left = usize::try_from(allowed - unavailable).unwrap_or(0);
    broken.extend(serving.into_iter().take(left));
    Plan {
        delete: broken,
        ..Plan::default()
    }
}

/// Creates new pods beside the old ones; the old go when theirs is available (see [`surplus`]).
fn surge_in(set: &DaemonSet, places: &Places, hash: &str, allowed: i32, now: Timestamp) -> Plan {
    let (mut surging, mut create, mut broken) = (0, Vec::new(), Vec::new());
    for (node, place) in places.iter().filter(|(_, p)| p.wanted.run) {
        let alive: Vec<&Arc<Pod>> = place.pods.iter().filter(|p| is_active(p)).collect();
        match alive.as_slice() {
            [pod] if is_updated(pod, hash) => {}
            [pod] if is_available(set, pod, now) => create.push(node.clone()),
            // One that does not serve need not be kept until its successor does.
            [pod] if !is_ready(pod) => broken.push(node.clone()),
            [_] => create.push(node.clone()),
            [] => {}
            _ => surging += 1,
        }
    }
    let left = usize::try_from(allowed - surging).unwrap_or(0);
    broken.extend(create.into_iter().take(left));
    Plan {
        create: broken,
        ..Plan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use k8s_openapi::api::apps::v1::{DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn set(surge: i32, unavailable: i32) -> DaemonSet {
        let rolling = RollingUpdateDaemonSet {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        };
        let strategy = DaemonSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(rolling),
        };
        DaemonSet {
            spec: Some(DaemonSetSpec {
                update_strategy: Some(strategy),
                ..DaemonSetSpec::default()
            }),
            ..DaemonSet::default()
        }
    }

    fn daemon(name: &str, hash: &str, phase: &str, ready: bool) -> Arc<Pod> {
        let mut pod = pod(name, Some("n"), phase, ready.then_some(1));
        pod.metadata.labels = Some([(HASH_LABEL.to_owned(), hash.to_owned())].into());
        Arc::new(pod)
    }

    fn place(pods: Vec<Arc<Pod>>) -> Place {
        Place {
            wanted: Wanted { run: true, keep: true },
            pods,
        }
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| p.metadata.name.as_deref().unwrap()).collect()
    }

    #[test]
    fn each_wanted_node_has_one_living_pod() {
        let places = Places::from([
            ("empty".to_owned(), place(vec![])),
            ("fine".to_owned(), place(vec![daemon("a", "1", "Running", true)])),
            ("failed".to_owned(), place(vec![daemon("f", "1", "Failed", false)])),
            (
                "two".to_owned(),
                place(vec![
                    daemon("b", "1", "Running", true),
                    daemon("c", "1", "Running", true),
                ]),
            ),
            (
                "unwanted".to_owned(),
                Place {
                    wanted: Wanted {
                        run: false,
                        keep: false,
                    },
                    pods: vec![daemon("x", "1", "Running", true)],
                },
            ),
            (
                "cordoned".to_owned(),
                Place {
                    wanted: Wanted { run: false, keep: true },
                    pods: vec![daemon("y", "1", "Running", true)],
                },
            ),
        ]);
        let plan = manage(&set(0, 1), &places, "1", Timestamp::from_second(100).unwrap());
        assert_eq!(plan.create, ["empty"]);
        assert_eq!(names(&plan.delete), ["c", "x"]);
        assert_eq!(
            plan.failed.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["failed"]
        );
    }

    #[test]
    fn a_rolling_update_takes_broken_pods_first_and_no_more_than_allowed() {
        let now = Timestamp::from_second(100).unwrap();
        let places = Places::from([
            ("1".to_owned(), place(vec![daemon("a", "old", "Running", true)])),
            ("2".to_owned(), place(vec![daemon("b", "old", "Running", true)])),
            ("3".to_owned(), place(vec![daemon("c", "old", "Running", false)])),
        ]);
        assert_eq!(names(&roll(&set(0, 1), &places, "new", now).delete), ["c"]);
        assert_eq!(names(&roll(&set(0, 2), &places, "new", now).delete), ["c", "a"]);
        assert_eq!(names(&roll(&set(0, 1), &places, "old", now).delete), Vec::<&str>::new());
        assert_eq!(roll(&set(1, 0), &places, "new", now).create, ["3", "1"]);
    }
}
