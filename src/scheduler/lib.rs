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

use component::health::Server;
use component::leader::Candidate;
use component::metrics::Metrics;
use tokio_util::sync::CancellationToken;

pub use component::Error;

use engine::Numbers;

/// Its lease, and as whom the API server's logs know it.
const NAME: &str = "kube-scheduler";

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
    let client = component::client::connect(Some(&args.kubeconfig), NAME).await?;
    let files = args.tls_cert_file.as_deref().zip(args.tls_private_key_file.as_deref());
    let server = Server::bind((args.bind_address, args.secure_port).into(), files).await?;
    let metrics = Metrics::default();
    let numbers = Numbers::register(&metrics);
    let candidate = Candidate {
        name: NAME,
        client: client.clone(),
        server,
        metrics,
        elect: args.leader_elect,
    };
    candidate
        .run(stop, |leading| engine::run(client.clone(), numbers.clone(), leading))
        .await;
    Ok(())
}
