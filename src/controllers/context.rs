//! What every controller is given: the client, the one set of caches, the recorder, the options.

use std::sync::Arc;

use component::events::Recorder;
use component::metrics::Metrics;
use component::{Error, Informer, ObjectKey, Queue, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ReplicationController, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Options, meta, pods};

/// One informer per kind, shared by all controllers.
pub(crate) struct Caches {
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) nodes: Arc<Informer<Node>>,
    pub(crate) services: Arc<Informer<Service>>,
    pub(crate) endpoints: Arc<Informer<Endpoints>>,
    pub(crate) slices: Arc<Informer<EndpointSlice>>,
    pub(crate) deployments: Arc<Informer<Deployment>>,
    pub(crate) replica_sets: Arc<Informer<ReplicaSet>>,
    pub(crate) replication_controllers: Arc<Informer<ReplicationController>>,
    pub(crate) daemon_sets: Arc<Informer<DaemonSet>>,
    pub(crate) revisions: Arc<Informer<ControllerRevision>>,
    pub(crate) namespaces: Arc<Informer<Namespace>>,
    pub(crate) service_accounts: Arc<Informer<ServiceAccount>>,
    /// Only those named `kube-root-ca.crt`.
    pub(crate) root_cas: Arc<Informer<ConfigMap>>,
    /// Only those of type `kubernetes.io/service-account-token`.
    pub(crate) account_tokens: Arc<Informer<Secret>>,
    /// Only those of type `bootstrap.kubernetes.io/token` in `kube-system`.
    pub(crate) bootstrap_tokens: Arc<Informer<Secret>>,
    pub(crate) requests: Arc<Informer<CertificateSigningRequest>>,
    /// Only those of `kube-node-lease`.
    pub(crate) node_leases: Arc<Informer<Lease>>,
    pub(crate) budgets: Arc<Informer<PodDisruptionBudget>>,
    pub(crate) cluster_roles: Arc<Informer<ClusterRole>>,
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn prune_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
        status.node_info = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
        status.runtime_handlers = None;
    }
}

fn prune_service(service: &mut Service) {
    if let Some(annotations) = &mut service.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    service.status = None;
}

fn keep<K>(_: &mut K) {}

/// The value of the pods' index of those that are on no node.
pub(crate) const NO_NODE: &str = "";

fn node_of(pod: &Pod) -> Option<&str> {
    Some(pods::node_name(pod).unwrap_or(NO_NODE))
}

/// Evaluates `$body` for every cache that holds all objects of its kind, called `$cache` there. The caches left out hold a
/// selection only.
macro_rules! each_whole_kind {
    ($caches:expr, $cache:ident => $body:expr) => {
        $crate::context::each_whole_kind!(@of $caches, $cache => $body;
            pods, nodes, services, endpoints, slices, deployments, replica_sets, replication_controllers, daemon_sets,
            revisions, namespaces, service_accounts, requests, budgets, cluster_roles)
    };
    (@of $caches:expr, $cache:ident => $body:expr; $($field:ident),+) => {
        $({
            let $cache = &$caches.$field;
            $body;
        })+
    };
}
pub(crate) use each_whole_kind;

impl Caches {
    fn new() -> Self {
        Self {
            pods: Informer::with_index("pods", pods::prune, node_of),
            nodes: Informer::new("nodes", prune_node),
            services: Informer::new("services", prune_service),
            endpoints: Informer::new("endpoints", keep),
            slices: Informer::new("endpointslices", keep),
            deployments: Informer::new("deployments", keep),
            replica_sets: Informer::new("replicasets", keep),
            replication_controllers: Informer::new("replicationcontrollers", keep),
            daemon_sets: Informer::new("daemonsets", keep),
            revisions: Informer::new("controllerrevisions", keep),
            namespaces: Informer::new("namespaces", keep),
            service_accounts: Informer::new("serviceaccounts", keep),
            root_cas: Informer::new("configmaps", keep),
            account_tokens: Informer::new("secrets (tokens)", keep),
            bootstrap_tokens: Informer::new("secrets (bootstrap)", keep),
            requests: Informer::new("certificatesigningrequests", keep),
            node_leases: Informer::new("leases", keep),
            budgets: Informer::new("poddisruptionbudgets", keep),
            cluster_roles: Informer::new("clusterroles", keep),
        }
    }

