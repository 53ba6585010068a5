//! The Node object: registration, status, lease. The status is written at once when a condition changes, otherwise only
//! now and then; the lease is the sign of life.

use crate::api_client::limited;
use crate::backoff::Doubling;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::eviction::Pressure;
use crate::machine_info;
use crate::observed::SECOND;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::Patch;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// State of the runtime as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// `containerd://1.2.3`.
    pub version: String,
    /// Why it is not ready; empty when it is.
    pub problem: String,
    /// Why its network is not; empty when it is.
    pub network_problem: String,
}

/// What the Node is made of besides what the machine says.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Port of the HTTPS server.
    pub port: u16,
    /// The host's name.
    pub hostname: String,
}

/// Asks the runtime how it is: every second until all is well, then every five.
pub async fn watch_runtime(cri: crate::cri::Cri, state: watch::Sender<RuntimeState>, network: watch::Sender<bool>) {
    let mut version = String::new();
    loop {
        if version.is_empty()
            && let Ok(v) = cri.version().await
        {
            version = format!("{}://{}", v.runtime_name, v.runtime_version);
        }
        let mut new = RuntimeState {
            version: version.clone(),
            ..Default::default()
        };
        match cri.status().await {
            Ok(answer) => {
                for c in answer
                    .status
                    .into_iter()
                    .flat_map(|s| s.conditions)
                    .filter(|c| !c.status)
                {
                    let text = if c.message.is_empty() {
                        c.reason.clone()
                    } else {
                        c.message.clone()
                    };
                    match c.r#type.as_str() {
                        "RuntimeReady" => new.problem = format!("container runtime not ready: {text}"),
                        "NetworkReady" => new.network_problem = format!("container runtime network not ready: {text}"),
                        _ => {}
                    }
                }
            }
            Err(e) => new.problem = e.to_string(),
        }
        // An unreachable runtime says nothing about the network; pods wait for the runtime anyway.
        let network_ready = new.problem.is_empty() && new.network_problem.is_empty();
        network.send_if_modified(|n| std::mem::replace(n, network_ready) != network_ready);
        let well = network_ready;
        state.send_if_modified(|s| {
            let changed = *s != new;
            *s = new;
            changed
        });
        tokio::time::sleep(Duration::from_secs(if well { 5 } else { 1 })).await;
    }
}

/// Registers the node and keeps its status; `registered` becomes true once it exists.
pub async fn run(
    ctx: Arc<Ctx>,
    wish: Wish,
    mut runtime: watch::Receiver<RuntimeState>,
    mut pressure: watch::Receiver<Pressure>,
    registered: watch::Sender<bool>,
) {
    let mut backoff = Doubling::api();
    let mut api = ctx.api.clone();
    let mut last: Option<(NodeStatus, Instant)> = None;
    let mut next = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            _ = runtime.changed() => {}
            _ = pressure.changed() => {}
        }
        let client = api.wait().await;
        let nodes: kube::Api<Node> = kube::Api::all(client);
        let result = async {
            if !*registered.borrow() {
                register(&ctx, &wish, &nodes).await?;
                registered.send_replace(true);
                tracing::info!(node = ctx.node_name, "registered");
            }
            let (r, p) = (runtime.borrow_and_update().clone(), *pressure.borrow_and_update());
            write(&ctx, &wish, &nodes, &r, p, &mut last).await
        };
        match limited(result).await {
            Ok(()) => {
                backoff.reset();
                next = ctx.config.node_status_update_frequency;
            }
            Err(e) => {
                // Somebody deleted the Node: it is registered again.
                if e.is_not_found() {
                    registered.send_replace(false);
                    last = None;
                }
                tracing::debug!("node status: {e}");
                next = backoff.next();
            }
        }
    }
}

fn default_labels(wish: &Wish) -> BTreeMap<String, String> {
    let arch = machine_info::architecture();
    let mut out: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", wish.hostname.as_str()),
        ("kubernetes.io/arch", arch),
        ("kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    out.extend(wish.labels.clone());
    out
}

async fn register(ctx: &Ctx, wish: &Wish, nodes: &kube::Api<Node>) -> Result<()> {
    let labels = default_labels(wish);
    if ctx.config.register_node {
        let node = Node {
            metadata: ObjectMeta {
                name: Some(ctx.node_name.clone()),
                labels: Some(labels.clone()),
                annotations: Some(
                    [(
                        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                        "true".to_owned(),
                    )]
                    .into(),
                ),
                ..Default::default()
            },
            spec: Some(NodeSpec {
                taints: (!wish.taints.is_empty()).then(|| wish.taints.clone()),
                ..Default::default()
            }),
            status: None,
        };
        match nodes.create(&Default::default(), &node).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(s)) if s.code == 409 => {}
            Err(e) => return Err(e.into()),
        }
    }
    let found = nodes.get(&ctx.node_name).await?;
    let has = found.metadata.labels.unwrap_or_default();
    if labels.iter().any(|(k, v)| has.get(k) != Some(v)) {
        let patch = serde_json::json!({"metadata": {"labels": labels}});
        nodes
            .patch(&ctx.node_name, &Default::default(), &Patch::Merge(&patch))
            .await?;
    }
    Ok(())
}

