//! What can go wrong in the agent, as people read it. Errors of one container's start are not here: they become
//! the reason and message of that container's waiting state (see `start::StartError`).

use std::path::{Path, PathBuf};

/// An error of the agent as a whole, or of one operation it will retry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, in the infinitive: `read`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The configuration, a kubeconfig or a flag cannot be used.
    #[error("{origin}: {message}")]
    Config {
        /// File or flag.
        origin: String,
        /// What is wrong and what is expected.
        message: String,
    },
    /// The container runtime refused or could not be reached.
    #[error("container runtime: {call}: {message}")]
    Runtime {
        /// The CRI call.
        call: &'static str,
        /// The runtime's message.
        message: String,
        /// gRPC status code.
        code: tonic::Code,
    },
    /// The API server refused or could not be reached.
    #[error("API server: {0}")]
    Api(#[from] Box<kube::Error>),
    /// No client certificate or kubeconfig is there yet.
    #[error("no connection to the API server is configured yet")]
    NoApi,
    /// A certificate, key or request could not be made or read.
    #[error("certificate: {0}")]
    Certificate(String),
    /// A volume cannot be provided.
    #[error("volume {volume:?}: {message}")]
    Volume {
        /// Its name in the pod.
        volume: String,
        /// Why.
        message: String,
    },
    /// Anything else, said in full.
    #[error("{0}")]
    Other(String),
}

/// The agent's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<kube::Error> for Error {
    fn from(e: kube::Error) -> Self {
        Error::Api(Box::new(e))
    }
}

impl Error {
    /// Wraps an I/O error with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// A volume's error.
    pub fn volume(volume: &str, message: impl std::fmt::Display) -> Error {
        Error::Volume {
            volume: volume.to_owned(),
            message: message.to_string(),
        }
    }

    /// Whether the runtime says that the thing does not exist (so a removal is already done).
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::Runtime { code, .. } => *code == tonic::Code::NotFound,
            Error::Api(e) => matches!(&**e, kube::Error::Api(s) if s.code == 404),
            _ => false,
        }
    }

    /// The HTTP status code of an API server's refusal.
    pub fn api_code(&self) -> Option<u16> {
        match self {
            Error::Api(e) => match &**e {
                kube::Error::Api(s) => Some(s.code),
                _ => None,
            },
            _ => None,
        }
    }
}
