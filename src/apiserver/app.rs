//! What all requests share.

use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::admission::service::Ranges;
use crate::args::Args;
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::cache::Cache;
use crate::health::Hooks;
use crate::metrics::Metrics;
use crate::proxy::Kubelets;
use crate::store::Etcd;

/// The running server.
pub struct App {
    /// Flags.
    pub args: Args,
    /// The store.
    pub etcd: Arc<Etcd>,
    /// The watch caches.
    pub cache: Arc<Cache>,
    /// Who is asking.
    pub authn: Authenticator,
    /// May they.
    pub authz: Authorizer,
    /// The way to kubelets, pods and services.
    pub kubelets: Kubelets,
    /// Counters.
    pub metrics: Metrics,
    /// What must be done before the server is ready.
    pub hooks: Hooks,
    /// Addresses and ports of Services.
    pub ranges: Ranges,
    /// Held from reading the Services to writing one, so that no address is given twice by this server.
    pub services: Mutex<()>,
    /// Places for read-only requests.
    pub reads: Semaphore,
    /// Places for mutating requests.
    pub writes: Semaphore,
    /// Ends watches and streams at shutdown.
    pub stop: CancellationToken,
}
