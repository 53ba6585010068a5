//! The controller manager: every controller of the control plane in one process, over one set of caches.
//!
//! A controller is a file: a pure decision with its tests, and a thin loop that reads from the shared caches, decides, and
//! writes through the API. Controllers do not know each other. [`CONTROLLERS`] is the list.

#![recursion_limit = "256"]

mod bootstrap_token;
mod cidr;
mod claim;
mod clusterrole_aggregation;
mod context;
mod csr;
mod csr_approve;
mod csr_sign;
mod daemon_placement;
mod daemon_plan;
mod daemon_status;
mod daemonset;
mod deployment;
mod deployment_plan;
mod deployment_sets;
mod deployment_status;
mod discover;
mod disruption;
mod endpoint_facts;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod endpointslice_plan;
mod endpointslice_writer;
mod expectations;
mod gc;
mod gc_graph;
mod hash;
mod meta;
mod namespace;
mod node_health;
mod node_ipam;
mod node_lifecycle;
mod options;
mod pod_gc;
mod pods;
mod replica_rank;
mod replicaset;
mod serviceaccount;
mod taint_eviction;
mod token_secret;

use std::sync::Arc;

use component::events::Recorder;
use component::health::Server;
use component::leader::Candidate;
use component::metrics::Metrics;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use component::Error;
pub use options::{Args, Options};

use context::{Context, Start};

/// Every controller by the name that `--controllers` knows it by.
const CONTROLLERS: [(&str, Start); 22] = [
    ("certificatesigningrequest-approving-controller", csr_approve::start),
    ("certificatesigningrequest-cleaner-controller", csr_sign::clean),
    ("certificatesigningrequest-signing-controller", csr_sign::start),
    ("clusterrole-aggregation-controller", clusterrole_aggregation::start),
    ("daemonset-controller", daemonset::start),
    ("deployment-controller", deployment::start),
    ("disruption-controller", disruption::start),
    ("endpoints-controller", endpoints::start),
    ("endpointslice-controller", endpointslice::start),
    ("endpointslice-mirroring-controller", endpointslice_mirroring::start),
    ("garbage-collector-controller", gc::start),
    ("namespace-controller", namespace::start),
    ("node-ipam-controller", node_ipam::start),
    ("node-lifecycle-controller", node_lifecycle::start),
    ("pod-garbage-collector-controller", pod_gc::start),
    ("replicaset-controller", replicaset::replica_sets),
    ("replicationcontroller-controller", replicaset::replication_controllers),
    ("root-ca-certificate-publisher-controller", serviceaccount::root_ca),
    ("serviceaccount-controller", serviceaccount::accounts),
    ("serviceaccount-token-controller", token_secret::start),
    ("taint-eviction-controller", taint_eviction::start),
    ("token-cleaner-controller", bootstrap_token::start),
];

/// Its lease, and as whom the API server's logs know it.
const NAME: &str = "kube-controller-manager";

/// Runs the controller manager until SIGTERM or SIGINT, then gives its lease back.
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
    let options = Arc::new(Options::read(&args)?);
    let client = component::client::connect(Some(&args.kubeconfig), NAME).await?;
    let server = Server::bind((args.bind_address, args.secure_port).into(), args.serving_files()).await?;
    let metrics = Metrics::default();
    let candidate = Candidate {
        name: NAME,
        client: client.clone(),
        server,
        metrics: metrics.clone(),
        elect: args.leader_elect,
    };
    let work = |leading| {
        control(
            client.clone(),
            metrics.clone(),
            leading,
            Arc::clone(&options),
            args.controllers.clone(),
        )
    };
    candidate.run(stop, work).await;
    Ok(())
}

/// Runs all enabled controllers until `stop`.
async fn control(
    client: kube::Client,
    metrics: Metrics,
    stop: CancellationToken,
    options: Arc<Options>,
    enabled: Vec<String>,
) {
    let mut tasks = JoinSet::new();
    let (events, writer) = Recorder::new(client.clone(), "controllermanager", stop.clone());
    tasks.spawn(writer);
    let ctx = Context::new(client, events, metrics, stop, options);
    // Handlers first: whatever the caches see from their first object on reaches everybody.
    let controllers: Vec<_> = CONTROLLERS
        .iter()
        .filter(|(name, _)| options::is_enabled(&enabled, name))
        .map(|(_, start)| start(&ctx))
        .collect();
    controllers.into_iter().for_each(|c| {
        tasks.spawn(c);
    });
    ctx.start_caches(&mut tasks);
    while tasks.join_next().await.is_some() {}
}
