//! Blobs from a registry into a store, continued where an earlier attempt or process stopped.

use oci::{BlobStore, BlobWriter, Descriptor};
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::mpsc;

use super::{Again, Call, Failure, Meter, Repository};
use crate::error::Error;

/// Pieces that may wait for the disk.
const QUEUE: usize = 8;

impl Repository {
    /// Fetches a blob into the store unless it's there. What had arrived of it before is not fetched again.
    ///
    /// # Errors
    /// When the registry doesn't have it, can't be reached or refuses, what it sends is not what was announced, or the
    /// disk refuses.
    pub(crate) async fn fetch_blob(&self, blobs: &BlobStore, blob: &Descriptor, meter: &Meter) -> Result<(), Error> {
        loop {
            let Some(writer) = begin(blobs, blob).await? else {
                meter.add(blob.size);
                return Ok(());
            };
            let resumed = writer.offset() > 0;
            meter.add(writer.offset());
            let writer = self.fetch_into(writer, blob, meter).await?;
            match blocking(move || Ok(writer.commit()?)).await {
                // What had arrived before may have been damaged on the disk: once more, from its beginning.
                Err(Error::Oci(oci::Error::Corrupt { .. })) if resumed => meter.take_back(blob.size),
                done => return done,
            }
        }
    }

    async fn fetch_into(&self, mut writer: BlobWriter, blob: &Descriptor, meter: &Meter) -> Result<BlobWriter, Error> {
        let below = format!("blobs/{}", blob.digest);
        let mut call = self.call(Method::GET, &below, format!("pull the blob {} from {{}}", blob.digest))?;
        let mut attempts = self.remote.retry.start();
        while writer.offset() < blob.size {
            let before = writer.offset();
            call.headers.remove(RANGE);
            if before > 0 {
                let range = HeaderValue::from_str(&format!("bytes={before}-"));
                call.headers.extend(range.ok().map(|range| (RANGE, range)));
            }
            let (returned, result) = self.fetch_once(&call, writer, meter).await;
            writer = returned?;
            if writer.offset() > before {
                attempts.progressed();
            }
            match result {
                Err(failure) => attempts.wait(failure).await?,
                Ok(()) if writer.offset() < blob.size => {
                    let error = call.error(format!(
                        "it ended after {} of {}",
                        writer.offset(),
                        oci::counted(blob.size, "byte")
                    ));
                    let again = Again::After(None);
                    attempts.wait(Failure { error, again }).await?;
                }
                Ok(()) => {}
            }
        }
        Ok(writer)
    }

    /// One attempt; the writer comes back whatever happened, unless the disk refused.
    async fn fetch_once(
        &self,
        call: &Call<'_>,
        writer: BlobWriter,
        meter: &Meter,
    ) -> (Result<BlobWriter, Error>, Result<(), Failure>) {
        let offset = writer.offset();
        let response = match self.remote.send(call).await {
            Ok(response) => response,
            Err(failure) => return (Ok(writer), Err(failure)),
        };
        let good = [
            StatusCode::OK,
            StatusCode::PARTIAL_CONTENT,
            StatusCode::RANGE_NOT_SATISFIABLE,
        ];
        let mut response = match call.accept(response, &good).await {
            Ok(response) => response,
            Err(failure) => return (Ok(writer), Err(failure)),
        };
        let continues = response.status() == StatusCode::PARTIAL_CONTENT && starts_at(&response, offset);
        let mut writer = writer;
        if offset > 0 && !continues {
            meter.take_back(offset);
            if let Err(error) = writer.restart() {
                return (Err(error.into()), Ok(()));
            }
        }
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE
            || (response.status() == StatusCode::PARTIAL_CONTENT && !continues)
        {
            let error = call.error("it answers a range that wasn't asked for".to_string());
            let again = Again::After(None);
            return (Ok(writer), Err(Failure { error, again }));
        }
        let (sender, mut pieces) = mpsc::channel::<bytes::Bytes>(QUEUE);
        let writing = blocking(move || {
            while let Some(piece) = pieces.blocking_recv() {
                writer.write(&piece)?;
            }
            Ok(writer)
        });
        let reading = async {
            while let Some(piece) = call.chunk(&mut response).await? {
                let size = piece.len() as u64;
                if sender.send(piece).await.is_err() {
                    // The writer says why.
                    break;
                }
                meter.add(size);
            }
            drop(sender);
            Ok(())
        };
        tokio::join!(writing, reading)
    }
}

/// A writer that goes on where the last one stopped; none if the blob is there. Waits for another process that is
/// fetching the same blob.
async fn begin(blobs: &BlobStore, blob: &Descriptor) -> Result<Option<BlobWriter>, Error> {
    let (blobs, blob) = (blobs.clone(), blob.clone());
    blocking(move || {
        if blobs.has(&blob.digest, blob.size) {
            return Ok(None);
        }
        let writer = blobs.writer(&blob.digest, blob.size, true)?;
        // Whoever was waited for has finished it, perhaps.
        if blobs.has(&blob.digest, blob.size) {
            writer.discard()?;
            return Ok(None);
        }
        Ok(Some(writer))
    })
    .await
}

fn starts_at(response: &Response, offset: u64) -> bool {
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|range| range.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    start == Some(offset)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Refused(format!("the transfer was interrupted: {error}"))),
    }
}
