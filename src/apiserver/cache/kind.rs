//! The watch cache of one resource: a sorted map of its objects and a ring of its latest events.
//!
//! A watcher holds no queue: it keeps its place in the ring and is woken when the ring grows. One that falls behind the
//! ring's tail is told so (410), which bounds memory whatever clients do.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::object::Object;

/// Events older than this leave the ring.
const KEEP: Duration = Duration::from_secs(300);
/// Events younger than this stay, unless the hard bounds are reached.
const FRESH: Duration = Duration::from_secs(75);
/// Bytes of a ring above which events that are not fresh leave it.
const SOFT_BYTES: usize = 1 << 20;
/// Bytes of a ring that are never exceeded by more than one batch.
const HARD_BYTES: usize = 16 << 20;
/// Events of a ring that are never exceeded by more than one batch.
const HARD_EVENTS: usize = 16_384;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was written.
    Put,
    /// It is gone; the event's object is its last version with the revision of the deletion.
    Delete,
}

/// One change, shared by all watchers.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// The object afterwards (for deletions: at the end).
    pub object: Arc<Object>,
    /// The version before, if there was one.
    pub prev: Option<Arc<Object>>,
    at: Instant,
}

/// What identifies a resource to the cache.
#[derive(Debug, Clone)]
pub struct Spec {
    /// API group, empty for the legacy one.
    pub group: String,
    /// Plural name in paths.
    pub plural: String,
    /// Dotted paths of the selectable fields.
    pub fields: Vec<&'static str>,
}

#[derive(Default)]
struct Inner {
    map: BTreeMap<Box<str>, Arc<Object>>,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Sequence number of the ring's first event.
    first_seq: u64,
    /// Events up to this revision are not in the ring any more.
    floor: i64,
    /// Revision of the last event applied.
    rev: i64,
    /// Bumped when the cache was refilled and open watchers lost their place.
    epoch: u64,
}

/// A consistent view of part of a cache.
pub struct Snapshot {
    /// Revision of the view.
    pub rev: i64,
    /// Objects in key order.
    pub items: Vec<Arc<Object>>,
}

/// A watcher's place in the ring.
#[derive(Debug, Clone)]
pub struct Cursor {
    seq: u64,
    epoch: u64,
    after: i64,
}

/// Why a watch cannot go on: its place in history is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct TooOld {
    /// Revision the watcher was at.
    pub asked: i64,
    /// Oldest revision that can be resumed from.
    pub oldest: i64,
}

/// The watch cache of one resource.
pub struct KindCache {
    /// What it holds.
    pub spec: Spec,
    inner: RwLock<Inner>,
    /// Sequence number behind the last event; watchers wait on it.
    head: watch::Sender<u64>,
}

/// Key of an object within its kind.
pub fn object_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

impl KindCache {
    /// An empty cache.
    pub fn new(spec: Spec) -> Self {
        Self {
            spec,
            inner: RwLock::default(),
            head: watch::channel(0).0,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Replaces the whole content by the objects at `rev`; open watchers must start anew.
    pub fn refill(&self, objects: Vec<Object>, rev: i64) {
        let mut inner = self.write();
        let had_content = inner.epoch > 0;
        inner.map = objects
            .into_iter()
            .map(|o| (object_key(&o.namespace, &o.name).into_boxed_str(), Arc::new(o)))
            .collect();
        inner.first_seq += inner.ring.len() as u64;
        inner.ring.clear();
        inner.ring_bytes = 0;
        inner.floor = rev;
        inner.rev = rev;
        inner.epoch += 1;
        let head = inner.first_seq;
        drop(inner);
        if had_content {
            self.head.send_replace(head);
        }
    }

    /// Applies a batch of changes in order of revision. Events of one revision must come in one batch.
    pub fn apply(&self, changes: Vec<(Change, Object)>) {
        let at = Instant::now();
        let mut inner = self.write();
        for (change, object) in changes {
            let key = object_key(&object.namespace, &object.name);
            if object.rev <= inner.floor {
                continue;
            }
            inner.rev = inner.rev.max(object.rev);
            let object = Arc::new(object);
            let prev = match change {
                Change::Put => inner.map.insert(key.into_boxed_str(), object.clone()),
                Change::Delete => inner.map.remove(key.as_str()),
            };
            inner.ring_bytes += object.raw.len();
            inner.ring.push_back(Arc::new(Event {
                change,
                object,
                prev,
                at,
            }));
        }
        inner.prune(at);
        let head = inner.first_seq + inner.ring.len() as u64;
        drop(inner);
        self.head.send_replace(head);
    }

    /// Lets old events go even if nothing happens.
    pub fn prune(&self) {
        self.write().prune(Instant::now());
    }

    /// The newest version of an object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.read().map.get(object_key(namespace, name).as_str()).cloned()
    }

    /// Last version of an object by its key within the kind.
    pub fn get_key(&self, key: &str) -> Option<Arc<Object>> {
        self.read().map.get(key).cloned()
    }

    /// Objects (of one namespace, if it isn't empty) that `keep` accepts. `progress` is the revision that the whole
    /// store is known to have reached before this call.
    pub fn list(&self, namespace: &str, progress: i64, keep: impl Fn(&Object) -> bool) -> Snapshot {
        let inner = self.read();
        let rev = inner.rev.max(progress);
        let items = inner.scan(namespace).filter(|o| keep(o)).cloned().collect();
        Snapshot { rev, items }
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.read().map.len()
    }

    /// Bytes held by objects and by events that objects don't share.
    pub fn bytes(&self) -> usize {
        let inner = self.read();
        inner.map.values().map(|o| o.raw.len()).sum::<usize>() + inner.ring_bytes
    }

    /// Changes whenever the content does; for indexes derived from it.
    pub fn version(&self) -> (u64, i64) {
        let inner = self.read();
        (inner.epoch, inner.rev)
    }

    /// Wakes when the content changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// A place behind all events up to `rev`.
    ///
    /// # Errors
    /// [`TooOld`] if events after `rev` are forgotten already.
    pub fn cursor(&self, rev: i64) -> Result<Cursor, TooOld> {
        let inner = self.read();
        if rev < inner.floor {
            return Err(TooOld {
                asked: rev,
                oldest: inner.floor,
            });
        }
        let skip = inner.ring.partition_point(|e| e.object.rev <= rev) as u64;
        Ok(Cursor {
            seq: inner.first_seq + skip,
            epoch: inner.epoch,
            after: rev,
        })
    }

    /// The objects of a namespace together with the place behind them, as one atomic view.
    pub fn list_and_cursor(
        &self,
        namespace: &str,
        progress: i64,
        keep: impl Fn(&Object) -> bool,
    ) -> (Snapshot, Cursor) {
        let inner = self.read();
        let rev = inner.rev.max(progress);
        let items = inner.scan(namespace).filter(|o| keep(o)).cloned().collect();
        let seq = inner.first_seq + inner.ring.len() as u64;
        (
            Snapshot { rev, items },
            Cursor {
                seq,
                epoch: inner.epoch,
                after: rev,
            },
        )
    }

    /// At most `max` events behind the cursor, which moves on.
    ///
    /// # Errors
    /// [`TooOld`] if the watcher was too slow or the cache was refilled.
    pub fn next(&self, cursor: &mut Cursor, max: usize) -> Result<Vec<Arc<Event>>, TooOld> {
        let inner = self.read();
        if cursor.epoch != inner.epoch || cursor.seq < inner.first_seq {
            return Err(TooOld {
                asked: cursor.after,
                oldest: inner.floor,
            });
        }
        let skip = (cursor.seq - inner.first_seq) as usize;
        let events: Vec<_> = inner.ring.iter().skip(skip).take(max).cloned().collect();
        cursor.seq += events.len() as u64;
        if let Some(last) = events.last() {
            cursor.after = last.object.rev;
        }
        Ok(events)
    }
}

impl Inner {
    fn scan<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let (start, end) = if namespace.is_empty() {
            (Bound::Unbounded, Bound::Unbounded)
        } else {
            // '0' is the byte after '/'.
            (
                Bound::Included(format!("{namespace}/")),
                Bound::Excluded(format!("{namespace}0")),
            )
        };
        let start = start.map(String::into_boxed_str);
        let end = end.map(String::into_boxed_str);
        self.map.range::<Box<str>, _>((start, end)).map(|(_, o)| o)
    }

