//! The runtime's truth, read every second and right after every action of ours: two lists, then details only of what
//! changed. Each pod's worker is told when something about its pod changed.

use crate::cri::Cri;
use crate::error::Result;
use crate::names;
use crate::observed::{Container, Observed, Sandbox, State, now};
use k8s_cri::v1;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// A pod as the runtime knows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuntimePod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Sandboxes and containers.
    pub observed: Arc<Observed>,
}

/// All pods of the runtime by UID.
pub type Snapshot = HashMap<String, RuntimePod>;

/// Handle to the relister.
#[derive(Debug, Clone)]
pub struct Relist {
    kicks: mpsc::Sender<oneshot::Sender<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    subscribers: Mutex<HashMap<String, watch::Sender<Arc<Observed>>>>,
    snapshot: Mutex<Arc<Snapshot>>,
    healthy_at: AtomicI64,
}

/// How often without any reason.
const PERIOD: Duration = Duration::from_secs(1);

fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Relist {
    /// A handle and the task behind it.
    pub fn new(cri: Cri) -> (Relist, impl Future<Output = ()> + use<>) {
        let (kicks, receiver) = mpsc::channel(64);
        let shared = Arc::new(Shared::default());
        let task = run(cri, shared.clone(), receiver);
        (Relist { kicks, shared }, task)
    }

    /// Returns after a list that began after this call (or failed).
    pub async fn refresh(&self) {
        let (done, wait) = oneshot::channel();
        if self.kicks.send(done).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Changes of one pod.
    pub fn subscribe(&self, uid: &str) -> watch::Receiver<Arc<Observed>> {
        let now = self.snapshot().get(uid).map(|p| p.observed.clone()).unwrap_or_default();
        let mut all = locked(&self.shared.subscribers);
        all.entry(uid.to_owned())
            .or_insert_with(|| watch::channel(now).0)
            .subscribe()
    }

    /// Ends the subscription of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        locked(&self.shared.subscribers).remove(uid);
    }

    /// Everything, as of the last list.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        locked(&self.shared.snapshot).clone()
    }

    /// How long ago the runtime last answered, nanoseconds.
    pub fn age(&self) -> i64 {
        now() - self.shared.healthy_at.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Cache {
    sandboxes: HashMap<String, (i32, Sandbox)>,
    containers: HashMap<String, (i32, Container)>,
}

async fn run(cri: Cri, shared: Arc<Shared>, mut kicks: mpsc::Receiver<oneshot::Sender<()>>) {
    let mut cache = Cache::default();
    let mut failing = false;
    loop {
        let mut waiting = vec![];
        match tokio::time::timeout(PERIOD, kicks.recv()).await {
            Ok(Some(first)) => waiting.push(first),
            Ok(None) => return,
            Err(_) => {}
        }
        while let Ok(more) = kicks.try_recv() {
            waiting.push(more);
        }
        match list(&cri, &mut cache).await {
            Ok(snapshot) => {
                shared.healthy_at.store(now(), Ordering::Relaxed);
                if std::mem::take(&mut failing) {
                    tracing::info!("the container runtime answers again");
                }
                publish(&shared, snapshot);
            }
            Err(e) if failing => tracing::debug!("relist: {e}"),
            Err(e) => {
                failing = true;
                tracing::warn!("relist: {e}");
            }
        }
        for w in waiting {
            // Whoever no longer waits does not mind.
            let _ = w.send(());
        }
    }
}

fn publish(shared: &Shared, mut snapshot: Snapshot) {
    // Workers compare by content, so an unchanged pod wakes nobody.
    let subscribers = locked(&shared.subscribers);
    for (uid, sender) in subscribers.iter() {
        let new = snapshot.get(uid).map(|p| p.observed.clone()).unwrap_or_default();
        let changed = **sender.borrow() != *new;
        if changed {
            sender.send_replace(new);
        }
    }
    drop(subscribers);
    snapshot.shrink_to_fit();
    *locked(&shared.snapshot) = Arc::new(snapshot);
}

async fn list(cri: &Cri, cache: &mut Cache) -> Result<Snapshot> {
    let (sandboxes, containers) = tokio::try_join!(cri.list_sandboxes(), cri.list_containers())?;
    let mut pods: HashMap<String, (String, String, Observed)> = HashMap::new();
    let mut fresh = Cache::default();
    let label = |labels: &HashMap<String, String>, key: &str| labels.get(key).cloned();
    for s in sandboxes {
        let Some(uid) = label(&s.labels, names::POD_UID) else {
            continue;
        };
        let state = s.state;
        let seen = match cache.sandboxes.remove(&s.id) {
            Some((old, seen)) if old == state => seen,
            _ => match cri.sandbox_status(&s.id).await {
                Ok(status) => Sandbox::from_status(&status),
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e),
            },
        };
        let namespace = label(&s.labels, names::POD_NAMESPACE).unwrap_or_default();
        let name = label(&s.labels, names::POD_NAME).unwrap_or_default();
        let entry = pods
            .entry(uid)
            .or_insert_with(|| (namespace, name, Observed::default()));
        entry.2.sandboxes.push(seen.clone());
        fresh.sandboxes.insert(s.id, (state, seen));
    }
    for c in containers {
        let Some(uid) = label(&c.labels, names::POD_UID) else {
            continue;
        };
        let state = c.state;
        let seen = match cache.containers.remove(&c.id) {
            Some((old, seen)) if old == state => seen,
            _ => match cri.container_status(&c.id).await {
                Ok(status) => detail(&status, &c.pod_sandbox_id),
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e),
            },
        };
        let namespace = label(&c.labels, names::POD_NAMESPACE).unwrap_or_default();
        let name = label(&c.labels, names::POD_NAME).unwrap_or_default();
        let entry = pods
            .entry(uid)
            .or_insert_with(|| (namespace, name, Observed::default()));
        // The list and the detail may straddle a change; the detail's own state is what is remembered.
        let known = match seen.state {
            State::Created => v1::ContainerState::ContainerCreated,
            State::Running => v1::ContainerState::ContainerRunning,
            State::Exited => v1::ContainerState::ContainerExited,
            State::Unknown => v1::ContainerState::ContainerUnknown,
        } as i32;
        entry.2.containers.push(seen.clone());
        fresh.containers.insert(c.id, (known, seen));
    }
    *cache = fresh;
    Ok(pods
        .into_iter()
        .map(|(uid, (namespace, name, mut observed))| {
            observed.sandboxes.sort_by_key(|s| (s.created_at, s.attempt));
            observed
                .containers
                .sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
            (
                uid,
                RuntimePod {
                    namespace,
                    name,
                    observed: Arc::new(observed),
                },
            )
        })
        .collect())
}

