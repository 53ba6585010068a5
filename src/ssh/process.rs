//! A program on the host: what it reads, what it writes, how it ended.
//!
//! One task per program takes everything the channel brings, so that a busy stdout never hides an exit status. It lives until the
//! channel closes or until reader, writer and status are all dropped, which closes the channel.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client::Msg};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use crate::{
    Error, Result,
    activity::Activity,
    elevate::{ASKED_AGAIN, PromptFilter},
};

/// How much of stderr is remembered.
const STDERR_TAIL: usize = 64 << 10;
/// Chunks of stdout that may wait for the reader; more, and the connection waits.
const QUEUE: usize = 64;
/// How long the channel of a program that has ended may bring nothing and stay open: what the program left running
/// holds its stdout.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(u32),
    /// By a signal.
    Signal(String),
    /// Unknown: the connection ended first, for this reason.
    Lost(String),
}

impl ExitStatus {
    /// Whether the code is 0.
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Lost(reason) => write!(f, "connection lost ({reason})"),
        }
    }
}

/// What a program that ran to its end left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout, cut at the command's limit.
    pub stdout: Vec<u8>,
    /// The last of what it wrote to stderr.
    pub stderr: String,
}

/// A running program. Its three parts can be used apart; when all are dropped it is hung up on.
#[derive(Debug)]
pub struct Process {
    /// Its stdin; `shutdown` closes it.
    pub stdin: ProcessWriter,
    /// Its stdout.
    pub stdout: ProcessReader,
    /// How it is.
    pub status: ProcessStatus,
    activity: Activity,
}

impl Process {
    /// When something last came of it.
    pub(crate) fn activity(&self) -> Activity {
        self.activity.clone()
    }
}

/// The stdin of a program, or the sending half of a stream. Writing fails once the program has ended: nobody widens
/// the window of its channel any more, so the channel alone would wait for ever.
pub struct ProcessWriter {
    inner: Pin<Box<dyn AsyncWrite + Send>>,
    over: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    _alive: Arc<DropGuard>,
}

/// The stdout of a program, or the receiving half of a stream.
#[derive(Debug)]
pub struct ProcessReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    _alive: Arc<DropGuard>,
}

/// A view of a program's end and its stderr. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProcessStatus {
    exit: watch::Receiver<Option<ExitStatus>>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    _alive: Arc<DropGuard>,
}

impl ProcessStatus {
    /// Waits for the end. stdout must be read meanwhile, or the end may never come.
    pub async fn wait(&mut self) -> ExitStatus {
        match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(ExitStatus::Lost(String::new())),
            Err(_) => ExitStatus::Lost("the connection ended".to_owned()),
        }
    }

    /// The last 64 KiB of stderr so far.
    pub fn stderr(&self) -> String {
        let tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let (a, b) = tail.as_slices();
        String::from_utf8_lossy(&[a, b].concat()).trim_end().to_owned()
    }
}

/// What the task needs to know beside the channel.
pub(crate) struct Pump {
    pub(crate) read: ChannelReadHalf,
    pub(crate) write: ChannelWriteHalf<Msg>,
    /// What already came of stderr.
    pub(crate) early_stderr: Vec<u8>,
    /// Hides sudo's prompt; if it shows again the password was wrong.
    pub(crate) prompt: Option<PromptFilter>,
    pub(crate) ended: crate::handler::Ended,
    /// Is told whatever comes.
    pub(crate) activity: Activity,
    /// The connection must outlive what is open on it.
    pub(crate) keep: crate::Connection,
}

impl Pump {
    pub(crate) fn start(self) -> Process {
        let (chunks_in, chunks) = mpsc::channel(QUEUE);
        let (exit_in, exit) = watch::channel(None);
        let stop = CancellationToken::new();
        let alive = Arc::new(stop.clone().drop_guard());
        let stderr: Arc<Mutex<VecDeque<u8>>> = Arc::new(Mutex::new(self.early_stderr.iter().copied().collect()));
        let writer = Box::pin(self.write.make_writer());
        let (over, activity) = (CancellationToken::new(), self.activity.clone());
        let running = self.run(chunks_in, exit_in, Arc::clone(&stderr), stop);
        // However it ends.
        let guard = over.clone().drop_guard();
        tokio::spawn(async move {
            running.await;
            drop(guard);
        });
        Process {
            stdin: ProcessWriter {
                inner: writer,
                ended: Box::pin(over.clone().cancelled_owned()),
                over,
                _alive: Arc::clone(&alive),
            },
            stdout: ProcessReader {
                chunks,
                current: Bytes::new(),
                _alive: Arc::clone(&alive),
            },
            status: ProcessStatus {
                exit,
                stderr,
                _alive: alive,
            },
            activity,
        }
    }

