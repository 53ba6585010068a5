//! Blobs on their way to hosts: only those a host lacks, from where an interrupted one stopped. Who gives them is [`crate::swarm`]'s business.

use crate::{
    Error, Result,
    bandwidth::Throttled,
    event::Event,
    fan,
    phases::{Outcome, Phase},
    run::Run,
    session::Session,
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use host::{
    ClientError,
    proto::{Blob, FaultKind, Missing},
};
use std::{
    collections::BTreeMap,
    io::SeekFrom,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncSeekExt as _, ReadBuf};

/// How often a connection may be lost without one more byte having arrived.
const LOSSES: usize = 3;

/// Bytes still to be sent.
pub fn outstanding(missing: &[Missing]) -> u64 {
    missing.iter().map(|m| m.blob.size.saturating_sub(m.have)).sum()
}

/// The rootfs' layers, to every host.
pub fn host_blobs(run: Arc<Run>, _: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let wanted = run.site.image.host_blobs.clone();
        send(&run, place.unwrap_or_default(), wanted).await
    }
    .boxed()
}

/// The carried images, to the hosts of the registry.
pub fn registry_blobs(run: Arc<Run>, _: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let wanted = run.site.image.registry_blobs.clone();
        send(&run, place.unwrap_or_default(), wanted).await
    }
    .boxed()
}

async fn send(run: &Arc<Run>, index: usize, wanted: Vec<Blob>) -> Result<Outcome> {
    let session = &run.sessions[index];
    let missing = session
        .client
        .missing_blobs(wanted)
        .await
        .map_err(session.failed("asking which blobs it lacks"))?;
    let bytes = outstanding(&missing);
    let changes = missing.len();
    run.observer.event(Event::BytesExpected {
        host: run.host_name(index),
        bytes,
    });
    let from_peers = run.swarm.bring(run, index, missing).await?;
    Ok(Outcome {
        changes,
        bytes,
        from_peers,
    })
}

/// Sends the rest of a blob that lies in the file `path`, and goes on where it was when the connection is lost. `told` is told how many more
/// bytes were taken, each once.
///
/// # Errors
/// When the file cannot be read, the host refuses the blob, or is lost again and again without one more byte having arrived.
pub async fn deliver(
    session: &Session,
    path: &Path,
    mut missing: Missing,
    told: impl Fn(u64) + Send + Sync,
) -> Result<()> {
    let doing = || format!("receiving blob {}", missing.blob.digest.short());
    let (doing, mut high, mut losses) = (doing(), missing.have, 0);
    loop {
        let content = Counted {
            inner: Throttled::new(open(path, missing.have).await?, session.bandwidth.as_ref()),
            position: missing.have,
            high: &mut high,
            told: &told,
        };
        let error = match session.client.put_blob(&missing.blob, missing.have, content).await {
            Ok(()) => return Ok(()),
            Err(error @ ClientError::Lost(_)) if losses < LOSSES => error,
            // What was there from before was damaged, and is thrown away now.
            Err(error) if missing.have > 0 && error.fault().is_some_and(|fault| fault.kind == FaultKind::Corrupt) => {
                error
            }
            Err(error) => return Err(session.failed(doing)(error)),
        };
        tracing::info!(host = %session.ip, %error, "{doing} was interrupted");
        let still = session.client.missing_blobs(vec![missing.blob.clone()]).await;
        let Some(rest) = still.map_err(session.failed(doing.as_str()))?.pop() else {
            return Ok(());
        };
        losses = if rest.have > missing.have { 0 } else { losses + 1 };
        missing = rest;
    }
}

async fn open(path: &Path, offset: u64) -> Result<tokio::fs::File> {
    let local = |source| Error::Local {
        what: format!(
            "cannot read {}; if it is damaged, load or build the image again",
            path.display()
        ),
        source,
    };
    let mut file = tokio::fs::File::open(path).await.map_err(local)?;
    file.set_max_buf_size(1 << 20);
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).await.map_err(local)?;
    }
    Ok(file)
}

/// Tells how many bytes were taken. What is sent once more is not told once more.
struct Counted<'a, R, F> {
    inner: R,
    position: u64,
    /// Up to where was told.
    high: &'a mut u64,
    told: &'a F,
}

impl<R: AsyncRead + Unpin, F: Fn(u64)> AsyncRead for Counted<'_, R, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.position += (buf.filled().len() - before) as u64;
        let more = self.position.saturating_sub(*self.high);
        if more > 0 {
            *self.high += more;
            (self.told)(more);
        }
        polled
    }
}

/// Reads every blob that some host lacks and compares it with its digest: a damaged image is refused before any host is touched.
///
/// # Errors
/// All blobs that are damaged or gone.
pub async fn check_outgoing(image: &str, blobs: &oci::BlobStore, missing: &[Vec<Missing>]) -> Result<()> {
    let outgoing: BTreeMap<oci::Digest, u64> = missing
        .iter()
        .flatten()
        .map(|missing| (missing.blob.digest.clone(), missing.blob.size))
        .collect();
    let at_once = std::thread::available_parallelism().map_or(2, usize::from);
    let problems: Vec<String> = stream::iter(outgoing)
        .map(|(digest, size)| {
            let blobs = blobs.clone();
            async move {
                let checked = tokio::task::spawn_blocking(move || blobs.verify(&digest, size)).await;
                match checked {
                    Ok(checked) => checked.err().map(|error| error.to_string()),
                    Err(_) => Some("reading a blob was interrupted".to_owned()),
                }
            }
        })
        .buffer_unordered(at_once)
        .filter_map(std::future::ready)
        .collect()
        .await;
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Image {
        image: image.to_owned(),
        message: format!("it is damaged: {}; build or load it again", problems.join("; ")),
    })
}

/// What each host lacks of all it shall have, asked of all at once: for plans.
///
/// # Errors
/// When a host does not answer.
pub async fn missing_everywhere(sessions: &[Session], wanted: Vec<Vec<Blob>>) -> Result<Vec<Vec<Missing>>> {
    let ask = sessions.iter().zip(wanted).map(|(session, wanted)| {
        async move {
            session
                .client
                .missing_blobs(wanted)
                .await
                .map_err(session.failed("asking which blobs it lacks"))
        }
        .boxed()
    });
    fan::all_good(ask.collect()).await
}
