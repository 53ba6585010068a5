//! ReplicaSets and ReplicationControllers: keep so many pods of a template alive.
//!
//! Both kinds are the same machine over [`Replicated`]. Pods are created in batches that start with one and double while
//! all goes well, so that a template that is refused costs one refusal.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use component::events::Recorder;
use component::patch::{Part, update};
use component::selector::Labels;
use component::{Change, Error, Informer, ObjectKey, Queue, Requeue, selector};
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::claim::claim;
use crate::context::{Context, known};
use crate::expectations::Expectations;
use crate::meta::{controller_of, is_controlled_by, is_deleting, namespace, now, uid};
use crate::pods::{self, availability, is_active, is_ready, is_terminal};
use crate::replica_rank::victims;

/// At most so many pods in one go.
const BURST: usize = 500;
const WORKERS: usize = 4;
/// The condition that says why pods could not be created or deleted.
const FAILURE: &str = "ReplicaFailure";

/// What both kinds have in common.
pub(crate) trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The name of the controller in events.
    const COMPONENT: &'static str;
    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selects(&self, pod: &Pod) -> bool;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// This object with that status, keeping what the status does not say.
    fn with_status(&self, counts: &Counts, failure: Option<&Failure>) -> Self;
    fn cache(ctx: &Context) -> &Arc<Informer<Self>>;
}

/// What the pods of a set add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) terminating: i32,
    /// When the next pod becomes available without anything else changing.
    pub(crate) next: Option<Duration>,
}

/// Why pods could not be created or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    reason: &'static str,
    message: String,
}

/// The two kinds have the same fields under types of their own. `$own` are fields that only this kind's status has, with the
/// count each shows.
macro_rules! replicated {
    ($kind:ident, $component:literal, $cache:ident, $selects:path, $condition:ident, $status:ident { $($own:ident: $count:ident)? }) => {
        impl Replicated for $kind {
            const COMPONENT: &'static str = $component;

            fn replicas(&self) -> i32 {
                self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
            }

            fn min_ready_seconds(&self) -> i32 {
                self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
            }

            fn selects(&self, pod: &Pod) -> bool {
                $selects(self, pod.metadata.labels.as_ref())
            }

            fn template(&self) -> Option<&PodTemplateSpec> {
                self.spec.as_ref()?.template.as_ref()
            }

            fn with_status(&self, counts: &Counts, failure: Option<&Failure>) -> Self {
                let old = self.status.clone().unwrap_or_default();
                let mut conditions = old.conditions.unwrap_or_default();
                let told = |c: &$condition| {
                    let reason = failure.map(|f| f.reason);
                    reason.is_some() && c.type_ == FAILURE && c.status == "True" && c.reason.as_deref() == reason
                };
                if !conditions.iter().any(told) {
                    conditions.retain(|c| c.type_ != FAILURE);
                    conditions.extend(failure.map(|f| $condition {
                        type_: FAILURE.into(),
                        status: "True".into(),
                        reason: Some(f.reason.into()),
                        message: Some(f.message.clone()),
                        last_transition_time: Some(now()),
                    }));
                }
                let status = $status {
                    replicas: counts.replicas,
                    fully_labeled_replicas: Some(counts.fully_labeled),
                    ready_replicas: Some(counts.ready),
                    available_replicas: Some(counts.available),
                    observed_generation: self.metadata.generation,
                    conditions: (!conditions.is_empty()).then_some(conditions),
                    $($own: Some(counts.$count),)?
                };
                Self {
                    status: Some(status),
                    ..self.clone()
                }
            }

            fn cache(ctx: &Context) -> &Arc<Informer<Self>> {
                &ctx.caches.$cache
            }
        }
    };
}

replicated!(
    ReplicaSet,
    "replicaset-controller",
    replica_sets,
    set_selects,
    ReplicaSetCondition,
    ReplicaSetStatus {
        terminating_replicas: terminating
    }
);
replicated!(
    ReplicationController,
    "replication-controller",
    replication_controllers,
    controller_selects,
    ReplicationControllerCondition,
    ReplicationControllerStatus {}
);

fn set_selects(set: &ReplicaSet, labels: Option<&Labels>) -> bool {
    selector::matches(set.spec.as_ref().map(|s| &s.selector), labels)
}

fn controller_selects(controller: &ReplicationController, labels: Option<&Labels>) -> bool {
    let selector = controller.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| !s.is_empty() && selector::matches_map(s, labels))
}

/// Starts the ReplicaSet controller.
pub(crate) fn replica_sets(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    start::<ReplicaSet>(ctx, "replicaset")
}

/// Starts the ReplicationController controller.
pub(crate) fn replication_controllers(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    start::<ReplicationController>(ctx, "replicationcontroller")
}

struct Controller<K> {
    ctx: Arc<Context>,
    events: Recorder,
    expectations: Expectations,
    queue: Arc<Queue<ObjectKey>>,
    kind: std::marker::PhantomData<fn() -> K>,
}

