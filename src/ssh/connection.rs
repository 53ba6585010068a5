//! One connection to one host, shared by everything that talks to it.

use std::{
    borrow::Cow,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use russh::{
    Channel, ChannelMsg, cipher,
    client::{self, Handle, Msg},
    keys::Algorithm,
};
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::OnceCell,
    time::timeout,
};

use crate::{
    Become, Command, Config, Error, Output, Process, Result, Secret, auth,
    elevate::{self, Method, PromptFilter},
    handler::{Client, Ended, HandlerError, Trust},
    process::{ExitStatus, ProcessReader, ProcessWriter, Pump, read_bounded},
    quote::quote,
};

/// What the host may send before we answer, per channel: enough for 1 GB/s at 8 ms.
const WINDOW: u32 = 8 << 20;
/// OpenSSH sends packets of at most 32 KiB whatever we allow.
const PACKET: u32 = 32 << 10;
/// How much of a file is read at once, in bytes.
pub(crate) const PIECE: usize = 256 << 10;
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

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started, root cannot be had, or its time is up. A program that fails is not an error here: see [`Output::ok`].
    pub async fn exec(&self, command: &Command) -> Result<Output> {
        let method = self.method(&command.elevate).await?;
        self.exec_as(command, &method, &command.stdin[..]).await
    }

    /// As [`Self::exec`], with `content` as stdin. It ends where `content` ends or cannot be read; whether all came is the program's business.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub async fn exec_with(&self, command: &Command, content: impl AsyncRead + Unpin) -> Result<Output> {
        let method = self.method(&command.elevate).await?;
        self.exec_as(command, &method, BufReader::with_capacity(PIECE, content))
            .await
    }

    pub(crate) async fn exec_as(
        &self,
        command: &Command,
        method: &Method,
        mut content: impl AsyncBufRead + Unpin,
    ) -> Result<Output> {
        let run = async {
            let Process {
                mut stdin,
                stdout,
                mut status,
            } = self.start(&command.argv, method).await?;
            let feed = async {
                // A program may end without reading its stdin: what it says counts, not that.
                let _ = tokio::io::copy_buf(&mut content, &mut stdin).await;
                let _ = stdin.shutdown().await;
            };
            let ((), stdout, exit) = tokio::join!(feed, read_bounded(stdout, command.max_output), status.wait());
            if let ExitStatus::Lost(reason) = &exit
                && method.password().is_none()
            {
                return Err(Error::Lost {
                    host: self.inner.target.clone(),
                    reason: reason.clone(),
                });
            }
            Ok(Output {
                status: exit,
                stdout,
                stderr: status.stderr(),
            })
        };
        match command.timeout {
            None => run.await,
            Some(limit) => timeout(limit, run).await.map_err(|_| Error::Timeout {
                host: self.inner.target.clone(),
                during: "running a command",
                limit,
            })?,
        }
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
        let channel = self
            .inner
            .handle
            .channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0)
            .await
            .map_err(|e| self.refusal(&format!("a connection to {host}:{port}"), e))?;
        let Process { stdin, stdout, .. } = self.pump(channel, Vec::new(), None).start();
        Ok(Stream {
            reader: stdout,
            writer: stdin,
        })
    }

    /// Says goodbye. Dropping does without.
    pub async fn close(&self) {
        let _ = self
            .inner
            .handle
            .disconnect(russh::Disconnect::ByApplication, "", "en")
            .await;
    }

    async fn method(&self, elevate: &Become) -> Result<Method> {
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

    async fn start(&self, argv: &[String], method: &Method) -> Result<Process> {
        let prompt = PromptFilter::fresh_prompt();
        let line = quote(&method.wrap(argv, &prompt))?;
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
        let mut channel = open.await.map_err(|e| self.refusal("to run a command", e))?;
        let Some(password) = method.password() else {
            return Ok(self.pump(channel, Vec::new(), None).start());
        };
        let mut filter = PromptFilter::new(&prompt);
        let early = timeout(SUDO_PROMPT, self.answer_prompt(&mut channel, &mut filter, password))
            .await
            .map_err(|_| {
                self.sudo("it did not ask for the password; is this command NOPASSWD but others are not?".to_owned())
            })??;
        Ok(self.pump(channel, early, Some(filter)).start())
    }

    /// Waits for sudo's prompt and writes the password, once. Returns what else came on stderr.
    async fn answer_prompt(
        &self,
        channel: &mut Channel<Msg>,
        filter: &mut PromptFilter,
        password: &Secret,
    ) -> Result<Vec<u8>> {
        let mut early = Vec::new();
        let mut status = ExitStatus::Lost("no exit status".to_owned());
        while !filter.seen() {
            match channel.wait().await {
                Some(ChannelMsg::ExtendedData { data, .. }) => early.extend(filter.feed(&data)),
                Some(ChannelMsg::ExitStatus { exit_status }) => status = ExitStatus::Code(exit_status),
                Some(ChannelMsg::Close) | None => {
                    return Err(self.sudo(elevate::explain(&status, &String::from_utf8_lossy(&early))));
                }
                Some(_) => {}
            }
        }
        filter.reset();
        let line = zeroize::Zeroizing::new(format!("{}\n", password.expose()));
        channel.data(line.as_bytes()).await.map_err(|e| self.lost(&e))?;
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
            keep: self.clone(),
        }
    }

    fn sudo(&self, reason: String) -> Error {
        Error::Sudo {
            host: self.inner.target.clone(),
            user: self.inner.user.clone(),
            reason,
        }
    }

    fn lost(&self, error: &russh::Error) -> Error {
        let reason = self.inner.ended.get().cloned().unwrap_or_else(|| error.to_string());
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
                let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, config.silence_ms());
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
    use std::time::Duration;

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
        assert_eq!(config.silence_ms(), 40_000);
        config.keepalive_max = usize::MAX;
        assert_eq!(config.silence_ms(), u32::MAX);
    }
}
