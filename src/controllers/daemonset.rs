//! DaemonSets: one pod on every node that wants one, replaced at the pace of the update strategy, with a history of
//! templates as ControllerRevisions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use component::events::{Level, Recorder};
use component::patch::{Part, update};
use component::{ApiErrorExt, Change, Error, ObjectKey, Queue, Requeue, selector};
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::claim::claim;
use crate::context::{Context, known};
use crate::daemon_placement::{pin, target, wanted};
use crate::daemon_plan::{HASH_LABEL, Place, Places, Plan, is_updated, manage, roll};
use crate::daemon_status::status_of;
use crate::expectations::Expectations;
use crate::hash::template_hash;
use crate::meta::{controller_of, controller_reference, is_controlled_by, is_deleting, name, namespace, uid};
use crate::pods;

const WORKERS: usize = 2;
const BURST: usize = 250;
/// A daemon that fails at once is replaced after 1 s, 2 s, 4 s … 15 min.
const LAST_PAUSE: Duration = Duration::from_secs(900);

struct Controller {
    ctx: Arc<Context>,
    events: Recorder,
    expectations: Expectations,
    queue: Arc<Queue<ObjectKey>>,
    /// By DaemonSet UID and node: how often in a row its pod failed, and until when to wait.
    pauses: Mutex<HashMap<(String, String), (u32, Instant)>>,
}

