//! What requests carry, read from the disk as it is sent, and the count of what moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use oci::{BlobStore, Digest};
use reqwest::Body;

use super::Failure;
use crate::error::Error;
use crate::progress::{Event, Progress};

/// What a request carries.
pub(super) enum Content<'a> {
    Nothing,
    Bytes(Bytes),
    /// Part of a blob's file, read as it's sent.
    Blob {
        blobs: &'a BlobStore,
        digest: &'a Digest,
        offset: u64,
        size: u64,
        meter: &'a Meter,
    },
}

impl Content<'_> {
    /// The body and its size; `moved` counts what went out.
    pub(super) async fn body(&self, moved: &Arc<AtomicU64>) -> Result<(Option<Body>, u64), Failure> {
        use futures::StreamExt as _;
        use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
        match self {
            Content::Nothing => Ok((None, 0)),
            Content::Bytes(bytes) => Ok((Some(bytes.clone().into()), bytes.len() as u64)),
            Content::Blob {
                blobs,
                digest,
                offset,
                size,
                meter,
            } => {
                let mut file = tokio::fs::File::from_std(blobs.open(digest)?);
                let from = std::io::SeekFrom::Start(*offset);
                file.seek(from)
                    .await
                    .map_err(Error::io("cannot read", blobs.path(digest)))?;
                let stream = tokio_util::io::ReaderStream::with_capacity(file.take(*size), crate::io::CHUNK);
                let (moved, meter) = (Arc::clone(moved), (*meter).clone());
                let counted = stream.inspect(move |chunk| {
                    if let Ok(chunk) = chunk {
                        moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                        meter.add(chunk.len() as u64);
                    }
                });
                Ok((Some(Body::wrap_stream(counted)), *size))
            }
        }
    }
}

/// Adds up the bytes of several blobs that move at once. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Meter {
    progress: Arc<dyn Progress>,
    done: Arc<AtomicU64>,
    total: u64,
}

impl Meter {
    pub(crate) fn new(progress: Arc<dyn Progress>, total: u64) -> Meter {
        Meter {
            progress,
            done: Arc::default(),
            total,
        }
    }

    pub(crate) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.tell(done);
    }

    /// Bytes that count as moved must be moved once more.
    pub(crate) fn take_back(&self, bytes: u64) {
        let done = self.done.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes);
        self.tell(done);
    }

    fn tell(&self, done: u64) {
        let total = self.total;
        // A piece that is sent again may count twice for a moment.
        let done = done.min(total);
        self.progress.event(Event::Bytes { done, total });
    }
}
