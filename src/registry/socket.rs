//! Sockets that send files without reading them: `sendfile(2)` below an HTTP server that only knows buffers.
//!
//! A response body gives the server one [`Piece`] for a whole file. While the server believes that it writes the piece's bytes, it
//! passes the memory of [`stand_in`] along, which is never read: the [`Socket`] knows it by its address and sends the file
//! instead. Bytes that were sent are owed; taking them off the piece settles that. A server that copied the stand-in would take
//! off bytes that nobody sent, so from then on the connection fails instead of sending anything wrong.
//!
//! Only for HTTP/1.1 without TLS: everything else has to see the bytes, and reads files by [`crate::stream`].
//!
//! A page that isn't in memory is read in `sendfile` itself and holds up one thread of the runtime meanwhile; files are announced
//! to the kernel as sequential, so that it reads ahead.

use std::{
    fs::File,
    io,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use rustix::fs::{Advice, fadvise, sendfile};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// Most bytes handed to the kernel at once.
const MOST: usize = 1 << 20;

/// Zeroes that stand for a file's content; as nobody reads them they take no memory.
fn stand_in() -> &'static [u8] {
    static ZEROES: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; MOST]);
    &ZEROES
}

fn is_stand_in(buffer: &[u8]) -> bool {
    !buffer.is_empty() && std::ptr::eq(buffer.as_ptr(), stand_in().as_ptr())
}

/// Content of a response, as the HTTP server passes it on.
#[derive(Debug)]
pub enum Piece {
    /// Bytes in memory.
    Memory(Bytes),
    /// A part of a file, to be sent by the connection's [`Socket`].
    File(FilePiece),
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self::Memory(bytes)
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(file) => file.left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::File(file) => &stand_in()[..file.left.min(MOST)],
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Memory(bytes) => bytes.advance(count),
            Self::File(file) => {
                file.left -= count.min(file.left);
                file.outbox.settle(count);
            }
        }
    }
}

/// What is left of a part of a file; the connection's [`Outbox`] has the file.
#[derive(Debug)]
pub struct FilePiece {
    outbox: Arc<Outbox>,
    left: usize,
}

impl Drop for FilePiece {
    fn drop(&mut self) {
        self.outbox.lock().file = None;
    }
}

/// The file that a connection is sending, known to its socket and to the piece that the HTTP server holds.
#[derive(Debug, Default)]
pub struct Outbox(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    file: Option<Part>,
    /// Sent, and not yet taken off the piece.
    owed: usize,
    /// Bytes were taken off that were never sent.
    broken: bool,
}

#[derive(Debug)]
struct Part {
    file: File,
    offset: u64,
    left: usize,
}

impl Outbox {
    /// A piece for `length` bytes of `file` from `offset` on; gives the file back if another one is under way.
    ///
    /// # Errors
    /// The file, when it must be read instead.
    pub fn piece(self: &Arc<Self>, file: File, offset: u64, length: u64) -> Result<Piece, File> {
        let mut state = self.lock();
        let Ok(left) = usize::try_from(length) else {
            return Err(file);
        };
        if state.file.is_some() || state.broken {
            return Err(file);
        }
        // Advice only: without it the file is sent all the same.
        let _ = fadvise(&file, offset, std::num::NonZeroU64::new(length), Advice::Sequential);
        state.file = Some(Part { file, offset, left });
        drop(state);
        let outbox = Arc::clone(self);
        Ok(Piece::File(FilePiece { outbox, left }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, count: usize) {
        let mut state = self.lock();
        match state.owed.checked_sub(count) {
            Some(owed) => state.owed = owed,
            None => state.broken = true,
        }
    }
}

/// A TCP connection that sends what its [`Outbox`] holds where the stand-in is written.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    outbox: Arc<Outbox>,
}

impl Socket {
    /// A socket over a connection, with the box that its responses fill.
    pub fn new(stream: TcpStream) -> (Self, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::default());
        let socket = Self {
            stream,
            outbox: Arc::clone(&outbox),
        };
        (socket, outbox)
    }

    fn check(&self) -> io::Result<()> {
        if self.outbox.lock().broken {
            return Err(io::Error::other("a file was to be sent and its stand-in was copied"));
        }
        Ok(())
    }

    fn send_file(&self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut state = self.outbox.lock();
                let Some(part) = state.file.as_mut() else {
                    return Err(io::Error::other("no file to send"));
                };
                let sent = sendfile(&self.stream, &part.file, Some(&mut part.offset), wanted.min(part.left))?;
                if sent == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                part.left -= sent.min(part.left);
                state.owed += sent;
                Ok(sent)
            });
            match sent {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                other => return Poll::Ready(other),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        if is_stand_in(buffer) {
            return self.send_file(context, buffer.len());
        }
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let before = buffers.iter().position(|buffer| is_stand_in(buffer));
        match before {
            Some(0) => self.send_file(context, buffers[0].len()),
            Some(count) => Pin::new(&mut self.stream).poll_write_vectored(context, &buffers[..count]),
            None => Pin::new(&mut self.stream).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn pair() -> (Socket, Arc<Outbox>, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, outbox) = Socket::new(listener.accept().await.unwrap().0);
        (socket, outbox, client)
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[tokio::test]
    async fn a_part_of_a_file_is_sent_between_what_surrounds_it() {
        let (mut socket, outbox, mut client) = pair().await;
        let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut piece = outbox.piece(file(&content), 7, 2_900_000).unwrap();
        assert!(outbox.piece(file(b"x"), 0, 1).is_err(), "one file at a time");
        let expected = [b"head".as_slice(), &content[7..2_900_007], b"tail"].concat();
        let length = expected.len();
        let reader = tokio::spawn(async move {
            let mut got = vec![0; length];
            client.read_exact(&mut got).await.unwrap();
            got
        });
        let mut head = Bytes::from_static(b"head");
        while piece.has_remaining() {
            let slices = [io::IoSlice::new(&head), io::IoSlice::new(piece.chunk())];
            let skip = usize::from(head.is_empty());
            let sent = socket.write_vectored(&slices[skip..]).await.unwrap();
            let of_head = sent.min(head.len());
            head.advance(of_head);
            piece.advance(sent - of_head);
        }
        drop(piece);
        socket.write_all(b"tail").await.unwrap();
        assert!(reader.await.unwrap() == expected);
        assert!(outbox.piece(file(b"x"), 0, 1).is_ok(), "the box is free again");
    }

    #[tokio::test]
    async fn a_copied_stand_in_breaks_the_connection_and_is_never_sent() {
        let (mut socket, outbox, mut client) = pair().await;
        let mut piece = outbox.piece(file(&[1; 4096]), 0, 4096).unwrap();
        let copy = piece.copy_to_bytes(4096);
        assert!(socket.write_all(&copy).await.is_err());
        drop(socket);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty());
    }

    #[tokio::test]
    async fn a_file_that_has_become_shorter_ends_the_connection() {
        let (mut socket, outbox, _client) = pair().await;
        let piece = outbox.piece(file(b"short"), 5, 10).unwrap();
        let error = socket.write_all(piece.chunk()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
