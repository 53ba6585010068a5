//! Blobs on their way in: none is written twice at once, others may read along, and together they never fill the disk.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    Error, Result,
    proto::{Blob, FaultKind},
};

/// Bytes that stay free on the file system of the blobs, whatever arrives.
pub(crate) const SPARE: u64 = 64 << 20;

/// How much of a blob has arrived; nothing is told before its file is open.
pub(crate) type Arrived = watch::Receiver<Option<u64>>;

struct Entry {
    size: u64,
    arrived: Arrived,
}

#[derive(Default)]
struct Inner {
    entries: Mutex<HashMap<oci::Digest, Entry>>,
    /// Changes whenever a blob begins or ends to arrive.
    turns: watch::Sender<u64>,
}

/// The blobs that are arriving on this host. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Arrivals(Arc<Inner>);

/// A blob that is arriving, until dropped.
pub(crate) struct Arrival {
    all: Arrivals,
    digest: oci::Digest,
    arrived: watch::Sender<Option<u64>>,
}

impl Arrivals {
    fn entries(&self) -> MutexGuard<'_, HashMap<oci::Digest, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to receive a blob.
    ///
    /// # Errors
    /// When it is being received already.
    pub(crate) fn begin(&self, blob: &Blob) -> Result<Arrival> {
        let (sender, arrived) = watch::channel(None);
        let mut entries = self.entries();
        if entries.contains_key(&blob.digest) {
            return Err(Error::invalid(format!(
                "blob {} is being received already",
                blob.digest
            )));
        }
        let size = blob.size;
        entries.insert(blob.digest.clone(), Entry { size, arrived });
        drop(entries);
        Ok(Arrival {
            all: self.clone(),
            digest: blob.digest.clone(),
            arrived: sender,
        })
    }

    /// Size and progress of a blob that is arriving.
    pub(crate) fn of(&self, digest: &oci::Digest) -> Option<(u64, Arrived)> {
        self.entries()
            .get(digest)
            .map(|entry| (entry.size, entry.arrived.clone()))
    }

    /// Changes whenever a blob begins or ends to arrive.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.0.turns.subscribe()
    }

    /// Bytes that all blobs together still lack.
    fn lacking(&self) -> u64 {
        let lacking = |entry: &Entry| entry.size.saturating_sub(entry.arrived.borrow().unwrap_or(0));
        self.entries().values().map(lacking).fold(0, u64::saturating_add)
    }
}

impl Arrival {
    /// Tells that so many bytes of it can be read.
    pub(crate) fn has(&self, bytes: u64) {
        if self.arrived.send_replace(Some(bytes)).is_none() {
            self.all.turn();
        }
    }

    /// Its progress.
    pub(crate) fn watch(&self) -> Arrived {
        self.arrived.subscribe()
    }

    /// Refuses to go on if what all arriving blobs lack, and [`SPARE`], is more than there is room for below `dir`.
    ///
    /// # Errors
    /// When there is too little room.
    pub(crate) fn fits(&self, dir: &Path) -> Result<()> {
        // What does not exist yet will lie where its nearest existing folder lies.
        let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
        let stat = rustix::fs::statvfs(existing).map_err(|e| Error::io(existing)(e.into()))?;
        room(
            stat.f_bavail.saturating_mul(stat.f_frsize),
            self.all.lacking(),
            existing,
        )
    }
}

fn room(free: u64, lacking: u64, dir: &Path) -> Result<()> {
    let needed = lacking.saturating_add(SPARE);
    if free >= needed {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let message = format!(
        "{} MiB are free below {}, and the blobs that are arriving need {} MiB; make room there, or set spec.dataRoot to a folder on a \
         larger disk",
        free >> 20,
        dir.display(),
        mib(needed)
    );
    Err(Error::new(FaultKind::System, message))
}

impl Arrivals {
    fn turn(&self) {
        self.0.turns.send_modify(|turn| *turn = turn.wrapping_add(1));
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.all.entries().remove(&self.digest);
        self.all.turn();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(name: &str, size: u64) -> Blob {
        Blob {
            digest: oci::Digest::of(name.as_bytes()),
            size,
        }
    }

    #[test]
    fn no_blob_arrives_twice_at_once_and_all_that_lack_bytes_are_counted() {
        let arrivals = Arrivals::default();
        let first = arrivals.begin(&blob("a", 100)).unwrap();
        assert!(arrivals.begin(&blob("a", 100)).is_err());
        let second = arrivals.begin(&blob("b", 50)).unwrap();
        assert_eq!(arrivals.lacking(), 150);
        first.has(30);
        assert_eq!(arrivals.lacking(), 120);
        drop(first);
        assert_eq!(arrivals.lacking(), 50);
        drop(arrivals.begin(&blob("a", 100)).unwrap());
        drop(second);
        assert_eq!(arrivals.lacking(), 0);
    }

    #[test]
    fn a_disk_is_never_filled() {
        let dir = Path::new("/data");
        for (free, lacking, fits) in [
            (SPARE + 10, 10, true),
            (SPARE + 9, 10, false),
            (0, 0, false),
            (u64::MAX - 1, u64::MAX, false),
        ] {
            assert_eq!(room(free, lacking, dir).is_ok(), fits, "{free} free, {lacking} lacking");
        }
        let arrivals = Arrivals::default();
        let huge = arrivals.begin(&blob("huge", 1 << 60)).unwrap();
        let error = huge.fits(Path::new("/no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("make room"), "{error}");
    }
}
