//! The store as requests see it: its catalogue, read again when `index.json` has changed.

use std::{
    os::unix::fs::MetadataExt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use oci::Layout;
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{catalog::Catalog, names, stream::Streams};

/// How long a catalogue with missing images is believed before the store is asked again.
const RETRY_MISSING: Duration = Duration::from_secs(1);

/// What tells one `index.json` from another: inode, modification time in nanoseconds and size.
type Stamp = Option<(u64, i64, i64, u64)>;

/// A store that is being served.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    /// The domains this registry answers to itself, and [`names::LOCAL`].
    pub domains: Vec<String>,
    /// Bounds the blobs that are read to be sent.
    pub streams: Streams,
    loaded: RwLock<Loaded>,
    reload: Mutex<()>,
}

#[derive(Debug)]
struct Loaded {
    catalog: Arc<Catalog>,
    stamp: Stamp,
    at: Instant,
}

impl Store {
    /// Reads the store at `layout` for the first time.
    ///
    /// # Errors
    /// When `index.json` is there and cannot be read.
    pub fn open(layout: Layout, mut domains: Vec<String>) -> Result<Self, oci::Error> {
        if !domains.iter().any(|domain| domain == names::LOCAL) {
            domains.push(names::LOCAL.to_owned());
        }
        let stamp = stamp(&layout);
        let catalog = Arc::new(Catalog::load(&layout, &Catalog::default())?);
        report(&catalog);
        Ok(Self {
            layout,
            domains,
            streams: Streams::default(),
            loaded: RwLock::new(Loaded {
                catalog,
                stamp,
                at: Instant::now(),
            }),
            reload: Mutex::new(()),
        })
    }

    /// The layout on disk.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The catalogue of the present `index.json`. If that cannot be read the last good one goes on being served.
    pub async fn catalog(&self) -> Arc<Catalog> {
        if let Some(catalog) = self.current() {
            return catalog;
        }
        let _one_at_a_time = self.reload.lock().await;
        if let Some(catalog) = self.current() {
            return catalog;
        }
        let (layout, last) = (self.layout.clone(), self.last());
        let stamp = stamp(&layout);
        let found = match spawn_blocking(move || Catalog::load(&layout, &last)).await {
            Ok(Ok(catalog)) => {
                report(&catalog);
                Some(Arc::new(catalog))
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the store's index cannot be read; serving the last one that could");
                None
            }
            Err(error) => {
                tracing::error!(%error, "reading the store's index failed");
                None
            }
        };
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.stamp = stamp;
        loaded.at = Instant::now();
        if let Some(catalog) = found {
            loaded.catalog = catalog;
        }
        Arc::clone(&loaded.catalog)
    }

    /// The catalogue that was read last, whether or not `index.json` has changed since.
    pub fn last(&self) -> Arc<Catalog> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&loaded.catalog)
    }

    /// Serves the catalogue of an `index.json` that was just written by who holds its lock.
    pub fn publish(&self, catalog: Catalog) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        *loaded = Loaded {
            catalog: Arc::new(catalog),
            stamp: stamp(&self.layout),
            at: Instant::now(),
        };
    }

    fn current(&self) -> Option<Arc<Catalog>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let complete = loaded.catalog.missing.is_empty() || loaded.at.elapsed() < RETRY_MISSING;
        (complete && loaded.stamp == stamp(&self.layout)).then(|| Arc::clone(&loaded.catalog))
    }
}

fn stamp(layout: &Layout) -> Stamp {
    let file = std::fs::metadata(layout.index_path()).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
}

fn report(catalog: &Catalog) {
    for image in &catalog.missing {
        tracing::warn!("image not served: {image}");
    }
    tracing::info!(repositories = catalog.repositories.len(), "read the store's index");
}
