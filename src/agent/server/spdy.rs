//! The client half of SPDY/3.1 that the runtime's streaming server needs: opening streams, data, half-close. Header
//! blocks are written without the dictionary (the format allows it) and those of the peer are not read, because
//! nothing in them matters here. No flow control: the peer has none either.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A frame that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// Bytes of a stream.
    Data {
        /// Stream.
        stream: u32,
        /// Whether it is the last.
        fin: bool,
        /// Bytes.
        data: Bytes,
    },
    /// The peer has ended a stream.
    Reset {
        /// Stream.
        stream: u32,
    },
    /// The peer wants its ping back.
    Ping {
        /// Its number.
        id: u32,
    },
    /// The peer takes no more streams.
    GoAway,
    /// Anything else.
    Other,
}

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// Largest frame accepted; the peer copies in blocks of 32 KiB.
const LARGEST: usize = 1 << 20;

/// Reads one frame; `None` at the end of the connection.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0u8; 8];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let flags = head[4];
    let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
    if length > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too large"));
    }
    let mut body = BytesMut::zeroed(length);
    stream.read_exact(&mut body).await?;
    let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    if first & 0x8000_0000 == 0 {
        return Ok(Some(Frame::Data {
            stream: first,
            fin: flags & FIN != 0,
            data: body.freeze(),
        }));
    }
    let word = |b: &mut BytesMut| if b.len() >= 4 { b.get_u32() & 0x7fff_ffff } else { 0 };
    Ok(Some(match (first & 0xffff) as u16 {
        SYN_REPLY if flags & FIN != 0 => Frame::Data {
            stream: word(&mut body),
            fin: true,
            data: Bytes::new(),
        },
        RST_STREAM => Frame::Reset {
            stream: word(&mut body),
        },
        PING => Frame::Ping { id: word(&mut body) },
        GOAWAY => Frame::GoAway,
        _ => Frame::Other,
    }))
}

/// The writing side.
pub(super) struct Writer<W> {
    inner: W,
    headers: Compress,
    next: u32,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// On an upgraded connection.
    pub(super) fn new(inner: W) -> Writer<W> {
        Writer {
            inner,
            headers: Compress::new(Compression::fast(), true),
            next: 1,
        }
    }

    /// Opens a stream; its number.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let id = self.next;
        self.next += 2;
        let block = self.compress(&header_block(headers))?;
        let mut frame = control(SYN_STREAM, 0, 10 + block.len());
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.put_slice(&block);
        self.send(&frame).await?;
        Ok(id)
    }

    /// Bytes for a stream; with `fin` the last ones.
    pub(super) async fn data(&mut self, stream: u32, fin: bool, data: &[u8]) -> io::Result<()> {
        let mut chunks = data.chunks(32 * 1024).peekable();
        if chunks.peek().is_none() {
            return self.send(&data_head(stream, fin, 0)).await;
        }
        while let Some(chunk) = chunks.next() {
            let last = fin && chunks.peek().is_none();
            let mut frame = data_head(stream, last, chunk.len());
            frame.put_slice(chunk);
            self.send(&frame).await?;
        }
        Ok(())
    }

    /// Answers a ping.
    pub(super) async fn pong(&mut self, id: u32) -> io::Result<()> {
        let mut frame = control(PING, 0, 4);
        frame.put_u32(id);
        self.send(&frame).await
    }

    async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.inner.write_all(frame).await?;
        self.inner.flush().await
    }

    fn compress(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(plain.len() + 128);
        let before = self.headers.total_in();
        loop {
            let done = (self.headers.total_in() - before) as usize;
            self.headers
                .compress_vec(&plain[done..], &mut out, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            let all = (self.headers.total_in() - before) as usize == plain.len();
            if all && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

fn control(kind: u16, flags: u8, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u16(0x8003);
    frame.put_u16(kind);
    frame.put_u8(flags);
    frame.put_uint(length as u64, 3);
    frame
}

fn data_head(stream: u32, fin: bool, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u32(stream & 0x7fff_ffff);
    frame.put_u8(if fin { FIN } else { 0 });
    frame.put_uint(length as u64, 3);
    frame
}

fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(headers.len() as u32);
    for (name, value) in headers {
        out.put_u32(name.len() as u32);
        out.put_slice(name.to_ascii_lowercase().as_bytes());
        out.put_u32(value.len() as u32);
        out.put_slice(value.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_wire() {
        let (mut a, b) = tokio::io::duplex(1 << 16);
        let mut writer = Writer::new(b);
        let first = writer.open(&[("streamType", "error")]).await.unwrap();
        let second = writer.open(&[("streamType", "stdin")]).await.unwrap();
        assert_eq!((first, second), (1, 3));
        writer.data(second, false, b"hello").await.unwrap();
        writer.data(second, true, b"").await.unwrap();
        writer.pong(2).await.unwrap();
        assert_eq!(read(&mut a).await.unwrap(), Some(Frame::Other));
        assert_eq!(read(&mut a).await.unwrap(), Some(Frame::Other));
        assert_eq!(
            read(&mut a).await.unwrap(),
            Some(Frame::Data {
                stream: 3,
                fin: false,
                data: Bytes::from_static(b"hello")
            })
        );
        assert_eq!(
            read(&mut a).await.unwrap(),
            Some(Frame::Data {
                stream: 3,
                fin: true,
                data: Bytes::new()
            })
        );
        assert_eq!(read(&mut a).await.unwrap(), Some(Frame::Ping { id: 2 }));
        drop(writer);
        assert_eq!(read(&mut a).await.unwrap(), None);
    }

    #[tokio::test]
    async fn header_blocks_are_one_zlib_stream_without_dictionary() {
        let (mut a, b) = tokio::io::duplex(1 << 16);
        let mut writer = Writer::new(b);
        let mut inflate = flate2::Decompress::new(true);
        for name in ["error", "stdout"] {
            writer.open(&[("streamType", name)]).await.unwrap();
            let mut head = [0u8; 8];
            a.read_exact(&mut head).await.unwrap();
            let mut body = vec![0u8; usize::from(head[6]) << 8 | usize::from(head[7])];
            a.read_exact(&mut body).await.unwrap();
            let mut plain = Vec::with_capacity(256);
            inflate
                .decompress_vec(&body[10..], &mut plain, flate2::FlushDecompress::Sync)
                .unwrap();
            assert_eq!(plain, header_block(&[("streamType", name)]));
        }
    }
}
