//! The API server: REST and watch over the table of kinds of crate `api`, stored in etcd, served from watch caches.
//!
//! ```text
//!  connection ─ TLS ─ identity ─ permission ─ rest::{list, watch, write, patch, delete, …}
//!                                               │ reads          │ writes: default → admit → validate
//!                                               ▼                ▼
//!                                        cache (per kind) ◄── store::Etcd (one watch over everything)
//! ```
//!
//! Deliberately absent: controllers; custom resources and aggregation; webhooks; the audit log.

pub mod admission;
mod app;
mod args;
mod authn;
mod authz;
mod body;
mod cache;
mod compress;
mod discovery;
pub mod error;
mod health;
mod metrics;
mod model;
mod objects;
mod proxy;
mod request;
mod rest;
mod server;
mod store;
mod system;
mod tls;

#[cfg(test)]
mod contract;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use args::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::admission::service::Ranges;
use crate::app::App;
use crate::authn::{Authenticator, Keys, TokenIssuer};
use crate::authz::Authorizer;
use crate::cache::Cache;
use crate::store::{Etcd, EtcdConfig};

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag's value makes no sense.
    #[error("--{flag}: {why}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Why.
        why: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The listener cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signal(#[source] std::io::Error),
    /// TLS material is not usable.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A key of service account tokens is not usable.
    #[error("service account key: {0}")]
    Key(#[from] authn::KeyError),
    /// etcd cannot be used.
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`Error`] if the server cannot start; an absent etcd is waited for instead.
pub async fn run(args: Args) -> Result<(), Error> {
    let stop = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("shutting down");
        on_signal.cancel();
    });
    let server = Server::start(args, stop).await?;
    tracing::info!(address = %server.address, "serving");
    server.wait().await;
    Ok(())
}

/// A running server.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its parts.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) app: Arc<App>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// Opens the listener and starts everything in the background until `stop`.
    pub(crate) async fn start(args: Args, stop: CancellationToken) -> Result<Self, Error> {
        let config = tls::server(&args)?;
        let wanted = SocketAddr::new(args.bind_address, args.secure_port);
        let listen = |source| Error::Listen {
            address: wanted,
            source,
        };
        let listener = TcpListener::bind(wanted).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        // What is published must be where the server really listens.
        let args = Args {
            secure_port: address.port(),
            ..args
        };
        let grace = Duration::from_secs(args.shutdown_grace_seconds);
        let app = Arc::new(assemble(args, stop.clone()).await?);
        let serving = tokio::spawn(server::serve(app.clone(), listener, config, stop.clone(), grace));
        // The caches outlive the listener, so that requests still open at shutdown are answered.
        let feed_stop = CancellationToken::new();
        let feed = tokio::spawn(app.cache.clone().run(feed_stop.clone()));
        let upkeep = tokio::spawn(system::run(app.clone(), stop));
        let all = tokio::spawn(async move {
            let _ = serving.await;
            let _ = upkeep.await;
            feed_stop.cancel();
            let _ = feed.await;
        });
        Ok(Self {
            address,
            app,
            tasks: vec![all],
        })
    }

    /// Waits for the end.
    pub(crate) async fn wait(self) {
        for t in self.tasks {
            let _ = t.await;
        }
    }
}

fn file(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

async fn assemble(args: Args, stop: CancellationToken) -> Result<App, Error> {
    let etcd = Arc::new(
        Etcd::connect(&EtcdConfig {
            servers: args.etcd_servers.clone(),
            ca: args.etcd_cafile.clone(),
            cert: args.etcd_certfile.clone(),
            key: args.etcd_keyfile.clone(),
        })
        .await?,
    );
    let stored = api::kinds::kinds()
        .iter()
        .filter(|k| k.stored() && k.storage() == Some(k));
    let cache = Arc::new(Cache::new(etcd.clone(), stored.map(rest::select::spec)));
    let public = args
        .service_account_key_file
        .iter()
        .map(|p| file(p))
        .collect::<Result<Vec<_>, _>>()?;
    let keys = Keys::new(&file(&args.service_account_signing_key_file)?, &public)?;
    let tokens = TokenIssuer::new(keys, args.service_account_issuer.clone(), args.api_audiences.clone());
    let authn = Authenticator::new(
        cache.clone(),
        tokens,
        args.enable_bootstrap_token_auth,
        args.anonymous_auth,
    );
    let authz = Authorizer::new(&args.authorization_mode, cache.clone()).map_err(|e| Error::Flag {
        flag: "authorization-mode",
        why: e.to_string(),
    })?;
    Ok(App {
        kubelets: proxy::Kubelets::new(&args)?,
        ranges: ranges(&args)?,
        reads: Semaphore::new(args.max_requests_inflight),
        writes: Semaphore::new(args.max_mutating_requests_inflight),
        metrics: metrics::Metrics::default(),
        hooks: health::Hooks::new(system::HOOKS),
        services: Mutex::new(()),
        etcd,
        cache,
        authn,
        authz,
        stop,
        args,
    })
}

fn ranges(args: &Args) -> Result<Ranges, Error> {
    let bad_range = || Error::Flag {
        flag: "service-cluster-ip-range",
        why: format!("{:?} is no IPv4 range of 8 to 30 bits", args.service_cluster_ip_range),
    };
    let (network, prefix) = args.service_cluster_ip_range.split_once('/').ok_or_else(bad_range)?;
    let network: Ipv4Addr = network.parse().map_err(|_| bad_range())?;
    let prefix: u8 = prefix
        .parse()
        .ok()
        .filter(|p| (8..=30).contains(p))
        .ok_or_else(bad_range)?;
    let network = Ipv4Addr::from(u32::from(network) & (u32::MAX << (32 - u32::from(prefix))));
    let bad_ports = || Error::Flag {
        flag: "service-node-port-range",
        why: format!("{:?} is no range of ports, first-last", args.service_node_port_range),
    };
    let (first, last) = args.service_node_port_range.split_once('-').ok_or_else(bad_ports)?;
    let (first, last): (u16, u16) = (
        first.parse().map_err(|_| bad_ports())?,
        last.parse().map_err(|_| bad_ports())?,
    );
    if first == 0 || first > last {
        return Err(bad_ports());
    }
    Ok(Ranges {
        network,
        prefix,
        node_ports: first..=last,
    })
}