fn detail(status: &v1::ContainerStatus, sandbox: &str) -> Container {
    let mut seen = Container::from_status(status, sandbox);
    if seen.state == State::Exited {
        let text = termination_message(status);
        if !text.is_empty() {
            seen.message = text;
        }
    }
    seen
}

/// Most bytes of a termination message.
const MESSAGE: u64 = 4096;
/// Most lines and bytes taken from the log instead.
const LINES: usize = 80;
const LOG_BYTES: usize = 2048;

fn termination_message(status: &v1::ContainerStatus) -> String {
    use std::io::Read;
    let note = |key: &str| status.annotations.get(key).map(String::as_str).unwrap_or_default();
    let path = note(names::TERMINATION_PATH);
    let mut bytes = vec![];
    if let Some(mount) = status
        .mounts
        .iter()
        .find(|m| !path.is_empty() && m.container_path == path)
        && let Ok(file) = std::fs::File::open(&mount.host_path)
    {
        let _ = file.take(MESSAGE).read_to_end(&mut bytes);
    }
    if bytes.is_empty() && note(names::TERMINATION_POLICY) == "FallbackToLogsOnError" && status.exit_code != 0 {
        return crate::logs::tail_text(std::path::Path::new(&status.log_path), LINES, LOG_BYTES);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
