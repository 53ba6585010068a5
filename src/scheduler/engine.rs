//! The loop: take a pod, decide, assume, and tell the API server in the background.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::events::{Level, Recorder};
use component::metrics::Metrics;
use component::{ApiErrorExt, Error, Informer};
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::cluster::PodInfo;
use crate::decide::{Decision, Unfit, schedule};
use crate::preempt::{Plan, is_room_coming, plan};
use crate::state::{State, prune_namespace, prune_node, prune_pod};

/// How many answers of the API server are waited for at once.
const IN_FLIGHT: usize = 128;
const BIND_TIME: Duration = Duration::from_secs(30);

/// One running scheduler.
pub(crate) struct Engine {
    client: Client,
    events: Recorder,
    state: Arc<State>,
    pods: Arc<Informer<Pod>>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    slots: Arc<Semaphore>,
    numbers: Numbers,
}

type Label = Vec<(&'static str, &'static str)>;

/// What the scheduler counts.
#[derive(Clone, Default)]
pub(crate) struct Numbers {
    attempts: Family<Label, Counter>,
    waiting: Family<Label, Gauge>,
}

impl Numbers {
    /// New numbers, shown among `metrics`.
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let numbers = Self::default();
        metrics.register(|registry| {
            registry.register(
                "scheduler_schedule_attempts",
                "Turns of pods, by result",
                numbers.attempts.clone(),
            );
            registry.register(
                "scheduler_pending_pods",
                "Pods that wait, by why",
                numbers.waiting.clone(),
            );
        });
        numbers
    }
}

/// What a pod's turn led to, to be told to the API server.
enum Outcome {
    Bind(Arc<PodInfo>, String),
    Explain(Arc<PodInfo>, String, Option<Plan>),
}

/// Schedules until `stop`.
pub(crate) async fn run(client: Client, numbers: Numbers, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let (events, writer) = Recorder::new(client.clone(), crate::state::SCHEDULER_NAME, stop.clone());
    tasks.spawn(writer);
    let state: Arc<State> = Arc::default();
    let pods: Arc<Informer<Pod>> = Informer::new("pods", prune_pod);
    let nodes: Arc<Informer<Node>> = Informer::new("nodes", prune_node);
    let namespaces: Arc<Informer<PartialObjectMeta<Namespace>>> = Informer::new("namespaces", prune_namespace);
    let budgets: Arc<Informer<PodDisruptionBudget>> = Informer::new("poddisruptionbudgets", |_| {});
    let on = Arc::clone(&state);
    pods.on_change(move |c| on.pod_changed(c));
    let on = Arc::clone(&state);
    nodes.on_change(move |c| on.node_changed(c));
    let on = Arc::clone(&state);
    namespaces.on_change(move |c| on.namespace_changed(c));
    // Pods that have ended hold nothing.
    let living = Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    tasks.spawn(Arc::clone(&pods).run(Api::all(client.clone()), living, stop.clone()));
    tasks.spawn(Arc::clone(&nodes).run(Api::all(client.clone()), Config::default(), stop.clone()));
    tasks.spawn(Arc::clone(&namespaces).run(Api::all(client.clone()), Config::default(), stop.clone()));
    tasks.spawn(Arc::clone(&budgets).run(Api::all(client.clone()), Config::default(), stop.clone()));

    let engine = Engine {
        client,
        events,
        state,
        pods: Arc::clone(&pods),
        budgets: Arc::clone(&budgets),
        slots: Arc::new(Semaphore::new(IN_FLIGHT)),
        numbers,
    };
    let synced = async {
        nodes.synced().await;
        namespaces.synced().await;
        pods.synced().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = synced => Arc::new(engine).schedule_all(&stop).await,
    }
    while tasks.join_next().await.is_some() {}
}

