//! A cached, watched kind: the current objects, and a call for every change with the old and the new one.
//!
//! One informer per kind and process; whoever is interested registers a handler *before* it runs. Handlers are called
//! in order, on the watching task, and must only enqueue. What a cache need not keep is pruned before it is stored:
//! never write a cached object back as a whole.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Debug, Display};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{ApiErrorExt, plain};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// How soon to ask again for a kind that the API server does not have.
const NOT_SERVED: Duration = Duration::from_secs(30);

/// Namespace and name; the namespace of cluster-scoped objects is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// `metadata.namespace`, or empty.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub enum Change<'a, K> {
    /// Seen for the first time.
    Added(&'a Arc<K>),
    /// Seen before; the old one comes first.
    Updated(&'a Arc<K>, &'a Arc<K>),
    /// Gone; its last known state.
    Deleted(&'a Arc<K>),
}

impl<K> Clone for Change<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Change<'_, K> {}

impl<'a, K> Change<'a, K> {
    /// The latest known state, also of a deleted object.
    pub fn latest(&self) -> &'a Arc<K> {
        match self {
            Change::Added(o) | Change::Updated(_, o) | Change::Deleted(o) => o,
        }
    }

    /// The state before, if there was one and it still differs.
    pub fn old(&self) -> Option<&'a Arc<K>> {
        match self {
            Change::Updated(o, _) => Some(o),
            _ => None,
        }
    }

    /// Whether the object is gone.
    pub fn is_deleted(&self) -> bool {
        matches!(self, Change::Deleted(_))
    }
}

type Handler<K> = Box<dyn Fn(Change<'_, K>) + Send + Sync>;
type Prune<K> = fn(&mut K);
type IndexBy<K> = fn(&K) -> Option<&str>;

struct Store<K> {
    namespaces: HashMap<String, HashMap<String, Arc<K>>>,
    index: HashMap<String, HashSet<ObjectKey>>,
}

/// A cached, watched kind.
pub struct Informer<K> {
    name: String,
    prune: Prune<K>,
    index_by: Option<IndexBy<K>>,
    /// Whether a kind that the API server does not have is a fault to wait out, and not a kind without objects.
    required: bool,
    store: RwLock<Store<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K> Informer<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// An empty cache; `prune` removes what nobody needs from every object before it is kept.
    pub fn new(name: impl Into<String>, prune: Prune<K>) -> Arc<Self> {
        Self::build(name.into(), prune, None, false)
    }

    /// As [`Informer::new`], with one secondary index for [`Informer::indexed`].
    pub fn with_index(name: impl Into<String>, prune: Prune<K>, index_by: IndexBy<K>) -> Arc<Self> {
        Self::build(name.into(), prune, Some(index_by), false)
    }

    /// As [`Informer::new`], of a kind that the API server must have: while it does not, nothing counts as known.
    pub fn required(name: impl Into<String>, prune: Prune<K>) -> Arc<Self> {
        Self::build(name.into(), prune, None, true)
    }

    fn build(name: String, prune: Prune<K>, index_by: Option<IndexBy<K>>, required: bool) -> Arc<Self> {
        Arc::new(Self {
            name,
            prune,
            index_by,
            required,
            store: RwLock::new(Store {
                namespaces: HashMap::new(),
                index: HashMap::new(),
            }),
            handlers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
        })
    }

    /// Calls `handler` for every change from now on.
    pub fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        self.handlers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(handler));
    }

    /// The object, if it is known.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read().namespaces.get(namespace)?.get(name).cloned()
    }

    /// The object of that key, if it is known.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.get(&key.namespace, &key.name)
    }

    /// All objects of a namespace (of the cluster, if the namespace is empty and the kind cluster-scoped).
    pub fn list(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read()
            .namespaces
            .get(namespace)
            .map(|m| m.values().cloned().collect())
            .unwrap_or_default()
    }

    /// All objects of all namespaces.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read()
            .namespaces
            .values()
            .flat_map(|m| m.values().cloned())
            .collect()
    }

    /// The objects whose index function gives `value`.
    pub fn indexed(&self, value: &str) -> Vec<Arc<K>> {
        let store = self.read();
        let Some(keys) = store.index.get(value) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|k| store.namespaces.get(&k.namespace)?.get(&k.name).cloned())
            .collect()
    }

    /// How many objects are known.
    pub fn len(&self) -> usize {
        self.read().namespaces.values().map(HashMap::len).sum()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first complete list has been seen.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits for the first complete list.
    pub async fn synced(&self) {
        let mut seen = self.synced.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        let _ = seen.wait_for(|done| *done).await;
    }

    /// Whether the first complete list has been seen, to ask without the cache.
    pub(crate) fn completeness(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Lists and watches until `stop`; errors are retried with a growing pause (50 ms to 5 s).
    pub async fn run(self: Arc<Self>, api: Api<K>, config: watcher::Config, stop: CancellationToken) {
        let mut stream = pin!(watcher(api, config));
        let mut pause = FIRST_RETRY;
        let mut failing = false;
        let mut listed: Option<HashSet<ObjectKey>> = None;
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return,
                next = stream.next() => next,
            };
            match next {
                None => return,
                Some(Ok(event)) => {
                    // Every attempt begins with `Init`: it is no sign of success.
                    if !matches!(event, Event::Init) {
                        pause = FIRST_RETRY;
                        if std::mem::take(&mut failing) {
                            info!(kind = self.name, "following again");
                        }
                    }
                    self.observe(event, &mut listed);
                }
                Some(Err(error)) => {
                    let why = words(&error);
                    if !self.required && is_not_served(&error) {
                        // A kind that the API server does not have has no objects; it may get it (or its server) later.
                        if !self.is_synced() {
                            debug!(kind = self.name, "not served");
                            self.observe(Event::InitDone, &mut None);
                        }
                        pause = NOT_SERVED;
                    } else if pause > FIRST_RETRY * 8 && !std::mem::replace(&mut failing, true) {
                        // One line per outage at the level people see; the rest for those who look.
                        warn!(kind = self.name, why, "cannot follow; trying again");
                    } else {
                        debug!(kind = self.name, why, "watch interrupted");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LAST_RETRY);
                }
            }
        }
    }

    /// Takes one watch event in; `listed` holds the keys seen since the last `Init`.
    pub fn observe(&self, event: Event<K>, listed: &mut Option<HashSet<ObjectKey>>) {
        match event {
            Event::Init => *listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(listed) = listed {
                    listed.insert(ObjectKey::of(&object));
                }
                self.upsert(object);
            }
            Event::InitDone => {
                if let Some(listed) = listed.take() {
                    for gone in self.keys_not_in(&listed) {
                        self.remove(&gone, None);
                    }
                }
                self.synced.send_replace(true);
            }
            Event::Apply(object) => self.upsert(object),
            Event::Delete(object) => self.remove(&ObjectKey::of(&object), Some(object)),
        }
    }

    fn keys_not_in(&self, listed: &HashSet<ObjectKey>) -> Vec<ObjectKey> {
        let store = self.read();
        store
            .namespaces
            .values()
            .flat_map(HashMap::values)
            .map(|o| ObjectKey::of(&**o))
            .filter(|k| !listed.contains(k))
            .collect()
    }

    fn upsert(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        (self.prune)(&mut object);
        let object = Arc::new(object);
        let key = ObjectKey::of(&*object);
        let old = {
            let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
            let old = store
                .namespaces
                .entry(key.namespace.clone())
                .or_default()
                .insert(key.name.clone(), Arc::clone(&object));
            if let Some(index_by) = self.index_by {
                let was = old.as_deref().and_then(index_by);
                let is = index_by(&object);
                if was != is {
                    if let Some(was) = was {
                        store.unindex(was, &key);
                    }
                    if let Some(is) = is {
                        store.index.entry(is.to_owned()).or_default().insert(key);
                    }
                }
            }
            old
        };
        match old {
            None => self.dispatch(Change::Added(&object)),
            // A list repeats what the watch already told.
            Some(old) if old.meta().resource_version == object.meta().resource_version => {}
            // The name was taken again: two objects, two changes.
            Some(old) if old.meta().uid != object.meta().uid => {
                self.dispatch(Change::Deleted(&old));
                self.dispatch(Change::Added(&object));
            }
            Some(old) => self.dispatch(Change::Updated(&old, &object)),
        }
    }

    fn remove(&self, key: &ObjectKey, last: Option<K>) {
        let old = {
            let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
            let Some(objects) = store.namespaces.get_mut(&key.namespace) else {
                return;
            };
            let Some(old) = objects.remove(&key.name) else { return };
            if objects.is_empty() {
                store.namespaces.remove(&key.namespace);
            }
            if let Some(value) = self.index_by.and_then(|index_by| index_by(&old)) {
                store.unindex(value, key);
            }
            old
        };
        let last = last.map_or(old, |mut object| {
            object.meta_mut().managed_fields = None;
            (self.prune)(&mut object);
            Arc::new(object)
        });
        self.dispatch(Change::Deleted(&last));
    }

    fn dispatch(&self, change: Change<'_, K>) {
        for handler in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(change);
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Store<K>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_not_served(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(e) if e.is_not_found())
}

