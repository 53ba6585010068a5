//! A part of a file as a response body.
//!
//! Where the connection can send files itself ([`crate::socket`]) the body is one piece that is never read. Elsewhere files are
//! read in large pieces on the blocking pool, one piece ahead of the socket, so that disk and network overlap and a stream never
//! holds more than two pieces. The more streams there are, the smaller the pieces, so that all of them share one budget.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, spawn_blocking},
};

use crate::socket::Piece;

/// Largest piece in bytes: the hand-over between threads does not count against it.
const LARGEST: u64 = 256 * 1024;
/// Smallest piece in bytes, however many streams there are.
const SMALLEST: u64 = 16 * 1024;
/// Bytes that all streams may hold together, except that each gets two of the smallest pieces.
const BUDGET: u64 = 8 << 20;
/// Files that are read at once; further requests wait for their turn.
const STREAMS: usize = 256;

/// Bounds the files that are read at once, and their memory.
#[derive(Debug, Clone)]
pub struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS)))
    }
}

impl Streams {
    /// Waits for a place.
    ///
    /// # Errors
    /// Never in practice: the semaphore is not closed.
    pub async fn enter(&self) -> Result<Place, tokio::sync::AcquireError> {
        let permit = Arc::clone(&self.0).acquire_owned().await?;
        let streams = self.clone();
        Ok(Place {
            streams,
            _permit: permit,
        })
    }

    fn piece(&self) -> u64 {
        let running = STREAMS.saturating_sub(self.0.available_permits()).max(1) as u64;
        (BUDGET / 2 / running).clamp(SMALLEST, LARGEST)
    }
}

/// The right to read one file, given back when dropped.
#[derive(Debug)]
pub struct Place {
    streams: Streams,
    _permit: OwnedSemaphorePermit,
}

/// One piece that the connection sends by itself.
pub struct WholePiece {
    piece: Option<Piece>,
    length: u64,
}

impl WholePiece {
    /// A body of one piece of `length` bytes.
    pub fn new(piece: Piece, length: u64) -> Self {
        Self {
            piece: Some(piece),
            length,
        }
    }
}

impl Body for WholePiece {
    type Data = Piece;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Piece>>>> {
        self.length = 0;
        Poll::Ready(self.piece.take().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.piece.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

/// `length` bytes of `file` from `offset` on, as a body.
pub struct FileBody {
    file: Arc<File>,
    /// Where the next read starts.
    offset: u64,
    /// Bytes that no read has been started for.
    unread: u64,
    /// Bytes not yet given away: `unread` and those of the running read.
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    place: Place,
}

impl FileBody {
    /// A body over `length` bytes from `offset`; the caller has checked that the file has them.
    pub fn new(file: File, offset: u64, length: u64, place: Place) -> Self {
        Self {
            file: Arc::new(file),
            offset,
            unread: length,
            left: length,
            reading: None,
            place,
        }
    }

    fn read_on(&mut self) {
        let size = self.unread.min(self.place.streams.piece());
        if self.reading.is_some() || size == 0 {
            return;
        }
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        self.offset += size;
        self.unread -= size;
        self.reading = Some(spawn_blocking(move || {
            let mut piece = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            file.read_exact_at(&mut piece, offset)?;
            Ok(Bytes::from(piece))
        }));
    }
}

impl Body for FileBody {
    type Data = Piece;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Piece>>>> {
        let this = self.get_mut();
        this.read_on();
        let Some(reading) = this.reading.as_mut() else {
            return Poll::Ready(None);
        };
        let piece = ready!(Pin::new(reading).poll(context))
            .map_err(io::Error::other)
            .and_then(|piece| piece);
        this.reading = None;
        match piece {
            Ok(piece) => {
                this.left -= piece.len() as u64;
                this.read_on();
                Poll::Ready(Some(Ok(Frame::data(piece.into()))))
            }
            Err(error) => {
                this.unread = 0;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_streams_share_one_budget_of_memory() {
        let streams = Streams::default();
        assert_eq!(streams.piece(), LARGEST);
        let mut places = Vec::new();
        for running in 1..=STREAMS as u64 {
            places.push(streams.enter().await.unwrap());
            let held = 2 * running * streams.piece();
            assert!(
                held <= BUDGET.max(2 * running * SMALLEST),
                "{running} streams hold {held} bytes"
            );
        }
    }
}
