//! The host's side of the protocol.
//!
//! One loop reads frames and never does work itself: each request runs in its own task, changes and disk work on blocking threads. Changes are made
//! one at a time (the gate is behind a mutex); blobs and looking go on beside them. When the client closes the stream, nothing new is begun,
//! waiting requests are dropped, and the loop returns when the change under way is done.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use crate::{
    Change, Effect, Error, Result,
    arrivals::Arrivals,
    beat::Heard,
    certs,
    facts::collect,
    frame::{self, Frame, Kind},
    fsops::Root,
    gate::Gate,
    give::{Giving, Own},
    journal,
    lock::HostLock,
    pki, probe,
    proto::{Answer, Blob, Fault, FaultKind, Hello, JournalSummary, Mode, Request, Scope, VERSION},
    share::Sharing,
    snapshot,
    system::{System, unit_status},
    undo, ways,
};

mod blobs;

/// Requests in flight at once.
const MAX_REQUESTS: usize = 64;
/// Data frames waiting per blob.
const DATA_QUEUE: usize = 8;
/// How long a lock holder that is just ending is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// What an `Open` established.
struct Session {
    scope: Scope,
    write: bool,
    gate: Arc<Mutex<Gate>>,
    /// Whether the journal is known to have begun.
    begun: Arc<AtomicBool>,
    _lock: Option<HostLock>,
}

/// Shared by all requests of a connection.
pub(crate) struct Server {
    root: Root,
    system: Arc<dyn System>,
    own: Own,
    out: mpsc::Sender<Frame>,
    greeted: AtomicBool,
    closing: Arc<AtomicBool>,
    session: Mutex<Option<Session>>,
    arrivals: Arrivals,
    sharing: Mutex<Option<Sharing>>,
    /// Held by whoever writes a blob.
    busy: Arc<tokio::sync::RwLock<()>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request under way.
struct Running {
    data: Option<mpsc::Sender<Bytes>>,
    /// Present if it may be dropped half-way.
    abort: Option<AbortHandle>,
}

/// Serves one client until it closes the stream or is silent for too long.
///
/// # Errors
/// When the client talks something else, or the streams fail.
pub(crate) async fn serve<R, W>(reader: R, writer: W, root: Root, system: Arc<dyn System>, own: Own) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (out, queue) = mpsc::channel(16);
    let server = Arc::new(Server {
        root,
        system,
        own,
        out,
        greeted: AtomicBool::new(false),
        closing: Arc::default(),
        session: Mutex::default(),
        arrivals: Arrivals::default(),
        sharing: Mutex::default(),
        busy: Arc::default(),
    });
    let mut writing = tokio::spawn(frame::pump(queue, writer));
    let mut tasks = JoinSet::new();
    let result = tokio::select! {
        result = read_all(&server, reader, &mut tasks) => result,
        // Nobody hears us any more.
        result = &mut writing => result.unwrap_or(Ok(())),
    };
    server.closing.store(true, Ordering::Relaxed);
    drop(locked(&server.sharing).take());
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    // What still writes a blob would write into what whoever has the lock next goes on with.
    let _idle = server.busy.write().await;
    let last = Arc::clone(&server);
    // Waits for the change under way, which holds the gate.
    let _ = tokio::task::spawn_blocking(move || {
        if let Some(session) = locked(&last.session).take() {
            drop(locked(&session.gate));
        }
    })
    .await;
    result
}

async fn read_all(server: &Arc<Server>, reader: impl AsyncRead + Unpin, tasks: &mut JoinSet<u32>) -> io::Result<()> {
    let mut reader = tokio::io::BufReader::with_capacity(64 << 10, Heard::new(reader));
    let mut running: HashMap<u32, Running> = HashMap::new();
    loop {
        while let Some(done) = tasks.try_join_next() {
            if let Ok(id) = done {
                running.remove(&id);
            }
        }
        let Some(frame) = frame::read(&mut reader).await? else {
            return Ok(());
        };
        match frame.kind {
            Kind::Head => begin(server, &frame, tasks, &mut running).await,
            Kind::Data => {
                if let Some(data) = running.get(&frame.id).and_then(|r| r.data.as_ref()) {
                    // An ended request takes no more; its answer is on the way.
                    let _ = data.send(frame.body).await;
                }
            }
            Kind::End => {
                // An empty chunk says that this was all; a dropped sender says that it was not.
                if let Some(data) = running.get_mut(&frame.id).and_then(|r| r.data.take()) {
                    let _ = data.send(Bytes::new()).await;
                }
            }
            Kind::Cancel => {
                if let Some(abort) = running.remove(&frame.id).and_then(|r| r.abort) {
                    abort.abort();
                }
            }
        }
    }
}