fn condition(
    kind: &str,
    on: bool,
    reasons: (&str, &str),
    messages: (&str, &str),
    before: Option<&NodeStatus>,
) -> NodeCondition {
    let now = Time(k8s_openapi::jiff::Timestamp::from_second(crate::observed::now() / SECOND).unwrap_or_default());
    let status = if on { "True" } else { "False" };
    let old = before
        .and_then(|b| b.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|c| c.type_ == kind);
    NodeCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(if on { reasons.0 } else { reasons.1 }.into()),
        message: Some(if on { messages.0 } else { messages.1 }.into()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: old
            .filter(|o| o.status == status)
            .and_then(|o| o.last_transition_time.clone())
            .or(Some(now)),
    }
}

/// The Node's conditions. Pure.
pub fn conditions(runtime: &RuntimeState, pressure: Pressure, before: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let problems: Vec<&str> = [runtime.problem.as_str(), runtime.network_problem.as_str()]
        .into_iter()
        .filter(|p| !p.is_empty())
        .collect();
    let text = problems.join(", ");
    vec![
        condition(
            "MemoryPressure",
            pressure.memory,
            ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
            (
                "kubelet has insufficient memory available",
                "kubelet has sufficient memory available",
            ),
            before,
        ),
        condition(
            "DiskPressure",
            pressure.disk,
            ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
            ("kubelet has disk pressure", "kubelet has no disk pressure"),
            before,
        ),
        condition(
            "PIDPressure",
            pressure.pids,
            ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
            (
                "kubelet has insufficient PID available",
                "kubelet has sufficient PID available",
            ),
            before,
        ),
        condition(
            "Ready",
            problems.is_empty(),
            ("KubeletReady", "KubeletNotReady"),
            ("kubelet is posting ready status", &text),
            before,
        ),
    ]
}

/// The 50 largest images.
fn images(list: Vec<k8s_cri::v1::Image>) -> Vec<ContainerImage> {
    let mut list = list;
    list.sort_by_key(|i| std::cmp::Reverse(i.size));
    list.into_iter()
        .take(50)
        .map(|i| ContainerImage {
            names: Some(i.repo_digests.into_iter().chain(i.repo_tags).take(5).collect()),
            size_bytes: i64::try_from(i.size).ok(),
        })
        .collect()
}

async fn write(
    ctx: &Ctx,
    wish: &Wish,
    nodes: &kube::Api<Node>,
    runtime: &RuntimeState,
    pressure: Pressure,
    last: &mut Option<(NodeStatus, Instant)>,
) -> Result<()> {
    let size = machine_info::Size {
        cpus: ctx.cpus,
        memory: ctx.memory,
    };
    let capacity = machine_info::capacity(size, &ctx.paths.root, ctx.config.max_pods);
    let before = match last {
        Some((s, _)) => Some(s.clone()),
        None => nodes.get(&ctx.node_name).await?.status,
    };
    let mut addresses: Vec<NodeAddress> = ctx
        .host_ips
        .iter()
        .map(|ip| NodeAddress {
            type_: "InternalIP".into(),
            address: ip.clone(),
        })
        .collect();
    addresses.push(NodeAddress {
        type_: "Hostname".into(),
        address: wish.hostname.clone(),
    });
    let status = NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(machine_info::allocatable(&capacity, &ctx.config)),
        capacity: Some(capacity),
        conditions: Some(conditions(runtime, pressure, before.as_ref())),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: wish.port.into() }),
        }),
        images: Some(images(ctx.cri.list_images().await.unwrap_or_default())),
        node_info: Some(machine_info::system_info(&runtime.version)),
        ..Default::default()
    };
    if let Some((old, at)) = last
        && at.elapsed() < ctx.config.node_status_report_frequency
        && without_heartbeat(old) == without_heartbeat(&status)
    {
        return Ok(());
    }
    let patch = serde_json::json!({"status": status});
    nodes
        .patch_status(&ctx.node_name, &Default::default(), &Patch::Strategic(&patch))
        .await
        .map_err(Error::from)?;
    *last = Some((status, Instant::now()));
    Ok(())
}

