//! The bodies of requests, on their way to an upload's file or into memory.
//!
//! Bytes are hashed and written on a thread of the blocking pool while the next ones arrive; what waits between the two is bounded.
//! A client that stops sending is given up after a while; what had arrived stays, so that the upload can go on from there.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

use super::uploads::Held;
use crate::answer::{Code, Refusal};

/// How long a client may send nothing in the middle of a body.
pub const STALL: Duration = Duration::from_secs(60);
/// Parts of a body that wait to be written, each at most as large as the connection's read buffer.
const WAITING: usize = 2;

/// How much of a body is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Exactly this many bytes, if the client said so.
    pub exactly: Option<u64>,
    /// Bytes the blob may still grow by.
    pub room: u64,
    /// How large a blob may be, in bytes, for the message.
    pub limit: u64,
}

/// What is to be done with an upload's file.
enum Step {
    Add(Bytes),
    TakeBack,
}

/// Adds a body to an upload, and gives the upload back with how that went.
///
/// # Errors
/// The inner error is for the client; the outer one means that the upload is lost.
pub async fn into_upload<B>(
    body: &mut B,
    mut held: Held,
    bounds: Bounds,
) -> Result<(Held, Result<u64, Refusal>), Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (sender, receiver) = mpsc::channel(WAITING);
    let writing = spawn_blocking(move || {
        let written = write(&mut held, receiver);
        (held, written)
    });
    let arrived = forward(body, sender, bounds).await;
    let (held, written) = writing.await?;
    Ok((held, written.map_err(disk).and(arrived)))
}

fn write(held: &mut Held, mut steps: mpsc::Receiver<Step>) -> io::Result<()> {
    let Some(upload) = held.as_mut() else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let mut appending = upload.append()?;
    while let Some(step) = steps.blocking_recv() {
        match step {
            Step::Add(bytes) => appending.write(&bytes)?,
            Step::TakeBack => return appending.undo(),
        }
    }
    Ok(())
}

async fn forward<B>(body: &mut B, to: mpsc::Sender<Step>, bounds: Bounds) -> Result<u64, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut arrived = 0;
    while let Some(bytes) = next(body).await? {
        arrived += bytes.len() as u64;
        let refusal = if arrived > bounds.room {
            too_large(bounds.limit)
        } else if bounds.exactly.is_some_and(|exactly| arrived > exactly) {
            wrong_size(bounds, arrived)
        } else {
            // Only fails when writing has; then the writer says why.
            if to.send(Step::Add(bytes)).await.is_err() {
                return Ok(arrived);
            }
            continue;
        };
        let _ = to.send(Step::TakeBack).await;
        return Err(refusal);
    }
    if bounds.exactly.is_some_and(|exactly| arrived != exactly) {
        let _ = to.send(Step::TakeBack).await;
        return Err(wrong_size(bounds, arrived));
    }
    Ok(arrived)
}

/// The next bytes of a body; nothing at its end.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        match timeout(STALL, body.frame()).await {
            Err(_) => {
                let detail = format!("nothing came for {} seconds", STALL.as_secs());
                return Err(Refusal::new(
                    Code::Timeout,
                    "the client does not go on sending",
                    &detail,
                ));
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                let message = "the request broke off";
                return Err(Refusal::new(Code::BlobUploadInvalid, message, &error.to_string()));
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// Reads a body of at most `limit` bytes into memory.
///
/// # Errors
/// When it is larger, or does not arrive.
pub async fn into_memory<B>(body: &mut B, limit: u64) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let too_large = || {
        let detail = format!("at most {limit} bytes are taken");
        Refusal::new(Code::ManifestTooLarge, "the manifest is too large", &detail)
    };
    let announced = body.size_hint().lower();
    if announced > limit {
        return Err(too_large());
    }
    let mut all = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
    while let Some(bytes) = next(body).await? {
        if (all.len() + bytes.len()) as u64 > limit {
            return Err(too_large());
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.freeze())
}

/// Reads away what a refused client is still sending, so that it gets to read the answer; not if that is much.
pub async fn drain<B>(body: &mut B)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    const MOST: usize = 1 << 20;
    let all = async {
        let mut drained = 0;
        while let Ok(Some(bytes)) = next(body).await {
            drained += bytes.len();
            if drained > MOST {
                return;
            }
        }
    };
    // Who is slower reads the answer or does not.
    let _ = timeout(Duration::from_secs(2), all).await;
}

/// The refusal of a blob over the limit.
pub fn too_large(limit: u64) -> Refusal {
    let detail = format!("at most {limit} bytes are taken (--max-blob-size)");
    Refusal::new(Code::BlobTooLarge, "the blob is too large", &detail)
}

fn wrong_size(bounds: Bounds, arrived: u64) -> Refusal {
    let detail = format!(
        "announced were {} bytes, {arrived} or more came",
        bounds.exactly.unwrap_or(0)
    );
    Refusal::new(
        Code::SizeInvalid,
        "the chunk does not have the length its range says",
        &detail,
    )
}

fn disk(error: io::Error) -> Refusal {
    let is_full = error.kind() == io::ErrorKind::StorageFull;
    let refusal = Refusal::from(error);
    if is_full {
        return Refusal::new(Code::Unknown, "the registry's disk is full", "");
    }
    refusal
}
