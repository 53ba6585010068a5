//! The one error of this crate, and questions to ask an API error.

use std::path::PathBuf;

/// Why a component cannot start, or must stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig file is missing, unreadable, or not a kubeconfig.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file asked for.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The pod has no service account or no address of the API server.
    #[error("no kubeconfig was given, and this is no pod with a service account: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signal(std::io::Error),
    /// A file given by a flag cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file asked for.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A flag or file has a value that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The API server refused, or could not be reached.
    #[error("{}", plain(.0))]
    Api(#[from] kube::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: std::net::SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The certificate of the health server cannot be made or read.
    #[error("serving certificate: {0}")]
    Certificate(String),
    /// Somebody else leads now; this process must stop writing.
    #[error("leadership of {0} was lost")]
    LeadershipLost(String),
    /// A value could not be turned to or from JSON.
    #[error("cannot encode: {0}")]
    Encode(#[from] serde_json::Error),
    /// A reconcile found the world not as it needs it and wants to look again later.
    #[error("{0}")]
    Retry(String),
}

/// The server's own words, without the layers around them.
pub fn plain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            // The layers of the HTTP client say little; their last cause says it all.
            let mut cause: &dyn std::error::Error = other;
            while let Some(next) = cause.source() {
                cause = next;
            }
            cause.to_string()
        }
    }
}

/// Questions that reconcilers ask about an API error.
pub trait ApiErrorExt {
    /// The object (or its kind) does not exist.
    fn is_not_found(&self) -> bool;
    /// Someone else wrote first: read again and retry.
    fn is_conflict(&self) -> bool;
    /// An object of that name exists already.
    fn is_already_exists(&self) -> bool;
    /// The namespace is going away, nothing can be created in it.
    fn is_namespace_terminating(&self) -> bool;
    /// The request itself is refused: retrying at once is useless.
    fn is_invalid(&self) -> bool;
    /// The server does not know the verb on that kind.
    fn is_method_not_allowed(&self) -> bool;
}

impl ApiErrorExt for kube::Error {
    fn is_not_found(&self) -> bool {
        matches!(self, kube::Error::Api(s) if s.code == 404)
    }

    fn is_conflict(&self) -> bool {
        matches!(self, kube::Error::Api(s) if s.code == 409 && s.reason != "AlreadyExists")
    }

    fn is_already_exists(&self) -> bool {
        matches!(self, kube::Error::Api(s) if s.code == 409 && s.reason == "AlreadyExists")
    }

    fn is_namespace_terminating(&self) -> bool {
        matches!(self, kube::Error::Api(s) if s.code == 403
            && s.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
    }

    fn is_invalid(&self) -> bool {
        matches!(self, kube::Error::Api(s) if s.code == 422)
    }

    fn is_method_not_allowed(&self) -> bool {
        matches!(self, kube::Error::Api(s) if s.code == 405)
    }
}

impl Error {
    /// A conflict is no news: somebody wrote first, and the retry is on its way.
    pub fn is_quiet(&self) -> bool {
        match self {
            Error::Api(e) => e.is_conflict(),
            Error::Retry(_) => true,
            _ => false,
        }
    }
}
