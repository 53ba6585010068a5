//! What every control plane component that is a *client* of the API server shares: connecting, watching,
//! queueing, leading, recording events, answering probes.
//!
//! Nothing in here knows what a controller or a scheduler decides.

pub mod client;
pub mod error;
pub mod events;
pub mod health;
pub mod informer;
pub mod leader;
pub mod metrics;
pub mod patch;
pub mod placement;
pub mod queue;
pub mod selector;
pub mod signal;
mod tls;

pub use error::{ApiErrorExt, Error, plain};
pub use informer::{Change, Informer, ObjectKey};
pub use queue::{Queue, Requeue};
