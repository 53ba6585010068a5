//! The protocol between operator and host: one request enum, one answer enum, and what each request needs.
//!
//! On the wire ([`crate::frame`]): frames carry a request id, so several requests are in flight at once; the head of a request or
//! answer is JSON, bulk bytes follow as raw data frames of the same id. The first request on a connection is [`Request::Hello`].
//! Requests that change something need [`Request::Open`] with [`Mode::Write`] before, which takes the host's lock. All requests
//! are safe to repeat, also after the connection was lost in the middle.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};
use zeroize::Zeroizing;

use crate::{
    effect::{Change, Effect, Subject, Usage},
    facts::{Facts, Query},
};

mod reports;
mod ways;
pub use reports::{CertificateInfo, DriftItem, DriftReport, Origin, RunEnd, RunMark, RunNote};
pub use ways::{Door, GiveProgram, KnockAt, Knocked, Listen, MAX_DOORS, MAX_PORTS, MAX_TOKEN};

/// Version of this protocol. Both sides are built from one tree, so they must be equal.
pub const VERSION: u32 = 1;

/// What the client wants. Legal only after [`Request::Hello`]; «open» = after [`Request::Open`], «write» = opened with [`Mode::Write`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// The first one. Refused when the versions differ.
    Hello {
        /// [`VERSION`] of the client.
        protocol: u32,
    },
    /// Names the cluster that all further requests are about. Changes nothing by itself but, with [`Mode::Write`], takes the lock of the
    /// host, held until the connection ends. Repeating it with the same scope is legal.
    Open {
        /// Which installation.
        scope: Scope,
        /// What for.
        mode: Mode,
    },
    /// Legal any time. Changes nothing.
    Facts(Query),
    /// Which blobs the host lacks. Open. Changes nothing.
    MissingBlobs {
        /// What the host shall have.
        want: Vec<Blob>,
    },
    /// A blob, followed by its bytes from `offset` on. Write. An interrupted one goes on at the offset [`Request::MissingBlobs`] tells.
    PutBlob {
        /// Which.
        blob: Blob,
        /// Where the bytes begin; must be what is there.
        offset: u64,
    },
    /// Lets other hosts fetch blobs of the cluster from this one, those that are still arriving too, until [`Request::EndServe`] or the end of
    /// the connection. Write. Listens on a free port, with a key and certificate that are made for this and never written. Repeating it
    /// with the same address and token is legal and answers the same; with others it begins anew.
    Serve {
        /// Address to listen on.
        address: IpAddr,
        /// What a host must show to be served.
        token: Token,
    },
    /// Ends what [`Request::Serve`] began, if it did. Open.
    EndServe,
    /// Fetches a blob, or the rest of it, from a host that serves it. Write. Data frames come before the answer: how many of its bytes are
    /// there, as eight bytes (big endian). What has arrived is kept when it fails, except content that is wrong ([`FaultKind::Corrupt`]).
    /// [`FaultKind::Failed`], [`FaultKind::Timeout`] and [`FaultKind::NotFound`] say that the other host could not give it.
    FetchBlob {
        /// Which.
        blob: Blob,
        /// From whom.
        from: Peer,
    },
    /// The bytes of a blob. Open. Changes nothing.
    GetBlob {
        /// Which.
        digest: oci::Digest,
        /// Where to begin.
        offset: u64,
    },
    /// The bytes of a file. Legal any time. Changes nothing.
    ReadFile {
        /// Absolute path.
        path: String,
        /// Refused when it has more bytes.
        limit: u64,
    },
    /// What applying would change. Open. Changes nothing. Effects are looked at one by one against the host as it is now.
    Preview {
        /// In order.
        effects: Vec<Effect>,
    },
    /// Makes the effects true, in order; stops at the first that fails. Write.
    Apply {
        /// In order.
        effects: Vec<Effect>,
    },
    /// State of a unit. Legal any time. Changes nothing.
    UnitStatus {
        /// Its name.
        name: String,
        /// How many of its last journal lines are wanted.
        lines: u32,
    },
    /// Runs a program to its end. Legal any time. What it does is not journaled; safe to repeat only if the program is. With
    /// [`Exec::stream`] data frames come before the answer: a byte that names the [`Stream`], then what was written to it.
    Exec(Exec),
    /// Waits until a condition holds. Legal any time. Changes nothing.
    WaitFor {
        /// Which.
        condition: Condition,
        /// Limit in milliseconds.
        timeout_ms: u64,
    },
    /// One HTTP request made by the host. Legal any time.
    HttpGet(HttpGet),
    /// Makes the key if absent and returns a signing request for it. Write.
    CreateCsr {
        /// PEM file of the private key.
        key: String,
        /// For whom.
        subject: Subject,
    },
    /// Signs a request with a CA of this host. Open. Changes nothing on the host.
    SignCsr {
        /// PEM file of the CA's certificate.
        ca_cert: String,
        /// PEM file of the CA's private key.
        ca_key: String,
        /// PEM of the request.
        csr: String,
        /// For whom: what the request says about itself is not believed, except its key.
        subject: Subject,
        /// For what.
        usage: Usage,
        /// Validity.
        days: u32,
    },
    /// What is in the journal. Open. Changes nothing.
    Journal,
    /// Marks the beginning of a run in the journal; what is applied until [`Request::EndRun`] is remembered as applied by it. Write.
    /// A run that was never ended is over.
    BeginRun {
        /// Who, when, what.
        mark: RunMark,
        /// Whether the run may have to be undone alone: then what was before it is kept too.
        revertible: bool,
    },
    /// Marks the end of the run. Write. Only after [`RunEnd::Done`] is what was applied what the host is compared with by [`Request::Drift`].
    EndRun {
        /// How it ended; [`RunEnd::Undone`] is [`Request::UndoRun`]'s to say.
        how: RunEnd,
    },
    /// Undoes what was changed since the last revertible [`Request::BeginRun`], which need not be of this connection. Write. What could not
    /// be undone is told, and the request can be repeated.
    UndoRun,
    /// What differs from what the last run left. Open. Changes nothing.
    Drift,
    /// What the last run left, as effects; those whose content is secret are left out. Open. Changes nothing.
    Applied,
    /// The certificates of a cluster on this host. Legal any time. Changes nothing.
    Certificates,
    /// Undoes everything in the journal, backwards, then removes the cluster's data and the journal. Write. Goes on where an interrupted
    /// one stopped. When nothing failed the scope is closed and the lock given back. Answers with what was done, what could not be, and what is left.
    Undo,
    /// What differs from before the first change. Open. Changes nothing.
    Verify,
    /// Listens on free ports for a moment. Legal any time. Changes nothing. Answers which ports these are as soon as it listens, and goes on
    /// until the client ends the request, its limit, or the connection's end.
    Listen(Listen),
    /// Whether ports of other hosts can be reached. Legal any time. Changes nothing.
    Knock(KnockAt),
    /// Gives the file of the running program, once, to whoever connects and shows the token. Legal any time. Changes nothing. Listens on a free
    /// port, answers which as soon as it does, and ends when the file was given, with the client's end of the request, the limit, or the
    /// connection. Plain TCP: the file is no secret, and who takes it knows its digest from elsewhere.
    GiveProgram(GiveProgram),
    /// Is the server there? Legal any time.
    Ping,
}

