//! `clusterd dns`: the cluster's DNS, as the Kubernetes DNS-Based Service Discovery specification 1.1.0 says.
//!
//! Names follow Services, EndpointSlices and Namespaces through the API server; they are computed anew from all objects when
//! something has changed, and swapped in one step. Pod names (`1-2-3-4.ns.pod`) are answered for every address in an existing
//! namespace, so pods need not be followed.
//!
//! Does not: cache, transfer zones, sign (DNSSEC), or serve zones of others.

mod answer;
mod forward;
mod message;
mod server;
mod zone;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use component::{Error, Informer, mirror, probes};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, runtime::watcher};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Notify,
};

use forward::Upstream;
use server::Server;
use zone::Zone;

/// As whom the API server's logs know this program.
const USER_AGENT: &str = "clusterd-dns";
/// How long changes are gathered before the names are computed anew.
const GATHER: Duration = Duration::from_millis(20);
/// How long questions are still answered after the end was asked for: until no proxy sends any here.
const LAME_DUCK: Duration = Duration::from_secs(3);

/// `clusterd dns`: cluster DNS.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The cluster's domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Address to answer on, over UDP and TCP.
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":53", value_parser = address)]
    pub listen: SocketAddr,
    /// Address of /health (alive).
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":8080", value_parser = address)]
    pub health: SocketAddr,
    /// Address of /ready (all names known).
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":8181", value_parser = address)]
    pub ready: SocketAddr,
    /// Address of /metrics.
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":9153", value_parser = address)]
    pub metrics: SocketAddr,
    /// Resolver configuration whose nameservers are asked for all other names.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Kubeconfig; without it the pod's service account is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// `:53` means every address, as in other programs of this kind.
fn address(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    if text.starts_with(':') {
        format!("0.0.0.0{text}").parse()
    } else {
        text.parse()
    }
}

/// Answers until SIGTERM or SIGINT, and for a moment after.
///
/// # Errors
/// When it cannot start. Later failures to follow the API server are logged and tried again; names stay as they were.
pub async fn run(args: Args) -> Result<(), Error> {
    let stop = component::signal::stop_token()?;
    let listen = |source| Error::Listen {
        addr: args.listen,
        source,
    };
    let socket = Arc::new(UdpSocket::bind(args.listen).await.map_err(listen)?);
    let listener = TcpListener::bind(args.listen).await.map_err(listen)?;
    let upstream = Upstream::new(&std::fs::read_to_string(&args.resolv_conf).unwrap_or_default());
    tracing::info!(address = %args.listen, domain = args.cluster_domain, upstream = ?upstream.addresses(), "answering");
    let server = Arc::new(Server::new(upstream));
    let ready = Arc::new(AtomicBool::new(false));
    serve_probes(&args, &server, &ready).await?;
    let client = component::client::connect(args.kubeconfig.as_deref(), USER_AGENT).await?;
    let names = Names::follow(client, args.cluster_domain, Arc::clone(&ready));
    tokio::spawn(names.keep(Arc::clone(&server)));
    tokio::spawn(server::serve_udp(Arc::clone(&server), socket));
    tokio::spawn(server::serve_tcp(server, listener));
    stop.cancelled().await;
    ready.store(false, Ordering::Relaxed);
    tokio::time::sleep(LAME_DUCK).await;
    Ok(())
}

async fn serve_probes(args: &Args, server: &Arc<Server>, ready: &Arc<AtomicBool>) -> Result<(), Error> {
    let alive = |path: &str| matches!(path, "/health" | "/healthz" | "/livez").then(|| (true, "OK\n".to_owned()));
    probes::serve(args.health, Arc::new(alive)).await?;
    let ready = Arc::clone(ready);
    let known = move |path: &str| {
        let ready = ready.load(Ordering::Relaxed);
        let text = if ready {
            "OK\n"
        } else {
            "the cluster's names are not known\n"
        };
        matches!(path, "/ready" | "/readyz").then(|| (ready, text.to_owned()))
    };
    probes::serve(args.ready, Arc::new(known)).await?;
    let server = Arc::clone(server);
    let metrics = move |path: &str| (path == "/metrics").then(|| (true, metrics(&server)));
    probes::serve(args.metrics, Arc::new(metrics)).await?;
    Ok(())
}

/// The counters in the text format of Prometheus.
fn metrics(server: &Server) -> String {
    let counters = &server.counters;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut text = "# TYPE dns_requests_total counter\n".to_owned();
    for (proto, counter) in ["udp", "tcp"].iter().zip(&counters.requests) {
        text += &format!("dns_requests_total{{proto=\"{proto}\"}} {}\n", load(counter));
    }
    text += "# TYPE dns_responses_total counter\n";
    for (code, counter) in ["NOERROR", "NXDOMAIN", "SERVFAIL", "other"]
        .iter()
        .zip(&counters.responses)
    {
        text += &format!("dns_responses_total{{rcode=\"{code}\"}} {}\n", load(counter));
    }
    text += &format!(
        "# TYPE dns_forwarded_total counter\ndns_forwarded_total {}\n",
        load(&counters.forwarded)
    );
    text
}

/// The objects that names follow from.
struct Names {
    domain: String,
    changed: Arc<Notify>,
    ready: Arc<AtomicBool>,
    namespaces: Arc<Informer<Namespace>>,
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
}

impl Names {
    fn follow(client: kube::Client, domain: String, ready: Arc<AtomicBool>) -> Self {
        let changed = Arc::new(Notify::new());
        let told = || Arc::clone(&changed);
        let all = watcher::Config::default;
        Self {
            namespaces: mirror(Api::all(client.clone()), all(), told(), |namespace: &mut Namespace| {
                namespace.metadata.annotations = None;
            }),
            services: mirror(Api::all(client.clone()), all(), told(), |service: &mut Service| {
                service.metadata.annotations = None;
            }),
            slices: mirror(Api::all(client), all(), told(), |_| ()),
            domain,
            ready,
            changed: Arc::clone(&changed),
        }
    }

    async fn keep(self, server: Arc<Server>) {
        self.namespaces.synced().await;
        self.services.synced().await;
        self.slices.synced().await;
        server.replace(self.zone());
        self.ready.store(true, Ordering::Relaxed);
        tracing::info!("the cluster's names are known");
        loop {
            self.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            server.replace(self.zone());
        }
    }

    fn zone(&self) -> Zone {
        let (namespaces, services, slices) = (self.namespaces.all(), self.services.all(), self.slices.all());
        Zone::new(
            &self.domain,
            namespaces.iter().map(AsRef::as_ref),
            services.iter().map(AsRef::as_ref),
            slices.iter().map(AsRef::as_ref),
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: super::Args,
    }

    #[test]
    fn flags_are_consistent_and_an_address_may_be_left_out() {
        Cli::command().debug_assert();
        let args = Cli::parse_from(["dns", "--listen", ":1053", "--health", "127.0.0.1:80"]).args;
        assert_eq!(
            (args.listen.to_string(), args.health.to_string()),
            ("0.0.0.0:1053".into(), "127.0.0.1:80".into())
        );
    }
}
