//! One connection to one host, shared by everything that talks to it.

use std::{
    borrow::Cow,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use russh::{
    Channel, ChannelMsg, cipher,
    client::{self, Handle, Msg},
    keys::Algorithm,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
    time::timeout,
};

use crate::{
    Become, Command, Config, Error, Process, Result, Secret,
    activity::Activity,
    auth,
    elevate::{self, Method, PromptFilter},
    handler::{Client, Ended, HandlerError, Trust},
    process::{ExitStatus, ProcessReader, ProcessWriter, Pump},
    shell,
};

/// What the host may send before we answer, per channel: enough for 1 GB/s at 8 ms.
const WINDOW: u32 = 8 << 20;
/// OpenSSH sends packets of at most 32 KiB whatever we allow.
const PACKET: u32 = 32 << 10;
/// How long a host may take to start a program, or to connect somewhere: both wait for others there (PAM, a silent
/// firewall).
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long sudo may take to ask for the password.
const SUDO_PROMPT: Duration = Duration::from_secs(20);

/// A live connection. Cheap to clone; it ends when the last clone and everything opened on it are gone.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle<Client>,
    target: String,
    user: String,
    ended: Ended,
    root: OnceCell<Method>,
    /// Underneath, kept alive.
    _jump: Option<Connection>,
}

/// Why sudo was not given the password.
enum Unanswered {
    /// It ended without asking, for this reason.
    Ended(String),
    /// The connection.
    Failed(Error),
}

/// A TCP connection made by the host for us. Read it steadily: all channels of a connection share its flow, so one that is not read
/// stalls the others after some megabytes. Give long-lived tunnels a [`Connection`] of their own.
#[derive(Debug)]
pub struct Stream {
    reader: ProcessReader,
    writer: ProcessWriter,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({}@{})", self.inner.user, self.inner.target)
    }
}

