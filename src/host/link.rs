//! One connection to `clusterd host`: frames to requests and back.
//!
//! Two tasks own the stream: one writes what is queued, one reads and hands each frame to the request it belongs to. A
//! request whose future is dropped is cancelled on the host too (if it only looks). Data that nobody takes any more is dropped.

use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
};

use crate::{
    beat::{self, Moved, Moving},
    client::{ClientError, Result},
    frame::{self, Frame, Kind},
    proto::{Answer, Request},
};

/// Frames waiting to be written, and frames waiting to be taken per request: this many at most.
const QUEUE: usize = 8;

pub(crate) struct Inner {
    pub(crate) outgoing: mpsc::Sender<Frame>,
    waiting: Mutex<HashMap<u32, mpsc::Sender<Frame>>>,
    pub(crate) next: AtomicU32,
    lost: OnceLock<String>,
    /// Becomes true when it is lost.
    over: watch::Sender<bool>,
    /// When the host was last seen to take or to give something.
    pub(crate) moved: Moved,
    /// What came before the protocol.
    preamble: Mutex<String>,
}

impl Inner {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u32, mpsc::Sender<Frame>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the host printed before it spoke the protocol, so far.
    pub(crate) fn preamble(&self) -> String {
        self.preamble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_preamble(&self, bytes: &[u8]) {
        *self.preamble.lock().unwrap_or_else(PoisonError::into_inner) = String::from_utf8_lossy(bytes).into_owned();
    }

    /// Waits until the connection has ended.
    pub(crate) async fn ended(&self) {
        // The sender is our own, so it cannot be gone.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    pub(crate) fn lose(&self, reason: String) {
        // Under the lock that `begin` takes, so no request can slip in between and wait forever.
        let mut waiting = self.waiting();
        let _ = self.lost.set(reason);
        waiting.clear();
        self.over.send_replace(true);
    }

    /// Whether the connection has ended.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    pub(crate) fn lost(&self) -> ClientError {
        ClientError::Lost(self.lost.get().cloned().unwrap_or_else(|| "closed".to_owned()))
    }
}

/// A connection. It ends when this is dropped.
pub(crate) struct Link {
    pub(crate) inner: Arc<Inner>,
}

/// A request in flight.
pub(crate) struct Call {
    inner: Arc<Inner>,
    pub(crate) id: u32,
    pub(crate) name: &'static str,
    pub(crate) frames: mpsc::Receiver<Frame>,
    pub(crate) finished: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.inner.waiting().remove(&self.id);
        if !self.finished {
            // Best effort: a full queue only means that the host works on for nothing.
            let _ = self
                .inner
                .outgoing
                .try_send(Frame::new(Kind::Cancel, self.id, Bytes::new()));
        }
    }
}

impl Call {
    pub(crate) async fn send(&self, frame: Frame) -> Result<()> {
        self.inner.outgoing.send(frame).await.map_err(|_| self.inner.lost())
    }

    pub(crate) async fn frame(&mut self) -> Result<Frame> {
        self.frames.recv().await.ok_or_else(|| self.inner.lost())
    }

    pub(crate) fn answer(&mut self, frame: &Frame) -> Result<Answer> {
        if frame.kind != Kind::Head {
            return Err(ClientError::Unexpected(self.name));
        }
        match serde_json::from_slice(&frame.body).map_err(|_| ClientError::Unexpected(self.name))? {
            Answer::Error(fault) => {
                self.finished = true;
                Err(ClientError::Fault(fault))
            }
            answer => {
                self.finished = !matches!(answer, Answer::Bytes { .. } | Answer::Listening(_));
                Ok(answer)
            }
        }
    }

    pub(crate) async fn head(&mut self) -> Result<Answer> {
        let frame = self.frame().await?;
        self.answer(&frame)
    }
}

