//! Response bodies. Lists go out as the cached bytes of their items, never copied into one buffer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::proxy::page::Rewritten;

/// Error of a body that passes another server's answer through.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A response body.
pub enum Body {
    /// Known pieces.
    Pieces(VecDeque<Bytes>),
    /// Pieces as they come: watches and logs.
    Stream(mpsc::Receiver<Bytes>),
    /// Another server's answer.
    Remote(Incoming),
    /// Another server's page with its links rewritten.
    Page(Box<Rewritten>),
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::Pieces(VecDeque::new())
    }

    /// Total size, if known.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::Pieces(p) => Some(p.iter().map(Bytes::len).sum()),
            _ => None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(b: Bytes) -> Self {
        Self::Pieces(VecDeque::from([b]))
    }
}

impl From<String> for Body {
    fn from(s: String) -> Self {
        Bytes::from(s).into()
    }
}

impl From<Vec<u8>> for Body {
    fn from(v: Vec<u8>) -> Self {
        Bytes::from(v).into()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Pieces(p) => Poll::Ready(p.pop_front().map(|b| Ok(Frame::data(b)))),
            Self::Stream(rx) => rx.poll_recv(cx).map(|o| o.map(|b| Ok(Frame::data(b)))),
            Self::Remote(b) => Pin::new(b).poll_frame(cx).map_err(Into::into),
            Self::Page(p) => p.poll_piece(cx).map(|o| o.map(|b| b.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Pieces(p) => p.is_empty(),
            Self::Stream(_) | Self::Page(_) => false,
            Self::Remote(b) => b.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pieces(p) => SizeHint::with_exact(p.iter().map(|b| b.len() as u64).sum()),
            Self::Stream(_) | Self::Page(_) => SizeHint::default(),
            Self::Remote(b) => b.size_hint(),
        }
    }
}
