//! Everything the scheduler knows, behind one lock: the cluster and the queue, and what each change does to both.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use component::Change;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use tokio::sync::Notify;

use crate::cluster::{Cluster, PodInfo};
use crate::filters::{Reason, check};
use crate::queue::{Queue, Wake};

/// The only scheduler there is here.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// Cluster and queue.
#[derive(Debug, Default)]
pub struct Inner {
    /// What runs where.
    pub cluster: Cluster,
    /// What waits.
    pub queue: Queue,
}

/// Cluster and queue behind a lock, and a bell that rings when there may be something to do.
#[derive(Debug, Default)]
pub struct State {
    inner: Mutex<Inner>,
    /// Rings when a pod may be due.
    pub bell: Notify,
}

fn is_terminal(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .is_some_and(|p| p == "Succeeded" || p == "Failed")
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// Whether a pod is this scheduler's to place.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.scheduler_name.as_deref().is_none_or(|n| n == SCHEDULER_NAME)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pod.metadata.deletion_timestamp.is_none()
}

impl State {
    /// The lock. Never held over an await.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod appeared, changed, or went.
    pub fn pod_changed(&self, change: Change<'_, Pod>) {
        let pod = change.latest();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut inner = self.lock();
        let ring = if change.is_deleted() || is_terminal(pod) {
            inner.gone(uid)
        } else if let Some(node) = node_of(pod) {
            inner.queue.remove(uid);
            inner.cluster.withdraw(uid);
            let news = change
                .old()
                .is_none_or(|o| node_of(o).is_none() || o.metadata.labels != pod.metadata.labels);
            inner.cluster.place(PodInfo::new(Arc::clone(pod)), node);
            news && inner.neighbours_changed()
        } else if inner.cluster.is_placed(uid) {
            // Assumed: the binding is on its way, and this is older news.
            false
        } else if is_ours(pod) {
            inner.pending(pod)
        } else {
            inner.queue.remove(uid);
            inner.cluster.withdraw(uid);
            false
        };
        drop(inner);
        if ring {
            self.bell.notify_one();
        }
    }

    /// A node appeared, changed, or went.
    pub fn node_changed(&self, change: Change<'_, Node>) {
        let node = change.latest();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut inner = self.lock();
        if change.is_deleted() {
            inner.cluster.remove_node(name);
            return;
        }
        inner.cluster.set_node(Arc::clone(node));
        let matters = change.old().is_none_or(|old| {
            let spec = |n: &Node| n.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable));
            let room = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
            old.metadata.labels != node.metadata.labels || spec(old) != spec(node) || room(old) != room(node)
        });
        let ring = matters && inner.room_on(name);
        drop(inner);
        if ring {
            self.bell.notify_one();
        }
    }

    /// A namespace appeared, changed, or went; only labels matter.
    pub fn namespace_changed<K: kube::Resource>(&self, change: Change<'_, K>) {
        let meta = change.latest().meta();
        let name = meta.name.clone().unwrap_or_default();
        let mut inner = self.lock();
        if change.is_deleted() {
            inner.cluster.namespaces.remove(&name);
        } else {
            inner
                .cluster
                .namespaces
                .insert(name, meta.labels.clone().unwrap_or_default());
        }
    }
}

impl Inner {
    fn gone(&mut self, uid: &str) -> bool {
        self.queue.remove(uid);
        self.cluster.withdraw(uid);
        let Some(node) = self.cluster.forget(uid) else {
            return false;
        };
        let here = self.room_on(&node);
        self.neighbours_changed() || here
    }

    fn pending(&mut self, pod: &Arc<Pod>) -> bool {
        let info = PodInfo::new(Arc::clone(pod));
        // After a restart promises are known from the pods themselves.
        if let Some(node) = pod
            .status
            .as_ref()
            .and_then(|s| s.nominated_node_name.as_deref())
            .filter(|n| !n.is_empty())
        {
            self.cluster.nominate(Arc::clone(&info), node);
        }
        self.queue.put(info)
    }

    /// Something on `node` became better: wakes those who would fit there now.
    fn room_on(&mut self, name: &str) -> bool {
        let Some(node) = self.cluster.node(name) else {
            return false;
        };
        self.queue.wake(Instant::now(), |pod, reasons| {
            if !check(pod, node).is_empty() {
                Wake::No
            } else if reasons.iter().any(is_about_others) {
                Wake::Later
            } else {
                Wake::Now
            }
        })
    }

    /// Pods came, went, or changed labels: wakes those whom other pods held back.
    fn neighbours_changed(&mut self) -> bool {
        self.queue.wake(Instant::now(), |_, reasons: &BTreeSet<Reason>| {
            if reasons.iter().any(is_about_others) {
                Wake::Later
            } else {
                Wake::No
            }
        })
    }
}

