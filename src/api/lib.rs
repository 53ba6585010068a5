//! The Kubernetes 1.36 object model as pure functions over JSON values: which kinds there are and what a server does to
//! an object of a kind — decode, default, validate, prepare, patch, select, print, describe.
//!
//! This crate does no I/O, reads no clock except where a parameter gives the time, and knows nothing of HTTP or storage.

pub mod convert;
pub mod defaults;
pub mod discovery;
pub mod fieldcheck;
pub mod kinds;
pub mod managed;
pub mod metadata;
pub mod openapi;
pub mod patch;
pub mod proto;
pub mod quantity;
pub mod rbac;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod time;
pub mod validation;

/// The Kubernetes release whose API this is: what the API server, its documents and the node agents call themselves.
pub const KUBERNETES_VERSION: &str = "v1.36.0";

pub use kinds::Kind;
pub use status::Status;
