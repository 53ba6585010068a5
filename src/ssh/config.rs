//! What a caller wishes: where to connect, as whom, whom to trust, and what to run there.

use std::{path::PathBuf, time::Duration};

use russh::keys::{Algorithm, PublicKey};

use crate::Secret;

/// How to reach one host.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name or address; also the name looked up in `known_hosts`.
    pub host: String,
    /// TCP port of sshd.
    pub port: u16,
    /// Login name.
    pub user: String,
    /// Ways to authenticate, tried in this order.
    pub auth: Vec<Auth>,
    /// Which host keys are believed.
    pub host_key: HostKeyPolicy,
    /// A bastion to go through; it is connected first, by its own rules.
    pub jump: Option<Box<Config>>,
    /// Limit for reaching the port and for the key exchange, each.
    pub connect_timeout: Duration,
    /// Limit for all authentication attempts together.
    pub auth_timeout: Duration,
    /// Silence after which a keep-alive is sent.
    pub keepalive_interval: Duration,
    /// Unanswered keep-alives after which the connection is given up.
    pub keepalive_max: usize,
}

impl Config {
    /// A configuration with the defaults every caller wants: port 22, strict host keys from `~/.ssh/known_hosts`, no way to
    /// authenticate yet.
    pub fn new(host: impl Into<String>, user: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            port: 22,
            user: user.into(),
            auth: Vec::new(),
            host_key: HostKeyPolicy::default(),
            jump: None,
            connect_timeout: Duration::from_secs(10),
            auth_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(10),
            keepalive_max: 3,
        }
    }

    /// How long a host may be silent: the keep-alives and the wait after the last of them.
    pub(crate) fn silence(&self) -> Duration {
        let waits = u32::try_from(self.keepalive_max.saturating_add(1)).unwrap_or(u32::MAX);
        self.keepalive_interval.saturating_mul(waits)
    }

    /// `host`, or `[host]:port` when the port is not 22: how OpenSSH writes it.
    pub fn target(&self) -> String {
        crate::known_hosts::host_token(&self.host, self.port)
    }
}

/// One way to authenticate.
#[derive(Clone, Debug)]
pub enum Auth {
    /// A private key file in any format OpenSSH writes.
    KeyFile {
        /// Path of the private key; `~/` is the caller's business.
        path: PathBuf,
        /// The certificate to offer with it; without one, `KEY-cert.pub` if that is there.
        certificate: Option<PathBuf>,
        /// Passphrase of an encrypted key.
        passphrase: Option<Secret>,
    },
    /// Every key and certificate of the agent at this socket, or else at `SSH_AUTH_SOCK`.
    Agent(Option<PathBuf>),
    /// A password, by the `password` method or, where only that is offered, `keyboard-interactive`.
    Password(Secret),
}

/// Which host keys are believed. Checking cannot be switched off. Certificates of hosts are believed where the files name their authority.
#[derive(Clone, Debug, Default)]
pub struct HostKeyPolicy {
    /// Files in OpenSSH's `known_hosts` format, all of them read. Empty means `~/.ssh/known_hosts`.
    pub known_hosts: Vec<PathBuf>,
    /// If there are any, one of exactly these keys is accepted and the files are not consulted.
    pub pinned: Vec<Pin>,
    /// Accept a host that no file knows and append its key to the first file. A *changed* key is refused all the same.
    pub accept_new: bool,
}

/// A host key known beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// `SHA256:…` as `ssh-keygen -lf` prints it.
    Fingerprint(String),
    /// A public key line: `ssh-ed25519 AAAA…`.
    Key(String),
}

impl std::str::FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with("SHA256:") {
            return Ok(Self::Fingerprint(text.trim_end_matches('=').to_owned()));
        }
        PublicKey::from_openssh(text)
            .map(|_| Self::Key(text.to_owned()))
            .map_err(|_| format!("'{text}' is neither a SHA256:… fingerprint nor a public key line"))
    }
}

impl Pin {
    /// `SHA256:…` of the key.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Fingerprint(text) => text.clone(),
            Self::Key(line) => PublicKey::from_openssh(line)
                .map(|key| crate::known_hosts::fingerprint(&key))
                .unwrap_or_default(),
        }
    }

    /// Type of the key, if a whole key is pinned.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Fingerprint(_) => None,
            Self::Key(line) => PublicKey::from_openssh(line).ok().map(|key| key.algorithm()),
        }
    }
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.algorithm() {
            Some(algorithm) => write!(f, "{algorithm} {}", self.fingerprint()),
            None => f.write_str(&self.fingerprint()),
        }
    }
}

/// Whether a command runs as the login user or as root.
#[derive(Clone, Debug, Default)]
pub enum Become {
    /// As the login user.
    #[default]
    User,
    /// As root: directly when the login user is root, else by sudo.
    Root {
        /// What sudo is told if it asks.
        password: Option<Secret>,
    },
}

/// A program and its arguments. Never a shell line.
#[derive(Clone, Debug)]
pub struct Command {
    pub(crate) argv: Vec<String>,
    pub(crate) elevate: Become,
    pub(crate) stdin: Vec<u8>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) max_output: usize,
}

impl Command {
    /// The given program and arguments, as the login user, with empty stdin, no time limit and up to 1 MiB of output kept.
    pub fn new<I, S>(argv: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            elevate: Become::User,
            stdin: Vec::new(),
            timeout: None,
            max_output: 1 << 20,
        }
    }

    /// The program and its arguments.
    pub fn argv(&self) -> &[String] {
        &self.argv
    }

    /// What the program reads.
    pub fn input(&self) -> &[u8] {
        &self.stdin
    }

    /// How long it may take.
    pub fn time_limit(&self) -> Option<Duration> {
        self.timeout
    }

    /// How many bytes of its output are kept.
    pub fn output_limit(&self) -> usize {
        self.max_output
    }

    /// Runs it as root, or as the login user again.
    pub fn elevate(mut self, elevate: Become) -> Self {
        self.elevate = elevate;
        self
    }

    /// What the program reads ([`crate::Connection::exec`] only).
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Kills the program's channel when it takes longer.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// How many bytes of stdout and of stderr are kept; the rest is read and dropped.
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }
}
