//! The garbage collector: objects go when their last owner goes; in the background, in the foreground (the owner waits),
//! or not at all (orphans).
//!
//! Kinds that controllers watch anyway are taken from the shared caches; of all others only metadata is watched. What
//! would be deleted is read from the API server first, never from a cache alone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use component::{ApiErrorExt, Change, Error, Informer, Queue, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::runtime::watcher::Config;
use kube::{Api, Resource};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::context::{Context, each_whole_kind};
use crate::discover::{Kind, kinds};
use crate::gc_graph::{Action, FOREGROUND, Graph, Identity, ORPHAN, Owner, Standing, Task, decide};
use crate::meta::{is_deleting, uid};

const WORKERS: usize = 8;
/// New kinds (of custom resources) are found this soon.
const REDISCOVER: Duration = Duration::from_secs(30);

type Meta = PartialObjectMeta<DynamicObject>;
/// Group and kind.
type KindKey = (String, String);

struct Monitor {
    informer: Arc<Informer<Meta>>,
    stop: CancellationToken,
}

struct Collector {
    ctx: Arc<Context>,
    queue: Arc<Queue<Task>>,
    graph: Mutex<Graph>,
    kinds: Mutex<HashMap<KindKey, Kind>>,
    monitors: Mutex<HashMap<KindKey, Monitor>>,
    /// Kinds that come from the shared caches.
    shared: HashSet<KindKey>,
}

/// Starts the garbage collector.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = Queue::new("garbage-collector", ctx.metrics.queues.clone());
    let mut shared = HashSet::new();
    each_whole_kind!(ctx.caches, cache => shared.insert(kind_of(cache)));
    let collector = Arc::new(Collector {
        ctx: Arc::clone(ctx),
        queue: Arc::clone(&queue),
        graph: Mutex::default(),
        kinds: Mutex::default(),
        monitors: Mutex::default(),
        shared,
    });
    each_whole_kind!(ctx.caches, cache => {
        let on = Arc::clone(&collector);
        cache.on_change(move |c| on.observe(c))
    });
    Box::pin(run(collector, queue))
}

fn kind_of<K: Resource<DynamicType = ()>>(_: &Informer<K>) -> KindKey {
    (K::group(&()).into_owned(), K::kind(&()).into_owned())
}

async fn run(collector: Arc<Collector>, queue: Arc<Queue<Task>>) {
    let stop = collector.ctx.stop.clone();
    let mut pause = Duration::from_millis(100);
    while let Err(error) = collector.discover().await {
        debug!(%error, "cannot discover kinds yet");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    let ctx = Arc::clone(&collector.ctx);
    let informers: Vec<_> = collector.monitors().values().map(|m| Arc::clone(&m.informer)).collect();
    let all = async {
        each_whole_kind!(ctx.caches, cache => cache.synced().await);
        for informer in informers {
            informer.synced().await;
        }
    };
    if !ctx.synced(all).await {
        return;
    }
    info!(
        objects = collector.graph().len(),
        kinds = collector.kinds().len(),
        "garbage collector is ready"
    );
    let rediscover = {
        let (collector, stop) = (Arc::clone(&collector), stop.clone());
        async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(REDISCOVER) => {}
                }
                if let Err(error) = collector.discover().await {
                    debug!(%error, "cannot discover kinds");
                }
            }
        }
    };
    let work = queue.run(WORKERS, stop, move |task| {
        let collector = Arc::clone(&collector);
        async move { collector.work(task).await }
    });
    tokio::join!(rediscover, work);
}

