//! The scheduler: gives every pod a node.
//!
//! The decision ([`decide::schedule`]) is a pure function over a cluster that is kept up to date change by change. The
//! loop around it assumes what it decided and binds in the background. Volumes and extenders are not its business.

#![recursion_limit = "256"]

pub mod affinity;
pub mod cluster;
pub mod decide;
mod engine;
pub mod filters;
pub mod preempt;
pub mod queue;
pub mod resources;
pub mod scores;
pub mod spread;
pub mod state;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use component::health::{Health, Server};
use component::leader::Election;
use component::metrics::Metrics;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use component::Error;

use engine::Numbers;

const USER_AGENT: &str = "kube-scheduler";

/// Flags of the scheduler; names and meanings are those of kube-scheduler.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Accepted for compatibility: authentication of callers goes through --kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// Accepted for compatibility: authorization of callers goes through --kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Address of the HTTPS server for health and metrics.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Port of the HTTPS server for health and metrics.
    #[arg(long, default_value_t = 10259, value_name = "PORT")]
    pub secure_port: u16,
    /// Certificate of that server; without it a self-signed one is made in memory.
    #[arg(long, requires = "tls_private_key_file", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, requires = "tls_cert_file", value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Whether to wait for the lease before working.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
}

/// Runs the scheduler until SIGTERM or SIGINT, then gives its lease back.
///
/// # Errors
/// If a flag or file is unusable, or the port is taken.
pub async fn run(args: Args) -> Result<(), Error> {
    let stop = component::signal::stop_token()?;
    serve(args, stop).await
}

/// As [`run`], until `stop`.
///
/// # Errors
/// As [`run`].
pub async fn serve(args: Args, stop: CancellationToken) -> Result<(), Error> {
    let client = component::client::connect(Some(&args.kubeconfig), USER_AGENT).await?;
    let files = args.tls_cert_file.as_deref().zip(args.tls_private_key_file.as_deref());
    let server = Server::bind((args.bind_address, args.secure_port).into(), files).await?;
    let addr = server.addr();
    let (health, metrics) = (Arc::new(Health::default()), Metrics::default());
    let mut serving = JoinSet::new();
    let server_stop = CancellationToken::new();
    serving.spawn(server.serve(
        Arc::clone(&health),
        metrics.clone(),
        client.clone(),
        server_stop.clone(),
    ));
    info!(%addr, "scheduler is up");

    let election = Election::new(&client, "kube-scheduler", addr, health, metrics.clone());
    let numbers = Numbers::register(&metrics);
    if args.leader_elect {
        while election.acquire(&stop).await {
            let work = stop.child_token();
            let scheduling = tokio::spawn(engine::run(client.clone(), numbers.clone(), work.clone()));
            let held = election.hold(&stop).await;
            work.cancel();
            // Nothing of ours may write any more when somebody else may lead. What is left is a candidate like any other.
            let _ = scheduling.await;
            match held {
                Ok(()) => election.release().await,
                Err(error) => warn!(%error, "waiting for the lease again"),
            }
        }
    } else {
        engine::run(client, numbers, stop).await;
    }
    server_stop.cancel();
    Ok(())
}
