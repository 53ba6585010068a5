//! What every component that is a *client* of the API server shares: connecting, watching, queueing, leading, recording
//! events, answering probes, stopping.
//!
//! Nothing in here knows what a component decides. Each part can be had alone: small programs on every node take a
//! client, mirrors and probes, and pay for nothing else.

pub mod client;
pub mod error;
pub mod events;
pub mod health;
pub mod informer;
pub mod leader;
pub mod metrics;
mod mirror;
pub mod patch;
pub mod placement;
pub mod probes;
pub mod queue;
pub mod selector;
pub mod serving;
pub mod signal;
mod tls;

pub use error::{ApiErrorExt, Error, plain};
pub use informer::{Change, Informer, ObjectKey};
pub use mirror::mirror;
pub use queue::{Queue, Requeue};
