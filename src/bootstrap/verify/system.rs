//! What the API server says: nodes, and the pods and workloads of `kube-system`. Watched, not polled.

use super::Check;
use crate::{
    cluster::nodes,
    event::{Event as News, Observer},
    site::Site,
};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::watcher::{self, Event, watcher},
};
use std::{collections::BTreeMap, convert::Infallible};
use tokio::time::{Duration, Instant, MissedTickBehavior};

/// After so long, and then again, it is told what is waited for.
const TELL: Duration = Duration::from_secs(10);
/// How long the first lists may take.
const LIST: Duration = Duration::from_secs(5);

/// A pod that can be asked over HTTP, by its own readiness probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodTarget {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) url: String,
}

/// What is there now.
#[derive(Default)]
struct State {
    nodes: Kind<Node>,
    pods: Kind<Pod>,
    daemonsets: Kind<DaemonSet>,
    deployments: Kind<Deployment>,
}

/// The objects of one kind, and whether the first list is complete.
struct Kind<K> {
    objects: BTreeMap<String, K>,
    listed: bool,
    failure: Option<String>,
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listed: false,
            failure: None,
        }
    }
}

impl<K: kube::Resource> Kind<K> {
    fn take(&mut self, event: std::result::Result<Event<K>, watcher::Error>) {
        self.failure = None;
        match event {
            Ok(Event::Init) => self.objects.clear(),
            Ok(Event::InitDone) => self.listed = true,
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                self.objects.insert(object.name_any(), object);
            }
            Ok(Event::Delete(object)) => {
                self.objects.remove(&object.name_any());
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }
}

enum Told {
    Node(std::result::Result<Event<Node>, watcher::Error>),
    Pod(std::result::Result<Event<Pod>, watcher::Error>),
    DaemonSet(std::result::Result<Event<DaemonSet>, watcher::Error>),
    Deployment(std::result::Result<Event<Deployment>, watcher::Error>),
}

fn events(client: &Client) -> BoxStream<'static, Told> {
    let config = watcher::Config::default;
    let nodes = watcher(Api::<Node>::all(client.clone()), config()).into_stream_of(Told::Node);
    let pods = watcher(Api::<Pod>::namespaced(client.clone(), "kube-system"), config()).into_stream_of(Told::Pod);
    let daemonsets =
        watcher(Api::<DaemonSet>::namespaced(client.clone(), "kube-system"), config()).into_stream_of(Told::DaemonSet);
    let deployments = watcher(Api::<Deployment>::namespaced(client.clone(), "kube-system"), config())
        .into_stream_of(Told::Deployment);
    futures::stream::select_all([nodes, pods, daemonsets, deployments]).boxed()
}

/// Gives a watch's events one type, failures included.
trait IntoStreamOf<K>: Sized {
    fn into_stream_of(
        self,
        told: fn(std::result::Result<Event<K>, watcher::Error>) -> Told,
    ) -> BoxStream<'static, Told>;
}

impl<K, S> IntoStreamOf<K> for S
where
    K: 'static,
    S: futures::Stream<Item = std::result::Result<Event<K>, watcher::Error>> + Send + 'static,
{
    fn into_stream_of(
        self,
        told: fn(std::result::Result<Event<K>, watcher::Error>) -> Told,
    ) -> BoxStream<'static, Told> {
        self.into_stream().map(told).boxed()
    }
}

impl State {
    fn take(&mut self, told: Told) {
        match told {
            Told::Node(event) => self.nodes.take(event),
            Told::Pod(event) => self.pods.take(event),
            Told::DaemonSet(event) => self.daemonsets.take(event),
            Told::Deployment(event) => self.deployments.take(event),
        }
    }

    fn listed(&self) -> bool {
        self.nodes.listed && self.pods.listed && self.daemonsets.listed && self.deployments.listed
    }
}

/// The pods that can be asked, as they are now.
pub(super) type Targets = tokio::sync::watch::Receiver<Vec<PodTarget>>;

/// What is seen of the system, and goes on being seen.
pub(super) struct System {
    events: BoxStream<'static, Told>,
    state: State,
}

