//! Bulk bytes in and out. Never more than a few chunks of a blob are in memory.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use oci::BlobStore;
use tokio::sync::mpsc;

use super::{Answer, Blob, Error, Fault, Frame, Kind, Result, Server, blocking, locked};
use crate::{frame::CHUNK, proto::Missing};

/// Those of `want` that are not there whole.
pub(super) fn missing(blobs: &BlobStore, want: Vec<Blob>) -> Vec<Missing> {
    want.into_iter()
        .filter(|blob| !blobs.has(&blob.digest, blob.size))
        .map(|blob| Missing {
            have: blobs.partial_size(&blob.digest).min(blob.size),
            blob,
        })
        .collect()
}

/// Marks a blob as being received.
struct Receiving<'a>(&'a Server, oci::Digest);

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        locked(&self.0.receiving).remove(&self.1);
    }
}

impl Server {
    pub(super) async fn put_blob(
        &self,
        blob: Blob,
        offset: u64,
        chunks: Option<mpsc::Receiver<Bytes>>,
    ) -> Result<Answer, Fault> {
        let blobs = self.layout(true)?.blobs().clone();
        let mut chunks = chunks.ok_or_else(|| Error::invalid("a blob without bytes"))?;
        if !locked(&self.receiving).insert(blob.digest.clone()) {
            return Err(Error::invalid(format!("blob {} is being received already", blob.digest)).fault());
        }
        let _receiving = Receiving(self, blob.digest.clone());
        let busy = Arc::clone(&self.busy).read_owned().await;
        blocking(move || {
            // Goes on for a moment when nobody waits for it any more.
            let _busy = busy;
            if blobs.has(&blob.digest, blob.size) {
                return Ok(Answer::Done);
            }
            let mut writer = blobs.writer(&blob.digest, blob.size, offset > 0).map_err(Error::from)?;
            if writer.offset() != offset {
                let message = format!(
                    "blob {}: {} bytes are there, but bytes from {offset} on were sent",
                    blob.digest,
                    writer.offset()
                );
                return Err(Error::invalid(message).fault());
            }
            loop {
                match chunks.blocking_recv() {
                    Some(chunk) if chunk.is_empty() => break,
                    Some(chunk) => writer.write(&chunk).map_err(Error::from)?,
                    // The client is gone; what has arrived stays for the next time.
                    None => return Err(Error::failed("the client stopped sending").fault()),
                }
            }
            writer.commit().map_err(Error::from)?;
            Ok(Answer::Done)
        })
        .await
    }

    /// Sends a file's bytes from `offset` on.
    pub(super) async fn send_file(&self, id: u32, path: PathBuf, offset: u64, limit: u64) -> Result<(), Fault> {
        let (sender, mut chunks) = mpsc::channel::<Bytes>(4);
        let (length_in, length) = tokio::sync::oneshot::channel();
        let reading = tokio::spawn(blocking(move || {
            let mut file = File::open(&path).map_err(Error::io(&path))?;
            let meta = file.metadata().map_err(Error::io(&path))?;
            if !meta.is_file() {
                return Err(Error::invalid(format!("{} is no file", path.display())).fault());
            }
            let length = meta.len().saturating_sub(offset);
            if length > limit {
                return Err(
                    Error::invalid(format!("{} has {length} bytes, more than {limit}", path.display())).fault(),
                );
            }
            file.seek(SeekFrom::Start(offset)).map_err(Error::io(&path))?;
            let _ = length_in.send(length);
            let mut left = length;
            while left > 0 {
                let mut chunk = vec![0; usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))];
                file.read_exact(&mut chunk).map_err(Error::io(&path))?;
                left -= chunk.len() as u64;
                if sender.blocking_send(chunk.into()).is_err() {
                    break;
                }
            }
            Ok(())
        }));
        if let Ok(length) = length.await {
            self.send(id, &Answer::Bytes { length }).await;
        }
        while let Some(chunk) = chunks.recv().await {
            let _ = self.out.send(Frame::new(Kind::Data, id, chunk)).await;
        }
        match reading.await {
            Ok(Ok(())) => {
                let _ = self.out.send(Frame::new(Kind::End, id, Bytes::new())).await;
                Ok(())
            }
            Ok(Err(fault)) => Err(fault),
            Err(e) => Err(Error::failed(e.to_string()).fault()),
        }
    }
}