fn start<K: Replicated>(ctx: &Arc<Context>, queue: &'static str) -> BoxFuture<'static, ()> {
    let queue = ctx.queue(queue);
    let controller = Arc::new(Controller::<K> {
        ctx: Arc::clone(ctx),
        events: ctx.events.named(K::COMPONENT),
        expectations: Expectations::default(),
        queue: Arc::clone(&queue),
        kind: std::marker::PhantomData,
    });
    let on_set = Arc::clone(&controller);
    K::cache(ctx).on_change(move |change| {
        if let Change::Deleted(gone) = change {
            on_set.expectations.forget(uid(gone.meta()));
        }
        on_set.queue.add(ObjectKey::of(&**change.latest()));
    });
    let on_pod = Arc::clone(&controller);
    ctx.caches.pods.on_change(move |change| on_pod.pod_changed(change));
    let (sets, pods) = (Arc::clone(K::cache(ctx)), known!(ctx, pods));
    let known = async move {
        sets.synced().await;
        pods.await;
    };
    ctx.work(known, queue, WORKERS, controller, |controller, key| async move {
        controller.reconcile(&key).await
    })
}

impl<K: Replicated> Controller<K> {
    /// The owner that a pod names, if it is one of ours.
    fn owner_of(&self, pod: &Pod) -> Option<(ObjectKey, String)> {
        let owner =
            controller_of(&pod.metadata).filter(|o| o.kind == K::kind(&()) && o.api_version == K::api_version(&()))?;
        Some((ObjectKey::new(namespace(&pod.metadata), &owner.name), owner.uid.clone()))
    }

    fn pod_changed(&self, change: Change<'_, Pod>) {
        let pod = change.latest();
        let owner = self.owner_of(pod);
        if let Some((key, owner_uid)) = &owner {
            let starts_deleting =
                is_deleting(&pod.metadata) && change.old().is_none_or(|old| !is_deleting(&old.metadata));
            match change {
                Change::Added(_) if !is_deleting(&pod.metadata) => self.expectations.created(owner_uid),
                _ if change.is_deleted() || starts_deleting => self.expectations.deleted(owner_uid, uid(&pod.metadata)),
                _ => {}
            }
            self.queue.add(key.clone());
        }
        if let Some(old) = change.old()
            && let Some((key, _)) = self.owner_of(old)
            && owner.as_ref().is_none_or(|(now, _)| *now != key)
        {
            self.queue.add(key);
        }
        if controller_of(&pod.metadata).is_none() && !change.is_deleted() {
            let relabelled = change
                .old()
                .is_none_or(|old| old.metadata.labels != pod.metadata.labels || controller_of(&old.metadata).is_some());
            if relabelled {
                for set in K::cache(&self.ctx)
                    .list(namespace(&pod.metadata))
                    .iter()
                    .filter(|s| s.selects(pod))
                {
                    self.queue.add(ObjectKey::of(&**set));
                }
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(set) = K::cache(&self.ctx).get_key(key) else {
            return Ok(Requeue::Done);
        };
        let caught_up = self.expectations.satisfied(uid(set.meta()));
        // Pods that are going are counted but never claimed anew.
        let all = self.ctx.caches.pods.list(&key.namespace);
        let terminating = all
            .iter()
            .filter(|p| is_controlled_by(&p.metadata, set.meta()) && is_deleting(&p.metadata) && !is_terminal(p))
            .count();
        let candidates = all.into_iter().filter(|p| is_active(p)).collect();
        let pods = claim(&self.ctx.client, &*set, candidates, |pod| set.selects(pod)).await?;
        let mut managed = Ok(());
        if caught_up && !is_deleting(set.meta()) {
            managed = self.manage(&set, &pods).await;
        }
        let counts = count(&*set, &pods, terminating, Timestamp::now());
        let failure = managed.as_ref().err().map(|f| f.0.clone());
        let api: Api<K> = Api::namespaced(self.ctx.client.clone(), &key.namespace);
        match update(&api, &*set, &set.with_status(&counts, failure.as_ref()), Part::Status).await {
            Ok(_) => {}
            Err(Error::Api(e)) if component::ApiErrorExt::is_not_found(&e) => return Ok(Requeue::Done),
            Err(e) => return Err(e),
        }
        match managed {
            Ok(()) => Ok(Requeue::after(counts.next)),
            Err((_, Error::Api(e))) if component::ApiErrorExt::is_namespace_terminating(&e) => Ok(Requeue::Done),
            Err((_, error)) => Err(error),
        }
    }

    async fn manage(&self, set: &Arc<K>, pods: &[Arc<Pod>]) -> Result<(), (Failure, Error)> {
        let wanted = usize::try_from(set.replicas()).unwrap_or(0);
        if pods.len() < wanted {
            let result = self.create_pods(set, (wanted - pods.len()).min(BURST)).await;
            result.map_err(|e| {
                (
                    Failure {
                        reason: "FailedCreate",
                        message: e.to_string(),
                    },
                    e,
                )
            })
        } else if pods.len() > wanted {
            let result = self.delete_pods(set, pods, (pods.len() - wanted).min(BURST)).await;
            result.map_err(|e| {
                (
                    Failure {
                        reason: "FailedDelete",
                        message: e.to_string(),
                    },
                    e,
                )
            })
        } else {
            Ok(())
        }
    }

    async fn create_pods(&self, set: &Arc<K>, count: usize) -> Result<(), Error> {
        let Some(template) = set.template() else { return Ok(()) };
        let owner = uid(set.meta());
        let pod = pods::from_template(template, &**set);
        self.expectations.expect(owner, count, []);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let tried = join_all((0..size).map(|_| pods::create(&self.ctx.client, &self.events, &**set, &pod))).await;
            left -= size;
            let failed: Vec<Error> = tried.into_iter().filter_map(Result::err).collect();
            failed.iter().for_each(|_| self.expectations.created(owner));
            if let Some(error) = failed.into_iter().next() {
                (0..left).for_each(|_| self.expectations.created(owner));
                return Err(error);
            }
            batch = (batch * 2).min(64);
        }
        Ok(())
    }

    async fn delete_pods(&self, set: &Arc<K>, pods: &[Arc<Pod>], count: usize) -> Result<(), Error> {
        let related = self.related(set, pods);
        let victims = victims(pods, &related, count, Timestamp::now());
        let owner = uid(set.meta());
        self.expectations
            .expect(owner, 0, victims.iter().map(|p| uid(&p.metadata).to_owned()));
        let mut result = Ok(());
        for batch in victims.chunks(32) {
            let tried = join_all(batch.iter().map(|pod| async move {
                let deleted = pods::delete(&self.ctx.client, &self.events, &**set, pod).await;
                (pod, deleted)
            }));
            for (pod, deleted) in tried.await {
                if deleted.is_err() {
                    self.expectations.deleted(owner, uid(&pod.metadata));
                    result = deleted;
                }
            }
        }
        result
    }

    /// The pods of all sets that the same owner manages; of this set alone if nobody does.
    fn related(&self, set: &Arc<K>, pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(owner) = controller_of(set.meta()) else {
            return pods.to_vec();
        };
        let siblings: Vec<Arc<K>> = K::cache(&self.ctx)
            .list(namespace(set.meta()))
            .into_iter()
            .filter(|s| controller_of(s.meta()).is_some_and(|o| o.uid == owner.uid))
            .collect();
        let all = self.ctx.caches.pods.list(namespace(set.meta()));
        all.into_iter()
            .filter(|p| siblings.iter().any(|s| is_controlled_by(&p.metadata, s.meta())))
            .collect()
    }
}

fn count<K: Replicated>(set: &K, pods: &[Arc<Pod>], terminating: usize, now: Timestamp) -> Counts {
    let template = set
        .template()
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    let mut counts = Counts {
        terminating: i32::try_from(terminating).unwrap_or(i32::MAX),
        ..Counts::default()
    };
    for pod in pods {
        counts.replicas += 1;
        counts.fully_labeled += i32::from(selector::matches_map(&template, pod.metadata.labels.as_ref()));
        counts.ready += i32::from(is_ready(pod));
        match availability(pod, set.min_ready_seconds(), now) {
            Ok(()) => counts.available += 1,
            Err(None) => {}
            Err(Some(missing)) => counts.next = Some(counts.next.map_or(missing, |n| n.min(missing))),
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;

    #[test]
    fn counts_follow_readiness_and_the_minimum_ready_time() {
        let spec = ReplicaSetSpec {
            min_ready_seconds: Some(10),
            ..ReplicaSetSpec::default()
        };
        let set = ReplicaSet {
            spec: Some(spec),
            ..ReplicaSet::default()
        };
        let pods: Vec<_> = [
            pod("a", None, "Pending", None),
            pod("b", Some("n"), "Running", Some(50)),
            pod("c", Some("n"), "Running", Some(97)),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let counts = count(&set, &pods, 1, Timestamp::from_second(100).unwrap());
        let expected = Counts {
            replicas: 3,
            fully_labeled: 3,
            ready: 2,
            available: 1,
            terminating: 1,
            next: Some(Duration::from_secs(7)),
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_failure_is_shown_once_and_cleared() {
        let set = ReplicaSet::default();
        let failure = Failure {
            reason: "FailedCreate",
            message: "quota".into(),
        };
        let failed = set.with_status(&Counts::default(), Some(&failure));
        let again = failed.with_status(
            &Counts::default(),
            Some(&Failure {
                message: "other".into(),
                ..failure
            }),
        );
        assert_eq!(failed.status, again.status);
        assert_eq!(
            again.with_status(&Counts::default(), None).status.unwrap().conditions,
            None
        );
    }

    #[test]
    fn a_controller_without_selector_owns_nothing() {
        assert!(!ReplicationController::default().selects(&pod("a", None, "Pending", None)));
    }
}
