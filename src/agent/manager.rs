//! The set of pods: joins static manifests and the API's pods, gives each its worker, and cleans up what the runtime
//! still has of pods that nobody wants any more. Decisions about a single pod are its worker's.

use crate::admission;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::machine::Stop;
use crate::names;
use crate::observed::now;
use crate::spec;
use crate::status_writer::{self, Mirror, Mirrors};
use crate::worker::{Desired, Worker};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// What the API's watch says.
#[derive(Debug)]
pub enum ApiEvent {
    /// All pods of the node, after a (re)list.
    All(Vec<Pod>),
    /// One was added or changed.
    Apply(Box<Pod>),
    /// One is gone.
    Delete(Box<Pod>),
}

/// Requests of other rooms.
#[derive(Debug)]
pub enum Request {
    /// Stop a pod because the node needs its resources.
    Evict {
        /// Which.
        uid: String,
        /// For people.
        message: String,
        /// Seconds it gets.
        grace: i64,
    },
}

/// Pods as others may read them (server, eviction, collection).
pub type Pods = Arc<Mutex<HashMap<String, Arc<Pod>>>>;

struct Entry {
    desired: watch::Sender<Desired>,
    from_api: bool,
}

/// The manager.
pub struct Manager {
    ctx: Arc<Ctx>,
    entries: HashMap<String, Entry>,
    workers: JoinSet<String>,
    /// Static pods that wait for an earlier one of the same name to end.
    waiting: BTreeMap<String, Arc<Pod>>,
    statics_read: bool,
    api_read: bool,
    has_api: bool,
    mirrors: watch::Sender<HashMap<String, Mirror>>,
    pods: Pods,
    cleaning: Arc<Mutex<HashSet<String>>>,
}

impl Manager {
    /// A manager without pods. `has_api`: the API's pods must be known before anything unknown is removed.
    pub fn new(ctx: Arc<Ctx>, has_api: bool, has_statics: bool) -> (Manager, Pods) {
        let pods = Pods::default();
        let manager = Manager {
            ctx,
            entries: HashMap::new(),
            workers: JoinSet::new(),
            waiting: BTreeMap::new(),
            statics_read: !has_statics,
            api_read: false,
            has_api,
            mirrors: watch::channel(HashMap::new()).0,
            pods: pods.clone(),
            cleaning: Arc::default(),
        };
        (manager, pods)
    }

    fn mirrors(&self) -> Mirrors {
        self.mirrors.subscribe()
    }