impl Request {
    /// Name for logs and errors; never content.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Open { .. } => "open",
            Self::Facts(_) => "facts",
            Self::MissingBlobs { .. } => "missingBlobs",
            Self::PutBlob { .. } => "putBlob",
            Self::Serve { .. } => "serve",
            Self::EndServe => "endServe",
            Self::FetchBlob { .. } => "fetchBlob",
            Self::GetBlob { .. } => "getBlob",
            Self::ReadFile { .. } => "readFile",
            Self::Preview { .. } => "preview",
            Self::Apply { .. } => "apply",
            Self::UnitStatus { .. } => "unitStatus",
            Self::Exec(_) => "exec",
            Self::WaitFor { .. } => "waitFor",
            Self::HttpGet(_) => "httpGet",
            Self::CreateCsr { .. } => "createCsr",
            Self::SignCsr { .. } => "signCsr",
            Self::Journal => "journal",
            Self::BeginRun { .. } => "beginRun",
            Self::EndRun { .. } => "endRun",
            Self::UndoRun => "undoRun",
            Self::Drift => "drift",
            Self::Applied => "applied",
            Self::Certificates => "certificates",
            Self::Undo => "undo",
            Self::Verify => "verify",
            Self::Listen(_) => "listen",
            Self::Knock(_) => "knock",
            Self::GiveProgram(_) => "giveProgram",
            Self::Ping => "ping",
        }
    }
}

