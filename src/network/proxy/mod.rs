//! `clusterd proxy`: services and host ports as nftables rules.
//!
//! The whole table is made in one transaction at the start; from then on each change of a service, its endpoints or a pod's host
//! port becomes the smallest script that leads from the last content to the new one. No other table is ever touched.
//!
//! UDP flows that led to endpoints which are gone are cut (`conntrack`), and load balancers are told whether this node has
//! endpoints (`health_check`).
//!
//! Does not: listen on any other port of a service, serve 127.0.0.1 (node ports are on the node's other addresses), follow
//! topology hints. IPv4 only.

pub mod conntrack;
mod health_check;
pub mod model;
pub mod rules;
pub mod table;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use component::{Error, Informer, mirror};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, runtime::watcher};
use tokio::{sync::Notify, time::timeout};

use crate::{
    Cidr, nft,
    start::{Health, Started, start},
};
use conntrack::UdpTargets;
use health_check::HealthChecks;
use model::HealthCheck;
use table::Content;

/// The table's name (family `ip`).
pub const TABLE: &str = "installer-proxy";
/// The chain whose presence says that the table is there.
const CHAIN: &str = "dispatch";
/// As whom the API server's logs know this program.
const USER_AGENT: &str = "clusterd-proxy";
/// How long changes are gathered before they are programmed.
const GATHER: Duration = Duration::from_millis(20);
/// How often the table's presence is checked though nothing changed.
const RESYNC: Duration = Duration::from_secs(30);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// `clusterd proxy`: programs services into nftables.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// This node's name.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Kubeconfig; without it the pod's service account is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The network of all pods: traffic to services that does not come from there is masqueraded.
    #[arg(long, value_name = "CIDR", default_value = "100.64.0.0/16")]
    pub cluster_cidr: Cidr,
    /// The network of services (for information; addresses come from the services themselves).
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<Cidr>,
    /// Address of /healthz and /livez.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
}

/// Programs services until SIGTERM or SIGINT. The rules stay, so that connections go on while the proxy is replaced.
///
/// # Errors
/// When it cannot start. Later failures are logged, shown by `/healthz`, and tried again.
pub async fn run(args: Args) -> Result<(), Error> {
    let Started { client, health, stop } = start(
        USER_AGENT,
        args.kubeconfig.as_deref(),
        args.healthz_bind_address,
        &["/healthz", "/readyz"],
        "not synchronised yet",
    )
    .await?;
    let changed = Arc::new(Notify::new());
    let here = watcher::Config::default().fields(&format!("spec.nodeName={}", args.node_name));
    let told = || Arc::clone(&changed);
    let proxy = Proxy {
        services: mirror(Api::all(client.clone()), watcher::Config::default(), told(), |_| ()),
        slices: mirror(Api::all(client.clone()), watcher::Config::default(), told(), |_| ()),
        pods: mirror(Api::all(client), here, told(), model::trim_pod),
        node: args.node_name,
        cluster: args.cluster_cidr,
        programmed: None,
        cleaned: UdpTargets::default(),
        cannot_clean: None,
        health_checks: HealthChecks::new(Arc::clone(&health)),
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = keep(proxy, &changed, &health) => Ok(()),
    }
}

async fn keep(mut proxy: Proxy, changed: &Notify, health: &Health) {
    // Rules computed from half the objects would refuse what is served.
    proxy.services.synced().await;
    proxy.slices.synced().await;
    proxy.pods.synced().await;
    loop {
        let done = proxy.program().await.map_err(|error| error.to_string());
        let failed = done.is_err();
        if let Err(error) = &done {
            tracing::error!(%error, "services could not be programmed; trying again");
        }
        health.set(done);
        _ = timeout(if failed { RETRY } else { RESYNC }, changed.notified()).await;
        tokio::time::sleep(GATHER).await;
    }
}

struct Proxy {
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    pods: Arc<Informer<Pod>>,
    node: String,
    cluster: Cidr,
    /// What the kernel has; `None` when that is not known.
    programmed: Option<Content>,
    /// Where UDP flows led when stale ones were last deleted.
    cleaned: UdpTargets,
    /// Why the last try to delete them failed.
    cannot_clean: Option<String>,
    health_checks: HealthChecks,
}

/// What services, endpoints and pods ask for.
struct Wanted {
    content: Content,
    udp: UdpTargets,
    health_checks: BTreeMap<u16, HealthCheck>,
}

impl Proxy {
    fn wanted(&self) -> Wanted {
        let (services, slices, pods) = (self.services.all(), self.slices.all(), self.pods.all());
        let services = || services.iter().map(AsRef::as_ref);
        let slices = || slices.iter().map(AsRef::as_ref);
        let ports = model::service_ports(services(), slices(), &self.node);
        let host_ports = model::host_ports(pods.iter().map(AsRef::as_ref), &self.node);
        Wanted {
            content: rules::content(&ports, &host_ports, self.cluster),
            udp: UdpTargets::new(&ports, &host_ports),
            health_checks: model::health_checks(services(), slices(), &self.node),
        }
    }

    async fn program(&mut self) -> Result<(), nft::Error> {
        let wanted = self.wanted();
        self.health_checks.set(wanted.health_checks).await;
        self.program_rules(wanted.content).await?;
        self.clean_flows(wanted.udp).await;
        Ok(())
    }

    /// Deletes UDP flows to endpoints that are gone, if there can be new ones. A kernel that cannot do so still serves.
    async fn clean_flows(&mut self, udp: UdpTargets) {
        if udp == self.cleaned {
            return;
        }
        let targets = udp.clone();
        let done = tokio::task::spawn_blocking(move || conntrack::delete_stale(&targets)).await;
        match done.map_err(std::io::Error::other).flatten() {
            Ok(deleted) => {
                tracing::debug!(deleted, "stale UDP flows deleted");
                self.cleaned = udp;
                self.cannot_clean = None;
            }
            Err(error) => {
                // Tried again each time; a kernel that cannot do it is told of once.
                let why = error.to_string();
                if self.cannot_clean.as_ref() != Some(&why) {
                    tracing::warn!(%error, "UDP flows to endpoints that are gone could not be deleted");
                }
                self.cannot_clean = Some(why);
            }
        }
    }

    async fn program_rules(&mut self, content: Content) -> Result<(), nft::Error> {
        let start = Instant::now();
        // Unknown until the change is seen to have taken effect.
        let known = self.programmed.take();
        let script = match &known {
            Some(old) => table::change(old, &content),
            None => table::whole(&content),
        };
        if script.is_empty() {
            if nft::has_chain(TABLE, CHAIN).await? {
                self.programmed = Some(content);
                return Ok(());
            }
            tracing::warn!("the table has vanished; making it again");
            nft::apply(&table::whole(&content)).await?;
        } else {
            nft::apply(&script).await?;
        }
        tracing::info!(
            chains = content.chains.len(),
            whole = known.is_none(),
            milliseconds = start.elapsed().as_millis(),
            "services programmed"
        );
        self.programmed = Some(content);
        Ok(())
    }
}

#[cfg(test)]
mod datapath_tests;
