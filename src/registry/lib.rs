//! The registry: an OCI distribution server (distribution-spec 1.1) over an OCI image layout.
//!
//! In a cluster it is read-only and serves the very blob files that the installer has sent, so images are on a host once. Requests
//! that a container runtime mirrors to us name the original domain in `?ns=`; see [`names`]. Alone it also takes pushes and
//! deletions; the folder stays a valid image layout at every moment.
//!
//! It holds no blob in memory, and shows nothing of the store but carried container images and what was pushed to it.

mod answer;
mod args;
mod auth;
mod catalog;
mod htpasswd;
mod index;
mod listen;
mod listing;
mod metrics;
pub mod names;
mod pull;
mod push;
pub mod range;
pub mod route;
mod serve;
mod socket;
mod store;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tls_files::{Reread, ServerFiles};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

pub use args::Args;
pub use push::{chunk, manifest};
use serve::Registry;

/// Why the registry could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read.
    #[error("the store cannot be served: {0}")]
    Store(#[from] oci::Error),
    /// Another registry writes to the store.
    #[error("{0} is pushed to through another registry: start this one without --writable, or with another --store")]
    Busy(PathBuf),
    /// The users cannot be read.
    #[error("the users cannot be read: {0}")]
    Users(#[from] auth::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] tls_files::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signal(std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the store, the users or the TLS material cannot be read, or an address cannot be listened on.
pub async fn run(args: Args) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let listener = bind(args.listen).await?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve_on(listener, args, stop).await
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

/// Serves on a socket that is already open until `stop` completes.
async fn serve_on(listener: TcpListener, args: Args, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(tls(cert, key)?),
        _ => None,
    };
    warn(&args);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let connections = args.max_connections;
    let metrics_listener = match args.metrics_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let registry = Arc::new(registry(args)?);
    if let Ok(address) = listener.local_addr() {
        let writable = registry.push.is_some();
        tracing::info!(%address, scheme, writable, "serving images");
    }
    let work = listen::listen(listener, tls, Arc::clone(&registry), connections, stop);
    let looked = Arc::clone(&registry);
    let numbers = async {
        match metrics_listener {
            Some(listener) => metrics::serve(listener, looked.metrics.clone(), move || looked.look()).await,
            None => std::future::pending().await,
        }
    };
    let cleaning = async {
        match &registry.push {
            Some(push) => push.keep_clean().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = work => {}
        () = numbers => {}
        () = cleaning => {}
    }
    Ok(())
}

fn registry(args: Args) -> Result<Registry, Error> {
    let layout = if args.writable {
        oci::Layout::create(args.store)?
    } else {
        oci::Layout::open(args.store)
    };
    let store = Arc::new(store::Store::open(layout, args.domains)?);
    let limits = push::Limits {
        blob: args.max_blob_size,
        uploads: args.max_uploads,
        patience: args.upload_expiry,
    };
    let push = match args.writable {
        true => Some(Arc::new(push::Push::start(Arc::clone(&store), limits)?)),
        false => None,
    };
    let auth = match args.htpasswd {
        Some(file) => Some(auth::Auth::open(file, args.anonymous_pull)?),
        None => None,
    };
    Ok(Registry {
        store,
        push,
        delete: args.delete,
        auth,
        metrics: metrics::Metrics::default(),
    })
}

impl Registry {
    fn look(&self) -> metrics::Looked {
        metrics::Looked {
            repositories: self.store.last().repositories.len(),
            uploads: self.push.as_ref().map_or(0, |push| push.open_uploads()),
        }
    }
}

/// Tells what an operator may not have meant.
fn warn(args: &Args) {
    if args.writable && args.htpasswd.is_none() {
        tracing::warn!(
            "everybody who reaches {} may push (--htpasswd FILE asks for users)",
            args.listen
        );
    }
    if args.htpasswd.is_some() && args.tls_cert.is_none() && !args.listen.ip().is_loopback() {
        tracing::warn!("passwords are sent in the clear (--tls-cert and --tls-key encrypt them)");
    }
}

fn tls(cert: &Path, key: &Path) -> Result<Reread<rustls::ServerConfig>, tls_files::Error> {
    let files = ServerFiles {
        certificate: cert.to_owned(),
        key: key.to_owned(),
        client_authority: None,
        // Clients that know both take HTTP/1.1: then each layer has its own connection, and no window of HTTP/2 slows it down.
        protocols: &["http/1.1", "h2"],
    };
    files.follow()
}