impl System {
    /// Sees what `client` sees.
    pub(super) fn new(client: &Client) -> Self {
        Self {
            events: events(client),
            state: State::default(),
        }
    }

    /// Which pods can be asked, and a future that never ends and keeps that true.
    pub(super) fn targets(mut self) -> (Targets, impl Future<Output = Infallible>) {
        let (sender, receiver) = tokio::sync::watch::channel(targets(&self.state));
        let keep = async move {
            while let Some(told) = self.events.next().await {
                self.state.take(told);
                let now = targets(&self.state);
                sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
            }
            std::future::pending().await
        };
        (receiver, keep)
    }
}

/// Waits until nodes and system pods are as they should be, or the deadline; then says how they are.
pub(super) async fn settle(
    site: &Site,
    System { events, state }: &mut System,
    deadline: Instant,
    observer: &dyn Observer,
) -> Vec<Check> {
    let mut tell = tokio::time::interval_at(Instant::now() + TELL, TELL);
    tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Even who does not want to wait wants to know how it is.
    let first = deadline.max(Instant::now() + LIST);
    loop {
        let limit = if state.listed() { deadline } else { first };
        tokio::select! {
            told = events.next() => match told {
                Some(told) => state.take(told),
                None => return checks(site, state),
            },
            _ = tell.tick() => tell_failing(&checks(site, state), observer),
            () = tokio::time::sleep_until(limit) => return checks(site, state),
        }
        if state.listed() {
            let checks = checks(site, state);
            if checks.iter().all(|check| check.ok) {
                return checks;
            }
        }
    }
}

fn tell_failing(checks: &[Check], observer: &dyn Observer) {
    for check in checks.iter().filter(|check| !check.ok) {
        observer.event(News::Note {
            host: check.host.clone(),
            message: format!("still waiting: {}", check.detail),
        });
    }
}

fn checks(site: &Site, state: &State) -> Vec<Check> {
    let mut checks: Vec<Check> = site
        .seats
        .iter()
        .map(|seat| node_check(&seat.name, &state.nodes))
        .collect();
    checks.push(Check::new("system-pods", None, pods(state)));
    checks
}

fn node_check(name: &str, nodes: &Kind<Node>) -> Check {
    let result = match nodes.objects.get(name) {
        Some(node) if nodes::is_ready(node) => Ok("Ready".to_owned()),
        Some(node) => Err(format!("not Ready: {}", nodes::not_ready_because(node))),
        None => Err(nodes
            .failure
            .clone()
            .unwrap_or_else(|| "the API server knows no such node".to_owned())),
    };
    Check::new("node", Some(name), result)
}

/// Every pod Ready, and as many as their owners want.
fn pods(state: &State) -> std::result::Result<String, String> {
    let mut wrong: Vec<String> = Vec::new();
    for (name, set) in &state.daemonsets.objects {
        let status = set.status.clone().unwrap_or_default();
        let observed = status.observed_generation >= set.metadata.generation;
        let updated = status.updated_number_scheduled.unwrap_or(0);
        if !observed
            || status.desired_number_scheduled == 0
            || status.number_ready < status.desired_number_scheduled
            || updated < status.desired_number_scheduled
        {
            wrong.push(format!(
                "daemonset {name}: {} of {} ready",
                status.number_ready, status.desired_number_scheduled
            ));
        }
    }
    for (name, deployment) in &state.deployments.objects {
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let ready = status
            .ready_replicas
            .unwrap_or(0)
            .min(status.updated_replicas.unwrap_or(0));
        if status.observed_generation < deployment.metadata.generation || ready < wanted {
            wrong.push(format!("deployment {name}: {ready} of {wanted} ready"));
        }
    }
    for (name, pod) in state.pods.objects.iter().filter(|(_, pod)| !is_finished(pod)) {
        if let Some(reason) = pod_problem(pod) {
            wrong.push(format!("pod {name}: {reason}"));
        }
    }
    if state.pods.objects.is_empty() {
        wrong.push(
            state
                .pods
                .failure
                .clone()
                .unwrap_or_else(|| "there are none".to_owned()),
        );
    }
    if wrong.is_empty() {
        Ok(format!("{} Ready", oci::counted(state.pods.objects.len(), "pod")))
    } else {
        Err(wrong.join("; "))
    }
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Succeeded") || pod.metadata.deletion_timestamp.is_some()
}