/// Reasons that the pods on other nodes can lift.
fn is_about_others(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::PodAffinity
            | Reason::AntiAffinity
            | Reason::ExistingAntiAffinity
            | Reason::Spread
            | Reason::SpreadLabel
    )
}

/// Drops what scheduling does not ask for.
pub fn prune_pod(pod: &mut Pod) {
    pod.metadata.annotations = None;
    pod.metadata.finalizers = None;
    if let Some(spec) = &mut pod.spec {
        spec.ephemeral_containers = None;
        spec.volumes = None;
        spec.security_context = None;
        spec.dns_config = None;
        spec.image_pull_secrets = None;
        spec.host_aliases = None;
        spec.readiness_gates = None;
        for c in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            let kept = k8s_openapi::api::core::v1::Container {
                name: std::mem::take(&mut c.name),
                image: c.image.take(),
                ports: c.ports.take(),
                resources: c.resources.take(),
                restart_policy: c.restart_policy.take(),
                ..Default::default()
            };
            *c = kept;
        }
    }
    if let Some(status) = &mut pod.status {
        let scheduled = status
            .conditions
            .take()
            .map(|c| c.into_iter().filter(|c| c.type_ == "PodScheduled").collect());
        *status = k8s_openapi::api::core::v1::PodStatus {
            conditions: scheduled,
            phase: status.phase.take(),
            nominated_node_name: status.nominated_node_name.take(),
            start_time: status.start_time.take(),
            ..Default::default()
        };
    }
}

/// Drops what scheduling does not ask for.
pub fn prune_node(node: &mut Node) {
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        *status = k8s_openapi::api::core::v1::NodeStatus {
            allocatable: status.allocatable.take(),
            capacity: status.capacity.take(),
            images: status.images.take(),
            ..Default::default()
        };
    }
}

/// Drops all but the labels.
pub fn prune_namespace(namespace: &mut kube::core::PartialObjectMeta<Namespace>) {
    namespace.metadata.annotations = None;
    namespace.metadata.finalizers = None;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{node, pod};

    fn bound(mut pod: Pod, node: &str) -> Arc<Pod> {
        pod.spec.as_mut().unwrap().node_name = Some(node.into());
        Arc::new(pod)
    }

    fn next(state: &State) -> Option<String> {
        state.lock().queue.pop(Instant::now()).map(|p| p.key.name.clone())
    }

    #[test]
    fn a_pod_that_found_no_room_is_tried_as_soon_as_there_is_some() {
        let state = State::default();
        state.node_changed(Change::Added(&Arc::new(node("n", "1", "1Gi", &[]))));
        let running = bound(pod("running", "1", "1Mi"), "n");
        state.pod_changed(Change::Added(&running));
        state.pod_changed(Change::Added(&Arc::new(pod("waiting", "1", "1Mi"))));
        assert_eq!(next(&state), Some("waiting".into()));
        state.lock().queue.unschedulable(
            "uid-waiting",
            [Reason::Insufficient("cpu".into())].into(),
            Instant::now(),
        );
        state.node_changed(Change::Added(&Arc::new(node("small", "500m", "1Gi", &[]))));
        assert_eq!(next(&state), None, "a node too small is no reason to try");
        state.pod_changed(Change::Deleted(&running));
        assert_eq!(next(&state), Some("waiting".into()));
    }

    #[test]
    fn others_pods_gated_pods_and_ended_pods_are_left_alone() {
        let state = State::default();
        let mut theirs = pod("theirs", "1", "1Mi");
        theirs.spec.as_mut().unwrap().scheduler_name = Some("other".into());
        let mut gated = pod("gated", "1", "1Mi");
        gated.spec.as_mut().unwrap().scheduling_gates = Some(vec![Default::default()]);
        let mut ended = pod("ended", "1", "1Mi");
        ended.status = Some(k8s_openapi::api::core::v1::PodStatus {
            phase: Some("Failed".into()),
            ..Default::default()
        });
        for pod in [theirs, gated, ended] {
            state.pod_changed(Change::Added(&Arc::new(pod)));
        }
        assert_eq!(next(&state), None);
    }

    #[test]
    fn an_assumed_pod_is_not_tried_again_by_old_news() {
        let state = State::default();
        let old = Arc::new(pod("p", "1", "1Mi"));
        state.pod_changed(Change::Added(&old));
        assert!(next(&state).is_some());
        state.lock().cluster.place(PodInfo::new(Arc::clone(&old)), "n");
        state.lock().queue.remove("uid-p");
        state.pod_changed(Change::Updated(&old, &old));
        assert_eq!(next(&state), None);
    }
}
