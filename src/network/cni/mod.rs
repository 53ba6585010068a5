//! `clusterd network`: wires this node's pods and keeps the routes to the pods of all other nodes.
//!
//! Level-triggered: whatever happens (a node comes or goes, a link is reset, somebody removes a route), the whole plan is computed
//! again and compared with the kernel. The CNI configuration is written last, because the node counts as ready once it is there.
//!
//! Does not: give addresses to pods (`host-local` does), program services ([`crate::proxy`]), enforce network policies.

mod conflist;
mod kernel;
mod plan;
mod rules;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use component::{Informer, mirror};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, runtime::watcher};
use rtnetlink::MulticastGroup;
use tokio::{sync::Notify, time::timeout};

use crate::{
    Cidr, nft,
    start::{Health, Started, start},
};
use kernel::Kernel;

/// As whom the API server's logs know this program.
const USER_AGENT: &str = "clusterd-network";
/// How long changes are gathered before they are acted on.
const GATHER: Duration = Duration::from_millis(50);
/// How often the kernel is looked at though nothing seemed to change.
const RESYNC: Duration = Duration::from_secs(30);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Whether packets between links are passed on.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// `clusterd network`: pod addresses and routes of this node.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// This node's name.
    #[arg(long, env = "NODE_NAME", required_unless_present = "cleanup")]
    pub node_name: Option<String>,
    /// Kubeconfig; without it the pod's service account is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The network of all pods.
    #[arg(long, value_name = "CIDR", default_value = "100.64.0.0/16")]
    pub cluster_cidr: Cidr,
    /// The network of services: made reachable from this host when it has no default route.
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<Cidr>,
    /// Folder of CNI configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Address of /healthz and /readyz.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10247")]
    pub healthz_bind_address: SocketAddr,
    /// Remove all that the network and proxy roles have left on this host, and stop. Needs no API server.
    #[arg(long)]
    pub cleanup: bool,
}

/// Why the node's network could not be brought to what it must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client, no signals, or no address for probes.
    #[error(transparent)]
    Start(#[from] component::Error),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The rules were refused.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// This node is not known well enough yet.
    #[error("waiting: {0}")]
    Waiting(String),
}

/// Keeps the node's network until SIGTERM or SIGINT; what it made stays, so that pods go on while it is replaced. With
/// `--cleanup` removes all of it and returns.
///
/// # Errors
/// When it cannot start, or the clean-up is incomplete. Later failures are logged, shown by `/readyz`, and tried again.
pub async fn run(args: Args) -> Result<(), Error> {
    if args.cleanup {
        return cleanup(&args.cni_conf_dir).await;
    }
    let Started { client, health, stop } = start(
        USER_AGENT,
        args.kubeconfig.as_deref(),
        args.healthz_bind_address,
        &["/readyz"],
        "not done yet",
    )
    .await?;
    let changed = Arc::new(Notify::new());
    let nodes = mirror(Api::all(client), watcher::Config::default(), Arc::clone(&changed), trim);
    follow_kernel(Arc::clone(&changed)).map_err(kernel::Error::Socket)?;
    let network = Network {
        args,
        nodes,
        kernel: Kernel::connect()?,
        rules: String::new(),
        problems: Vec::new(),
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = keep(network, &changed, &health) => Ok(()),
    }
}

async fn keep(mut network: Network, changed: &Notify, health: &Health) {
    loop {
        let done = network.reconcile().await.map_err(|error| error.to_string());
        let failed = done.is_err();
        if health.set(done.clone()) {
            match done {
                Ok(()) => tracing::info!("the node's network is ready"),
                Err(error) => tracing::warn!(%error, "the node's network is not ready"),
            }
        }
        _ = timeout(if failed { RETRY } else { RESYNC }, changed.notified()).await;
        tokio::time::sleep(GATHER).await;
    }
}

struct Network {
    args: Args,
    nodes: Arc<Informer<Node>>,
    kernel: Kernel,
    /// The rules applied last.
    rules: String,
    /// The problems logged last.
    problems: Vec<String>,
}

impl Network {
    async fn reconcile(&mut self) -> Result<(), Error> {
        // A plan from half the nodes would take the routes to the other half away.
        if !self.nodes.is_synced() {
            return Err(Error::Waiting("the nodes are not known yet".to_owned()));
        }
        let nodes = self.nodes.all();
        let own = nodes
            .iter()
            .find(|node| node.metadata.name.is_some() && node.metadata.name == self.args.node_name);
        let own = own.ok_or_else(|| {
            Error::Waiting(format!(
                "node {:?} is not known yet",
                self.args.node_name.as_deref().unwrap_or_default()
            ))
        })?;
        let me = plan::peer(own).map_err(Error::Waiting)?;
        let peers: Vec<_> = nodes.iter().filter_map(|node| plan::peer(node).ok()).collect();
        let uplink = self.kernel.uplink(me.address).await?;
        let plan = plan::plan(&me, &peers, &uplink, self.args.service_cidr);
        if plan.problems != self.problems {
            for problem in &plan.problems {
                tracing::warn!("{problem}");
            }
            self.problems.clone_from(&plan.problems);
        }
        forward()?;
        self.masquerade(&me).await?;
        self.kernel.apply(&plan, &uplink, me.address, me.pods).await?;
        let text = conflist::text(me.pods, plan.pod_mtu(&uplink));
        let dir = &self.args.cni_conf_dir;
        if conflist::write(dir, &text).map_err(|source| file(&conflist::path(dir), source))? {
            tracing::info!(pods = %me.pods, "CNI configuration written");
        }
        Ok(())
    }

    async fn masquerade(&mut self, me: &plan::Peer) -> Result<(), Error> {
        let rules = rules::table(me.pods, self.args.cluster_cidr);
        if rules != self.rules || !nft::has_chain(rules::TABLE, rules::CHAIN).await? {
            nft::apply(&rules).await?;
            self.rules = rules;
        }
        Ok(())
    }
}

/// Drops what is not needed of a node; images alone may be hundreds of lines.
fn trim(node: &mut Node) {
    node.metadata.annotations = None;
    node.metadata.labels = None;
    if let Some(status) = &mut node.status {
        let addresses = status.addresses.take();
        *status = k8s_openapi::api::core::v1::NodeStatus {
            addresses,
            ..Default::default()
        };
    }
}

/// Tells `changed` whenever links, addresses or routes of the host change.
fn follow_kernel(changed: Arc<Notify>) -> std::io::Result<()> {
    use futures::StreamExt;
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
    ];
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        // The connection ends with its last handle.
        let _handle = handle;
        while messages.next().await.is_some() {
            changed.notify_one();
        }
    });
    Ok(())
}

fn forward() -> Result<(), Error> {
    let path = Path::new(FORWARD);
    if std::fs::read_to_string(path)
        .map_err(|source| file(path, source))?
        .trim()
        == "1"
    {
        return Ok(());
    }
    tracing::info!("switching on IPv4 forwarding");
    std::fs::write(path, "1").map_err(|source| file(path, source))
}

fn file(path: &Path, source: std::io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        source,
    }
}

async fn cleanup(cni_conf_dir: &Path) -> Result<(), Error> {
    let routes = Kernel::connect()?.remove_all().await?;
    nft::apply(&(nft::removal(rules::TABLE) + &nft::removal(crate::proxy::TABLE))).await?;
    for path in [conflist::path(cni_conf_dir), PathBuf::from(conflist::ADDRESSES)] {
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        match removed {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(file(&path, source)),
            _ => {}
        }
    }
    tracing::info!(routes, "the node's network is removed");
    Ok(())
}
