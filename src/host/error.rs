//! Why something on this host could not be done.

use crate::proto::{Fault, FaultKind};
use std::{io, path::Path};

/// Result of this crate's host side.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure on the host. Messages hold no secrets; the host's name is added by whoever knows it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something about a file.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Blob store or layout.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// Another kind, with its message.
    #[error("{message}")]
    Other {
        /// For programs.
        kind: FaultKind,
        /// For people.
        message: String,
    },
}

impl Error {
    /// For `map_err`: adds the path.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            path: path.as_ref().display().to_string(),
            source,
        }
    }

    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self::Other {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Invalid, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Failed, message)
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Corrupt, message)
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => FaultKind::NotFound,
            Self::Io { .. } | Self::Oci(oci::Error::Io { .. }) => FaultKind::System,
            Self::Oci(oci::Error::Missing(_)) => FaultKind::NotFound,
            Self::Oci(_) => FaultKind::Corrupt,
            Self::Other { kind, .. } => *kind,
        }
    }

    /// As it goes over the wire.
    pub(crate) fn fault(&self) -> Fault {
        Fault {
            kind: self.kind(),
            message: self.to_string(),
            effect: None,
        }
    }
}
