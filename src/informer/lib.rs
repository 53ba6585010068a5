//! What every small component that follows the API server needs: a client, local copies of kinds that keep themselves up to
//! date, a probe server, and the wish to stop.
//!
//! No decisions live here. Components read the copies ([`kube::runtime::reflector::Store`]) when they are told that something
//! changed, and compute from the whole state: a missed event can then never matter.

mod mirror;
pub mod probes;

use std::path::Path;

use kube::{Client, config::KubeConfigOptions, config::Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};

pub use mirror::mirror;

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be read or used.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The pod has no service account or no API server's address.
    #[error("no kubeconfig was given, and this is no pod with a service account: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// The client's TLS material was refused.
    #[error("the API server's client cannot be made: {0}")]
    Client(#[from] kube::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signal(std::io::Error),
}

/// A client of the API server: from a kubeconfig if one is named, else by the pod's service account against
/// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
///
/// # Errors
/// When the kubeconfig or the service account cannot be read. The API server is not asked yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let config = match kubeconfig {
        Some(path) => {
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::incluster()?,
    };
    Ok(Client::try_from(config)?)
}

/// Completes when the process is asked to stop, by SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be received.
pub fn stopped() -> Result<impl Future<Output = ()> + Send + 'static, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