    /// Starts every watch.
    fn spawn(&self, client: &Client, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        each_whole_kind!(self, cache => {
            tasks.spawn(Arc::clone(cache).run(Api::all(client.clone()), Config::default(), stop.clone()))
        });
        let named = Config::default().fields("metadata.name=kube-root-ca.crt");
        tasks.spawn(Arc::clone(&self.root_cas).run(Api::all(client.clone()), named, stop.clone()));
        let tokens = Config::default().fields("type=kubernetes.io/service-account-token");
        tasks.spawn(Arc::clone(&self.account_tokens).run(Api::all(client.clone()), tokens, stop.clone()));
        let bootstrap = Config::default().fields("type=bootstrap.kubernetes.io/token");
        let api = Api::namespaced(client.clone(), "kube-system");
        tasks.spawn(Arc::clone(&self.bootstrap_tokens).run(api, bootstrap, stop.clone()));
        let api = Api::namespaced(client.clone(), "kube-node-lease");
        tasks.spawn(Arc::clone(&self.node_leases).run(api, Config::default(), stop.clone()));
    }
}

/// What every controller is given.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) caches: Caches,
    pub(crate) events: Recorder,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
    pub(crate) options: Arc<Options>,
}

impl Context {
    pub(crate) fn new(
        client: Client,
        events: Recorder,
        metrics: Metrics,
        stop: CancellationToken,
        options: Arc<Options>,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            caches: Caches::new(),
            events,
            metrics,
            stop,
            options,
        })
    }

    /// Starts every watch; the tasks end with `stop`.
    pub(crate) fn start_caches(&self, tasks: &mut JoinSet<()>) {
        self.caches.spawn(&self.client, &self.stop, tasks);
    }

    /// A work queue of object keys for the controller `name`.
    pub(crate) fn queue(&self, name: &'static str) -> Arc<Queue<ObjectKey>> {
        Queue::new(name, self.metrics.queues.clone())
    }

    /// Waits for the first complete list of a cache; `false` if the process stops before.
    pub(crate) async fn synced(&self, wait: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = wait => true,
        }
    }

    /// The work of a controller: when all it must know is `known`, so many workers `reconcile` the keys of the queue until the
    /// process stops.
    pub(crate) fn work<S, F, Fut>(
        self: &Arc<Self>,
        known: impl Future<Output = ()> + Send + 'static,
        queue: Arc<Queue<ObjectKey>>,
        workers: usize,
        state: Arc<S>,
        reconcile: F,
    ) -> BoxFuture<'static, ()>
    where
        S: Send + Sync + 'static,
        F: Fn(Arc<S>, ObjectKey) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Requeue, Error>> + Send + 'static,
    {
        let ctx = Arc::clone(self);
        Box::pin(async move {
            if ctx.synced(known).await {
                let reconcile = move |key| reconcile(Arc::clone(&state), key);
                queue.run(workers, ctx.stop.clone(), reconcile).await;
            }
        })
    }

    /// The controller-manager's own log line for `what` an object is.
    pub(crate) fn describe(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
        format!("{}/{}", meta::namespace(meta), meta::name(meta))
    }
}

/// Completes when the first complete lists of several caches are in.
macro_rules! known {
    ($ctx:expr, $($cache:ident),+) => {{
        let ctx = Arc::clone($ctx);
        async move { $(ctx.caches.$cache.synced().await;)+ }
    }};
}
pub(crate) use known;

/// A controller: registers its handlers when called, works while its future is polled.
pub(crate) type Start = fn(&Arc<Context>) -> BoxFuture<'static, ()>;
