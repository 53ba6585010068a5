//! The private registry: a read-only OCI distribution server over the image layout of a host.
//!
//! It serves the very blob files that the installer has sent, so images are on a host once. Requests that a container runtime
//! mirrors to us name the original domain in `?ns=`; see [`names`].
//!
//! It never writes to the store, holds no blob in memory, and shows nothing of the store but carried container images.

mod answer;
mod catalog;
mod listen;
pub mod names;
pub mod range;
pub mod route;
mod serve;
mod store;
mod stream;
#[cfg(test)]
mod testing;

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

/// `clusterd registry`: serves a host's OCI image layout to container runtimes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// OCI image layout to serve: index.json and blobs/ lie in it.
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:5000")]
    pub listen: SocketAddr,
    /// Certificate chain (PEM). Without it plain HTTP is spoken.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// A domain this registry is reached by, with its port, such as sea.hub:5000. May be repeated.
    #[arg(long = "domain", value_name = "DOMAIN:PORT")]
    pub domains: Vec<String>,
}

/// Why the registry could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read.
    #[error("the store cannot be served: {0}")]
    Store(#[from] oci::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificate or key cannot be read.
    #[error("{path}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key are no pair, or of an unknown kind.
    #[error("the certificate or its key was refused: {0}")]
    Tls(#[from] rustls::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signal(std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the store or the TLS material cannot be read, or the address cannot be listened on.
pub async fn run(args: Args) -> Result<(), Error> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(acceptor(cert, key)?),
        _ => None,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let listener = TcpListener::bind(args.listen).await.map_err(|source| Error::Listen {
        address: args.listen,
        source,
    })?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve_on(listener, tls, args, stop).await
}

/// Serves on a socket that is already open until `stop` completes.
async fn serve_on(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    args: Args,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let store = Arc::new(store::Store::open(oci::Layout::open(args.store), args.domains)?);
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, scheme, "serving images");
    }
    listen::listen(listener, tls, store, stop).await;
    Ok(())
}

fn acceptor(cert: &PathBuf, key: &PathBuf) -> Result<TlsAcceptor, Error> {
    let pem = |path: &PathBuf| {
        let path = path.clone();
        move |source| Error::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(pem(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(pem(key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // Clients that know both take HTTP/1.1: then each layer has its own connection, and no window of HTTP/2 slows it down.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests;