async fn begin(server: &Arc<Server>, frame: &Frame, tasks: &mut JoinSet<u32>, running: &mut HashMap<u32, Running>) {
    let id = frame.id;
    let request: Request = match serde_json::from_slice(&frame.body) {
        Ok(request) => request,
        // The text may hold secrets: only its fault is told.
        Err(e) => {
            return server
                .refuse(
                    id,
                    format!(
                        "a request that cannot be understood (line {}, column {})",
                        e.line(),
                        e.column()
                    ),
                )
                .await;
        }
    };
    if running.len() >= MAX_REQUESTS {
        return server
            .refuse(id, format!("more than {MAX_REQUESTS} requests at once"))
            .await;
    }
    if running.contains_key(&id) {
        return server.refuse(id, format!("request id {id} is in use")).await;
    }
    let droppable = matches!(
        request,
        Request::Facts(_)
            | Request::Exec(_)
            | Request::WaitFor { .. }
            | Request::HttpGet(_)
            | Request::GetBlob { .. }
            | Request::FetchBlob { .. }
            | Request::ReadFile { .. }
            | Request::Listen(_)
            | Request::Knock(_)
            | Request::GiveProgram(_)
    );
    let (data, chunks) = match request {
        Request::PutBlob { .. } | Request::Listen(_) | Request::GiveProgram(_) => {
            let (data, chunks) = mpsc::channel(DATA_QUEUE);
            (Some(data), Some(chunks))
        }
        _ => (None, None),
    };
    let server = Arc::clone(server);
    let abort = tasks.spawn(async move {
        let name = request.name();
        let begun = std::time::Instant::now();
        let answer = match server.answer(id, request, chunks).await {
            Ok(answer) => answer,
            Err(fault) => {
                tracing::debug!(request = name, fault = %fault.message, "refused");
                Some(Answer::Error(fault))
            }
        };
        if let Some(answer) = answer {
            server.send(id, &answer).await;
        }
        tracing::trace!(request = name, ms = begun.elapsed().as_millis(), "done");
        id
    });
    running.insert(
        id,
        Running {
            data,
            abort: droppable.then_some(abort),
        },
    );
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        error.fault()
    }
}

fn need(ok: bool, what: &str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::invalid(what)) }
}

/// What `act` makes of the effects in turn; a fault says which it was.
fn changes(effects: &[Effect], mut act: impl FnMut(&Effect) -> Result<Change>) -> Result<Answer, Fault> {
    let one = |(n, effect)| {
        act(effect).map_err(|e| Fault {
            effect: Some(n),
            ..e.fault()
        })
    };
    let changes = effects.iter().enumerate().map(one).collect::<Result<_, _>>();
    changes.map(Answer::Changes)
}

impl Server {
    async fn send(&self, id: u32, answer: &Answer) {
        let frame = Frame::head(id, answer).or_else(|e| {
            let message = format!("the answer cannot be sent: {e}");
            Frame::head(
                id,
                &Answer::Error(Fault {
                    kind: FaultKind::System,
                    message,
                    effect: None,
                }),
            )
        });
        if let Ok(frame) = frame {
            let _ = self.out.send(frame).await;
        }
    }

    async fn refuse(&self, id: u32, message: String) {
        self.send(id, &Answer::Error(Error::invalid(message).fault())).await;
    }

    /// The gate of the opened scope.
    fn gate(&self, write: bool) -> Result<Arc<Mutex<Gate>>> {
        let session = locked(&self.session);
        let session = session.as_ref().ok_or_else(|| Error::invalid("open a scope first"))?;
        need(session.write || !write, "this connection is opened for looking only")?;
        Ok(Arc::clone(&session.gate))
    }

    fn layout(&self) -> Result<oci::Layout> {
        self.gate(false)?;
        let session = locked(&self.session);
        let dir = session.as_ref().map(|s| s.scope.dir()).unwrap_or_default();
        Ok(oci::Layout::open(self.root.path(&dir)?))
    }

