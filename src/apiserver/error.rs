//! Refusals as Kubernetes clients know them: the [`Status`](api::Status) that every handler returns, and what this server's own
//! failures are to clients.

use crate::cache::{Behind, ConsistentError, TooOld};
use crate::store::StoreError;

pub use api::Status as ApiError;
pub use api::validation::FieldError;

/// Result of handling a request.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

impl From<Behind> for ApiError {
    fn from(b: Behind) -> Self {
        Self::too_large_resource_version(b.want, b.have)
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Compacted => Self::expired("The provided resource version is too old; start again without it"),
            StoreError::TooLarge => Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {e}")),
            StoreError::Timeout => Self::new(504, "Timeout", format!("the store does not answer: {e}")),
            StoreError::Etcd(_) => Self::internal(e),
            StoreError::Future | StoreError::File { .. } | StoreError::Damaged { .. } => Self::internal(e),
        }
    }
}

impl From<ConsistentError> for ApiError {
    fn from(e: ConsistentError) -> Self {
        match e {
            ConsistentError::Store(e) => e.into(),
            ConsistentError::Behind(b) => b.into(),
        }
    }
}

impl From<TooOld> for ApiError {
    fn from(e: TooOld) -> Self {
        Self::expired(e.to_string())
    }
}