impl Link {
    /// Must be called within a tokio runtime.
    pub(crate) fn new<R, W>(reader: R, writer: W) -> Self
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner {
            outgoing,
            waiting: Mutex::default(),
            next: AtomicU32::new(1),
            lost: OnceLock::new(),
            over: watch::Sender::new(false),
            moved: Moved::now(),
            preamble: Mutex::default(),
        });
        let writer = Moving::new(writer, inner.moved.clone());
        let weak = Arc::downgrade(&inner);
        let mut over = inner.over.subscribe();
        tokio::spawn(async move {
            let written = tokio::select! {
                written = frame::pump(queue, writer) => written,
                // A stream that takes nothing any more need not fail. With the queue ends the waiting for a place in it.
                Ok(_) = over.wait_for(|over| *over) => return,
            };
            if let Err(e) = written
                && let Some(inner) = weak.upgrade()
            {
                inner.lose(e.to_string());
            }
        });
        tokio::spawn(beat::keep(Arc::downgrade(&inner)));
        // The reading task must not keep the client alive: dropping the last clone closes the host's stdin, which ends the host's
        // program, which ends this task.
        let weak = Arc::downgrade(&inner);
        let mut over = inner.over.subscribe();
        tokio::spawn(async move {
            let reason = tokio::select! {
                reason = take_all(reader, &weak) => reason,
                // Whoever said that it is over knows why.
                Ok(_) = over.wait_for(|over| *over) => return,
            };
            if let Some(inner) = weak.upgrade() {
                inner.lose(reason);
            }
        });
        Self { inner }
    }

    /// Whether it has ended.
    pub(crate) fn is_lost(&self) -> bool {
        self.inner.is_lost()
    }

    pub(crate) async fn begin(&self, request: &Request) -> Result<Call> {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (taker, frames) = mpsc::channel(QUEUE);
        {
            let mut waiting = self.inner.waiting();
            if self.inner.is_lost() {
                return Err(self.inner.lost());
            }
            waiting.insert(id, taker);
        }
        let call = Call {
            inner: Arc::clone(&self.inner),
            id,
            name: request.name(),
            frames,
            finished: false,
        };
        call.send(Frame::head(id, request)?).await?;
        Ok(call)
    }

    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer> {
        self.begin(request).await?.head().await
    }
}

/// Hands every frame to the request it belongs to; why there are no more.
async fn take_all(reader: impl AsyncRead + Unpin, link: &Weak<Inner>) -> String {
    let mut reader = tokio::io::BufReader::with_capacity(64 << 10, reader);
    let preamble = |bytes: &[u8]| {
        if let Some(inner) = link.upgrade() {
            inner.note_preamble(bytes);
        }
    };
    let mut next = frame::read_first(&mut reader, preamble).await;
    loop {
        let frame = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => return "clusterd ended".to_owned(),
            Err(e) => return e.to_string(),
        };
        let Some(inner) = link.upgrade() else {
            return "nobody asks any more".to_owned();
        };
        inner.moved.pause();
        let taker = inner.waiting().get(&frame.id).cloned();
        let moved = inner.moved.clone();
        drop(inner);
        if let Some(taker) = taker {
            let _ = taker.send(frame).await;
        }
        moved.note();
        next = frame::read(&mut reader).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Blob;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn who_waits_for_a_place_in_the_queue_learns_that_the_connection_is_lost() {
        let (answers, hung_up) = tokio::io::duplex(64);
        // Nobody reads what is sent: as with a host without power.
        let (requests, _unread) = tokio::io::duplex(64);
        let link = Link::new(answers, requests);
        let blob = Blob {
            digest: oci::Digest::of(b"blob"),
            size: 1 << 20,
        };
        let put = Request::PutBlob { blob, offset: 0 };
        let call = link.begin(&put).await.unwrap();
        let piece = || Frame::new(Kind::Data, call.id, Bytes::from(vec![0; 1 << 10]));
        while link.inner.outgoing.capacity() > 0 {
            call.send(piece()).await.unwrap();
            tokio::task::yield_now().await;
        }
        let asked = link.ask(&Request::EndServe);
        tokio::pin!(asked);
        assert!(timeout(Duration::from_millis(50), &mut asked).await.is_err());
        drop(hung_up);
        let answer = timeout(Duration::from_secs(10), asked).await;
        assert!(matches!(answer, Ok(Err(ClientError::Lost(_)))), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_stands_still_is_given_up_and_one_that_takes_bulk_is_not() {
        use tokio::io::AsyncReadExt as _;
        // Nothing is read, as by a program that was stopped; the pipe stays open.
        let (_answers, answered) = tokio::io::duplex(64);
        let (_taken, requests) = tokio::io::duplex(1 << 20);
        let link = Link::new(answered, requests);
        let begun = tokio::time::Instant::now();
        let answer = link.ask(&Request::EndServe).await;
        let seconds = begun.elapsed().as_secs();
        assert!(
            matches!(&answer, Err(ClientError::Lost(why)) if why.contains("neither answered nor taken")),
            "{answer:?}"
        );
        assert!((120..150).contains(&seconds), "{seconds}");

        let (_answers, answered) = tokio::io::duplex(64);
        let (mut taken, requests) = tokio::io::duplex(64 << 10);
        let link = Link::new(answered, requests);
        let blob = Blob {
            digest: oci::Digest::of(b"blob"),
            size: 1 << 30,
        };
        let call = link.begin(&Request::PutBlob { blob, offset: 0 }).await.unwrap();
        let slow = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            while taken.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        });
        for _ in 0..30 {
            let piece = Frame::new(Kind::Data, call.id, Bytes::from(vec![0; 32 << 10]));
            call.send(piece).await.unwrap();
        }
        assert!(!link.is_lost());
        slow.abort();
    }
}