    /// Runs until the sources end.
    pub async fn run(
        mut self,
        mut statics: mpsc::Receiver<Vec<Arc<Pod>>>,
        mut api: mpsc::Receiver<ApiEvent>,
        mut requests: mpsc::Receiver<Request>,
    ) -> Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(pods) = statics.recv() => self.set_statics(pods),
                Some(event) = api.recv() => self.api_event(event),
                Some(request) = requests.recv() => self.request(request),
                Some(done) = self.workers.join_next() => self.worker_done(done)?,
                _ = ticks.tick() => self.clean_orphans(),
                else => return Ok(()),
            }
        }
    }

    fn set_statics(&mut self, pods: Vec<Arc<Pod>>) {
        self.statics_read = true;
        let wanted: HashSet<&str> = pods.iter().map(|p| names::uid(p)).collect();
        for (uid, entry) in &self.entries {
            if !entry.from_api && !wanted.contains(uid.as_str()) {
                stop(&entry.desired, None, false);
            }
        }
        self.waiting.clear();
        for pod in pods {
            let uid = names::uid(&pod).to_owned();
            match self.entries.get(&uid) {
                Some(e) if e.desired.borrow().stop.is_none() => {}
                _ => drop(self.waiting.insert(names::full(&pod), pod)),
            }
        }
        self.start_waiting();
    }

    fn start_waiting(&mut self) {
        let busy: HashSet<String> = self
            .entries
            .values()
            .filter(|e| !e.from_api)
            .map(|e| names::full(&e.desired.borrow().pod))
            .collect();
        let ready: Vec<String> = self.waiting.keys().filter(|k| !busy.contains(*k)).cloned().collect();
        for key in ready {
            if let Some(pod) = self.waiting.remove(&key) {
                self.add(pod, false, false);
            }
        }
    }

    fn add(&mut self, pod: Arc<Pod>, from_api: bool, gone: bool) {
        let uid = names::uid(&pod).to_owned();
        let refused = if from_api { self.refusal(&pod) } else { None };
        let stop = match refused {
            Some((reason, message)) => {
                self.ctx.events.warning(&pod, None, &reason, message.clone());
                Some(Stop {
                    grace: 0,
                    since: now(),
                    reason: Some(reason),
                    message,
                })
            }
            None => None,
        };
        let (desired, receiver) = watch::channel(Desired {
            pod: pod.clone(),
            stop,
            remove: false,
            gone,
        });
        let worker = Worker::new(self.ctx.clone(), receiver, self.mirrors());
        let key = uid.clone();
        self.workers.spawn(async move {
            worker.run().await;
            key
        });
        self.lock_pods().insert(uid.clone(), pod.clone());
        self.entries.insert(uid.clone(), Entry { desired, from_api });
        if from_api {
            self.update(&uid, pod);
        }
    }

    fn lock_pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Why a new pod cannot run here. What already runs is never refused.
    fn refusal(&self, pod: &Pod) -> Option<(String, String)> {
        let uid = names::uid(pod);
        let known = crate::status::is_final(pod) || pod.metadata.deletion_timestamp.is_some();
        if known || self.ctx.relist.snapshot().contains_key(uid) {
            return None;
        }
        if let Some(message) = crate::security::forbidden_sysctl(pod, &self.ctx.config) {
            return Some(("SysctlForbidden".into(), message));
        }
        if let Some(message) = crate::security::missing_isolation(pod) {
            return Some(("UserNamespacesNotSupported".into(), message));
        }
        let others: Vec<Arc<Pod>> = self
            .lock_pods()
            .values()
            .filter(|p| !crate::status::is_final(p))
            .cloned()
            .collect();
        admission::refuse(pod, &others, &self.ctx.allocatable, self.ctx.config.max_pods)
    }

    fn api_event(&mut self, event: ApiEvent) {
        match event {
            ApiEvent::All(pods) => {
                let present: HashSet<String> = pods.iter().map(|p| names::uid(p).to_owned()).collect();
                let gone: Vec<String> = self
                    .entries
                    .iter()
                    .filter(|(u, e)| e.from_api && !present.contains(*u))
                    .map(|(u, _)| u.clone())
                    .collect();
                let mirrors = pods.iter().filter_map(mirror_entry).collect();
                self.mirrors.send_if_modified(|m| std::mem::replace(m, mirrors) != *m);
                for uid in gone {
                    self.gone(&uid);
                }
                for pod in pods {
                    self.apply(pod);
                }
                self.api_read = true;
            }
            ApiEvent::Apply(pod) => self.apply(*pod),
            ApiEvent::Delete(pod) => {
                if names::mirror_hash(&pod).is_some() {
                    self.mirrors
                        .send_if_modified(|m| m.remove(&names::full(&pod)).is_some());
                } else {
                    self.gone(names::uid(&pod));
                }
            }
        }
    }

    fn apply(&mut self, mut pod: Pod) {
        pod.metadata.managed_fields = None;
        if let Some((key, value)) = mirror_entry(&pod) {
            self.mirrors
                .send_if_modified(|m| m.insert(key, value.clone()).as_ref() != Some(&value));
            return self.check_mirror(pod);
        }
        if names::mirror_hash(&pod).is_some() {
            return self.check_mirror(pod);
        }
        spec::default(&mut pod);
        let pod = Arc::new(pod);
        let uid = names::uid(&pod).to_owned();
        if self.entries.contains_key(&uid) {
            self.update(&uid, pod)
        } else {
            self.add(pod, true, false)
        }
    }

    /// A mirror that is being deleted, or shows a static pod that is gone, is removed; the writer makes a new one.
    fn check_mirror(&mut self, pod: Pod) {
        let hash = names::mirror_hash(&pod).unwrap_or_default();
        let alive = self.entries.contains_key(hash) || self.waiting.values().any(|p| names::uid(p) == hash);
        if pod.metadata.deletion_timestamp.is_none() && (alive || !self.statics_read) {
            return;
        }
        let ctx = self.ctx.clone();
        tokio::spawn(async move {
            let Ok(client) = ctx.api.client() else { return };
            let api = kube::Api::namespaced(client, names::namespace(&pod));
            if let Err(e) = status_writer::delete(&api, names::name(&pod), names::uid(&pod)).await {
                tracing::debug!("deleting mirror {}: {e}", names::full(&pod));
            }
        });
    }

    fn update(&mut self, uid: &str, pod: Arc<Pod>) {
        self.lock_pods().insert(uid.to_owned(), pod.clone());
        let Some(entry) = self.entries.get(uid) else { return };
        let deleting = pod.metadata.deletion_timestamp.is_some();
        let grace = pod
            .metadata
            .deletion_grace_period_seconds
            .unwrap_or_else(|| spec::grace(&pod))
            .max(0);
        entry.desired.send_modify(|d| {
            d.pod = pod;
            if deleting {
                d.remove = true;
                match &mut d.stop {
                    Some(s) => s.grace = s.grace.min(grace),
                    None => {
                        d.stop = Some(Stop {
                            grace,
                            since: now(),
                            reason: None,
                            message: String::new(),
                        })
                    }
                }
            }
        });
    }

    fn gone(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get(uid) {
            stop(&entry.desired, None, true);
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Evict { uid, message, grace } => {
                let Some(entry) = self.entries.get(&uid) else { return };
                // It is counted as running until it has ended, and so chosen again.
                if entry.desired.borrow().stop.is_some() {
                    return;
                }
                self.ctx
                    .events
                    .warning(&entry.desired.borrow().pod, None, "Evicted", message.clone());
                entry.desired.send_modify(|d| {
                    d.stop.get_or_insert(Stop {
                        grace,
                        since: now(),
                        reason: Some("Evicted".into()),
                        message,
                    });
                });
            }
        }
    }

    fn worker_done(&mut self, done: Result<String, tokio::task::JoinError>) -> Result<()> {
        match done {
            Ok(uid) => {
                self.entries.remove(&uid);
                self.lock_pods().remove(&uid);
                self.start_waiting();
                Ok(())
            }
            // A worker never ends by itself otherwise. A new process adopts all pods, this one would leave one alone.
            Err(e) => Err(Error::Other(format!("a pod's worker ended: {e}"))),
        }
    }

    /// Stops and removes what the runtime has of pods that neither source knows.
    fn clean_orphans(&mut self) {
        if !self.statics_read || self.has_api && !self.api_read {
            return;
        }
        let snapshot = self.ctx.relist.snapshot();
        let mut uids: HashSet<String> = snapshot.keys().cloned().collect();
        uids.extend(self.ctx.cgroups.pods().into_iter().map(|(_, uid)| uid));
        for entry in std::fs::read_dir(self.ctx.paths.root.join("pods"))
            .into_iter()
            .flatten()
            .flatten()
        {
            uids.insert(entry.file_name().to_string_lossy().into_owned());
        }
        uids.retain(|uid| !self.entries.contains_key(uid) && !self.waiting.values().any(|p| names::uid(p) == uid));
        for uid in uids {
            if !self
                .cleaning
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .insert(uid.clone())
            {
                continue;
            }
            let (ctx, cleaning) = (self.ctx.clone(), self.cleaning.clone());
            tokio::spawn(async move {
                if let Err(e) = crate::gc::remove_orphan(&ctx, &uid).await {
                    tracing::warn!(uid, "cleaning up a pod that is gone: {e}");
                }
                cleaning
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .remove(&uid);
            });
        }
    }
}

fn mirror_entry(pod: &Pod) -> Option<(String, Mirror)> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mirror = |hash: &str| Mirror {
        uid: names::uid(pod).to_owned(),
        hash: hash.to_owned(),
        said: crate::status::said(pod.status.as_ref()),
    };
    names::mirror_hash(pod).map(|hash| (names::full(pod), mirror(hash)))
}

/// The pod is wanted no more.
fn stop(desired: &watch::Sender<Desired>, grace: Option<i64>, gone: bool) {
    desired.send_modify(|d| {
        d.remove = true;
        d.gone |= gone;
        let grace = grace.unwrap_or_else(|| spec::grace(&d.pod));
        d.stop.get_or_insert(Stop {
            grace,
            since: now(),
            reason: None,
            message: String::new(),
        });
    });
}
