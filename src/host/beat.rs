//! Signs of life. An operator's machine that loses its power says no goodbye, and a host that has nothing to send would not notice for
//! hours, with its lock held: so the client says something every now and then, and the host gives up one of whom it
//! hears nothing. The client in turn gives up a host that neither answers nor takes what is sent, though the
//! connection to it is well.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, MissedTickBehavior, Sleep},
};

use crate::{frame::Frame, link::Inner, proto::Request};

/// How often a client says that it is still there.
pub(crate) const BEAT: Duration = Duration::from_secs(10);
/// After how long without a byte a host takes the client for gone: several signs in a row were lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// After how long without an answer, and without a byte that it took, a client takes `clusterd` for dead: what is on
/// its way to it over a slow line comes before its answers.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Signs of life are smaller than that; what is larger is taken only by somebody who reads.
const BULK: usize = 1 << 10;

/// When a host was last seen to take or to give something. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Moved(Arc<Mutex<Option<Instant>>>);

impl Moved {
    pub(crate) fn now() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    pub(crate) fn note(&self) {
        self.set(Some(Instant::now()));
    }

    /// Until the next [`Self::note`] it is this machine that takes its time.
    pub(crate) fn pause(&self) {
        self.set(None);
    }

    fn elapsed(&self) -> Duration {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// A writer that notes when bulk is taken.
pub(crate) struct Moving<W> {
    writer: W,
    moved: Moved,
}

impl<W> Moving<W> {
    pub(crate) fn new(writer: W, moved: Moved) -> Self {
        Self { writer, moved }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Moving<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.writer).poll_write(cx, bytes);
        if matches!(written, Poll::Ready(Ok(count)) if count >= BULK) {
            self.moved.note();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// Says every [`BEAT`] that the client is still there, until the connection ends; ends it when the host is silent for
/// [`STALL_TIMEOUT`].
pub(crate) async fn keep(link: Weak<Inner>) {
    let mut ticks = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Instant::now();
    loop {
        ticks.tick().await;
        let late = before.elapsed() > 2 * BEAT;
        before = Instant::now();
        let Some(inner) = link.upgrade().filter(|inner| !inner.is_lost()) else {
            return;
        };
        if late {
            // It is this program that was stopped for a while.
            inner.moved.note();
        }
        if inner.moved.elapsed() > STALL_TIMEOUT {
            let seconds = STALL_TIMEOUT.as_secs();
            return inner.lose(format!(
                "clusterd has neither answered nor taken anything for {seconds} s"
            ));
        }
        // The answer is nobody's. Where the queue is full other frames are on their way, and tell as much.
        if let Ok(frame) = Frame::head(inner.next.fetch_add(1, Ordering::Relaxed), &Request::Ping) {
            let _ = inner.outgoing.try_send(frame);
        }
    }
}

/// A reader that fails when nothing comes for [`SILENCE`].
pub(crate) struct Heard<R> {
    reader: R,
    silent: Pin<Box<Sleep>>,
}

impl<R> Heard<R> {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            silent: Box::pin(tokio::time::sleep(SILENCE)),
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Heard<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // First what has come: whoever was slow to ask for it must not blame the client.
        if let Poll::Ready(read) = Pin::new(&mut self.reader).poll_read(cx, buffer) {
            self.silent.as_mut().reset(Instant::now() + SILENCE);
            return Poll::Ready(read);
        }
        self.silent.as_mut().poll(cx).map(|()| {
            let what = format!("the installer has said nothing for {} s", SILENCE.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        })
    }
}