impl Collector {
    fn graph(&self) -> std::sync::MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kinds(&self) -> std::sync::MutexGuard<'_, HashMap<KindKey, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn monitors(&self) -> std::sync::MutexGuard<'_, HashMap<KindKey, Monitor>> {
        self.monitors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe<K: Resource<DynamicType = ()>>(&self, change: Change<'_, K>) {
        self.observe_meta(
            &K::group(&()),
            &K::kind(&()),
            change.latest().meta(),
            change.is_deleted(),
        );
    }

    fn observe_meta(&self, group: &str, kind: &str, meta: &ObjectMeta, deleted: bool) {
        let tasks = {
            let mut graph = self.graph();
            if deleted {
                graph.remove(uid(meta))
            } else {
                graph.upsert(group, kind, meta)
            }
        };
        tasks.into_iter().for_each(|t| self.queue.add(t));
    }

    /// Starts to watch kinds that are new and stops to watch those that are gone.
    async fn discover(self: &Arc<Self>) -> Result<(), Error> {
        let found: HashMap<KindKey, Kind> = kinds(&self.ctx.client)
            .await?
            .into_iter()
            .filter(|k| k.can("list") && k.can("watch") && k.can("delete") && k.resource.kind != "Event")
            .map(|k| ((k.resource.group.clone(), k.resource.kind.clone()), k))
            .collect();
        let mut monitors = self.monitors();
        monitors.retain(|key, monitor| {
            let served = found.contains_key(key);
            if !served {
                monitor.stop.cancel();
                for object in monitor.informer.all() {
                    self.observe_meta(&key.0, &key.1, &object.metadata, true);
                }
            }
            served
        });
        for (key, kind) in &found {
            if !self.shared.contains(key) && !monitors.contains_key(key) {
                monitors.insert(key.clone(), self.monitor(key.clone(), &kind.resource));
            }
        }
        drop(monitors);
        *self.kinds() = found;
        Ok(())
    }

    fn monitor(self: &Arc<Self>, key: KindKey, resource: &ApiResource) -> Monitor {
        let informer: Arc<Informer<Meta>> = Informer::new(format!("metadata of {}", resource.plural), |object| {
            let meta = &mut object.metadata;
            meta.labels = None;
            meta.annotations = None;
            meta.creation_timestamp = None;
            object.types = None;
        });
        let on = Arc::clone(self);
        informer.on_change(move |c| on.observe_meta(&key.0, &key.1, &c.latest().metadata, c.is_deleted()));
        let stop = self.ctx.stop.child_token();
        let api: Api<Meta> = Api::all_with(self.ctx.client.clone(), resource);
        tokio::spawn(Arc::clone(&informer).run(api, Config::default(), stop.clone()));
        Monitor { informer, stop }
    }

    async fn work(&self, task: Task) -> Result<Requeue, Error> {
        match task {
            Task::Check(uid) => self.check(&uid).await,
            Task::Orphan(uid) => self.orphan(&uid).await,
        }
    }

    /// The API for objects of a kind; nothing if the kind is not served.
    fn api(&self, group: &str, kind: &str, namespace: &str) -> Option<(Api<Meta>, bool)> {
        let kinds = self.kinds();
        let kind = kinds.get(&(group.to_owned(), kind.to_owned()))?;
        let client = self.ctx.client.clone();
        let api = if kind.namespaced {
            Api::namespaced_with(client, namespace, &kind.resource)
        } else {
            Api::all_with(client, &kind.resource)
        };
        Some((api, kind.namespaced))
    }

    async fn check(&self, uid: &str) -> Result<Requeue, Error> {
        let Some(node) = self.graph().get(uid).cloned() else {
            return Ok(Requeue::Done);
        };
        if node.deleting && !node.foreground {
            return Ok(Requeue::Done);
        }
        let Identity {
            group,
            kind,
            namespace,
            name,
        } = &node.id;
        let Some((api, _)) = self.api(group, kind, namespace) else {
            if node.is_virtual {
                // Nobody can say whether an owner of an unknown kind exists: its dependents stay.
                debug!(group, kind, name, "owner of a kind that is not served");
            }
            return Ok(Requeue::Done);
        };
        let live = api
            .get_opt(name)
            .await?
            .filter(|o| o.metadata.uid.as_deref() == Some(uid));
        let Some(live) = live else {
            if node.is_virtual {
                let tasks = self.graph().remove(uid);
                tasks.into_iter().for_each(|t| self.queue.add(t));
            }
            return Ok(Requeue::Done);
        };
        if node.is_virtual {
            // It exists; its watch will say so.
            return Ok(Requeue::Done);
        }
        if node.foreground {
            return self.advance_foreground(&api, uid, &live).await;
        }
        if is_deleting(&live.metadata) {
            return Ok(Requeue::Done);
        }
        let mut standings = Vec::new();
        for owner in live.metadata.owner_references.iter().flatten() {
            standings.push((
                owner.uid.clone(),
                self.standing(&Owner::of(owner), &live.metadata).await?,
            ));
        }
        match decide(&standings, !node.dependents.is_empty()) {
            Action::Keep => Ok(Requeue::Done),
            Action::Disown(gone) => self.disown(&api, &live.metadata, &gone).await,
            Action::Delete => self.delete(&api, &live.metadata, None).await,
            Action::DeleteForeground => {
                self.delete(&api, &live.metadata, Some(PropagationPolicy::Foreground))
                    .await
            }
        }
    }

    async fn standing(&self, owner: &Owner, dependent: &ObjectMeta) -> Result<Standing, Error> {
        let namespace = dependent.namespace.clone().unwrap_or_default();
        {
            let graph = self.graph();
            if let Some(known) = graph.get(&owner.uid).filter(|n| !n.is_virtual) {
                let same_place = known.id.namespace.is_empty() || known.id.namespace == namespace;
                let matches = same_place && known.id.name == owner.name && known.id.kind == owner.kind;
                return Ok(match (matches, known.foreground) {
                    (false, _) => Standing::Absent,
                    (true, true) => Standing::Waiting,
                    (true, false) => Standing::Solid,
                });
            }
        }
        let Some((api, namespaced)) = self.api(&owner.group, &owner.kind, &namespace) else {
            return Err(Error::Retry(format!("owner kind {} is not served", owner.kind)));
        };
        if namespaced && namespace.is_empty() {
            warn!(
                dependent = dependent.name,
                owner = owner.name,
                "cluster-scoped object with an owner in a namespace: left alone"
            );
            return Ok(Standing::Solid);
        }
        let live = api
            .get_opt(&owner.name)
            .await?
            .filter(|o| o.metadata.uid.as_deref() == Some(&owner.uid));
        Ok(match live {
            None => Standing::Absent,
            Some(live) => {
                let waits =
                    is_deleting(&live.metadata) && live.metadata.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                if waits { Standing::Waiting } else { Standing::Solid }
            }
        })
    }

    async fn advance_foreground(&self, api: &Api<Meta>, uid: &str, live: &Meta) -> Result<Requeue, Error> {
        let blocking: Vec<(String, bool)> = {
            let graph = self.graph();
            graph
                .blocking(uid)
                .into_iter()
                .map(|d| (d.to_owned(), graph.get(d).is_some_and(|n| n.deleting)))
                .collect()
        };
        if blocking.is_empty() {
            return self.drop_finalizer(api, &live.metadata, FOREGROUND).await;
        }
        let circular = self.graph().circular_owners(uid);
        if !circular.is_empty() {
            return self.unblock(api, &live.metadata, &circular).await;
        }
        for (dependent, deleting) in blocking {
            if !deleting {
                self.queue.add(Task::Check(dependent));
            }
        }
        Ok(Requeue::Done)
    }

    async fn orphan(&self, uid: &str) -> Result<Requeue, Error> {
        let Some(node) = self.graph().get(uid).cloned() else {
            return Ok(Requeue::Done);
        };
        if !node.orphaning {
            return Ok(Requeue::Done);
        }
        for dependent in &node.dependents {
            let Some(id) = self.graph().get(dependent).map(|n| n.id.clone()) else {
                continue;
            };
            let Some((api, _)) = self.api(&id.group, &id.kind, &id.namespace) else {
                continue;
            };
            let Some(live) = api.get_opt(&id.name).await? else {
                continue;
            };
            if live.metadata.uid.as_ref() == Some(dependent) {
                self.disown(&api, &live.metadata, &[uid.to_owned()]).await?;
            }
        }
        let Some((api, _)) = self.api(&node.id.group, &node.id.kind, &node.id.namespace) else {
            return Ok(Requeue::Done);
        };
        match api.get_opt(&node.id.name).await? {
            Some(live) if live.metadata.uid.as_deref() == Some(uid) => {
                self.drop_finalizer(&api, &live.metadata, ORPHAN).await
            }
            _ => Ok(Requeue::Done),
        }
    }

    async fn disown(&self, api: &Api<Meta>, meta: &ObjectMeta, gone: &[String]) -> Result<Requeue, Error> {
        let left: Vec<_> = meta
            .owner_references
            .iter()
            .flatten()
            .filter(|o| !gone.contains(&o.uid))
            .collect();
        self.patch(api, meta, json!({"ownerReferences": left})).await
    }

    /// Lets owners go without waiting for this dependent.
    async fn unblock(&self, api: &Api<Meta>, meta: &ObjectMeta, owners: &[String]) -> Result<Requeue, Error> {
        let mut references = meta.owner_references.clone().unwrap_or_default();
        for reference in references.iter_mut().filter(|r| owners.contains(&r.uid)) {
            reference.block_owner_deletion = Some(false);
        }
        self.patch(api, meta, json!({"ownerReferences": references})).await
    }

    async fn drop_finalizer(&self, api: &Api<Meta>, meta: &ObjectMeta, finalizer: &str) -> Result<Requeue, Error> {
        let left: Vec<_> = meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
        self.patch(api, meta, json!({"finalizers": left})).await
    }

    async fn patch(&self, api: &Api<Meta>, meta: &ObjectMeta, mut change: serde_json::Value) -> Result<Requeue, Error> {
        change["uid"] = json!(meta.uid);
        change["resourceVersion"] = json!(meta.resource_version);
        let name = meta.name.as_deref().unwrap_or_default();
        match api
            .patch_metadata(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({"metadata": change})),
            )
            .await
        {
            Ok(_) => Ok(Requeue::Done),
            Err(e) if e.is_not_found() => Ok(Requeue::Done),
            Err(e) => Err(e.into()),
        }
    }

    async fn delete(
        &self,
        api: &Api<Meta>,
        meta: &ObjectMeta,
        policy: Option<PropagationPolicy>,
    ) -> Result<Requeue, Error> {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
        let policy = policy.unwrap_or(if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        });
        let name = meta.name.as_deref().unwrap_or_default();
        debug!(object = Context::describe(meta), ?policy, "collected");
        let params = DeleteParams {
            propagation_policy: Some(policy),
            // The owners were looked at in exactly this version.
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        match api.delete(name, &params).await {
            Ok(_) => Ok(Requeue::Done),
            Err(e) if e.is_not_found() => Ok(Requeue::Done),
            Err(e) => Err(e.into()),
        }
    }
}
