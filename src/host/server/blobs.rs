//! Bulk bytes in and out. Never more than a few chunks of a blob are in memory.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use oci::BlobStore;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Answer, Blob, DATA_QUEUE, Error, Fault, FaultKind, Frame, Kind, Result, Server, Sharing, blocking, locked,
};
use crate::{
    arrivals::{Arrival, Arrived},
    frame::CHUNK,
    proto::{Missing, Peer, Serving, Token},
    share,
};

/// How often is told what has arrived from another host.
const TELLING: Duration = Duration::from_millis(200);

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

/// Writes what comes down the queue, until an empty piece says that it was all. `from`: where the sender goes on; absent: where we say.
fn receive(
    blobs: &BlobStore,
    blob: &Blob,
    from: Option<u64>,
    mut chunks: mpsc::Receiver<Bytes>,
    arrival: &Arrival,
) -> Result<()> {
    if blobs.has(&blob.digest, blob.size) {
        return Ok(());
    }
    let mut writer = blobs.writer(&blob.digest, blob.size, from != Some(0))?;
    let there = writer.offset();
    if from.is_some_and(|from| from != there) {
        return Err(Error::invalid(format!(
            "blob {}: {} there, but what was sent begins at {}",
            blob.digest,
            oci::counted(there, "byte"),
            from.unwrap_or_default()
        )));
    }
    arrival.has(there);
    arrival.fits(blobs.dir())?;
    loop {
        match chunks.blocking_recv() {
            Some(chunk) if chunk.is_empty() => break,
            Some(chunk) => writer.write(&chunk)?,
            // The sender is gone; what has arrived stays for the next time.
            None => return Err(Error::failed("the client stopped sending")),
        }
        arrival.has(writer.offset());
    }
    Ok(writer.commit()?)
}

async fn ended(writing: &mut JoinHandle<Result<(), Fault>>) -> Result<(), Fault> {
    writing
        .await
        .unwrap_or_else(|e| Err(Error::failed(e.to_string()).fault()))
}

impl Server {
    pub(super) async fn put_blob(
        &self,
        blob: Blob,
        offset: u64,
        chunks: Option<mpsc::Receiver<Bytes>>,
    ) -> Result<Answer, Fault> {
        let blobs = self.layout_to_fill().await?.blobs().clone();
        let chunks = chunks.ok_or_else(|| Error::invalid("a blob without bytes"))?;
        let arrival = self.arrivals.begin(&blob)?;
        let busy = Arc::clone(&self.busy).read_owned().await;
        blocking(move || {
            // Goes on for a moment when nobody waits for it any more.
            let _busy = busy;
            Ok(receive(&blobs, &blob, Some(offset), chunks, &arrival)?)
        })
        .await?;
        Ok(Answer::Done)
    }

    pub(super) async fn serve_others(&self, address: IpAddr, token: &Token) -> Result<Serving, Fault> {
        let blobs = self.layout_to_fill().await?.blobs().clone();
        if let Some(sharing) = locked(&self.sharing).as_ref()
            && sharing.is_for(address, token)
        {
            return Ok(sharing.serving.clone());
        }
        let sharing = Sharing::begin(address, token, blobs, self.arrivals.clone()).await?;
        let serving = sharing.serving.clone();
        *locked(&self.sharing) = Some(sharing);
        Ok(serving)
    }

    pub(super) async fn fetch_blob(&self, id: u32, blob: Blob, from: &Peer) -> Result<Answer, Fault> {
        let blobs = self.layout_to_fill().await?.blobs().clone();
        let arrival = self.arrivals.begin(&blob)?;
        let mut arrived = arrival.watch();
        let (pieces, chunks) = mpsc::channel(DATA_QUEUE);
        let own = blob.clone();
        let busy = Arc::clone(&self.busy).read_owned().await;
        let mut writing = tokio::spawn(blocking(move || {
            let _busy = busy;
            Ok(receive(&blobs, &own, None, chunks, &arrival)?)
        }));
        let begun = arrived.wait_for(Option::is_some).await.map(|at| at.unwrap_or(0));
        let Ok(offset) = begun else {
            // It is there already, or cannot be written.
            return ended(&mut writing).await.map(|()| Answer::Done);
        };
        let work = async {
            let fetched = tokio::select! {
                fetched = share::fetch(from, &blob, offset, &pieces) => fetched,
                written = ended(&mut writing) => return written,
            };
            drop(pieces);
            match (fetched, ended(&mut writing).await) {
                (Ok(()), written) => written,
                // That nothing more comes is the writer's trouble only if it had no other.
                (Err(_), Err(own)) if own.kind == FaultKind::System => Err(own),
                (Err(error), _) => Err(error.fault()),
            }
        };
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(TELLING);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = ticks.tick() => self.tell(id, &arrived).await,
            }
        };
        self.tell(id, &arrived).await;
        result.map(|()| Answer::Done)
    }

    async fn tell(&self, id: u32, arrived: &Arrived) {
        let at = arrived.borrow().unwrap_or(0);
        let body = Bytes::copy_from_slice(&at.to_be_bytes());
        let _ = self.out.send(Frame::new(Kind::Data, id, body)).await;
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