fn words(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => {
            plain(e)
        }
        watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl<K> Store<K> {
    fn unindex(&mut self, value: &str, key: &ObjectKey) {
        if let Some(keys) = self.index.get_mut(value) {
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Pod, PodSpec};
    use std::sync::Mutex;

    fn pod(name: &str, version: &str, node: &str) -> Pod {
        let mut pod = Pod {
            spec: Some(PodSpec::default()),
            ..Pod::default()
        };
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.metadata.resource_version = Some(version.into());
        if let Some(spec) = &mut pod.spec {
            spec.node_name = Some(node.into());
        }
        pod
    }

    fn by_node(pod: &Pod) -> Option<&str> {
        pod.spec.as_ref()?.node_name.as_deref()
    }

    #[test]
    fn a_relist_reports_what_vanished_and_what_changed_only() {
        let informer = Informer::with_index("pods", |_| {}, by_node);
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&seen);
        informer.on_change(move |c| {
            let kind = match c {
                Change::Added(_) => "+",
                Change::Updated(..) => "~",
                Change::Deleted(_) => "-",
            };
            log.lock()
                .unwrap()
                .push(format!("{kind}{}", c.latest().metadata.name.as_deref().unwrap_or("")));
        });
        let mut listed = None;
        for event in [
            Event::Init,
            Event::InitApply(pod("a", "1", "n1")),
            Event::InitApply(pod("b", "1", "n1")),
            Event::InitDone,
            Event::Apply(pod("a", "2", "n2")),
            Event::Init,
            Event::InitApply(pod("a", "2", "n2")),
            Event::InitDone,
        ] {
            informer.observe(event, &mut listed);
        }
        assert_eq!(*seen.lock().unwrap(), ["+a", "+b", "~a", "-b"]);
        assert!(informer.is_synced());
        assert_eq!(informer.indexed("n1").len(), 0);
        assert_eq!(informer.indexed("n2").len(), 1);
    }
}
