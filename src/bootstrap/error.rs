//! Why a cluster could not be brought where it should be. Every message names the host, the cause and, where one is known, the remedy.

use crate::{runs::RolledBack, template::TemplateError};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// See the head of this file. No variant ever holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The wish cannot be fulfilled by this version; nothing was touched.
    #[error("{0}")]
    Wish(String),
    /// Templates of the image that cannot be rendered.
    #[error("the cluster image's templates cannot be rendered:{}", .0.iter().map(|e| format!("\n  {e}")).collect::<String>())]
    Template(Vec<TemplateError>),
    /// The cluster image is not usable.
    #[error("cluster image {image}: {message}")]
    Image {
        /// Its reference.
        image: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A secret of the Clusterfile cannot be had.
    #[error("{host}: {source}")]
    Secret {
        /// For which host.
        host: String,
        /// Why.
        source: clusterfile::SecretError,
    },
    /// The transport failed; its message names host and remedy.
    #[error("{0}")]
    Ssh(Box<ssh::Error>),
    /// The host could not do what it was asked.
    #[error("{host}: {doing}: {source}")]
    Host {
        /// Which host.
        host: String,
        /// What it was asked.
        doing: String,
        /// Why not.
        source: host::ClientError,
    },
    /// The host has no `clusterd`: nothing of ours is on it.
    #[error("{host}: nothing of this installer is there; run installer apply first")]
    NoProgram {
        /// Which host.
        host: String,
    },
    /// Something on or about a host, in words.
    #[error("{host}: {message}")]
    OnHost {
        /// Which host.
        host: String,
        /// What, why, and what to do.
        message: String,
    },
    /// Something of the user's that ran on a host did not end well.
    #[error("{host}: {what} {how}; {}", last_lines(.tail))]
    Ran {
        /// Name and address of the host.
        host: String,
        /// What ran.
        what: String,
        /// `ended with code 3`.
        how: String,
        /// The last lines it wrote.
        tail: Vec<String>,
    },
    /// Something did not come up, and this is in the way.
    #[error("{source}{}", in_the_way(.place, .blockers))]
    Blocked {
        /// What failed.
        source: Box<Error>,
        /// Where was looked.
        place: String,
        /// What is not as it should be there, each with its reason.
        blockers: Vec<String>,
    },
    /// The API server would not do it.
    #[error("{doing}: {}", component::plain(error))]
    Api {
        /// What was asked.
        doing: String,
        /// Why not. No `source`: what is to be told of it is in the message.
        error: Box<kube::Error>,
    },
    /// It did not happen in time.
    #[error("{what} did not happen within {seconds} s{}", if .last.is_empty() { String::new() } else { format!(": {}", .last) })]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// How it looked last.
        last: String,
    },
    /// Several hosts failed; each error names its host.
    #[error("{} failed:{}", oci::counted(.0.len(), "host"), .0.iter().map(|e| format!("\n  {e}")).collect::<String>())]
    Several(Vec<Error>),
    /// An apply failed, and what it had changed on hosts was undone.
    #[error("{source}{}", rolled_back(.hosts))]
    RolledBack {
        /// Why it failed.
        source: Box<Error>,
        /// What became of each host.
        hosts: Vec<RolledBack>,
    },
    /// Something on this machine.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A task of this program ended before its time.
    #[error("{0} was interrupted")]
    Interrupted(&'static str),
}

fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| format!("\n  {text}")).collect()
}

fn last_lines(tail: &[String]) -> String {
    if tail.is_empty() {
        "it wrote nothing".to_owned()
    } else {
        format!("its last lines:{}", lines(tail))
    }
}

fn in_the_way(place: &str, blockers: &[String]) -> String {
    if blockers.is_empty() {
        String::new()
    } else {
        format!("\nnot ready in {place}:{}", lines(blockers))
    }
}

fn rolled_back(hosts: &[RolledBack]) -> String {
    let mut text: String = hosts.iter().map(|host| format!("\n  {host}")).collect();
    if hosts.iter().any(|host| !host.failed.is_empty()) {
        text.push_str("\nremove the cause and run installer apply again, or take such a host back altogether with installer reset --nodes");
    }
    text
}

impl From<ssh::Error> for Error {
    fn from(error: ssh::Error) -> Self {
        Self::Ssh(Box::new(error))
    }
}

impl Error {
    /// For `map_err`: a protocol failure on `host` while `doing`.
    pub fn host(host: impl ToString, doing: impl Into<String>) -> impl FnOnce(host::ClientError) -> Self {
        move |source| Self::Host {
            host: host.to_string(),
            doing: doing.into(),
            source,
        }
    }

    /// For `map_err`: an API failure while `doing`.
    pub fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |error| Self::Api {
            doing: doing.into(),
            error: Box::new(error),
        }
    }

    /// Whether the API server knows no such kind of object.
    pub(crate) fn is_unknown_kind(&self) -> bool {
        matches!(self, Self::Api { error, .. } if matches!(**error, kube::Error::Discovery(_)))
    }

    /// Something about a host in words.
    pub fn on(host: impl ToString, message: impl Into<String>) -> Self {
        Self::OnHost {
            host: host.to_string(),
            message: message.into(),
        }
    }

    /// One error out of many; `None` if there are none.
    pub fn merge(mut errors: Vec<Error>) -> Option<Self> {
        match errors.len() {
            0 => None,
            1 => errors.pop(),
            _ => Some(Self::Several(errors)),
        }
    }
}
