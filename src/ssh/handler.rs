//! What we answer to the server of our own accord: whether we believe its key.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use russh::{
    client::{DisconnectReason, Handler},
    keys::{Algorithm, PublicKey, PublicKeyOrCertificate},
};

use crate::{
    Config, Error, Pin, Result,
    known_hosts::{self, File, Verdict, fingerprint},
};

/// Why a connection ended, once it has.
pub(crate) type Ended = Arc<OnceLock<String>>;

pub(crate) struct Client {
    pub(crate) trust: Trust,
    pub(crate) ended: Ended,
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
        match self.trust.check(&shown.public_key()) {
            Ok(()) => Ok(true),
            Err(e) => Err(HandlerError::Ours(Box::new(e))),
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<HandlerError>) -> Result<(), HandlerError> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                let _ = self.ended.set(format!("the server ended it: {}", info.message));
                Ok(())
            }
            DisconnectReason::Error(e) => {
                if let HandlerError::Ssh(e) = &e {
                    let _ = self.ended.set(e.to_string());
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
    pinned: Option<Pin>,
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
        let files = match policy.pinned {
            Some(_) => Vec::new(),
            None => known_hosts::load(&paths).map_err(|(path, source)| Error::KnownHosts { path, source })?,
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
        match &self.pinned {
            Some(Pin::Key(line)) => PublicKey::from_openssh(line)
                .map(|k| vec![k.algorithm()])
                .unwrap_or_default(),
            Some(Pin::Fingerprint(_)) => Vec::new(),
            None => known_hosts::known_types(&self.files, &self.host, self.port),
        }
    }

    fn check(&self, key: &PublicKey) -> Result<()> {
        let (host, shown, algorithm) = (self.target.clone(), fingerprint(key), key.algorithm().to_string());
        let changed = |place: String, expected: String| {
            Err(Error::HostKeyChanged {
                host: host.clone(),
                algorithm: algorithm.clone(),
                fingerprint: shown.clone(),
                expected,
                place,
            })
        };
        if let Some(pin) = &self.pinned {
            let expected = match pin {
                Pin::Fingerprint(text) => text.clone(),
                Pin::Key(line) => PublicKey::from_openssh(line)
                    .map(|k| fingerprint(&k))
                    .unwrap_or_default(),
            };
            return if expected == shown {
                Ok(())
            } else {
                changed("the pinned key".to_owned(), expected)
            };
        }
        match known_hosts::check(&self.files, &self.host, self.port, key) {
            Verdict::Known => Ok(()),
            Verdict::Changed { place, expected } => changed(place, expected.join(" or ")),
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
}
