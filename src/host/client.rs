//! The operator's side of the protocol: typed requests over any byte stream, many at once.
//!
//! A client that was told how to come back ([`Redial`]) survives the loss of its connection: it connects anew, greets, opens what was
//! open, and asks again what was not answered.

use bytes::{Bytes, BytesMut};
use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::{
    effect::{Change, Effect, Subject, Usage},
    facts::{Facts, Query},
    frame::{CHUNK, Frame, Kind},
    lines::Lines,
    link::Link,
    proto::{
        Answer, Blob, Condition, Exec, ExecResult, Fault, Hello, HttpGet, HttpResponse, JournalSummary, Leftover,
        Missing, Mode, Peer, Request, Scope, SecretBytes, Serving, Stream, Token, Undone, UnitStatus, VERSION,
    },
    redial::{self, Redial},
};

/// How often a request is asked again because the connection was lost under it.
const REPEATS: usize = 3;

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
    /// Why, without the words that say what this is about.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Lost(reason) => reason.clone(),
            other => other.to_string(),
        }
    }

    /// What the host said, if it answered at all.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}

pub(crate) type Result<T, E = ClientError> = std::result::Result<T, E>;

/// What an open connection was opened for.
pub(crate) type Opened = (Scope, Mode);

struct Shared {
    link: Mutex<Arc<Link>>,
    opened: Mutex<Option<Opened>>,
    /// How to come back, for one at a time.
    redial: Option<tokio::sync::Mutex<Redial>>,
    /// Whether the host was looked for in vain: nobody waits for that once more.
    given_up: AtomicBool,
}

/// `clusterd host` on one host. Cheap to clone; the connection ends when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