fn without_heartbeat(status: &NodeStatus) -> NodeStatus {
    let mut out = status.clone();
    out.conditions
        .iter_mut()
        .flatten()
        .for_each(|c| c.last_heartbeat_time = None);
    out
}

/// Renews the node's lease for ever.
pub async fn lease(ctx: Arc<Ctx>, mut registered: watch::Receiver<bool>) {
    let seconds = ctx.config.node_lease_duration_seconds;
    let period = Duration::from_millis(u64::from(seconds.unsigned_abs()) * 250);
    let mut backoff = Doubling::api();
    loop {
        if registered.wait_for(|r| *r).await.is_err() {
            return;
        }
        let wait = match limited(renew(&ctx, seconds)).await {
            Ok(()) => {
                backoff.reset();
                period
            }
            Err(e) => {
                tracing::debug!("lease: {e}");
                backoff.next().min(period)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(ctx: &Ctx, seconds: i32) -> Result<()> {
    let client = ctx.api.client()?;
    let leases: kube::Api<Lease> = kube::Api::namespaced(client.clone(), "kube-node-lease");
    let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
    let spec = LeaseSpec {
        holder_identity: Some(ctx.node_name.clone()),
        lease_duration_seconds: Some(seconds),
        renew_time: Some(now),
        ..Default::default()
    };
    let patch = serde_json::json!({"spec": &spec});
    match leases
        .patch(&ctx.node_name, &Default::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(s)) if s.code == 404 => {}
        Err(e) => return Err(e.into()),
    }
    let node = kube::Api::<Node>::all(client).get(&ctx.node_name).await?;
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(ctx.node_name.clone()),
            namespace: Some("kube-node-lease".into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: ctx.node_name.clone(),
                uid: node.metadata.uid.unwrap_or_default(),
                ..Default::default()
            }]),
            ..Default::default()
        },
        spec: Some(spec),
    };
    leases.create(&Default::default(), &lease).await?;
    Ok(())
}

/// `K=V` pairs of --node-labels.
pub fn parse_labels(list: &[String]) -> Result<BTreeMap<String, String>, String> {
    list.iter()
        .filter(|l| !l.is_empty())
        .map(|l| {
            l.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .ok_or_else(|| format!("{l:?}: expected KEY=VALUE"))
        })
        .collect()
}

/// `K=V:EFFECT` or `K:EFFECT` of --register-with-taints.
pub fn parse_taints(list: &[String]) -> Result<Vec<Taint>, String> {
    list.iter()
        .filter(|t| !t.is_empty())
        .map(|text| {
            let (left, effect) = text
                .rsplit_once(':')
                .ok_or_else(|| format!("{text:?}: expected KEY=VALUE:EFFECT"))?;
            if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
                return Err(format!(
                    "{text:?}: the effect must be NoSchedule, PreferNoSchedule or NoExecute"
                ));
            }
            let (key, value) = left.split_once('=').unwrap_or((left, ""));
            Ok(Taint {
                key: key.to_owned(),
                value: (!value.is_empty()).then(|| value.to_owned()),
                effect: effect.to_owned(),
                time_added: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_runtime_and_network_and_keeps_its_transition_time() {
        let bad = RuntimeState {
            network_problem: "no network".into(),
            ..Default::default()
        };
        let first = conditions(&bad, Pressure::default(), None);
        let ready = first.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.message.as_deref()),
            ("False", Some("no network"))
        );
        let old = Time("2020-01-01T00:00:00Z".parse().unwrap());
        let mut before = NodeStatus {
            conditions: Some(first),
            ..Default::default()
        };
        before
            .conditions
            .iter_mut()
            .flatten()
            .for_each(|c| c.last_transition_time = Some(old.clone()));
        let again = conditions(
            &bad,
            Pressure {
                memory: true,
                ..Default::default()
            },
            Some(&before),
        );
        assert_eq!(
            again.iter().find(|c| c.type_ == "Ready").unwrap().last_transition_time,
            Some(old.clone())
        );
        let memory = again.iter().find(|c| c.type_ == "MemoryPressure").unwrap();
        assert!(memory.status == "True" && memory.last_transition_time != Some(old));
    }

    #[test]
    fn labels_and_taints_are_parsed() {
        assert_eq!(parse_labels(&["a=b".into(), "c=".into()]).unwrap().len(), 2);
        assert!(parse_labels(&["a".into()]).is_err());
        let t = parse_taints(&["k=v:NoSchedule".into(), "n:NoExecute".into()]).unwrap();
        assert_eq!(
            (t[0].value.as_deref(), t[1].key.as_str(), t[1].value.as_deref()),
            (Some("v"), "n", None)
        );
        assert!(parse_taints(&["k=v:Never".into()]).is_err());
    }
}