    async fn run(
        mut self,
        chunks: mpsc::Sender<Bytes>,
        exit: watch::Sender<Option<ExitStatus>>,
        stderr: Arc<Mutex<VecDeque<u8>>>,
        stop: CancellationToken,
    ) {
        let mut status = None;
        let mut chunks = Some(chunks);
        loop {
            let message = tokio::select! {
                message = next(&mut self.read, status.is_some()) => message,
                () = stop.cancelled() => break,
            };
            self.activity.note();
            match message {
                Some(ChannelMsg::Data { data }) => {
                    // Nobody reads any more: drop it, the end is still of interest.
                    if let Some(sender) = &chunks {
                        tokio::select! {
                            sent = sender.send(data) => if sent.is_err() { chunks = None },
                            () = stop.cancelled() => break,
                        }
                    }
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    let shown = match &mut self.prompt {
                        Some(filter) => filter.feed(&data),
                        None => data.to_vec(),
                    };
                    remember(&stderr, &shown);
                    if self.prompt.as_ref().is_some_and(PromptFilter::seen) {
                        remember(&stderr, format!("{ASKED_AGAIN}\n").as_bytes());
                        break;
                    }
                }
                Some(ChannelMsg::Eof) => chunks = None,
                Some(ChannelMsg::ExitStatus { exit_status }) => status = Some(ExitStatus::Code(exit_status)),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    status = Some(ExitStatus::Signal(format!("{signal_name:?}")))
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
        }
        let lost = || {
            self.ended
                .get()
                .map_or_else(|| "the channel was closed".to_owned(), |end| end.reason.clone())
        };
        let _ = exit.send(Some(status.unwrap_or_else(|| ExitStatus::Lost(lost()))));
        let _ = self.write.close().await;
        drop(self.keep);
    }
}

/// What comes next. Of a program that has `ended` it is not waited for without a limit.
async fn next(read: &mut ChannelReadHalf, ended: bool) -> Option<ChannelMsg> {
    if ended {
        return timeout(CLOSE_TIMEOUT, read.wait()).await.unwrap_or_default();
    }
    read.wait().await
}

fn remember(tail: &Mutex<VecDeque<u8>>, bytes: &[u8]) {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.extend(bytes);
    let excess = tail.len().saturating_sub(STDERR_TAIL);
    tail.drain(..excess);
}

impl AsyncRead for ProcessReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.current = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = buf.remaining().min(self.current.len());
        buf.put_slice(&self.current[..count]);
        self.current.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ProcessWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.over.is_cancelled() {
            return Poll::Ready(Err(ended()));
        }
        match self.inner.as_mut().poll_write(cx, buf) {
            Poll::Pending => self.ended.as_mut().poll(cx).map(|()| Err(ended())),
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.over.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        match self.inner.as_mut().poll_shutdown(cx) {
            Poll::Pending => self.ended.as_mut().poll(cx).map(Ok),
            closed => closed,
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the program has ended")
}

impl std::fmt::Debug for ProcessWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProcessWriter")
    }
}

/// Reads to the end, keeps `limit` bytes.
pub(crate) async fn read_bounded(mut reader: ProcessReader, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some(chunk) = reader.chunks.recv().await {
        let room = limit.saturating_sub(kept.len()).min(chunk.len());
        kept.extend_from_slice(&chunk[..room]);
    }
    kept
}

impl Output {
    /// The last line it wrote: of stderr, or of stdout where that is empty, since not everybody complains on stderr.
    pub fn last_words(&self) -> String {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let last = |text: &str| text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned);
        last(&self.stderr)
            .or_else(|| last(&stdout))
            .unwrap_or_else(|| "it said nothing".to_owned())
    }

    /// The output if the program succeeded.
    ///
    /// # Errors
    /// Names the command and the last line it wrote otherwise.
    pub fn ok(self, host: &str, what: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        Err(Error::Refusal {
            host: host.to_owned(),
            what: what.to_owned(),
            reason: format!("{}: {}", self.status, self.last_words()),
        })
    }
}