/// Why a pod that should be Ready is not; nothing if it is, or has ended well.
pub(crate) fn unready_because(pod: &Pod) -> Option<String> {
    if is_finished(pod) { None } else { pod_problem(pod) }
}

/// Why a pod is not Ready: the container that waits, or the condition that is false.
fn pod_problem(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
        return None;
    }
    let place = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .map(|node| format!(" on {node}"))
        .unwrap_or_default();
    let containers = status
        .init_container_statuses
        .into_iter()
        .chain(status.container_statuses)
        .flatten();
    for container in containers {
        if let Some(waiting) = container.state.and_then(|state| state.waiting) {
            let reason = waiting.reason.unwrap_or_default();
            let message = waiting.message.map(|m| format!(": {m}")).unwrap_or_default();
            return Some(format!("{} waits{place}: {reason}{message}", container.name));
        }
    }
    let false_one = conditions
        .iter()
        .find(|c| c.status != "True")
        .and_then(|c| c.message.clone());
    Some(format!(
        "not Ready{place}{}",
        false_one.map(|m| format!(": {m}")).unwrap_or_default()
    ))
}

/// Ready pods of the pod network with an HTTP readiness probe, but for those that are about to go.
fn targets(state: &State) -> Vec<PodTarget> {
    state
        .pods
        .objects
        .values()
        .filter(|pod| !is_finished(pod) && pod_problem(pod).is_none())
        .filter_map(target)
        .collect()
}

fn target(pod: &Pod) -> Option<PodTarget> {
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        return None;
    }
    let probed = spec.containers.iter().find_map(|container| {
        let get = container.readiness_probe.as_ref()?.http_get.as_ref()?;
        let port = match &get.port {
            k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port) => *port,
            k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(name) => {
                let ports = container.ports.as_ref()?;
                ports
                    .iter()
                    .find(|port| port.name.as_deref() == Some(name))?
                    .container_port
            }
        };
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        Some((scheme, port, get.path.clone().unwrap_or_else(|| "/".to_owned())))
    });
    let (scheme, port, path) = probed?;
    let ip = pod.status.as_ref()?.pod_ip.as_ref()?;
    Some(PodTarget {
        name: pod.name_any(),
        node: spec.node_name.clone()?,
        url: format!("{scheme}://{ip}:{port}{path}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, stream};
    use serde_json::{Value, json};

    fn pod(name: &str, ip: &str, metadata: &Value) -> Told {
        let mut pod: Value = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "c", "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}}}],
            },
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (key, value) in metadata.as_object().into_iter().flatten() {
            pod["metadata"][key] = value.clone();
        }
        Told::Pod(Ok(Event::Apply(serde_json::from_value(pod).unwrap())))
    }

    fn names(targets: &[PodTarget]) -> Vec<&str> {
        targets.iter().map(|target| target.name.as_str()).collect()
    }

    #[test]
    fn a_pod_that_is_about_to_go_is_not_asked() {
        let mut state = State::default();
        state.take(pod("stays", "10.0.0.1", &json!({})));
        state.take(pod(
            "goes",
            "10.0.0.2",
            &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        ));
        let targets = targets(&state);
        assert_eq!(names(&targets), ["stays"]);
        assert_eq!(targets[0].url, "http://10.0.0.1:8181/ready");
    }

    #[test]
    fn who_asks_pods_learns_that_one_is_replaced() {
        let told = vec![
            pod("old", "10.0.0.1", &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
            pod("new", "10.0.0.2", &json!({})),
        ];
        let mut system = System {
            events: stream::iter(told).boxed(),
            state: State::default(),
        };
        system.state.take(pod("old", "10.0.0.1", &json!({})));
        let (mut pods, keep) = system.targets();
        assert_eq!(names(&pods.borrow_and_update()), ["old"]);
        assert!(keep.now_or_never().is_none());
        assert_eq!(names(&pods.borrow_and_update()), ["new"]);
    }
}
