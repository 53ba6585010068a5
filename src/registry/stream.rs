//! A part of a file as a response body, in bounded memory.
//!
//! Files are read in large pieces on the blocking pool, one piece ahead of the socket, so that disk and network overlap and a
//! stream never holds more than two pieces. Pieces are given to the connection as they are, without another copy.

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
    sync::OwnedSemaphorePermit,
    task::{JoinHandle, spawn_blocking},
};

/// Bytes of a piece: large enough that the hand-over between threads does not count, small enough for many streams at once.
const PIECE: u64 = 256 * 1024;

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
    /// Bounds the number of streams; given back when the body is dropped.
    _permit: OwnedSemaphorePermit,
}

impl FileBody {
    /// A body over `length` bytes from `offset`; the caller has checked that the file has them.
    pub fn new(file: File, offset: u64, length: u64, permit: OwnedSemaphorePermit) -> Self {
        Self {
            file: Arc::new(file),
            offset,
            unread: length,
            left: length,
            reading: None,
            _permit: permit,
        }
    }

    fn read_on(&mut self) {
        let size = self.unread.min(PIECE);
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
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
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
                Poll::Ready(Some(Ok(Frame::data(piece))))
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