/// The answer to a request of the like name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", content = "value", rename_all = "camelCase")]
pub enum Answer {
    /// Nothing to say.
    Done,
    /// To [`Request::Hello`].
    Hello(Hello),
    /// To [`Request::Facts`].
    Facts(Box<Facts>),
    /// To [`Request::MissingBlobs`].
    Missing(Vec<Missing>),
    /// To [`Request::Serve`].
    Serving(Serving),
    /// To [`Request::GetBlob`] and [`Request::ReadFile`]: so many bytes follow as data frames.
    Bytes {
        /// How many.
        length: u64,
    },
    /// To [`Request::Preview`] and [`Request::Apply`]: one per effect, in order.
    Changes(Vec<Change>),
    /// To [`Request::UnitStatus`].
    Unit(UnitStatus),
    /// To [`Request::Exec`].
    Exec(ExecResult),
    /// To [`Request::WaitFor`]: how many milliseconds it took.
    Waited(u64),
    /// To [`Request::HttpGet`].
    Http(HttpResponse),
    /// To [`Request::CreateCsr`] and [`Request::SignCsr`].
    Pem(String),
    /// To [`Request::Journal`].
    Journal(Box<JournalSummary>),
    /// To [`Request::BeginRun`]: whether nothing of ours was on the host before, so that undoing this run is undoing everything.
    Begun {
        /// See above.
        fresh: bool,
    },
    /// To [`Request::Drift`].
    Drift(DriftReport),
    /// To [`Request::Applied`].
    Applied(Vec<Effect>),
    /// To [`Request::Certificates`].
    Certificates(Vec<CertificateInfo>),
    /// To [`Request::Undo`] and [`Request::UndoRun`].
    Undone(Undone),
    /// To [`Request::Verify`]: what differs.
    Left(Vec<Leftover>),
    /// To [`Request::Listen`] and [`Request::GiveProgram`]: the ports. A second answer, [`Answer::Done`], follows when they are free again.
    Listening(Vec<u16>),
    /// To [`Request::Knock`]: one per door, in order.
    Knocked(Vec<Knocked>),
    /// The request failed.
    Error(Fault),
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// [`VERSION`] of the server.
    pub protocol: u32,
    /// Version of clusterd.
    pub version: String,
    /// Digest of the running program's file: compare with the one you would send.
    pub digest: Option<oci::Digest>,
    /// Its process id.
    pub pid: u32,
    /// Its user; anything but 0 can do little.
    pub uid: u32,
}

/// Which installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scope {
    /// Name of the cluster: a DNS label.
    pub cluster: String,
    /// Absolute path.
    pub data_root: String,
}

impl Scope {
    /// `/var/lib/installer` is the data root.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            data_root: "/var/lib/installer".to_owned(),
        }
    }

    /// `<dataRoot>/<cluster>`.
    pub fn dir(&self) -> String {
        format!("{}/{}", self.data_root.trim_end_matches('/'), self.cluster)
    }
}

/// What an [`Request::Open`] is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Mode {
    /// Looking only.
    Read,
    /// Changing: takes the host's lock.
    Write {
        /// Who, for the message another one gets: `apply of demo by ann@laptop`.
        who: String,
    },
}

/// A blob by name and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Its digest.
    pub digest: oci::Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A blob the host lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub blob: Blob,
    /// How many of its bytes are there already.
    pub have: u64,
}

/// A secret that lets one host fetch from another for as long as that one serves. It is wiped from memory and never shown.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// The secret's text.
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// For comparing: takes equally long however much of another one is right.
    pub(crate) fn digest(&self) -> oci::Digest {
        oci::Digest::of(self.0.as_bytes())
    }

    /// How many bytes the text has.
    pub(crate) fn length(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Where a host serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Serving {
    /// Address and port.
    pub address: SocketAddr,
    /// Digest of its certificate (DER): nobody else is believed.
    pub certificate: oci::Digest,
}

/// A host that serves, and what lets one in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Where.
    pub at: Serving,
    /// What must be shown.
    pub token: Token,
}