    /// The same, to put something there. The gate, which may be at work for long, is waited for only the first time.
    async fn layout_to_fill(&self) -> Result<oci::Layout, Fault> {
        self.gate(true)?;
        let begun = locked(&self.session).as_ref().map(|s| Arc::clone(&s.begun));
        let begun = begun.unwrap_or_default();
        if !begun.load(Ordering::Acquire) {
            self.with_gate(true, |gate| Ok(gate.journal().map(drop)?)).await?;
            begun.store(true, Ordering::Release);
        }
        Ok(self.layout()?)
    }

    /// Does blocking work with the gate.
    async fn with_gate<T: Send + 'static>(
        &self,
        write: bool,
        work: impl FnOnce(&mut Gate) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let gate = self.gate(write)?;
        blocking(move || work(&mut locked(&gate))).await
    }

    /// The answer; `None` if it has been sent already.
    async fn answer(
        &self,
        id: u32,
        request: Request,
        chunks: Option<mpsc::Receiver<Bytes>>,
    ) -> Result<Option<Answer>, Fault> {
        if let Request::Hello { protocol } = request {
            need(
                protocol == VERSION,
                &format!("the client speaks protocol {protocol}, this clusterd {VERSION}: send it anew"),
            )?;
            self.greeted.store(true, Ordering::Relaxed);
            return Ok(Some(Answer::Hello(self.hello())));
        }
        need(self.greeted.load(Ordering::Relaxed), "say hello first")?;
        let (root, system) = (self.root.clone(), Arc::clone(&self.system));
        Ok(Some(match request {
            Request::Hello { .. } => Answer::Done,
            Request::Ping => Answer::Done,
            Request::Open { scope, mode } => return self.open(scope, mode).await.map(Some),
            Request::Facts(query) => Answer::Facts(Box::new(collect::facts(query, root, system).await)),
            Request::MissingBlobs { want } => {
                let blobs = self.layout()?.blobs().clone();
                Answer::Missing(blocking(move || Ok(blobs::missing(&blobs, want))).await?)
            }
            Request::PutBlob { blob, offset } => return self.put_blob(blob, offset, chunks).await.map(Some),
            Request::Serve { address, token } => Answer::Serving(self.serve_others(address, &token).await?),
            Request::EndServe => {
                self.gate(false)?;
                drop(locked(&self.sharing).take());
                Answer::Done
            }
            Request::FetchBlob { blob, from } => return self.fetch_blob(id, blob, &from).await.map(Some),
            Request::GetBlob { digest, offset } => {
                let path = self.layout()?.blobs().path(&digest);
                self.send_file(id, path, offset, u64::MAX).await?;
                return Ok(None);
            }
            Request::ReadFile { path, limit } => {
                self.send_file(id, self.root.path(&path)?, 0, limit).await?;
                return Ok(None);
            }
            Request::Preview { effects } => {
                self.with_gate(false, move |gate| changes(&effects, |effect| gate.preview(effect)))
                    .await?
            }
            Request::Apply { effects } => {
                self.with_gate(true, move |gate| {
                    need(
                        !gate.undoing()?,
                        "a reset was begun on this host and not finished: finish it first (installer reset)",
                    )?;
                    changes(&effects, |effect| gate.apply(effect))
                })
                .await?
            }
            Request::UnitStatus { name, lines } => {
                Answer::Unit(blocking(move || Ok(unit_status(system.as_ref(), &name, lines.min(1000))?.unit)).await?)
            }
            Request::Exec(exec) => {
                let told = exec.stream.then(|| crate::exec::Told {
                    id,
                    out: self.out.clone(),
                });
                Answer::Exec(crate::exec::run(&exec, told.as_ref()).await?)
            }
            Request::WaitFor { condition, timeout_ms } => {
                Answer::Waited(probe::wait_for(&condition, Duration::from_millis(timeout_ms), &root, &system).await?)
            }
            Request::HttpGet(get) => Answer::Http(probe::http_get(&get).await?),
            Request::CreateCsr { key, subject } => {
                self.with_gate(true, move |gate| {
                    Ok(Answer::Pem(pki::request(&gate.key_or_new(&key)?, &subject)?))
                })
                .await?
            }
            Request::SignCsr {
                ca_cert,
                ca_key,
                csr,
                subject,
                usage,
                days,
            } => {
                self.with_gate(false, move |gate| {
                    let (ca, key) = (gate.need_pem(&ca_cert)?, gate.need_pem(&ca_key)?);
                    Ok(Answer::Pem(pki::sign_request(&csr, &ca, &key, &subject, usage, days)?))
                })
                .await?
            }
            Request::Journal => {
                self.with_gate(false, |gate| Ok(Answer::Journal(Box::new(summary(gate)?))))
                    .await?
            }
            Request::BeginRun { mark, revertible } => {
                let begin = move |gate: &mut Gate| Ok(gate.begin_run(mark, revertible)?);
                Answer::Begun {
                    fresh: self.with_gate(true, begin).await?,
                }
            }
            Request::EndRun { how } => {
                self.with_gate(true, move |gate| Ok(gate.end_run(how)?)).await?;
                Answer::Done
            }
            Request::UndoRun => Answer::Undone(self.with_gate(true, |gate| Ok(undo::undo_run(gate)?)).await?),
            Request::Drift => Answer::Drift(self.with_gate(false, |gate| Ok(gate.drift()?)).await?),
            Request::Applied => Answer::Applied(self.with_gate(false, |gate| Ok(gate.public_effects()?)).await?),
            Request::Certificates => Answer::Certificates(blocking(move || Ok(certs::all(&root))).await?),
            Request::Undo => {
                drop(locked(&self.sharing).take());
                let undone = self.with_gate(true, |gate| Ok(undo::undo(gate)?)).await?;
                if undone.failed.is_empty() {
                    // The journal is gone: whoever goes on must open anew, which begins another.
                    drop(locked(&self.session).take());
                }
                Answer::Undone(undone)
            }
            Request::Listen(wish) => {
                let listening = ways::Listening::begin(&wish)?;
                self.send(id, &Answer::Listening(listening.ports())).await;
                listening.serve(ended(chunks)).await;
                Answer::Done
            }
            Request::GiveProgram(wish) => {
                let giving = Giving::begin(&wish)?;
                self.send(id, &Answer::Listening(vec![giving.port()?])).await;
                giving.serve(&self.own, ended(chunks)).await?;
                Answer::Done
            }
            Request::Knock(wish) => Answer::Knocked(ways::knock(wish).await?),
            Request::Verify => {
                self.with_gate(false, |gate| Ok(Answer::Left(snapshot::verify(gate)?)))
                    .await?
            }
        }))
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            digest: self.own.digest.clone(),
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    async fn open(&self, scope: Scope, mode: Mode) -> Result<Answer, Fault> {
        let write = matches!(mode, Mode::Write { .. });
        {
            let session = locked(&self.session);
            if let Some(session) = session.as_ref() {
                need(
                    session.scope == scope,
                    "this connection is about another cluster; open a new one",
                )?;
                if session.write || !write {
                    return Ok(Answer::Done);
                }
            }
        }
        let (root, system, closing) = (self.root.clone(), Arc::clone(&self.system), Arc::clone(&self.closing));
        let opened = blocking(move || {
            let (mut gate, lock) = match mode {
                Mode::Read => (Gate::look(root, scope.clone(), system)?, None),
                Mode::Write { who } => {
                    let lock = HostLock::take(&root, &who, LOCK_PATIENCE)?;
                    (Gate::open(root, scope.clone(), system)?, Some(lock))
                }
            };
            gate.closing = closing;
            Ok(Session {
                scope,
                write,
                gate: Arc::new(Mutex::new(gate)),
                begun: Arc::default(),
                _lock: lock,
            })
        })
        .await?;
        *locked(&self.session) = Some(opened);
        Ok(Answer::Done)
    }
}

/// When the client has ended its request.
async fn ended(chunks: Option<mpsc::Receiver<Bytes>>) {
    if let Some(mut chunks) = chunks {
        while chunks.recv().await.is_some_and(|chunk| !chunk.is_empty()) {}
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::failed(format!("clusterd failed inside: {e}")).fault()))
}

fn summary(gate: &Gate) -> Result<JournalSummary> {
    let Some(log) = journal::read(&journal::dir(&gate.root, &gate.scope)?)? else {
        return Ok(JournalSummary::default());
    };
    let runs = log.run_notes();
    Ok(JournalSummary {
        exists: true,
        entries: log.entries.iter().map(journal::Entry::describe).collect(),
        torn: log.torn,
        undoing: log.undoing(),
        first: runs.first().cloned(),
        last: runs.last().cloned(),
        brought: runs
            .iter()
            .rfind(|run| run.mark.image.is_some())
            .map(|run| run.mark.clone()),
    })
}

#[cfg(test)]
mod tests;
