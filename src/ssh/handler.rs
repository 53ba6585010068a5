//! What we answer to the server of our own accord: whether we believe its key.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use russh::{
    client::{DisconnectReason, Handler},
    keys::{Algorithm, Certificate, PublicKey, PublicKeyOrCertificate},
};

use crate::{
    Config, Error, Pin, Result, certificate,
    known_hosts::{self, Entry, File, Verdict, fingerprint},
};

/// How a connection ended, once it has.
pub(crate) type Ended = Arc<OnceLock<End>>;

/// How a connection ended.
#[derive(Debug)]
pub(crate) struct End {
    /// Why, in words.
    pub(crate) reason: String,
    /// When the host gave its last sign of life; to say goodbye is one.
    pub(crate) heard: Instant,
}

pub(crate) struct Client {
    pub(crate) trust: Trust,
    pub(crate) ended: Ended,
    /// After how long without a sign of life a host is given up.
    pub(crate) silence: Duration,
}

impl Client {
    fn end(&self, reason: String, silence: Duration) {
        let now = Instant::now();
        let heard = now.checked_sub(silence).unwrap_or(now);
        let _ = self.ended.set(End { reason, heard });
    }
}

/// Whether a connection ended because nothing came from the host any more.
fn is_silence(error: &russh::Error) -> bool {
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    match error {
        russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout => true,
        russh::Error::IO(error) => matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable),
        _ => false,
    }
}

/// russh wants one error type from its handlers; ours carries the full story.
#[derive(Debug)]
pub(crate) enum HandlerError {
    Ssh(russh::Error),
    Ours(Box<Error>),
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl Handler for Client {
    type Error = HandlerError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, HandlerError> {
        let judged = match shown.certificate() {
            Some(certificate) => self.trust.check_certificate(certificate),
            None => self.trust.check(&shown.public_key()),
        };
        match judged {
            Ok(()) => Ok(true),
            Err(e) => Err(HandlerError::Ours(Box::new(e))),
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<HandlerError>) -> Result<(), HandlerError> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                self.end(format!("the server ended it: {}", info.message), Duration::ZERO);
                Ok(())
            }
            DisconnectReason::Error(e) => {
                if let HandlerError::Ssh(e) = &e {
                    let silence = if is_silence(e) { self.silence } else { Duration::ZERO };
                    self.end(e.to_string(), silence);
                }
                Err(e)
            }
        }
    }
}

/// The host key policy with its files read.
pub(crate) struct Trust {
    host: String,
    port: u16,
    target: String,
    files: Vec<File>,
    pinned: Vec<Pin>,
    accept_new: Option<PathBuf>,
}

impl Trust {
    pub(crate) fn load(config: &Config) -> Result<Self> {
        let policy = &config.host_key;
        let mut paths = policy.known_hosts.clone();
        if paths.is_empty()
            && let Some(home) = std::env::var_os("HOME")
        {
            paths.push(PathBuf::from(home).join(".ssh/known_hosts"));
        }
        let files = if policy.pinned.is_empty() {
            known_hosts::load(&paths).map_err(|(path, source)| Error::KnownHosts { path, source })?
        } else {
            Vec::new()
        };
        Ok(Self {
            host: config.host.clone(),
            port: config.port,
            target: config.target(),
            files,
            pinned: policy.pinned.clone(),
            accept_new: if policy.accept_new {
                paths.into_iter().next()
            } else {
                None
            },
        })
    }

    /// Types of the keys we could recognise, to be asked for first.
    pub(crate) fn types(&self) -> Vec<Algorithm> {
        if self.pinned.is_empty() {
            return known_hosts::known_types(&self.files, &self.host, self.port);
        }
        self.pinned.iter().filter_map(Pin::algorithm).collect()
    }

    /// Whether certificates are asked for: where an authority for this host is known.
    pub(crate) fn takes_certificates(&self) -> bool {
        !self.authorities().is_empty()
    }

    fn authorities(&self) -> Vec<Entry> {
        known_hosts::authorities(&self.files, &self.host, self.port)
    }

    /// A certificate of an authority that is not known for this host is as good as the bare key in it.
    fn check_certificate(&self, shown: &Certificate) -> Result<()> {
        let key = PublicKey::from(shown.public_key().clone());
        let authority = PublicKey::from(shown.signature_key().clone());
        for key in [&key, &authority] {
            if let Some(place) = known_hosts::revoked(&self.files, &self.host, self.port, key) {
                return Err(Error::HostKeyRevoked {
                    host: self.target.clone(),
                    fingerprint: fingerprint(key),
                    place,
                });
            }
        }
        let authorities = self.authorities();
        let Some(known) = authorities.iter().find(|a| a.key.key_data() == authority.key_data()) else {
            return self.check(&key);
        };
        match certificate::host_fault(shown, &self.host, certificate::now()) {
            None => Ok(()),
            Some(reason) => Err(Error::HostCertificate {
                host: self.target.clone(),
                authority: known.to_string(),
                reason,
            }),
        }
    }

    fn check(&self, key: &PublicKey) -> Result<()> {
        let (host, shown, algorithm) = (self.target.clone(), fingerprint(key), key.algorithm().to_string());
        let changed = |expected: Vec<String>, remedy: String| {
            Err(Error::HostKeyChanged {
                host: host.clone(),
                algorithm: algorithm.clone(),
                fingerprint: shown.clone(),
                expected,
                remedy,
            })
        };
        if !self.pinned.is_empty() {
            if self.pinned.iter().any(|pin| pin.fingerprint() == shown) {
                return Ok(());
            }
            let expected = self.pinned.iter().map(|pin| format!("{pin} (pinned)")).collect();
            return changed(expected, "pin the new key".to_owned());
        }
        match known_hosts::check(&self.files, &self.host, self.port, key) {
            Verdict::Known => Ok(()),
            Verdict::Changed { expected } => {
                let told = expected.iter().map(ToString::to_string).collect();
                changed(told, self.forget(&expected))
            }
            Verdict::Revoked { place } => Err(Error::HostKeyRevoked {
                host,
                fingerprint: shown,
                place,
            }),
            Verdict::Unknown => match &self.accept_new {
                None => Err(Error::HostKeyUnknown {
                    host,
                    algorithm,
                    fingerprint: shown,
                }),
                Some(path) => {
                    tracing::info!(%host, fingerprint = %shown, "accepted a new host key");
                    known_hosts::append(path, &self.host, self.port, key).map_err(|source| Error::KnownHosts {
                        path: path.clone(),
                        source,
                    })
                }
            },
        }
    }

    /// How the entries that are about this host are taken out of their files.
    fn forget(&self, entries: &[Entry]) -> String {
        let mut files: Vec<&PathBuf> = entries.iter().map(|entry| &entry.file).collect();
        files.dedup();
        let commands = files.iter().map(|file| {
            let argv = ["ssh-keygen", "-f", &file.display().to_string(), "-R", &self.target];
            crate::quote(&argv).unwrap_or_else(|_| argv.join(" "))
        });
        format!("remove the old entry: {}", commands.collect::<Vec<_>>().join("; "))
    }
}