    fn prune(&mut self, now: Instant) {
        while let Some(first) = self.ring.front() {
            let age = now.saturating_duration_since(first.at);
            let over = self.ring_bytes > HARD_BYTES || self.ring.len() > HARD_EVENTS;
            let heavy = self.ring_bytes > SOFT_BYTES && age > FRESH;
            if !(over || heavy || age > KEEP) {
                break;
            }
            self.ring_bytes -= first.object.raw.len();
            self.floor = self.floor.max(first.object.rev);
            self.first_seq += 1;
            self.ring.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, rev: i64) -> Object {
        Object::from_value(
            json!({"metadata": {"namespace": "a", "name": name, "labels": {"x": "y"}}}),
            rev,
            &[],
        )
        .0
    }

    fn cache() -> KindCache {
        let c = KindCache::new(Spec {
            group: String::new(),
            plural: "pods".into(),
            fields: vec![],
        });
        c.refill(vec![object("one", 3)], 5);
        c
    }

    #[test]
    fn a_watch_resumes_after_the_revision_it_names() {
        let c = cache();
        c.apply(vec![(Change::Put, object("two", 6)), (Change::Put, object("one", 7))]);
        let mut cur = c.cursor(6).unwrap();
        let got = c.next(&mut cur, 10).unwrap();
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].object.rev, got[0].prev.as_ref().unwrap().rev), (7, 3));
        assert!(c.next(&mut cur, 10).unwrap().is_empty());
    }

    #[test]
    fn history_before_the_first_list_is_too_old() {
        assert_eq!(cache().cursor(4).unwrap_err(), TooOld { asked: 4, oldest: 5 });
        assert!(cache().cursor(5).is_ok());
    }

    #[test]
    fn a_refill_ends_open_watches() {
        let c = cache();
        let mut cur = c.cursor(5).unwrap();
        c.refill(vec![], 9);
        assert!(c.next(&mut cur, 1).is_err());
    }

    #[test]
    fn a_slow_watcher_is_ended_once_the_ring_has_passed_it() {
        let c = cache();
        let mut cur = c.cursor(5).unwrap();
        let batch = (0..=HARD_EVENTS as i64)
            .map(|i| (Change::Put, object("one", 10 + i)))
            .collect();
        c.apply(batch);
        assert!(c.next(&mut cur, 1).is_err());
        assert_eq!(c.len(), 1);
    }

    #[test]
    fn namespaces_with_a_common_prefix_are_kept_apart() {
        let c = cache();
        let other = json!({"metadata": {"namespace": "a-b", "name": "one"}});
        c.apply(vec![(Change::Put, Object::from_value(other, 8, &[]).0)]);
        assert_eq!(c.list("a", 0, |_| true).items.len(), 1);
        assert_eq!(c.list("", 9, |_| true).rev, 9);
        assert_eq!(c.list("", 0, |_| true).items.len(), 2);
    }
}