impl Connection {
    /// Connects, believes the host's key by `config`'s policy, and authenticates.
    ///
    /// # Errors
    /// Each failure has its own [`Error`] variant that names the host, the cause and a remedy.
    pub async fn connect(config: &Config) -> Result<Self> {
        let trust = Trust::load(config)?;
        let ended: Ended = Arc::new(OnceLock::new());
        let settings = Arc::new(settings(config, &trust));
        let client = Client {
            trust,
            ended: Arc::clone(&ended),
            silence: config.silence(),
        };
        let (mut handle, jump) = match &config.jump {
            None => {
                let tcp = tcp(config).await?;
                (handshake(config, settings, tcp, client).await?, None)
            }
            Some(via) => {
                let jump = Box::pin(Self::connect(via)).await?;
                let stream = jump
                    .connect_stream(&config.host, config.port)
                    .await
                    .map_err(|e| through(config, via, e))?;
                (handshake(config, settings, stream, client).await?, Some(jump))
            }
        };
        timeout(config.auth_timeout, auth::authenticate(&mut handle, config))
            .await
            .map_err(|_| timed_out(config, "authenticating", config.auth_timeout))??;
        let inner = Inner {
            handle,
            target: config.target(),
            user: config.user.clone(),
            ended,
            root: OnceCell::new(),
            _jump: jump,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The host as the user wrote it, with the port if it is not 22.
    pub fn target(&self) -> &str {
        &self.inner.target
    }

    /// The login name.
    pub fn user(&self) -> &str {
        &self.inner.user
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.inner.handle.is_closed()
    }

    /// Starts a program and gives its streams. The command's `stdin`, `timeout` and `max_output` do not apply.
    ///
    /// # Errors
    /// When it cannot be started or root cannot be had.
    pub async fn open_process(&self, command: &Command) -> Result<Process> {
        let method = self.method(&command.elevate).await?;
        self.start(&command.argv, &method).await
    }

    /// Lets the host connect to `host:port` as it sees it.
    ///
    /// # Errors
    /// When it cannot, or forbids forwarding.
    pub async fn connect_stream(&self, host: &str, port: u16) -> Result<Stream> {
        let opening = self
            .inner
            .handle
            .channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0);
        let channel = timeout(START_TIMEOUT, opening)
            .await
            .map_err(|_| self.late("opening a connection from there", START_TIMEOUT))?
            .map_err(|e| self.refusal(&format!("a connection to {host}:{port}"), e))?;
        let Process { stdin, stdout, .. } = self.pump(channel, Vec::new(), None).start();
        Ok(Stream {
            reader: stdout,
            writer: stdin,
        })
    }

    /// When the host gave its last sign of life on a connection that has ended. Absent: the connection lives, or it
    /// is not known how it ended.
    pub fn heard(&self) -> Option<Instant> {
        self.inner.ended.get().map(|end| end.heard)
    }

    /// Says goodbye. Dropping does without.
    pub async fn close(&self) {
        let _ = self
            .inner
            .handle
            .disconnect(russh::Disconnect::ByApplication, "", "en")
            .await;
    }

    pub(crate) async fn method(&self, elevate: &Become) -> Result<Method> {
        match elevate {
            Become::User => Ok(Method::Direct),
            Become::Root { .. } if self.inner.user == "root" => Ok(Method::Direct),
            Become::Root { password } => self
                .inner
                .root
                .get_or_try_init(|| elevate::find(self, password.as_ref()))
                .await
                .cloned(),
        }
    }

    pub(crate) async fn start(&self, argv: &[String], method: &Method) -> Result<Process> {
        let prompt = PromptFilter::fresh_prompt();
        let line = shell::line(&method.wrap(argv, &prompt))?;
        let open = async {
            let mut channel = self.inner.handle.channel_open_session().await?;
            channel.exec(true, line).await?;
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::Success) => return Ok(channel),
                    Some(ChannelMsg::Failure) => return Err(russh::Error::RequestDenied),
                    Some(ChannelMsg::WindowAdjusted { .. }) => {}
                    _ => return Err(russh::Error::Disconnect),
                }
            }
        };
        let mut channel = timeout(START_TIMEOUT, open)
            .await
            .map_err(|_| self.late("starting a program", START_TIMEOUT))?
            .map_err(|e| self.refusal("to run a command", e))?;
        let Some(password) = method.password() else {
            return Ok(self.pump(channel, Vec::new(), None).start());
        };
        let mut filter = PromptFilter::new(&prompt);
        let early = timeout(SUDO_PROMPT, self.answer_prompt(&mut channel, &mut filter, password))
            .await
            .map_err(|_| {
                let reason =
                    "sudo did not ask for the password; is this program NOPASSWD in sudoers, and others are not?";
                self.no_root(argv, reason)
            })?
            .map_err(|failure| match failure {
                Unanswered::Ended(reason) => self.no_root(argv, reason),
                Unanswered::Failed(error) => error,
            })?;
        Ok(self.pump(channel, early, Some(filter)).start())
    }

    /// Waits for sudo's prompt and writes the password, once. Returns what else came on stderr.
    async fn answer_prompt(
        &self,
        channel: &mut Channel<Msg>,
        filter: &mut PromptFilter,
        password: &Secret,
    ) -> Result<Vec<u8>, Unanswered> {
        let mut early = Vec::new();
        let mut status = ExitStatus::Lost("no exit status".to_owned());
        while !filter.seen() {
            match channel.wait().await {
                Some(ChannelMsg::ExtendedData { data, .. }) => early.extend(filter.feed(&data)),
                Some(ChannelMsg::ExitStatus { exit_status }) => status = ExitStatus::Code(exit_status),
                Some(ChannelMsg::Close) | None => {
                    let said = String::from_utf8_lossy(&early);
                    return Err(Unanswered::Ended(elevate::explain(&status, &said)));
                }
                Some(_) => {}
            }
        }
        filter.reset();
        let line = zeroize::Zeroizing::new(format!("{}\n", password.expose()));
        let written = channel.data(line.as_bytes()).await;
        written.map_err(|e| Unanswered::Failed(self.lost(&e)))?;
        Ok(early)
    }

    fn pump(&self, channel: Channel<Msg>, early_stderr: Vec<u8>, prompt: Option<PromptFilter>) -> Pump {
        let (read, write) = channel.split();
        Pump {
            read,
            write,
            early_stderr,
            prompt,
            ended: Arc::clone(&self.inner.ended),
            activity: Activity::new(),
            keep: self.clone(),
        }
    }

    /// Root cannot be had for a program.
    pub(crate) fn no_root(&self, argv: &[String], reason: impl Into<String>) -> Error {
        Error::Sudo {
            host: self.inner.target.clone(),
            user: self.inner.user.clone(),
            program: argv.first().cloned().unwrap_or_default(),
            reason: reason.into(),
        }
    }

    pub(crate) fn late(&self, during: &'static str, limit: Duration) -> Error {
        Error::Timeout {
            host: self.inner.target.clone(),
            during,
            limit,
        }
    }

    fn lost(&self, error: &russh::Error) -> Error {
        let ended = self.inner.ended.get();
        let reason = ended.map_or_else(|| error.to_string(), |end| end.reason.clone());
        Error::Lost {
            host: self.inner.target.clone(),
            reason,
        }
    }

    fn refusal(&self, what: &str, error: russh::Error) -> Error {
        let reason = match &error {
            russh::Error::ChannelOpenFailure(russh::ChannelOpenFailure::AdministrativelyProhibited) => {
                "its sshd forbids it (AllowTcpForwarding, MaxSessions)".to_owned()
            }
            russh::Error::ChannelOpenFailure(russh::ChannelOpenFailure::ConnectFailed) => {
                "it could not connect".to_owned()
            }
            russh::Error::ChannelOpenFailure(reason) => format!("{reason:?}"),
            russh::Error::RequestDenied => "its sshd forbids it (ForceCommand, restrict?)".to_owned(),
            _ => return self.lost(&error),
        };
        Error::Refusal {
            host: self.inner.target.clone(),
            what: what.to_owned(),
            reason,
        }
    }
}

