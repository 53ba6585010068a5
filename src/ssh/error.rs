//! What can go wrong between here and a host, said with cause and remedy.

use std::{io, path::PathBuf, time::Duration};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every variant names the host it is about. No variant ever holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name has no address.
    #[error("{host}: the name cannot be resolved ({source}); check the spelling or use an address")]
    Resolve {
        /// Whom we looked for.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens on the port.
    #[error("{host}: connection refused; is sshd running there, and on this port?")]
    Refused {
        /// Whom we tried.
        host: String,
    },
    /// No answer in time.
    #[error("{host}: no answer within {} s while {during}; is the host up, and does no firewall drop the packets?", limit.as_secs_f32())]
    Timeout {
        /// Whom we tried.
        host: String,
        /// What we were doing.
        during: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The network has no way there, or another socket error.
    #[error("{host}: unreachable ({source}); check the address and this machine's routes")]
    Unreachable {
        /// Whom we tried.
        host: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The bastion could not reach the host.
    #[error("{host}: the jump host {jump} could not open a connection to it: {reason}")]
    Jump {
        /// Whom we tried to reach.
        host: String,
        /// Through whom.
        jump: String,
        /// What the jump host said.
        reason: String,
    },
    /// No file knows this host.
    #[error(
        "{host}: its host key is not known ({algorithm} {fingerprint}); compare the fingerprint with the host's own, then accept it with --accept-new-host-keys"
    )]
    HostKeyUnknown {
        /// Whom we reached.
        host: String,
        /// Type of the key shown.
        algorithm: String,
        /// `SHA256:…` of the key shown.
        fingerprint: String,
    },
    /// The host shows another key than the one we know.
    #[error(
        "{host}: ITS HOST KEY HAS CHANGED: it shows {algorithm} {fingerprint}, but it is known by {}. Someone may be in between, or the host was installed anew: compare with the host's own fingerprint (there: ssh-keygen -lf /etc/ssh/ssh_host_..._key.pub). Only if that is what it shows now, {remedy}",
        expected.join(" and ")
    )]
    HostKeyChanged {
        /// Whom we reached.
        host: String,
        /// Type of the key shown.
        algorithm: String,
        /// `SHA256:…` of the key shown.
        fingerprint: String,
        /// Types, fingerprints and places of the keys expected.
        expected: Vec<String>,
        /// How the new key is accepted.
        remedy: String,
    },
    /// The host's certificate is signed by an authority we trust, and yet it proves nothing.
    #[error(
        "{host}: its host certificate, signed by {authority}, is not valid: {reason}; have it issued anew, or check this machine's clock"
    )]
    HostCertificate {
        /// Whom we reached.
        host: String,
        /// Type, fingerprint and place of the authority's key.
        authority: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is marked `@revoked`.
    #[error("{host}: its host key {fingerprint} is marked as revoked at {place}; it is never accepted")]
    HostKeyRevoked {
        /// Whom we reached.
        host: String,
        /// `SHA256:…` of the key shown.
        fingerprint: String,
        /// `file:line`.
        place: String,
    },
    /// `known_hosts` cannot be read or written.
    #[error("{}: {source}", path.display())]
    KnownHosts {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing we had was accepted.
    #[error("{host}: user '{user}' was not let in. Tried: {tried}. The server offers: {offered}. {hint}")]
    Auth {
        /// Whom we reached.
        host: String,
        /// As whom we tried.
        user: String,
        /// Each attempt and its outcome.
        tried: String,
        /// Methods the server names.
        offered: String,
        /// What to do.
        hint: String,
    },
    /// There was nothing that could be shown to the server.
    #[error("{host}: there is nothing to log in with as user '{user}': {tried}. {hint}")]
    NoCredential {
        /// Whom we reached.
        host: String,
        /// As whom we wanted to log in.
        user: String,
        /// Each way, and why it is none.
        tried: String,
        /// What to do.
        hint: String,
    },
    /// sudo did not make us root.
    #[error("{host}: user '{user}' cannot become root to run {program}: {reason}")]
    Sudo {
        /// On which host.
        host: String,
        /// As whom we are logged in.
        user: String,
        /// What was to be run.
        program: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The connection ended under us.
    #[error("{host}: the SSH connection was lost ({reason})")]
    Lost {
        /// Which connection.
        host: String,
        /// Why.
        reason: String,
    },
    /// The two sides do not understand each other.
    #[error("{host}: SSH protocol error: {reason}")]
    Protocol {
        /// Which host.
        host: String,
        /// What happened.
        reason: String,
    },
    /// The server would not open a channel or run the command.
    #[error("{host}: the server refused {what}: {reason}")]
    Refusal {
        /// Which host.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
    /// The login shell does not run what it is given.
    #[error(
        "{host}: the login shell of user '{user}' runs no programs: {reason}. Log in as another user (ssh.user), or have \
         this one's shell and its start-up files mended there (usermod --shell, ~/.bashrc, /etc/ssh/sshrc, ForceCommand \
         in sshd_config)"
    )]
    Shell {
        /// On which host.
        host: String,
        /// As whom we are logged in.
        user: String,
        /// What it did instead.
        reason: String,
    },
    /// What was to be sent cannot be read on this machine.
    #[error("{host}: what was to be written to {what} cannot be read on this machine: {source}")]
    Content {
        /// To which host.
        host: String,
        /// Which file there.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The argument vector cannot be sent.
    #[error("this command cannot be passed on: {0}")]
    Command(&'static str),
}

impl Error {
    /// Whether somebody on the host had something to say. A port where nobody listens is none: whatever has the
    /// address refuses so.
    pub fn is_sign_of_life(&self) -> bool {
        !matches!(
            self,
            Self::Resolve { .. }
                | Self::Refused { .. }
                | Self::Timeout { .. }
                | Self::Unreachable { .. }
                | Self::Jump { .. }
                | Self::Command(_)
        )
    }

    /// Whether it may go well later without anybody doing something: a network or a host that is away for a while.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Refused { .. }
                | Self::Timeout { .. }
                | Self::Unreachable { .. }
                | Self::Jump { .. }
                | Self::Lost { .. }
        )
    }
}
