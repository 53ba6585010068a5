//! Deployments: replace the pods of one template by those of another, at the pace the strategy allows.
//!
//! The decisions are in `deployment_plan` (sizes), `deployment_status` (conditions) and `deployment_sets` (which set is
//! which); here they are read, written and repeated until nothing is left to do.

use std::sync::Arc;
use std::time::Duration;

use component::events::{Level, Recorder};
use component::patch::{Part, update};
use component::{ApiErrorExt, Change, Error, ObjectKey, Queue, Requeue, selector};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::claim::claim;
use crate::context::{Context, known};
use crate::deployment_plan::{Limits, Set, in_proportion, is_rolling, new_replicas, old_replicas};
use crate::deployment_sets::{self as sets, numbers, resized, size};
use crate::deployment_status as status;
use crate::meta::{controller_of, is_controlled_by, is_deleting, name, namespace, uid};
use crate::pods::is_terminal;

const WORKERS: usize = 4;

struct Controller {
    ctx: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
}

/// Starts the Deployment controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("deployment");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        events: ctx.events.named("deployment-controller"),
        queue: Arc::clone(&queue),
    });
    let on = Arc::clone(&controller);
    ctx.caches
        .deployments
        .on_change(move |c| on.queue.add(ObjectKey::of(&**c.latest())));
    let on = Arc::clone(&controller);
    ctx.caches.replica_sets.on_change(move |c| on.set_changed(c));
    let on = Arc::clone(&controller);
    ctx.caches.pods.on_change(move |c| on.pod_changed(c));
    ctx.work(
        known!(ctx, deployments, replica_sets, pods),
        queue,
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

fn owner(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, kind: &str) -> Option<ObjectKey> {
    let owner = controller_of(meta).filter(|o| o.kind == kind && o.api_version == "apps/v1")?;
    Some(ObjectKey::new(namespace(meta), &owner.name))
}

/// The ReplicaSets of a Deployment, oldest first among the old.
struct Family {
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl Family {
    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }
}

impl Controller {
    fn set_changed(&self, change: Change<'_, ReplicaSet>) {
        let set = change.latest();
        let owners = [
            owner(&set.metadata, "Deployment"),
            change.old().and_then(|o| owner(&o.metadata, "Deployment")),
        ];
        for key in owners.into_iter().flatten() {
            self.queue.add(key);
        }
        if controller_of(&set.metadata).is_none() && !change.is_deleted() {
            for deployment in self.ctx.caches.deployments.list(namespace(&set.metadata)) {
                if selects(&deployment, set) {
                    self.queue.add(ObjectKey::of(&*deployment));
                }
            }
        }
    }

    /// Recreate waits for the last old pod to be gone.
    fn pod_changed(&self, change: Change<'_, Pod>) {
        let ended =
            change.is_deleted() || (is_terminal(change.latest()) && change.old().is_some_and(|o| !is_terminal(o)));
        if !ended {
            return;
        }
        let Some(set) =
            owner(&change.latest().metadata, "ReplicaSet").and_then(|k| self.ctx.caches.replica_sets.get_key(&k))
        else {
            return;
        };
        if let Some(key) = owner(&set.metadata, "Deployment")
            && self
                .ctx
                .caches
                .deployments
                .get_key(&key)
                .is_some_and(|d| !is_rolling(&d))
        {
            self.queue.add(key);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(deployment) = self.ctx.caches.deployments.get_key(key) else {
            return Ok(Requeue::Done);
        };
        let Some(spec) = &deployment.spec else {
            return Ok(Requeue::Done);
        };
        if selector::is_empty(&spec.selector) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.event(&*deployment, Level::Warning, "SelectingAll", message);
            return Ok(Requeue::Done);
        }
        let candidates = self.ctx.caches.replica_sets.list(&key.namespace);
        let owned = claim(&self.ctx.client, &*deployment, candidates, |set: &ReplicaSet| {
            selects(&deployment, set)
        })
        .await?;
        let (new, old) = sets::split(&deployment, owned);
        let mut family = Family { new, old };
        if is_deleting(&deployment.metadata) {
            return self.write_status(&deployment, &family, None).await;
        }
        let paused = spec.paused == Some(true);
        if let Some(said) = pause_condition(&deployment, paused) {
            self.save_status(&deployment, said).await?;
            return Ok(Requeue::Done);
        }
        let scaling = family
            .all()
            .iter()
            .any(|s| size(s) > 0 && sets::desired(s).is_some_and(|d| d != Limits::of(&deployment).replicas));
        if paused || scaling {
            family.new = self.refresh_new(&deployment, &family).await?;
            self.scale(&deployment, &mut family).await?;
            if paused && family.old.iter().all(|s| size(s) == 0) {
                self.clean_up(&deployment, &family.old).await?;
            }
            return self.write_status(&deployment, &family, None).await;
        }
        if is_rolling(&deployment) {
            self.roll(&deployment, family).await
        } else {
            self.recreate(&deployment, family).await
        }
    }

    async fn roll(&self, deployment: &Arc<Deployment>, mut family: Family) -> Result<Requeue, Error> {
        let Some(reason) = self.ensure_new(deployment, &mut family).await? else {
            return Ok(Requeue::Done);
        };
        let limits = Limits::of(deployment);
        let old: Vec<Set> = family.old.iter().map(|s| numbers(s)).collect();
        if let Some(new) = family.new.clone() {
            let wanted = new_replicas(limits, &numbers(&new), &old);
            if wanted != size(&new) {
                family.new = Some(self.resize(deployment, &new, wanted, limits).await?);
            } else {
                let wanted = old_replicas(limits, &numbers(&new), &old);
                for (set, wanted) in family.old.iter_mut().zip(wanted) {
                    if wanted != size(set) {
                        *set = self.resize(deployment, set, wanted, limits).await?;
                    }
                }
            }
        }
        self.finish(deployment, family, reason).await
    }

    async fn recreate(&self, deployment: &Arc<Deployment>, mut family: Family) -> Result<Requeue, Error> {
        let limits = Limits::of(deployment);
        family.new = self.refresh_new(deployment, &family).await?;
        let mut scaled_down = false;
        for set in &mut family.old {
            if size(set) > 0 {
                *set = self.resize(deployment, set, 0, limits).await?;
                scaled_down = true;
            }
        }
        if scaled_down || self.old_pods_run(&family) {
            return self.write_status(deployment, &family, None).await;
        }
        let Some(reason) = self.ensure_new(deployment, &mut family).await? else {
            return Ok(Requeue::Done);
        };
        if let Some(new) = family.new.clone()
            && size(&new) != limits.replicas
        {
            family.new = Some(self.resize(deployment, &new, limits.replicas, limits).await?);
        }
        self.finish(deployment, family, reason).await
    }

    async fn finish(
        &self,
        deployment: &Arc<Deployment>,
        family: Family,
        reason: Option<&'static str>,
    ) -> Result<Requeue, Error> {
        let counted = status::counts(deployment, family.new.as_deref(), &family.all(), Timestamp::now());
        if status::is_complete(deployment, &counted) {
            self.clean_up(deployment, &family.old).await?;
        }
        self.write_status(deployment, &family, reason).await
    }

    fn old_pods_run(&self, family: &Family) -> bool {
        let pods = self
            .ctx
            .caches
            .pods
            .list(family.old.first().map_or("", |s| namespace(&s.metadata)));
        pods.iter()
            .any(|p| !is_terminal(p) && family.old.iter().any(|s| is_controlled_by(&p.metadata, &s.metadata)))
    }

    /// Brings the existing new ReplicaSet's annotations and `minReadySeconds` up to date.
    async fn refresh_new(
        &self,
        deployment: &Arc<Deployment>,
        family: &Family,
    ) -> Result<Option<Arc<ReplicaSet>>, Error> {
        let Some(new) = &family.new else { return Ok(None) };
        let mut wanted = (**new).clone();
        wanted.metadata.annotations = Some(sets::annotations(
            deployment,
            Some(new),
            sets::next_revision(&family.old),
        ));
        if let (Some(spec), Some(from)) = (&mut wanted.spec, &deployment.spec) {
            spec.min_ready_seconds = from.min_ready_seconds;
        }
        let api: Api<ReplicaSet> = Api::namespaced(self.ctx.client.clone(), namespace(&new.metadata));
        let written = update(&api, &**new, &wanted, Part::Main)
            .await?
            .map_or_else(|| Arc::clone(new), Arc::new);
        self.write_revision(deployment, &written).await?;
        Ok(Some(written))
    }

    /// The Deployment's own revision annotation follows its new ReplicaSet's.
    async fn write_revision(&self, deployment: &Arc<Deployment>, new: &ReplicaSet) -> Result<(), Error> {
        let revision = sets::revision(&new.metadata).to_string();
        let mut wanted = (**deployment).clone();
        wanted
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(sets::REVISION.to_owned(), revision);
        let api: Api<Deployment> = Api::namespaced(self.ctx.client.clone(), namespace(&deployment.metadata));
        if update(&api, &**deployment, &wanted, Part::Main).await?.is_some() {
            // The rest of this pass would write on top of a version that is no longer current.
            return Err(Error::Retry("revision written".into()));
        }
        Ok(())
    }

    /// Makes sure that the new ReplicaSet exists. The reason for the Progressing condition if it is news; nothing at all
    /// if the pass must end here.
    async fn ensure_new(
        &self,
        deployment: &Arc<Deployment>,
        family: &mut Family,
    ) -> Result<Option<Option<&'static str>>, Error> {
        if family.new.is_some() {
            family.new = self.refresh_new(deployment, family).await?;
            let known = deployment
                .status
                .as_ref()
                .is_some_and(|s| status::condition(s, "Progressing").is_some());
            return Ok(Some((!known).then_some(status::FOUND)));
        }
        let wanted = sets::build(deployment, &family.old, sets::next_revision(&family.old))?;
        let api: Api<ReplicaSet> = Api::namespaced(self.ctx.client.clone(), namespace(&deployment.metadata));
        match api.create(&PostParams::default(), &wanted).await {
            Ok(created) => {
                let size = size(&created);
                if size > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {size}", name(&created.metadata));
                    self.events
                        .event(&**deployment, Level::Normal, "ScalingReplicaSet", message);
                }
                let created = Arc::new(created);
                family.new = Some(Arc::clone(&created));
                match self.write_revision(deployment, &created).await {
                    Ok(()) => Ok(Some(Some(status::CREATED))),
                    // Conditions are written by the pass that follows; this one told the world of the new set.
                    Err(Error::Retry(_)) => Ok(None),
                    Err(e) => Err(e),
                }
            }
            Err(e) if e.is_already_exists() => {
                let existing = api.get(name(&wanted.metadata)).await?;
                if sets::is_same(deployment, &existing) {
                    return Err(Error::Retry("the new replica set is not in the cache yet".into()));
                }
                let mut said = deployment.status.clone().unwrap_or_default();
                said.collision_count = Some(said.collision_count.unwrap_or(0) + 1);
                self.save_status(deployment, said).await?;
                Err(Error::Retry("hash collision of templates".into()))
            }
            Err(e) if e.is_namespace_terminating() => Ok(None),
            Err(e) => {
                let message = format!(
                    "Failed to create new replica set {:?}: {}",
                    name(&wanted.metadata),
                    component::plain(&e)
                );
                let mut said = status::counts(deployment, None, &family.old, Timestamp::now());
                status::set_condition(
                    &mut said,
                    "Progressing",
                    false,
                    status::CREATE_FAILED,
                    message.clone(),
                    Timestamp::now(),
                );
                self.save_status(deployment, said).await?;
                self.events
                    .event(&**deployment, Level::Warning, status::CREATE_FAILED, message);
                Err(e.into())
            }
        }
    }

    /// Applies a changed `spec.replicas`.
    async fn scale(&self, deployment: &Arc<Deployment>, family: &mut Family) -> Result<(), Error> {
        let limits = Limits::of(deployment);
        let mut active: Vec<&mut Arc<ReplicaSet>> = family
            .old
            .iter_mut()
            .chain(family.new.as_mut())
            .filter(|s| size(s) > 0)
            .collect();
        // The only one with pods, or, when none has any, the newest: it takes all.
        let only = match active.len() {
            0 => family.new.as_mut().or(family.old.last_mut()),
            1 => active.pop(),
            _ => None,
        };
        if let Some(only) = only {
            if size(only) != limits.replicas || sets::desired(only) != Some(limits.replicas) {
                *only = self.resize(deployment, only, limits.replicas, limits).await?;
            }
            return Ok(());
        }
        let saturated = family.new.as_deref().is_some_and(|new| {
            size(new) == limits.replicas
                && sets::desired(new) == Some(limits.replicas)
                && new.status.as_ref().and_then(|s| s.available_replicas) == Some(limits.replicas)
        });
        if saturated {
            for set in family.old.iter_mut().filter(|s| size(s) > 0) {
                *set = self.resize(deployment, set, 0, limits).await?;
            }
            return Ok(());
        }
        if !is_rolling(deployment) {
            return Ok(());
        }
        let mut active: Vec<&mut Arc<ReplicaSet>> = family
            .old
            .iter_mut()
            .chain(family.new.as_mut())
            .filter(|s| size(s) > 0)
            .collect();
        let wanted = in_proportion(limits, &active.iter().map(|s| numbers(s)).collect::<Vec<_>>());
        for (set, wanted) in active.iter_mut().zip(wanted) {
            **set = self.resize(deployment, set, wanted, limits).await?;
        }
        Ok(())
    }

    async fn resize(
        &self,
        deployment: &Arc<Deployment>,
        set: &Arc<ReplicaSet>,
        wanted: i32,
        limits: Limits,
    ) -> Result<Arc<ReplicaSet>, Error> {
        let before = size(set);
        let api: Api<ReplicaSet> = Api::namespaced(self.ctx.client.clone(), namespace(&set.metadata));
        let Some(written) = update(&api, &**set, &resized(set, wanted, limits), Part::Main).await? else {
            return Ok(Arc::clone(set));
        };
        if wanted != before {
            let direction = if wanted > before { "up" } else { "down" };
            let message = format!(
                "Scaled {direction} replica set {} from {before} to {wanted}",
                name(&set.metadata)
            );
            self.events
                .event(&**deployment, Level::Normal, "ScalingReplicaSet", message);
        }
        Ok(Arc::new(written))
    }

    /// Deletes the oldest empty ReplicaSets beyond `revisionHistoryLimit`.
    async fn clean_up(&self, deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Result<(), Error> {
        let limit = deployment
            .spec
            .as_ref()
            .and_then(|s| s.revision_history_limit)
            .unwrap_or(10);
        let Ok(limit) = usize::try_from(limit) else {
            return Ok(());
        };
        let mut past: Vec<&Arc<ReplicaSet>> = old.iter().filter(|s| !is_deleting(&s.metadata)).collect();
        past.sort_by_key(|s| sets::revision(&s.metadata));
        let surplus = past.len().saturating_sub(limit);
        let api: Api<ReplicaSet> = Api::namespaced(self.ctx.client.clone(), namespace(&deployment.metadata));
        for set in past.into_iter().take(surplus) {
            let in_use = set.status.as_ref().is_some_and(|s| s.replicas > 0);
            let unseen = set.metadata.generation > set.status.as_ref().and_then(|s| s.observed_generation);
            if in_use || unseen || size(set) > 0 {
                continue;
            }
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(uid(&set.metadata).to_owned()),
                    resource_version: None,
                }),
                ..DeleteParams::background()
            };
            match api.delete(name(&set.metadata), &params).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    async fn write_status(
        &self,
        deployment: &Arc<Deployment>,
        family: &Family,
        reason: Option<&'static str>,
    ) -> Result<Requeue, Error> {
        let now = Timestamp::now();
        let mut said = status::counts(deployment, family.new.as_deref(), &family.all(), now);
        let mut next: Option<Duration> = None;
        if let (Some(reason), Some(new), Some(_)) = (reason, &family.new, status::deadline(deployment)) {
            let verb = if reason == status::FOUND {
                "Found new replica set"
            } else {
                "Created new replica set"
            };
            status::set_condition(
                &mut said,
                "Progressing",
                true,
                reason,
                format!("{verb} {:?}", name(&new.metadata)),
                now,
            );
        }
        if deployment.spec.as_ref().is_none_or(|s| s.paused != Some(true)) {
            next = status::progress(deployment, &mut said, family.new.as_deref(), &family.all(), now);
        }
        self.save_status(deployment, said).await?;
        Ok(Requeue::after(next))
    }

    async fn save_status(&self, deployment: &Arc<Deployment>, said: DeploymentStatus) -> Result<(), Error> {
        let wanted = Deployment {
            status: Some(said),
            ..(**deployment).clone()
        };
        let api: Api<Deployment> = Api::namespaced(self.ctx.client.clone(), namespace(&deployment.metadata));
        match update(&api, &**deployment, &wanted, Part::Status).await {
            Ok(_) => Ok(()),
            Err(Error::Api(e)) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    selector::matches(
        deployment.spec.as_ref().map(|s| &s.selector),
        set.metadata.labels.as_ref(),
    )
}

/// The status that says that a Deployment with a deadline was just paused or resumed, if that is news.
fn pause_condition(deployment: &Deployment, paused: bool) -> Option<DeploymentStatus> {
    status::deadline(deployment)?;
    let mut said = deployment.status.clone().unwrap_or_default();
    let current = status::condition(&said, "Progressing").and_then(|c| c.reason.as_deref());
    let now = Timestamp::now();
    match (paused, current == Some(status::PAUSED)) {
        (true, false) => {
            // A timed-out rollout stays timed out.
            if current == Some("ProgressDeadlineExceeded") {
                return None;
            }
            status::put(
                &mut said,
                "Progressing",
                "Unknown",
                status::PAUSED,
                "Deployment is paused".into(),
                now,
            );
        }
        (false, true) => status::put(
            &mut said,
            "Progressing",
            "Unknown",
            status::RESUMED,
            "Deployment is resumed".into(),
            now,
        ),
        _ => return None,
    }
    Some(said)
}