fn settings(config: &Config, trust: &Trust) -> client::Config {
    let mut settings = client::Config {
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: 128,
        nodelay: true,
        keepalive_interval: Some(config.keepalive_interval),
        keepalive_max: config.keepalive_max,
        inactivity_timeout: None,
        ..client::Config::default()
    };
    // AES has instructions in every server processor; ChaCha20 is for those without.
    settings.preferred.cipher = Cow::Borrowed(&[
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_192_CTR,
        cipher::AES_128_CTR,
    ]);
    // Blobs are compressed already.
    settings.preferred.compression = Cow::Borrowed(&[russh::compression::NONE]);
    let known = trust.types();
    let mut order = settings.preferred.key.to_vec();
    order.sort_by_key(|algorithm| {
        !known
            .iter()
            .any(|k| k == algorithm || matches!((k, algorithm), (Algorithm::Rsa { .. }, Algorithm::Rsa { .. })))
    });
    if trust.takes_certificates() {
        settings.preferred.host_key_certificates = Cow::Owned(order.clone());
    }
    settings.preferred.key = Cow::Owned(order);
    settings
}

fn timed_out(config: &Config, during: &'static str, limit: Duration) -> Error {
    Error::Timeout {
        host: config.target(),
        during,
        limit,
    }
}

fn through(config: &Config, via: &Config, error: Error) -> Error {
    let reason = match error {
        Error::Refusal { reason, .. } => reason,
        other => return other,
    };
    Error::Jump {
        host: config.target(),
        jump: via.target(),
        reason,
    }
}

async fn tcp(config: &Config) -> Result<TcpStream> {
    let limit = config.connect_timeout;
    let addresses: Vec<_> = timeout(limit, tokio::net::lookup_host((config.host.as_str(), config.port)))
        .await
        .map_err(|_| timed_out(config, "resolving its name", limit))?
        .map_err(|source| Error::Resolve {
            host: config.host.clone(),
            source,
        })?
        .collect();
    let mut last = Error::Resolve {
        host: config.host.clone(),
        source: io::Error::other("no address"),
    };
    for address in addresses {
        last = match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it every small frame waits for an acknowledgement.
                let _ = stream.set_nodelay(true);
                // While a write waits for a host that takes nothing, no sign of life is missed: the kernel has to lose patience, and its own
                // lasts for a quarter of an hour (tcp(7), TCP_USER_TIMEOUT).
                let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, silence_ms(config));
                return Ok(stream);
            }
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => Error::Refused { host: config.target() },
            Ok(Err(source)) => Error::Unreachable {
                host: config.target(),
                source,
            },
            Err(_) => timed_out(config, "connecting", limit),
        };
    }
    Err(last)
}

/// How long a host may be silent, in milliseconds.
fn silence_ms(config: &Config) -> u32 {
    u32::try_from(config.silence().as_millis()).unwrap_or(u32::MAX)
}

async fn handshake<S>(
    config: &Config,
    settings: Arc<client::Config>,
    stream: S,
    client: Client,
) -> Result<Handle<Client>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match timeout(config.connect_timeout, client::connect_stream(settings, stream, client)).await {
        Err(_) => Err(timed_out(config, "exchanging keys", config.connect_timeout)),
        Ok(Ok(handle)) => Ok(handle),
        Ok(Err(HandlerError::Ours(error))) => Err(*error),
        Ok(Err(HandlerError::Ssh(error))) => Err(match error {
            russh::Error::IO(_) | russh::Error::HUP | russh::Error::Disconnect => Error::Lost {
                host: config.target(),
                reason: format!("{error}, before anything was agreed: is it sshd, and not overloaded (MaxStartups)?"),
            },
            other => Error::Protocol {
                host: config.target(),
                reason: other.to_string(),
            },
        }),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_host_that_takes_nothing_any_more_is_given_up() {
        let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::new("127.0.0.1", "root");
        config.port = host.local_addr().unwrap().port();
        config.keepalive_interval = Duration::from_millis(200);
        config.keepalive_max = 1;
        let mut stream = tcp(&config).await.unwrap();
        let (_silent, _) = host.accept().await.unwrap();
        let writing = async {
            loop {
                if let Err(error) = stream.write_all(&[0; 64 << 10]).await {
                    return error;
                }
            }
        };
        let error = timeout(Duration::from_secs(60), writing).await.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    #[test]
    fn silence_has_a_bound_whatever_is_configured() {
        let mut config = Config::new("h", "root");
        assert_eq!(silence_ms(&config), 40_000);
        config.keepalive_max = usize::MAX;
        assert_eq!(silence_ms(&config), u32::MAX);
    }
}