/// State of a unit as `systemctl show` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitStatus {
    /// `loaded`, `not-found`, `masked`, ….
    pub load: String,
    /// `active`, `inactive`, `failed`, `activating`, ….
    pub active: String,
    /// `running`, `dead`, `auto-restart`, ….
    pub sub: String,
    /// `enabled`, `disabled`, ….
    pub enabled: String,
    /// Main process, 0 if none.
    pub pid: u32,
    /// Restarts by systemd itself.
    pub restarts: u32,
    /// When it became active: microseconds since 1970, 0 if it is not.
    pub active_since_us: u64,
    /// Its last journal lines.
    pub log: Vec<String>,
}

/// A program to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments; the program is looked up in `/opt/installer/bin` and the usual places.
    pub argv: Vec<String>,
    /// Added to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What it reads.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdin: String,
    /// Working folder; `/` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Limit in milliseconds; then its whole process group is killed.
    pub timeout_ms: u64,
    /// Whether output is sent as it comes; the result has none then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
}

/// Which of a program's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// What it says.
    Stdout = 1,
    /// What it complains of.
    Stderr = 2,
}

impl Stream {
    /// The stream of a data frame's first byte.
    pub fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// How a program ended. Output is cut at 1 MiB each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    /// Exit code, 128 + n when signal n ended it; absent when the limit did.
    pub code: Option<i32>,
    /// Whether the time limit ended it.
    pub timed_out: bool,
    /// stdout; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// stderr, likewise.
    pub stderr: String,
}

/// Something to wait for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "camelCase", deny_unknown_fields)]
pub enum Condition {
    /// A TCP connection is accepted.
    Tcp {
        /// `address:port`.
        address: String,
    },
    /// A GET answers with a status in 200..400.
    Http(HttpGet),
    /// Nobody listens: a TCP connection is refused.
    NoTcp {
        /// `address:port`.
        address: String,
    },
    /// A file (socket, folder) exists.
    Path {
        /// Where.
        path: String,
    },
    /// A file (socket, folder) is gone.
    NoPath {
        /// Where.
        path: String,
    },
    /// A unit is active.
    Unit {
        /// Its name.
        name: String,
    },
}

/// An HTTP GET.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// `http://…` or `https://…`.
    pub url: String,
    /// PEM file (on the host) of the CA to believe; absent with https: the server is not verified at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// PEM file (on the host) of a client certificate, with `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    /// PEM file (on the host) of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Limit of one attempt in milliseconds; 0: five seconds.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// At most 256 KiB of the body.
    pub body: String,
}

/// A journal in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalSummary {
    /// Whether there is one.
    pub exists: bool,
    /// What was changed, oldest first.
    pub entries: Vec<String>,
    /// Bytes of a torn last line that were ignored: the host went down while writing.
    pub torn: u64,
    /// Whether an undo was begun and has to be finished before anything else.
    #[serde(default)]
    pub undoing: bool,
    /// The run that installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<RunNote>,
    /// The last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<RunNote>,
    /// The last run that brought an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought: Option<RunMark>,
}

/// Result of an undo.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Undone {
    /// What was undone.
    pub done: Vec<String>,
    /// What could not be undone, with the reason; not empty: the journal is kept and undo can be repeated.
    pub failed: Vec<String>,
    /// What differs from before the first change.
    pub left: Vec<Leftover>,
}

/// A difference from before the first change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// `file`, `unit`, `link`, `route`, `rule`, `mount`, `cgroup`, `process`.
    pub kind: String,
    /// Which.
    pub name: String,
    /// `added`, `removed`, `changed`.
    pub how: String,
    /// Whose it is; only what is [`Origin::Ours`] is left to be undone.
    #[serde(default)]
    pub origin: Origin,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What sort of failure.
    pub kind: FaultKind,
    /// Cause and remedy, for people. No secrets.
    pub message: String,
    /// For [`Request::Apply`]: which effect failed (the ones before are applied).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<usize>,
}

/// What sort of failure, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// The request is not legal now or makes no sense.
    Invalid,
    /// Another installer works on this host.
    Locked,
    /// Content does not have its digest, or an archive is not acceptable.
    Corrupt,
    /// What was asked for is not there.
    NotFound,
    /// It did not happen in time.
    Timeout,
    /// No space, no permission, ….
    System,
    /// A unit or program failed.
    Failed,
}

/// A secret read from a host.
pub type SecretBytes = Zeroizing<Vec<u8>>;
