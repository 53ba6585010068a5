//! Signs of life. An operator's machine that loses its power says no goodbye, and a host that has nothing to send would not notice for
//! hours, with its lock held: so the client says something every now and then, and the host gives up one of whom it hears nothing.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{Weak, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, MissedTickBehavior, Sleep},
};

use crate::{frame::Frame, link::Inner, proto::Request};

/// How often a client says that it is still there.
pub(crate) const BEAT: Duration = Duration::from_secs(10);
/// After how long without a byte a host takes the client for gone: several signs in a row were lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// Says every [`BEAT`] that the client is still there, until the connection ends.
pub(crate) async fn keep(link: Weak<Inner>) {
    let mut ticks = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = link.upgrade().filter(|inner| !inner.is_lost()) else {
            return;
        };
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