macro_rules! expect {
    ($answer:expr, $name:expr, $variant:ident) => {
        match $answer {
            Answer::$variant(value) => Ok(value),
            _ => Err(ClientError::Unexpected($name)),
        }
    };
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Speaks over the two halves of a stream: what `clusterd host --stdio` writes, and reads. Must be called within a tokio runtime.
    pub fn new<R, W>(reader: R, writer: W) -> Self
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        Self::with(Link::new(reader, writer), None)
    }

    /// As [`Client::new`]; when the connection is lost, `redial` makes another. [`Client::hello`] is never asked again, so that a first
    /// connection that is none is known at once.
    pub fn returning<R, W>(reader: R, writer: W, redial: Redial) -> Self
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        Self::with(Link::new(reader, writer), Some(redial))
    }

    fn with(link: Link, redial: Option<Redial>) -> Self {
        Self {
            shared: Arc::new(Shared {
                link: Mutex::new(Arc::new(link)),
                opened: Mutex::default(),
                redial: redial.map(tokio::sync::Mutex::new),
                given_up: AtomicBool::new(false),
            }),
        }
    }

    fn current(&self) -> Arc<Link> {
        Arc::clone(&locked(&self.shared.link))
    }

    /// The connection, made anew if it was lost and there is a way to.
    pub(crate) async fn link(&self) -> Result<Arc<Link>> {
        let current = self.current();
        let Some(redial) = self.shared.redial.as_ref().filter(|_| current.is_lost()) else {
            return Ok(current);
        };
        let redial = redial.lock().await;
        let current = self.current();
        if !current.is_lost() {
            return Ok(current);
        }
        let opened = locked(&self.shared.opened).clone();
        let patient = !self.shared.given_up.load(Ordering::Relaxed);
        let back = redial::back(&redial, &current.inner.lost(), opened, patient).await;
        self.shared.given_up.store(back.is_err(), Ordering::Relaxed);
        let link = Arc::new(back?);
        *locked(&self.shared.link) = Arc::clone(&link);
        Ok(link)
    }

    /// Waits until the host is lost for good, and says why. Meanwhile a connection that is lost is made anew though
    /// nobody asks for anything.
    pub async fn gone(&self) -> ClientError {
        loop {
            let link = self.current();
            link.inner.ended().await;
            if self.shared.redial.is_none() {
                return link.inner.lost();
            }
            if let Err(error) = self.link().await {
                return error;
            }
        }
    }

    /// What the host printed before it spoke the protocol: its login shell's start-up files, or whatever ran in place
    /// of `clusterd`.
    pub fn preamble(&self) -> String {
        self.current().inner.preamble()
    }

    /// Nothing if a request that failed shall be asked again, on another connection.
    fn judge(&self, error: ClientError, losses: &mut usize) -> Result<()> {
        *losses += 1;
        match error {
            ClientError::Lost(_) if self.shared.redial.is_some() && *losses <= REPEATS => Ok(()),
            error => Err(error),
        }
    }

    /// Asks, and asks again when the connection is lost before the answer.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer> {
        let mut losses = 0;
        loop {
            match self.link().await?.ask(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.judge(error, &mut losses)?,
            }
        }
    }

    /// Must be the first call. See [`Request::Hello`].
    ///
    /// # Errors
    /// All methods: [`ClientError`].
    pub async fn hello(&self) -> Result<Hello> {
        greet(&self.current()).await
    }

    /// See [`Request::Open`].
    pub async fn open(&self, scope: &Scope, mode: Mode) -> Result<()> {
        let request = Request::Open {
            scope: scope.clone(),
            mode: mode.clone(),
        };
        self.ask(&request).await?;
        let mut opened = locked(&self.shared.opened);
        // Who may write stays a writer.
        if !matches!(&*opened, Some((_, Mode::Write { .. }))) {
            *opened = Some((scope.clone(), mode));
        }
        Ok(())
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

    /// Sends a blob; `content` yields its bytes from `offset` on ([`Missing::have`]). A connection lost on the way is an error: ask again what
    /// is missing, and go on from there. See [`Request::PutBlob`].
    pub async fn put_blob(&self, blob: &Blob, offset: u64, mut content: impl AsyncRead + Unpin) -> Result<()> {
        let link = self.link().await?;
        let mut call = link
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
                    let frame = early.ok_or_else(|| link.inner.lost())?;
                    return call.answer(&frame).map(drop);
                }
                sent = link.inner.outgoing.send(frame) => sent.map_err(|_| link.inner.lost())?,
            }
        }
        call.send(Frame::new(Kind::End, call.id, Bytes::new())).await?;
        call.head().await.map(drop)
    }

    /// Where the host serves its blobs to others. See [`Request::Serve`].
    pub async fn serve(&self, address: IpAddr, token: Token) -> Result<Serving> {
        expect!(self.ask(&Request::Serve { address, token }).await?, "serve", Serving)
    }

    /// See [`Request::EndServe`].
    pub async fn end_serve(&self) -> Result<()> {
        self.ask(&Request::EndServe).await.map(drop)
    }

    /// Lets the host fetch a blob from another one; `told` is told how many of its bytes are there. Never asked again by itself: who asks may
    /// know another host to fetch from. See [`Request::FetchBlob`].
    pub async fn fetch_blob(&self, blob: Blob, from: Peer, mut told: impl FnMut(u64) + Send) -> Result<()> {
        let mut call = self.link().await?.begin(&Request::FetchBlob { blob, from }).await?;
        loop {
            let frame = call.frame().await?;
            if frame.kind != Kind::Data {
                return call.answer(&frame).map(drop);
            }
            let bytes = <[u8; 8]>::try_from(&frame.body[..]).map_err(|_| ClientError::Unexpected(call.name))?;
            told(u64::from_be_bytes(bytes));
        }
    }

    /// Writes a blob's bytes from `offset` on to `sink`; what came before the connection was lost stays there. Nothing else on this connection goes on while `sink` blocks. See [`Request::GetBlob`].
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
        let request = Request::ReadFile {
            path: path.to_owned(),
            limit,
        };
        let mut losses = 0;
        loop {
            let mut bytes = Zeroizing::new(Vec::new());
            match self.receive(&request, &mut *bytes).await {
                Ok(_) => return Ok(bytes),
                Err(error) => self.judge(error, &mut losses)?,
            }
        }
    }

    async fn receive(&self, request: &Request, mut sink: impl AsyncWrite + Unpin) -> Result<u64> {
        let mut call = self.link().await?.begin(request).await?;
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

    /// Never asked again by itself: nobody here knows whether the program may run twice. See [`Request::Exec`].
    pub async fn exec(&self, exec: Exec) -> Result<ExecResult> {
        expect!(self.link().await?.ask(&Request::Exec(exec)).await?, "exec", Exec)
    }

    /// As [`Client::exec`], with every line told as soon as it is written. Nothing else on this connection goes on while `told`
    /// blocks. The result has no output.
    pub async fn exec_telling(&self, exec: Exec, mut told: impl FnMut(Stream, &str) + Send) -> Result<ExecResult> {
        let request = Request::Exec(Exec { stream: true, ..exec });
        let mut call = self.link().await?.begin(&request).await?;
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

    /// Milliseconds it took, on the connection it came true on. See [`Request::WaitFor`].
    pub async fn wait_for(&self, condition: Condition, timeout: Duration) -> Result<u64> {
        let until = Instant::now() + timeout;
        let mut losses = 0;
        loop {
            let link = self.link().await?;
            // What the way back took is not waited for again, but one look there must be.
            let left = until.saturating_duration_since(Instant::now());
            let request = Request::WaitFor {
                condition: condition.clone(),
                timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            };
            match link.ask(&request).await {
                Ok(answer) => return expect!(answer, "waitFor", Waited),
                Err(error) => self.judge(error, &mut losses)?,
            }
        }
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
        expect!(self.ask(&Request::Journal).await?, "journal", Journal).map(|journal| *journal)
    }

    /// See [`Request::Undo`].
    pub async fn undo(&self) -> Result<Undone> {
        let undone = expect!(self.ask(&Request::Undo).await?, "undo", Undone)?;
        if undone.failed.is_empty() {
            // The host has closed the scope, and to open it begins another journal.
            *locked(&self.shared.opened) = None;
        }
        Ok(undone)
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

pub(crate) async fn greet(link: &Link) -> Result<Hello> {
    let request = Request::Hello { protocol: VERSION };
    expect!(link.ask(&request).await?, "hello", Hello)
}

/// Reads until a chunk is full or the content ends; empty at the end.
async fn read_chunk(content: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Bytes> {
    buffer.reserve(CHUNK);
    let mut limited = content.take(CHUNK as u64);
    while buffer.len() < CHUNK && limited.read_buf(buffer).await? > 0 {}
    Ok(buffer.split().freeze())
}
