//! The way to a host: SSH, or none because this machine is the host. Everything that is done to or through a host goes by a
//! [`Connection`], which makes itself anew when it was lost.

use crate::{
    Error, Result,
    local::{self, Complaints},
};
use ssh::{Become, Output};
use std::{
    fmt,
    net::Ipv4Addr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
};
use tokio_util::either::Either;

/// Pause between two attempts to find a lost way again.
const AGAIN: Duration = Duration::from_secs(1);

/// How a host is reached.
#[derive(Debug, Clone)]
pub enum Way {
    /// By SSH.
    Remote(Box<ssh::Config>),
    /// This machine is the host, and this is its address.
    Local(Ipv4Addr),
}

/// A TCP connection made by the host.
pub type Stream = Either<ssh::Stream, TcpStream>;

/// A program on a host that we talk to.
pub struct Program {
    /// Its stdin.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its stdout.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    status: Either<ssh::ProcessStatus, Complaints>,
}

impl Program {
    /// What was last written to stderr, and goes on to be.
    pub fn complaints(&self) -> impl Fn() -> String + Send + Sync + use<> {
        let status = self.status.clone();
        move || match &status {
            Either::Left(status) => status.stderr(),
            Either::Right(tail) => local::complaints(tail),
        }
    }
}

/// A way that is open. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Connection {
    way: Arc<Way>,
    /// Of the way by SSH.
    current: Arc<Mutex<Option<ssh::Connection>>>,
    /// When the host last gave a sign of life, as far as it is known while there is no connection.
    heard: Arc<std::sync::Mutex<Instant>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.way.host())
    }
}

impl Way {
    /// The host's name for messages.
    pub fn host(&self) -> String {
        match self {
            Self::Remote(config) => config.target(),
            Self::Local(ip) => ip.to_string(),
        }
    }

    /// As whom we are there.
    pub fn user(&self) -> &str {
        match self {
            Self::Remote(config) => &config.user,
            Self::Local(_) => "root",
        }
    }
}

impl Connection {
    /// Opens the way.
    ///
    /// # Errors
    /// When the host cannot be reached, is not believed or does not let us in; or, on this machine, when we are not root or the
    /// address is not its own.
    pub async fn open(way: Arc<Way>) -> Result<Self> {
        let current = match &*way {
            Way::Remote(config) => Some(ssh::Connection::connect(config).await?),
            Way::Local(ip) => {
                local::check(*ip)?;
                None
            }
        };
        Ok(Self {
            way,
            current: Arc::new(Mutex::new(current)),
            heard: Arc::new(std::sync::Mutex::new(Instant::now())),
        })
    }

    fn note_heard(&self, at: Instant) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard = at.max(*heard);
    }

    /// For how long nobody on the host has given a sign of life.
    pub(crate) async fn silence(&self) -> Duration {
        let current = self.current.lock().await;
        if self.is_local() || current.as_ref().is_some_and(|connection| !connection.is_closed()) {
            return Duration::ZERO;
        }
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether this machine is the host.
    pub(crate) fn is_local(&self) -> bool {
        matches!(*self.way, Way::Local(_))
    }

    /// The transport, made anew if it has ended. Absent on this machine.
    async fn transport(&self) -> Result<Option<ssh::Connection>> {
        let Way::Remote(config) = &*self.way else {
            return Ok(None);
        };
        let mut current = self.current.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Some(connection.clone()));
        }
        if let Some(ended) = current.take() {
            self.note_heard(ended.heard().unwrap_or_else(Instant::now));
        }
        tracing::info!(host = %config.target(), "connecting again");
        match ssh::Connection::connect(config).await {
            Ok(connection) => Ok(Some(current.insert(connection).clone())),
            Err(error) => {
                if error.is_sign_of_life() {
                    self.note_heard(Instant::now());
                }
                Err(error.into())
            }
        }
    }

    /// Proves that the login shell runs programs. On this machine there is none in between.
    ///
    /// # Errors
    /// As [`ssh::Connection::prove_shell`].
    pub(crate) async fn prove_shell(&self) -> Result<()> {
        match self.transport().await? {
            Some(connection) => Ok(connection.prove_shell().await?),
            None => Ok(()),
        }
    }

    /// How it was opened, to open another.
    pub fn way(&self) -> &Arc<Way> {
        &self.way
    }

    /// As whom we are there.
    pub fn user(&self) -> &str {
        self.way.user()
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// As [`ssh::Connection::exec`].
    pub async fn exec(&self, command: &ssh::Command) -> Result<Output> {
        match self.transport().await? {
            Some(connection) => Ok(connection.exec(command).await?),
            None => local::exec(&self.way.host(), command).await,
        }
    }

    /// As [`Self::exec`], with `content` as stdin, as far as it can be read.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub async fn exec_with(&self, command: &ssh::Command, content: impl AsyncRead + Unpin) -> Result<Output> {
        match self.transport().await? {
            Some(connection) => Ok(connection.exec_with(command, content).await?),
            None => Err(Error::on(self.way.host(), "a program of this machine is not fed")),
        }
    }

    /// Starts a program and gives its streams.
    ///
    /// # Errors
    /// As [`ssh::Connection::open_process`].
    pub async fn open_process(&self, command: &ssh::Command) -> Result<Program> {
        let Some(connection) = self.transport().await? else {
            let (stdin, stdout, complaints) = local::start(&self.way.host(), command.argv())?;
            return Ok(Program {
                stdin: Box::new(stdin),
                stdout: Box::new(stdout),
                status: Either::Right(complaints),
            });
        };
        let process = connection.open_process(command).await?;
        Ok(Program {
            stdin: Box::new(process.stdin),
            stdout: Box::new(process.stdout),
            status: Either::Left(process.status),
        })
    }

    /// Lets the host connect to `host:port` as it sees it.
    ///
    /// # Errors
    /// When it cannot, or forbids forwarding.
    pub async fn connect_stream(&self, host: &str, port: u16) -> Result<Stream> {
        match self.transport().await? {
            Some(connection) => Ok(Either::Left(connection.connect_stream(host, port).await?)),
            None => {
                let stream = TcpStream::connect((host, port)).await;
                let refused = |e| Error::on(self.way.host(), format!("no connection to {host}:{port}: {e}"));
                Ok(Either::Right(stream.map_err(refused)?))
            }
        }
    }

    /// As [`Self::connect_stream`]; while the way is lost it is tried again and again, up to `patience`, as long as
    /// the host gives signs of life.
    ///
    /// # Errors
    /// As [`Self::connect_stream`].
    pub async fn connect_stream_within(&self, patience: Duration, host: &str, port: u16) -> Result<Stream> {
        let until = Instant::now() + patience;
        loop {
            match self.connect_stream(host, port).await {
                Err(Error::Ssh(error))
                    if error.is_passing() && Instant::now() < until && self.silence().await < host::SILENCE_TIMEOUT =>
                {
                    tracing::info!(%error, "the way is lost");
                    tokio::time::sleep(AGAIN).await;
                }
                result => return result,
            }
        }
    }

    /// Streams `content` into the file `path` (absolute), with `mode`. It appears there only when it is whole.
    ///
    /// # Errors
    /// When reading `content` fails or the file cannot be written.
    pub async fn upload(
        &self,
        path: &str,
        mode: u32,
        content: impl AsyncRead + Unpin,
        elevate: &Become,
    ) -> Result<u64> {
        match self.transport().await? {
            Some(connection) => Ok(connection.upload(path, mode, content, elevate).await?),
            None => local::upload(path, mode, content).await,
        }
    }
}
