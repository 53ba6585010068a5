//! Frames: the unit both sides exchange.
//!
//! ```text
//! u32 length of the rest │ u8 kind │ u32 request id │ body          (big endian)
//! ```
//!
//! A request or answer is one [`Kind::Head`] frame (JSON); its bulk bytes follow as [`Kind::Data`] frames ended by one [`Kind::End`].
//! [`Kind::Cancel`] tells the server that nobody waits for the answer any more. Lengths are bounded, so a peer that talks
//! nonsense (a login banner, say) is found at once and memory is bounded.

use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Largest head in bytes.
pub const MAX_HEAD: usize = 24 << 20;
/// Largest data frame in bytes.
pub const MAX_DATA: usize = 1 << 20;
/// Size of the data frames we send.
pub const CHUNK: usize = 256 << 10;

const ID_AND_KIND: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request or an answer.
    Head = 1,
    /// Bulk bytes.
    Data = 2,
    /// End of bulk bytes.
    End = 3,
    /// The client gave up.
    Cancel = 4,
}

/// A frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Which request it belongs to.
    pub id: u32,
    /// Its bytes.
    pub body: Bytes,
}

impl Frame {
    /// A frame.
    pub fn new(kind: Kind, id: u32, body: impl Into<Bytes>) -> Self {
        Self {
            kind,
            id,
            body: body.into(),
        }
    }

    /// A head frame of something that becomes JSON.
    ///
    /// # Errors
    /// When it is larger than [`MAX_HEAD`].
    pub fn head(id: u32, value: &impl serde::Serialize) -> io::Result<Self> {
        let body = serde_json::to_vec(value)?;
        if body.len() > MAX_HEAD {
            return Err(invalid(format!("a message of {} bytes is too large", body.len())));
        }
        Ok(Self::new(Kind::Head, id, body))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads the next frame; `None` when the peer has closed between two frames.
///
/// # Errors
/// When reading fails, the stream ends inside a frame, or it is no frame.
pub async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    read_bounded(reader, MAX_HEAD).await
}

/// As [`read`], from a peer whose heads have at most `max_head` bytes.
///
/// # Errors
/// As [`read`].
pub async fn read_bounded(reader: &mut (impl AsyncRead + Unpin), max_head: usize) -> io::Result<Option<Frame>> {
    let mut head = [0; 4 + ID_AND_KIND];
    let first = reader.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut head[first..]).await?;
    let [a, b, c, d, kind, e, f, g, h] = head;
    let (kind, limit) = match kind {
        1 => (Kind::Head, max_head),
        2 => (Kind::Data, MAX_DATA),
        3 => (Kind::End, 0),
        4 => (Kind::Cancel, 0),
        _ => {
            return Err(invalid(format!(
                "the peer does not speak the host protocol (it sent {:?})",
                String::from_utf8_lossy(&head)
            )));
        }
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length < ID_AND_KIND || length - ID_AND_KIND > limit {
        return Err(invalid(format!("a {kind:?} frame of {length} bytes is not acceptable")));
    }
    let length = length - ID_AND_KIND;
    let mut body = BytesMut::with_capacity(length);
    let mut rest = reader.take(length as u64);
    while body.len() < length {
        if rest.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(Frame {
        kind,
        id: u32::from_be_bytes([e, f, g, h]),
        body: body.freeze(),
    }))
}

/// Writes a frame; the caller flushes.
///
/// # Errors
/// When writing fails.
pub async fn write(writer: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let mut head = [0; 4 + ID_AND_KIND];
    let length = u32::try_from(ID_AND_KIND + frame.body.len()).map_err(|_| invalid("frame too large".to_owned()))?;
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4] = frame.kind as u8;
    head[5..].copy_from_slice(&frame.id.to_be_bytes());
    writer.write_all(&head).await?;
    writer.write_all(&frame.body).await
}

/// Writes every frame that comes down the queue, flushing when it runs empty, until all senders are gone.
///
/// # Errors
/// When writing fails; what is queued is lost then.
pub async fn pump(mut queue: tokio::sync::mpsc::Receiver<Frame>, writer: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut writer = tokio::io::BufWriter::with_capacity(64 << 10, writer);
    while let Some(frame) = queue.recv().await {
        write(&mut writer, &frame).await?;
        while let Ok(frame) = queue.try_recv() {
            write(&mut writer, &frame).await?;
        }
        writer.flush().await?;
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_wire() {
        let frames = [
            Frame::new(Kind::Head, 1, "{}"),
            Frame::new(Kind::Data, 0xffff_fffe, vec![7u8; MAX_DATA]),
            Frame::new(Kind::End, 2, Bytes::new()),
            Frame::new(Kind::Cancel, 3, Bytes::new()),
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            write(&mut wire, frame).await.unwrap();
        }
        let mut reader = &wire[..];
        for frame in &frames {
            let got = read(&mut reader).await.unwrap().unwrap();
            assert_eq!((got.kind, got.id, &got.body), (frame.kind, frame.id, &frame.body));
        }
        assert!(read(&mut reader).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        let table: &[&[u8]] = &[
            b"Welcome to Debian\n",
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
            &[0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0],
            &[0, 0, 0, 6, 3, 0, 0, 0, 0, 1],
            &[0, 0, 0, 9, 1, 0, 0, 0, 0, 1],
            &[0, 0],
        ];
        for bytes in table {
            assert!(read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
    }
}
