//! The operator's side of the protocol: typed requests over any byte stream, many at once.
//!
//! Two tasks own the stream: one writes what is queued, one reads and hands each frame to the request it belongs to. A
//! request whose future is dropped is cancelled on the host too (if it only looks). Data that nobody takes any more is dropped.

use bytes::{Bytes, BytesMut};
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};
use zeroize::Zeroizing;

use crate::{
    effect::{Change, Effect, Subject, Usage},
    facts::{Facts, Query},
    frame::{self, CHUNK, Frame, Kind},
    lines::Lines,
    proto::{
        Answer, Blob, Condition, Exec, ExecResult, Fault, Hello, HttpGet, HttpResponse, JournalSummary, Leftover,
        Missing, Mode, Request, Scope, SecretBytes, Stream, Undone, UnitStatus, VERSION,
    },
};

/// Frames waiting to be written, and frames waiting to be taken per request: this many at most.
const QUEUE: usize = 8;

/// Why a request failed, as the operator's side sees it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The host answered that it could not be done.
    #[error("{}", .0.message)]
    Fault(Fault),
    /// The connection ended before the answer. Every request is safe to repeat on a new one.
    #[error("the connection to clusterd was lost: {0}")]
    Lost(String),
    /// The two programs do not fit together.
    #[error("clusterd answered something unexpected to {0}; are both programs of one version?")]
    Unexpected(&'static str),
    /// Reading what shall be sent, or writing what is received, failed on this machine.
    #[error("on this machine: {0}")]
    Local(#[from] io::Error),
}

impl ClientError {
    /// What the host said, if it answered at all.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}

type Result<T, E = ClientError> = std::result::Result<T, E>;

struct Inner {
    outgoing: mpsc::Sender<Frame>,
    waiting: Mutex<HashMap<u32, mpsc::Sender<Frame>>>,
    next: AtomicU32,
    lost: OnceLock<String>,
}

impl Inner {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u32, mpsc::Sender<Frame>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, reason: String) {
        // Under the lock that `begin` takes, so no request can slip in between and wait forever.
        let mut waiting = self.waiting();
        let _ = self.lost.set(reason);
        waiting.clear();
    }

    fn lost(&self) -> ClientError {
        ClientError::Lost(self.lost.get().cloned().unwrap_or_else(|| "closed".to_owned()))
    }
}

/// A connection to `clusterd host` on one host. Cheap to clone; the connection ends when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// A request in flight.
struct Call {
    inner: Arc<Inner>,
    id: u32,
    name: &'static str,
    frames: mpsc::Receiver<Frame>,
    finished: bool,
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
    async fn send(&self, frame: Frame) -> Result<()> {
        self.inner.outgoing.send(frame).await.map_err(|_| self.inner.lost())
    }

    async fn frame(&mut self) -> Result<Frame> {
        self.frames.recv().await.ok_or_else(|| self.inner.lost())
    }

    fn answer(&mut self, frame: &Frame) -> Result<Answer> {
        if frame.kind != Kind::Head {
            return Err(ClientError::Unexpected(self.name));
        }
        match serde_json::from_slice(&frame.body).map_err(|_| ClientError::Unexpected(self.name))? {
            Answer::Error(fault) => {
                self.finished = true;
                Err(ClientError::Fault(fault))
            }
            answer => {
                self.finished = !matches!(answer, Answer::Bytes { .. });
                Ok(answer)
            }
        }
    }

    async fn head(&mut self) -> Result<Answer> {
        let frame = self.frame().await?;
        self.answer(&frame)
    }
}

macro_rules! expect {
    ($answer:expr, $name:expr, $variant:ident) => {
        match $answer {
            Answer::$variant(value) => Ok(value),
            _ => Err(ClientError::Unexpected($name)),
        }
    };
}

impl Client {
    /// Speaks over the two halves of a stream: what `clusterd host --stdio` writes, and reads. Must be called within a tokio runtime.
    pub fn new<R, W>(reader: R, writer: W) -> Self
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
        });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            if let Err(e) = frame::pump(queue, writer).await
                && let Some(inner) = weak.upgrade()
            {
                inner.lose(e.to_string());
            }
        });
        // The reading task must not keep the client alive: dropping the last clone closes the host's stdin, which ends the host's
        // program, which ends this task.
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let mut reader = tokio::io::BufReader::with_capacity(64 << 10, reader);
            let reason = loop {
                match frame::read(&mut reader).await {
                    Ok(Some(frame)) => {
                        let Some(inner) = weak.upgrade() else { return };
                        let taker = inner.waiting().get(&frame.id).cloned();
                        drop(inner);
                        if let Some(taker) = taker {
                            let _ = taker.send(frame).await;
                        }
                    }
                    Ok(None) => break "clusterd ended".to_owned(),
                    Err(e) => break e.to_string(),
                }
            };
            if let Some(inner) = weak.upgrade() {
                inner.lose(reason);
            }
        });
        Self { inner }
    }

    async fn begin(&self, request: &Request) -> Result<Call> {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (taker, frames) = mpsc::channel(QUEUE);
        {
            let mut waiting = self.inner.waiting();
            if self.inner.lost.get().is_some() {
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

    async fn ask(&self, request: &Request) -> Result<Answer> {
        self.begin(request).await?.head().await
    }

    /// Must be the first call. See [`Request::Hello`].
    ///
    /// # Errors
    /// All methods: [`ClientError`].
    pub async fn hello(&self) -> Result<Hello> {
        expect!(self.ask(&Request::Hello { protocol: VERSION }).await?, "hello", Hello)
    }

    /// See [`Request::Open`].
    pub async fn open(&self, scope: &Scope, mode: Mode) -> Result<()> {
        self.ask(&Request::Open {
            scope: scope.clone(),
            mode,
        })
        .await
        .map(drop)
    }

    /// See [`Request::Facts`].
    pub async fn facts(&self, query: &Query) -> Result<Facts> {
        expect!(self.ask(&Request::Facts(query.clone())).await?, "facts", Facts).map(|f| *f)
    }

    /// See [`Request::MissingBlobs`].
    pub async fn missing_blobs(&self, want: Vec<Blob>) -> Result<Vec<Missing>> {
        expect!(
            self.ask(&Request::MissingBlobs { want }).await?,
            "missingBlobs",
            Missing
        )
    }

    /// Sends a blob; `content` yields its bytes from `offset` on ([`Missing::have`]). See [`Request::PutBlob`].
    pub async fn put_blob(&self, blob: &Blob, offset: u64, mut content: impl AsyncRead + Unpin) -> Result<()> {
        let mut call = self
            .begin(&Request::PutBlob {
                blob: blob.clone(),
                offset,
            })
            .await?;
        let mut buffer = BytesMut::new();
        loop {
            let chunk = read_chunk(&mut content, &mut buffer).await?;
            if chunk.is_empty() {
                break;
            }
            let frame = Frame::new(Kind::Data, call.id, chunk);
            tokio::select! {
                // An answer before the end is a refusal: sending the rest would be for nothing.
                biased;
                early = call.frames.recv() => {
                    let frame = early.ok_or_else(|| self.inner.lost())?;
                    return call.answer(&frame).map(drop);
                }
                sent = self.inner.outgoing.send(frame) => sent.map_err(|_| self.inner.lost())?,
            }
        }
        call.send(Frame::new(Kind::End, call.id, Bytes::new())).await?;
        call.head().await.map(drop)
    }

    /// Writes a blob's bytes from `offset` on to `sink`. Nothing else on this connection goes on while `sink` blocks. See [`Request::GetBlob`].
    pub async fn get_blob(&self, digest: &oci::Digest, offset: u64, sink: impl AsyncWrite + Unpin) -> Result<u64> {
        self.receive(
            &Request::GetBlob {
                digest: digest.clone(),
                offset,
            },
            sink,
        )
        .await
    }

    /// The content of a file of at most `limit` bytes, wiped from memory when dropped. See [`Request::ReadFile`].
    pub async fn read_file(&self, path: &str, limit: u64) -> Result<SecretBytes> {
        let mut bytes = Zeroizing::new(Vec::new());
        self.receive(
            &Request::ReadFile {
                path: path.to_owned(),
                limit,
            },
            &mut *bytes,
        )
        .await?;
        Ok(bytes)
    }

    async fn receive(&self, request: &Request, mut sink: impl AsyncWrite + Unpin) -> Result<u64> {
        let mut call = self.begin(request).await?;
        let Answer::Bytes { length } = call.head().await? else {
            return Err(ClientError::Unexpected(call.name));
        };
        let mut got = 0;
        loop {
            let frame = call.frame().await?;
            match frame.kind {
                Kind::Data => {
                    got += frame.body.len() as u64;
                    sink.write_all(&frame.body).await?;
                }
                Kind::End => break,
                // The host found an error in the middle of the bytes.
                _ => {
                    call.answer(&frame)?;
                    return Err(ClientError::Unexpected(call.name));
                }
            }
        }
        call.finished = true;
        sink.flush().await?;
        if got == length {
            Ok(length)
        } else {
            Err(ClientError::Unexpected(call.name))
        }
    }

    /// See [`Request::Preview`].
    pub async fn preview(&self, effects: Vec<Effect>) -> Result<Vec<Change>> {
        expect!(self.ask(&Request::Preview { effects }).await?, "preview", Changes)
    }

    /// See [`Request::Apply`].
    pub async fn apply(&self, effects: Vec<Effect>) -> Result<Vec<Change>> {
        expect!(self.ask(&Request::Apply { effects }).await?, "apply", Changes)
    }

    /// See [`Request::UnitStatus`].
    pub async fn unit_status(&self, name: &str, lines: u32) -> Result<UnitStatus> {
        expect!(
            self.ask(&Request::UnitStatus {
                name: name.to_owned(),
                lines
            })
            .await?,
            "unitStatus",
            Unit
        )
    }

    /// See [`Request::Exec`].
    pub async fn exec(&self, exec: Exec) -> Result<ExecResult> {
        expect!(self.ask(&Request::Exec(exec)).await?, "exec", Exec)
    }

    /// As [`Client::exec`], with every line told as soon as it is written. Nothing else on this connection goes on while `told`
    /// blocks. The result has no output.
    pub async fn exec_telling(&self, exec: Exec, mut told: impl FnMut(Stream, &str) + Send) -> Result<ExecResult> {
        let mut call = self.begin(&Request::Exec(Exec { stream: true, ..exec })).await?;
        let mut lines = Lines::default();
        loop {
            let frame = call.frame().await?;
            if frame.kind == Kind::Data {
                lines.take(&frame.body, &mut told);
                continue;
            }
            lines.finish(&mut told);
            return expect!(call.answer(&frame)?, "exec", Exec);
        }
    }

    /// Milliseconds it took. See [`Request::WaitFor`].
    pub async fn wait_for(&self, condition: Condition, timeout: std::time::Duration) -> Result<u64> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        expect!(
            self.ask(&Request::WaitFor { condition, timeout_ms }).await?,
            "waitFor",
            Waited
        )
    }

    /// See [`Request::HttpGet`].
    pub async fn http_get(&self, get: HttpGet) -> Result<HttpResponse> {
        expect!(self.ask(&Request::HttpGet(get)).await?, "httpGet", Http)
    }

    /// PEM of the request. See [`Request::CreateCsr`].
    pub async fn create_csr(&self, key: &str, subject: Subject) -> Result<String> {
        expect!(
            self.ask(&Request::CreateCsr {
                key: key.to_owned(),
                subject
            })
            .await?,
            "createCsr",
            Pem
        )
    }

    /// PEM of the certificate. See [`Request::SignCsr`].
    pub async fn sign_csr(
        &self,
        ca_cert: &str,
        ca_key: &str,
        csr: String,
        subject: Subject,
        usage: Usage,
        days: u32,
    ) -> Result<String> {
        let request = Request::SignCsr {
            ca_cert: ca_cert.to_owned(),
            ca_key: ca_key.to_owned(),
            csr,
            subject,
            usage,
            days,
        };
        expect!(self.ask(&request).await?, "signCsr", Pem)
    }

    /// See [`Request::Journal`].
    pub async fn journal(&self) -> Result<JournalSummary> {
        expect!(self.ask(&Request::Journal).await?, "journal", Journal)
    }

    /// See [`Request::Undo`].
    pub async fn undo(&self) -> Result<Undone> {
        expect!(self.ask(&Request::Undo).await?, "undo", Undone)
    }

    /// See [`Request::Verify`].
    pub async fn verify(&self) -> Result<Vec<Leftover>> {
        expect!(self.ask(&Request::Verify).await?, "verify", Left)
    }

    /// See [`Request::Ping`].
    pub async fn ping(&self) -> Result<()> {
        self.ask(&Request::Ping).await.map(drop)
    }
}

/// Reads until a chunk is full or the content ends; empty at the end.
async fn read_chunk(content: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Bytes> {
    buffer.reserve(CHUNK);
    let mut limited = content.take(CHUNK as u64);
    while buffer.len() < CHUNK && limited.read_buf(buffer).await? > 0 {}
    Ok(buffer.split().freeze())
}