/// Starts the DaemonSet controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("daemonset");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        events: ctx.events.named("daemonset-controller"),
        expectations: Expectations::default(),
        queue: Arc::clone(&queue),
        pauses: Mutex::default(),
    });
    let on = Arc::clone(&controller);
    ctx.caches.daemon_sets.on_change(move |c| {
        if c.is_deleted() {
            on.expectations.forget(uid(&c.latest().metadata));
            on.pauses().retain(|(set, _), _| set != uid(&c.latest().metadata));
        }
        on.queue.add(ObjectKey::of(&**c.latest()));
    });
    let on = Arc::clone(&controller);
    ctx.caches.pods.on_change(move |c| on.pod_changed(c));
    let on = Arc::clone(&controller);
    ctx.caches.nodes.on_change(move |c| on.node_changed(c));
    ctx.work(
        known!(ctx, daemon_sets, pods, nodes, revisions),
        queue,
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

fn owner(meta: &ObjectMeta) -> Option<(ObjectKey, &str)> {
    let owner = controller_of(meta).filter(|o| o.kind == "DaemonSet" && o.api_version == "apps/v1")?;
    Some((ObjectKey::new(namespace(meta), &owner.name), &owner.uid))
}

fn selects(set: &DaemonSet, meta: &ObjectMeta) -> bool {
    selector::matches(set.spec.as_ref().map(|s| &s.selector), meta.labels.as_ref())
}

impl Controller {
    fn pauses(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), (u32, Instant)>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod_changed(&self, change: Change<'_, Pod>) {
        let pod = change.latest();
        if let Some((key, owner)) = owner(&pod.metadata) {
            let starts_deleting = is_deleting(&pod.metadata) && change.old().is_none_or(|o| !is_deleting(&o.metadata));
            match change {
                Change::Added(_) if !is_deleting(&pod.metadata) => self.expectations.created(owner),
                _ if change.is_deleted() || starts_deleting => self.expectations.deleted(owner, uid(&pod.metadata)),
                _ => {}
            }
            self.queue.add(key);
        } else if controller_of(&pod.metadata).is_none() && !change.is_deleted() {
            for set in self.ctx.caches.daemon_sets.list(namespace(&pod.metadata)) {
                if selects(&set, &pod.metadata) {
                    self.queue.add(ObjectKey::of(&*set));
                }
            }
        }
    }

    fn node_changed(&self, change: Change<'_, Node>) {
        let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
        let same = change.old().is_some_and(|o| {
            o.metadata.labels == change.latest().metadata.labels && taints(o) == taints(change.latest())
        });
        if same {
            return;
        }
        for set in self.ctx.caches.daemon_sets.all() {
            let now = !change.is_deleted() && wanted(&set, change.latest()).keep;
            let before = change.old().is_some_and(|o| wanted(&set, o).keep);
            if now || before || change.is_deleted() {
                self.queue.add(ObjectKey::of(&*set));
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(set) = self.ctx.caches.daemon_sets.get_key(key) else {
            return Ok(Requeue::Done);
        };
        let Some(spec) = &set.spec else {
            return Ok(Requeue::Done);
        };
        if selector::is_empty(&spec.selector) {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.event(&*set, Level::Warning, "SelectingAll", message);
            return Ok(Requeue::Done);
        }
        if is_deleting(&set.metadata) {
            return Ok(Requeue::Done);
        }
        let (current, old) = self.history(&set).await?;
        let hash = current
            .metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(HASH_LABEL))
            .cloned()
            .unwrap_or_default();
        let mut pause = None;
        let mut places = self.places(&set).await?;
        if self.expectations.satisfied(uid(&set.metadata)) {
            let now = Timestamp::now();
            let mut plan = manage(&set, &places, &hash, now);
            if plan.create.is_empty() && plan.delete.is_empty() {
                let next = roll(&set, &places, &hash, now);
                plan.create = next.create;
                plan.delete = next.delete;
            }
            pause = self.failed(&set, &mut plan);
            self.carry_out(&set, &plan, &hash).await?;
            if !plan.create.is_empty() || !plan.delete.is_empty() {
                places = self.places(&set).await?;
            }
        }
        self.clean_up_history(&set, &old, &places).await?;
        let next = self.write_status(&set, &places, &hash).await?;
        Ok(Requeue::after(pause.into_iter().chain(next).min()))
    }

    /// Every node there is, and every node that one of the pods is on.
    async fn places(&self, set: &Arc<DaemonSet>) -> Result<Places, Error> {
        let candidates = self.ctx.caches.pods.list(namespace(&set.metadata));
        let candidates = candidates
            .into_iter()
            .filter(|p| !is_deleting(&p.metadata) || is_controlled_by(&p.metadata, &set.metadata))
            .collect();
        let owned = claim(&self.ctx.client, &**set, candidates, |p: &Pod| {
            selects(set, &p.metadata)
        })
        .await?;
        let mut places: Places = self
            .ctx
            .caches
            .nodes
            .all()
            .iter()
            .map(|n| {
                (
                    name(&n.metadata).to_owned(),
                    Place {
                        wanted: wanted(set, n),
                        pods: Vec::new(),
                    },
                )
            })
            .collect();
        for pod in owned {
            // A pod of a node that is gone is the pod collector's.
            if let Some(place) = target(&pod).and_then(|n| places.get_mut(n)) {
                place.pods.push(pod);
            }
        }
        Ok(places)
    }

    /// Moves failed pods whose pause is over into `plan.delete`; the rest is due after the result.
    fn failed(&self, set: &DaemonSet, plan: &mut Plan) -> Option<Duration> {
        let mut pauses = self.pauses();
        let now = Instant::now();
        let mut next: Option<Duration> = None;
        for (node, pod) in std::mem::take(&mut plan.failed) {
            let entry = pauses
                .entry((uid(&set.metadata).to_owned(), node.clone()))
                .or_insert((0, now));
            if entry.1 > now {
                let wait = entry.1 - now;
                next = Some(next.map_or(wait, |n| n.min(wait)));
                continue;
            }
            let pause = Duration::from_secs(1)
                .saturating_mul(1 << entry.0.min(12))
                .min(LAST_PAUSE);
            // One that lived long starts over.
            entry.0 = if now.duration_since(entry.1) > LAST_PAUSE * 2 {
                0
            } else {
                entry.0 + 1
            };
            entry.1 = now + pause;
            let message = format!(
                "Found failed daemon pod {} on node {node}, will try to kill it",
                Context::describe(&pod.metadata)
            );
            self.events.event(set, Level::Warning, "FailedDaemonPod", message);
            plan.delete.push(pod);
        }
        next
    }

    async fn carry_out(&self, set: &Arc<DaemonSet>, plan: &Plan, hash: &str) -> Result<(), Error> {
        let owner = uid(&set.metadata);
        let create = &plan.create[..plan.create.len().min(BURST)];
        let delete = &plan.delete[..plan.delete.len().min(BURST)];
        if create.is_empty() && delete.is_empty() {
            return Ok(());
        }
        self.expectations
            .expect(owner, create.len(), delete.iter().map(|p| uid(&p.metadata).to_owned()));
        let mut result = Ok(());
        let (mut done, mut batch) = (0, 1);
        while done < create.len() {
            let end = (done + batch).min(create.len());
            let tried = join_all(create[done..end].iter().map(|node| self.create_pod(set, node, hash))).await;
            done = end;
            let failed: Vec<Error> = tried.into_iter().filter_map(Result::err).collect();
            failed.iter().for_each(|_| self.expectations.created(owner));
            if let Some(error) = failed.into_iter().next() {
                (done..create.len()).for_each(|_| self.expectations.created(owner));
                result = Err(error);
                break;
            }
            batch = (batch * 2).min(64);
        }
        for pods in delete.chunks(32) {
            let tried = pods
                .iter()
                .map(|pod| async move { (pod, pods::delete(&self.ctx.client, &self.events, &**set, pod).await) });
            for (pod, deleted) in join_all(tried).await {
                if deleted.is_err() {
                    self.expectations.deleted(owner, uid(&pod.metadata));
                    result = deleted;
                }
            }
        }
        match result {
            Err(Error::Api(e)) if e.is_namespace_terminating() => Ok(()),
            other => other,
        }
    }

    async fn create_pod(&self, set: &Arc<DaemonSet>, node: &str, hash: &str) -> Result<Pod, Error> {
        let Some(spec) = &set.spec else {
            return Err(Error::Invalid("daemon set without spec".into()));
        };
        let mut pod = pods::from_template(&spec.template, &**set);
        pod.metadata
            .labels
            .get_or_insert_default()
            .insert(HASH_LABEL.to_owned(), hash.to_owned());
        pin(&mut pod, node);
        pods::create(&self.ctx.client, &self.events, &**set, &pod).await
    }

    /// The revision of the present template (made if needed) and the older ones, oldest first.
    async fn history(
        &self,
        set: &Arc<DaemonSet>,
    ) -> Result<(Arc<ControllerRevision>, Vec<Arc<ControllerRevision>>), Error> {
        let candidates = self.ctx.caches.revisions.list(namespace(&set.metadata));
        let mut owned = claim(&self.ctx.client, &**set, candidates, |r: &ControllerRevision| {
            selects(set, &r.metadata)
        })
        .await?;
        owned.sort_by_key(|r| r.revision);
        let data = template_patch(set)?;
        let next = owned.last().map_or(1, |r| r.revision + 1);
        let api: Api<ControllerRevision> = Api::namespaced(self.ctx.client.clone(), namespace(&set.metadata));
        if let Some(i) = owned.iter().rposition(|r| r.data.as_ref().is_some_and(|d| d.0 == data)) {
            let mut current = owned.remove(i);
            // A template that comes back is the newest again.
            if current.revision + 1 < next {
                let renewed = ControllerRevision {
                    revision: next,
                    ..(*current).clone()
                };
                if let Some(written) = update(&api, &*current, &renewed, Part::Main).await? {
                    current = Arc::new(written);
                }
            }
            return Ok((current, owned));
        }
        let wanted = new_revision(set, data, next)?;
        match api.create(&PostParams::default(), &wanted).await {
            Ok(created) => Ok((Arc::new(created), owned)),
            Err(e) if e.is_already_exists() => {
                let existing = api.get(name(&wanted.metadata)).await?;
                if existing.data == wanted.data && is_controlled_by(&existing.metadata, &set.metadata) {
                    return Ok((Arc::new(existing), owned));
                }
                let mut status = set.status.clone().unwrap_or_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                let api: Api<DaemonSet> = Api::namespaced(self.ctx.client.clone(), namespace(&set.metadata));
                update(
                    &api,
                    &**set,
                    &DaemonSet {
                        status: Some(status),
                        ..(**set).clone()
                    },
                    Part::Status,
                )
                .await?;
                Err(Error::Retry("hash collision of templates".into()))
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn clean_up_history(
        &self,
        set: &DaemonSet,
        old: &[Arc<ControllerRevision>],
        places: &Places,
    ) -> Result<(), Error> {
        let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        let Ok(limit) = usize::try_from(limit) else {
            return Ok(());
        };
        let surplus = old.len().saturating_sub(limit);
        let in_use = |r: &ControllerRevision| {
            let hash = r.metadata.labels.as_ref().and_then(|l| l.get(HASH_LABEL));
            hash.is_some_and(|h| places.values().flat_map(|p| &p.pods).any(|p| is_updated(p, h)))
        };
        let api: Api<ControllerRevision> = Api::namespaced(self.ctx.client.clone(), namespace(&set.metadata));
        for revision in old.iter().filter(|r| !in_use(r)).take(surplus) {
            match api.delete(name(&revision.metadata), &DeleteParams::default()).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    async fn write_status(&self, set: &Arc<DaemonSet>, places: &Places, hash: &str) -> Result<Option<Duration>, Error> {
        let (status, next) = status_of(set, places, hash, Timestamp::now());
        let wanted = DaemonSet {
            status: Some(status),
            ..(**set).clone()
        };
        let api: Api<DaemonSet> = Api::namespaced(self.ctx.client.clone(), namespace(&set.metadata));
        match update(&api, &**set, &wanted, Part::Status).await {
            Ok(_) => Ok(next),
            Err(Error::Api(e)) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The template as the strategic merge patch that `kubectl rollout undo` applies.
fn template_patch(set: &DaemonSet) -> Result<Value, Error> {
    let mut template = serde_json::to_value(set.spec.as_ref().map(|s| &s.template))?;
    template["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": template}}))
}

fn new_revision(set: &DaemonSet, data: Value, revision: i64) -> Result<ControllerRevision, Error> {
    let Some(spec) = &set.spec else {
        return Err(Error::Invalid("daemon set without spec".into()));
    };
    let hash = template_hash(&spec.template, set.status.as_ref().and_then(|s| s.collision_count))?;
    let mut labels = spec
        .template
        .metadata
        .as_ref()
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision,
    })
}
