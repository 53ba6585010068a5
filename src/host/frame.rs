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
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Largest head in bytes.
pub const MAX_HEAD: usize = 24 << 20;
/// Largest data frame in bytes.
pub const MAX_DATA: usize = 1 << 20;
/// Size of the data frames we send.
pub const CHUNK: usize = 256 << 10;

/// Most bytes that may come before the first frame.
pub(crate) const MAX_PREAMBLE: usize = 64 << 10;

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
                "something else writes between the frames of the host protocol (it wrote {:?}); does a start-up file \
                 of the login shell there leave a program running?",
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

/// Where the first frame begins that a host sends, if `read` ends with its head and one byte of its body: an answer,
/// so it has a small number and its body is a JSON object. Text has no such bytes.
fn begins(read: &[u8]) -> Option<usize> {
    let start = read.len().checked_sub(4 + ID_AND_KIND + 1)?;
    let [a, b, c, d, 1, 0, 0, _, _, b'{'] = read[start..] else {
        return None;
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    (ID_AND_KIND + 2..=ID_AND_KIND + MAX_HEAD)
        .contains(&length)
        .then_some(start)
}

/// Reads the first frame a host sends, whatever its login prints before: that goes to `preamble`. `None` when the
/// host has closed without a frame.
///
/// # Errors
/// When reading fails, or too much comes before.
pub(crate) async fn read_first(
    reader: &mut (impl AsyncBufRead + Unpin),
    mut preamble: impl FnMut(&[u8]),
) -> io::Result<Option<Frame>> {
    let mut read: Vec<u8> = Vec::new();
    let start = loop {
        match reader.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                preamble(&read);
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        if let Some(start) = begins(&read) {
            break start;
        }
        if read.ends_with(b"\n") {
            preamble(&read);
        }
        if read.len() > MAX_PREAMBLE {
            return Err(invalid(format!(
                "more than {MAX_PREAMBLE} bytes came before the host protocol"
            )));
        }
    };
    preamble(&read[..start]);
    let head = read.split_off(start);
    // What was read already, and then the rest.
    self::read(&mut io::Cursor::new(head).chain(reader)).await
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

    /// What is found in what a host sends: the text before, and whether a frame came whole.
    async fn found(sent: &[u8]) -> (String, io::Result<Option<Frame>>) {
        let mut before = Vec::new();
        let first = read_first(&mut &sent[..], |bytes| before = bytes.to_vec()).await;
        (String::from_utf8(before).unwrap(), first)
    }

    #[tokio::test]
    async fn the_first_frame_is_found_behind_whatever_was_printed() {
        let answer = Frame::new(Kind::Head, 1, r#"{"answer":"hello"}"#);
        let mut frame = Vec::new();
        write(&mut frame, &answer).await.unwrap();
        for text in [
            "",
            "hello from bashrc\n",
            "no line end",
            "{1}\n\u{1}\u{0}\u{0}",
            "Willkommen, schön\r\n\n",
        ] {
            let (before, first) = found(&[text.as_bytes(), &frame, b"more"].concat()).await;
            assert_eq!(
                (before.as_str(), first.unwrap().unwrap().body),
                (text, answer.body.clone())
            );
        }
        let (before, first) = found(b"This account is currently not available.\n").await;
        assert!(before.contains("not available") && first.unwrap().is_none());
        assert!(found(&frame[..frame.len() - 1]).await.1.is_err(), "cut off");
        let endless = vec![b'x'; 2 * MAX_PREAMBLE];
        assert!(
            found(&endless)
                .await
                .1
                .unwrap_err()
                .to_string()
                .contains("before the host protocol")
        );
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