impl Engine {
    async fn schedule_all(self: Arc<Self>, stop: &CancellationToken) {
        info!(pods = self.pods.len(), "scheduling");
        let mut draw = rand::random::<u32>() as usize;
        loop {
            // Memory for answers outstanding is bounded, and so is what may have to be taken back.
            let slot = tokio::select! {
                () = stop.cancelled() => return,
                slot = Arc::clone(&self.slots).acquire_owned() => slot,
            };
            let Ok(slot) = slot else { return };
            draw = draw
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let rung = self.state.bell.notified();
            let (outcome, due) = self.turn(draw >> 33);
            let Some(outcome) = outcome else {
                drop(slot);
                let due =
                    tokio::time::Instant::from_std(due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)));
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = rung => {}
                    () = tokio::time::sleep_until(due) => {}
                }
                continue;
            };
            let engine = Arc::clone(&self);
            tokio::spawn(async move {
                let _slot = slot;
                match outcome {
                    Outcome::Bind(pod, node) => engine.bind(pod, &node).await,
                    Outcome::Explain(pod, message, plan) => engine.explain(&pod, &message, plan).await,
                }
            });
        }
    }

    /// The next pod's turn, decided and taken into account while the lock is held; or when there may be one.
    fn turn(&self, draw: usize) -> (Option<Outcome>, Option<Instant>) {
        let mut inner = self.state.lock();
        let now = Instant::now();
        let Some(pod) = inner.queue.pop(now) else {
            self.show_waiting(inner.queue.waiting());
            return (None, inner.queue.next_due());
        };
        match schedule(&inner.cluster, &pod, draw) {
            Decision::Node(node) => {
                inner.queue.remove(&pod.uid);
                inner.cluster.withdraw(&pod.uid);
                inner.cluster.place(Arc::clone(&pod), &node);
                self.numbers
                    .attempts
                    .get_or_create(&vec![("result", "scheduled")])
                    .inc();
                (Some(Outcome::Bind(pod, node)), None)
            }
            Decision::None(unfit) => {
                self.numbers
                    .attempts
                    .get_or_create(&vec![("result", "unschedulable")])
                    .inc();
                let nominated = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.clone());
                let waits = nominated.is_some_and(|n| is_room_coming(&inner.cluster, &pod, &n));
                let plan = if waits {
                    None
                } else {
                    plan(&inner.cluster, &pod, &unfit, &self.budgets.all())
                };
                if let Some(plan) = &plan {
                    inner.cluster.nominate(Arc::clone(&pod), &plan.node);
                }
                let reasons: BTreeSet<_> = unfit.reasons.keys().cloned().collect();
                inner.queue.unschedulable(&pod.uid, reasons, now);
                let message = explain(&unfit, plan.is_some());
                (Some(Outcome::Explain(pod, message, plan)), None)
            }
        }
    }

    fn show_waiting(&self, waiting: crate::queue::Waiting) {
        let show = |queue: &'static str, n: usize| {
            self.numbers
                .waiting
                .get_or_create(&vec![("queue", queue)])
                .set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        show("active", waiting.active);
        show("backoff", waiting.backoff);
        show("unschedulable", waiting.unschedulable);
    }

    async fn bind(&self, pod: Arc<PodInfo>, node: &str) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.key.name.clone()),
                namespace: Some(pod.key.namespace.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let params = PostParams::default();
        let sent = api.create_subresource::<_, Value>("binding", &pod.key.name, &params, &binding);
        let error = match tokio::time::timeout(BIND_TIME, sent).await {
            Ok(Ok(_)) => {
                debug!(pod = %pod.key, node, "bound");
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.events.event(&*pod.pod, Level::Normal, "Scheduled", message);
                return;
            }
            Ok(Err(error)) if error.is_not_found() => {
                // Gone, or replaced by another of that name, which comes by itself.
                self.state.lock().cluster.forget(&pod.uid);
                return;
            }
            Ok(Err(error)) => Error::from(error),
            Err(_) => Error::Retry("no answer to the binding in time".into()),
        };
        self.take_back(pod, node, &error);
    }

    /// A binding failed: what was assumed did not happen, unless the watch says that it did.
    fn take_back(&self, pod: Arc<PodInfo>, node: &str, error: &Error) {
        warn!(pod = %pod.key, node, %error, "cannot bind");
        let known = self
            .pods
            .get_key(&pod.key)
            .filter(|p| p.metadata.uid.as_ref() == Some(&pod.uid));
        let bound = known.as_ref().is_some_and(|p| {
            p.spec
                .as_ref()
                .is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()))
        });
        if bound {
            return;
        }
        self.events.event(
            &*pod.pod,
            Level::Warning,
            "FailedScheduling",
            format!("binding rejected: {error}"),
        );
        let mut inner = self.state.lock();
        inner.cluster.forget(&pod.uid);
        if let Some(known) = known {
            inner.queue.failed(PodInfo::new(known), Instant::now());
            drop(inner);
            self.state.bell.notify_one();
        }
    }

    /// Says why a pod waits, and makes room for it if there is a plan.
    async fn explain(&self, pod: &PodInfo, message: &str, plan: Option<Plan>) {
        debug!(pod = %pod.key, message, "unschedulable");
        let nominated = plan.as_ref().map(|p| p.node.clone());
        if let Err(error) = self.write_condition(pod, message, nominated).await {
            debug!(pod = %pod.key, %error, "condition not written");
        }
        self.events
            .event(&*pod.pod, Level::Warning, "FailedScheduling", message);
        for victim in plan.into_iter().flat_map(|p| p.victims).filter(|v| !v.is_deleting()) {
            if let Err(error) = self.evict(pod, &victim).await {
                warn!(pod = %pod.key, victim = %victim.key, %error, "cannot preempt");
            }
        }
    }

    async fn write_condition(
        &self,
        pod: &PodInfo,
        message: &str,
        nominated: Option<String>,
    ) -> Result<(), kube::Error> {
        let status = pod.pod.status.as_ref();
        let old = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled"));
        let same = old.is_some_and(|c| {
            c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(message)
        });
        if same && nominated.is_none() {
            return Ok(());
        }
        let since = old
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.clone());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": since.unwrap_or(Time(jiff::Timestamp::now())),
        });
        let mut status = json!({"conditions": [condition]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = json!(node);
        }
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": status}));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        match api.patch_status(&pod.key.name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn evict(&self, pod: &PodInfo, victim: &PodInfo) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.key.namespace);
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
            "lastTransitionTime": Time(jiff::Timestamp::now()),
        });
        let patch = Patch::Strategic(json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}}));
        match api
            .patch_status(&victim.key.name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => {}
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(victim.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&victim.key.name, &params).await {
            Ok(_) => {
                self.events.event(
                    &*victim.pod,
                    Level::Normal,
                    "Preempted",
                    format!("Preempted by pod {} on its node", pod.uid),
                );
                Ok(())
            }
            Err(e) if e.is_not_found() || e.is_conflict() => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn explain(unfit: &Unfit, preempts: bool) -> String {
    let message = unfit.message();
    if preempts || unfit.total == 0 {
        return message;
    }
    let helpless = unfit.total - unfit.preemptible.len();
    let mut texts = Vec::new();
    if helpless > 0 {
        texts.push(format!("{helpless} Preemption is not helpful for scheduling"));
    }
    if !unfit.preemptible.is_empty() {
        texts.push(format!(
            "{} No preemption victims found for incoming pod",
            unfit.preemptible.len()
        ));
    }
    texts.sort();
    format!(
        "{message} preemption: 0/{} nodes are available: {}.",
        unfit.total,
        texts.join(", ")
    )
}
