//! The push side of the distribution spec: uploads, mounts, manifests, deletions.
//!
//! What is not yet an image lies in `.registry/` of the store: uploads under way, and links that say which repository a pushed blob
//! belongs to. Blobs and `index.json` themselves are at every moment those of a valid OCI image layout.

pub mod chunk;
mod editing;
mod handlers;
mod links;
pub mod manifest;
mod receive;
mod removal;
mod uploads;
mod writer;

use std::{fs, fs::File, io, sync::Arc, time::Duration};

use oci::Digest;
use tokio::{
    sync::{RwLock, Semaphore},
    task::spawn_blocking,
};

use crate::{Error, catalog::Id, store::Store};

pub use handlers::{Asked, begin, delete_blob, delete_manifest, put_manifest, upload};
pub use receive::drain;

/// Uploads that are written at once; further ones wait for their turn.
const WRITERS: usize = 64;
/// Manifests that are held in memory at once.
const MANIFESTS: usize = 8;

/// The folder of manifests that are being written.
const MANIFESTS_ON_THE_WAY: &str = "manifests";

/// The limits of what may be pushed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest blob in bytes.
    pub blob: u64,
    /// Most uploads that may be open.
    pub uploads: usize,
    /// How long an upload is kept to which nothing comes, and a blob that no manifest names.
    pub patience: Duration,
}

/// What is needed to accept pushes.
#[derive(Debug)]
pub struct Push {
    uploads: Arc<uploads::Uploads>,
    desk: Arc<writer::Desk>,
    writer: writer::Writer,
    limits: Limits,
    writing: Semaphore,
    manifests: Semaphore,
    /// Held as long as we are: two registries must not write to one store.
    _alone: File,
}

impl Push {
    /// Makes a store ready to be pushed to; what an earlier run has left goes on.
    ///
    /// # Errors
    /// When its folders cannot be made, or another registry writes to it.
    pub fn start(store: Arc<Store>, limits: Limits) -> Result<Self, Error> {
        let dir = store.layout().root().join(".registry");
        let failed = |source: io::Error| Error::Store(oci::Error::io(&dir, source));
        fs::create_dir_all(&dir).map_err(failed)?;
        let alone = File::options().create(true).append(true).open(dir.join("lock"));
        let alone = alone.map_err(failed)?;
        if alone.try_lock().is_err() {
            return Err(Error::Busy(store.layout().root().to_owned()));
        }
        // Manifests are short of their place for a moment only; what lies here was never acknowledged.
        let _ = fs::remove_dir_all(dir.join(MANIFESTS_ON_THE_WAY));
        fs::create_dir_all(dir.join(MANIFESTS_ON_THE_WAY)).map_err(failed)?;
        let uploads = uploads::Uploads::open(dir.join("uploads"), limits.uploads).map_err(failed)?;
        let desk = Arc::new(writer::Desk {
            store,
            links: links::Links::new(dir.join("links")),
            content: Arc::new(RwLock::new(())),
        });
        Ok(Self {
            uploads: Arc::new(uploads),
            writer: writer::Writer::start(Arc::clone(&desk)),
            desk,
            limits,
            writing: Semaphore::new(WRITERS),
            manifests: Semaphore::new(MANIFESTS),
            _alone: alone,
        })
    }

    /// Whether one of these repositories has the blob although no manifest names it. Asking keeps it for longer.
    pub fn has_blob(&self, digest: &Digest, repositories: &[String]) -> bool {
        let id = Id::from(digest);
        let is_linked = repositories.iter().any(|repository| {
            let renewed = self.desk.links.renew(&id, repository);
            renewed.unwrap_or_else(|error| {
                tracing::warn!(%digest, %error, "a link does not become new");
                true
            })
        });
        is_linked && self.desk.store.layout().blobs().size(digest).is_some()
    }

    /// How many uploads are open.
    pub fn open_uploads(&self) -> usize {
        self.uploads.count()
    }

    /// Cleans up again and again, for as long as it is polled.
    pub async fn keep_clean(&self) {
        let pause = (self.limits.patience / 4).clamp(Duration::from_secs(1), Duration::from_secs(3600));
        let mut ticks = tokio::time::interval(pause);
        loop {
            ticks.tick().await;
            self.clean().await;
        }
    }

    /// Gives up old uploads and removes what was pushed and never used.
    async fn clean(&self) {
        let (uploads, patience) = (Arc::clone(&self.uploads), self.limits.patience);
        match spawn_blocking(move || uploads.give_up(patience)).await {
            Ok(0) => {}
            Ok(given_up) => tracing::info!(uploads = given_up, "gave up uploads to which nothing came"),
            Err(error) => tracing::error!(%error, "old uploads could not be given up"),
        }
        // The failure is logged where it happened; the next turn tries again.
        let _ = self.writer.change(writer::Change::Sweep(self.limits.patience)).await;
    }
}
