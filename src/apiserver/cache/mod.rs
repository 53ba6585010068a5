//! The watch cache: all kinds, fed by one etcd watch over the whole store.
//!
//! etcd's revisions are dense and the single stream sees every one of them, so the last revision seen is a promise about
//! *all* kinds: a consistent read asks etcd for its revision (one small quorum read) and waits until the stream has
//! reached it. Progress notifications are not used: etcd 3.4's may overtake events.

mod feed;
mod kind;
mod object;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::watch;

pub use kind::{Change, Cursor, Event, KindCache, Spec, TooOld, object_key};
pub use object::Object;

use crate::store::{Etcd, ROOT, StoreError, group_segment};

/// How long a read waits for the cache to reach a revision.
const WAIT: Duration = Duration::from_secs(3);

/// The cache has not reached a revision in time.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the watch cache is at revision {have}, not yet at {want}")]
pub struct Behind {
    /// Revision asked for.
    pub want: i64,
    /// Revision reached.
    pub have: i64,
}

/// All watch caches of the server.
pub struct Cache {
    etcd: Arc<Etcd>,
    kinds: RwLock<HashMap<String, Arc<KindCache>>>,
    progress: watch::Sender<i64>,
    synced: watch::Sender<bool>,
}

impl Cache {
    /// Empty caches for the given resources; [`Cache::run`] fills them.
    pub fn new(etcd: Arc<Etcd>, specs: impl IntoIterator<Item = Spec>) -> Self {
        let kinds = specs
            .into_iter()
            .map(|s| {
                (
                    format!("{}/{}", group_segment(&s.group), s.plural),
                    Arc::new(KindCache::new(s)),
                )
            })
            .collect();
        Self {
            etcd,
            kinds: RwLock::new(kinds),
            progress: watch::channel(0).0,
            synced: watch::channel(false).0,
        }
    }

    /// The cache of a resource.
    pub fn kind(&self, group: &str, plural: &str) -> Option<Arc<KindCache>> {
        let kinds = self.kinds.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        kinds.get(&format!("{}/{plural}", group_segment(group))).cloned()
    }

    /// All caches.
    pub fn all(&self) -> Vec<Arc<KindCache>> {
        self.kinds
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Revision that all caches have reached.
    pub fn progress(&self) -> i64 {
        *self.progress.borrow()
    }

    /// Whether the caches are filled and the stream is up.
    pub fn synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until the caches are filled.
    pub async fn wait_synced(&self) {
        let mut rx = self.synced.subscribe();
        // The sender lives as long as self: the wait cannot fail.
        let _ = rx.wait_for(|s| *s).await;
    }

    /// Waits until the caches have reached a revision, at most 3 s.
    ///
    /// # Errors
    /// [`Behind`] if they have not.
    pub async fn wait(&self, want: i64) -> Result<(), Behind> {
        if self.progress() >= want {
            return Ok(());
        }
        let mut rx = self.progress.subscribe();
        match tokio::time::timeout(WAIT, rx.wait_for(|p| *p >= want)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Behind {
                want,
                have: self.progress(),
            }),
        }
    }

    /// Asks etcd for its revision and waits until the caches have reached it: what is read afterwards is at least as
    /// new as the call.
    ///
    /// # Errors
    /// When etcd cannot be reached, or the caches lag behind for longer than 3 s.
    pub async fn consistent(&self) -> Result<i64, ConsistentError> {
        let rev = self.etcd.revision().await?;
        self.wait(rev).await?;
        Ok(rev)
    }

    fn by_key<'a>(&self, key: &'a str) -> Option<(Arc<KindCache>, &'a str)> {
        let rest = key.strip_prefix(ROOT)?;
        let (group, rest) = rest.split_once('/')?;
        let (plural, name) = rest.split_once('/')?;
        let kinds = self.kinds.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        kinds.get(&format!("{group}/{plural}")).map(|k| (k.clone(), name))
    }
}

/// Why a consistent read failed.
#[derive(Debug, thiserror::Error)]
pub enum ConsistentError {
    /// etcd does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caches lag.
    #[error(transparent)]
    Behind(#[from] Behind),
}
