//! Drain as `kubectl drain` does: cordon, evict what is not bound to the node, wait until it is gone; then delete the node.
//!
//! Evictions respect disruption budgets, and it is the API server that judges them: what it says of a budget is told when it was in the
//! way until the end. Where a server has no evictions pods are deleted with their own grace.

use super::{Patience, remove};
use crate::{
    Error, Result,
    cluster::{Cluster, wait::until},
    event::{Event, Observer},
    fan,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams},
    core::Status,
    runtime::conditions::is_deleted,
};
use serde_json::json;
use std::{net::Ipv4Addr, time::Duration};
use tokio::time::Instant;

/// A disruption budget that forbids an eviction is asked again after this time, as kubectl does.
const AGAIN: Duration = Duration::from_secs(1);
const NOT_FOUND: u16 = 404;
const TOO_MANY_REQUESTS: u16 = 429;

/// Drains and deletes the nodes with these addresses, and says which they are. Those that the cluster does not know have left already.
pub(crate) async fn nodes(
    cluster: &Cluster,
    ips: &[Ipv4Addr],
    patience: Patience,
    observer: &dyn Observer,
) -> Result<Vec<(String, Ipv4Addr)>> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let leaving = remove::with_addresses(cluster, ips).await?;
    // All are cordoned first, so that pods do not move from one leaving node to the next.
    for (name, _) in &leaving {
        let patch = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        api.patch(name, &PatchParams::default(), &patch)
            .await
            .map_err(Error::api(format!("cordoning {name}")))?;
    }
    for (name, _) in &leaving {
        observer.event(Event::PhaseStarted {
            phase: "drain",
            title: "moving its pods elsewhere",
            host: Some(name.clone()),
        });
        match drain(cluster, name, patience.drain).await {
            Err(error) if !patience.force => return Err(error),
            Err(error) => observer.event(Event::Warning {
                host: Some(name.clone()),
                message: error.to_string(),
            }),
            Ok(()) => {}
        }
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == NOT_FOUND => {}
            Err(error) => return Err(Error::api(format!("deleting node {name}"))(error)),
        }
    }
    Ok(leaving)
}

/// How pods leave a node.
pub(crate) struct Leaving<'l> {
    /// How long they get.
    pub(crate) patience: Duration,
    /// What can be done when that is not enough.
    pub(crate) hint: &'l str,
    /// Which of them stay, of those that could leave.
    pub(crate) stays: &'l (dyn Fn(&Pod) -> bool + Sync),
}

/// Moves all pods of a node elsewhere that are not bound to it.
///
/// # Errors
/// As [`evict`].
pub(crate) async fn drain(cluster: &Cluster, node: &str, patience: Duration) -> Result<()> {
    let leaving = Leaving {
        patience,
        hint: "--drain-timeout gives them longer, --force goes on without waiting",
        stays: &|_| false,
    };
    evict(cluster, node, &leaving).await.map(drop)
}

/// Moves pods of a node elsewhere; how many there were.
///
/// # Errors
/// When the API server refuses, or something is still in the way when their time ends: then all of that is named.
pub(crate) async fn evict(cluster: &Cluster, node: &str, leaving: &Leaving<'_>) -> Result<usize> {
    let client = &cluster.client;
    let patience = leaving.patience;
    let deadline = Instant::now() + patience;
    let evicts = serves_evictions(client).await?;
    let all: Api<Pod> = Api::all(client.clone());
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = all
        .list(&params)
        .await
        .map_err(Error::api(format!("listing the pods of {node}")))?;
    let moving = pods.items.into_iter().filter(|pod| moves(pod) && !(leaving.stays)(pod));
    let blockers = fan::all_good(
        moving
            .map(|pod| leave(cluster, pod, evicts, deadline).boxed())
            .collect(),
    )
    .await?;
    let count = blockers.len();
    let blockers: String = blockers.into_iter().flatten().map(|why| format!("\n  {why}")).collect();
    if blockers.is_empty() {
        return Ok(count);
    }
    Err(Error::Timeout {
        what: format!("node {node}: the leaving of all its pods"),
        seconds: patience.as_secs(),
        last: format!("in the way:{blockers}\n({})", leaving.hint),
    })
}

/// Whether the server knows evictions (KEP-85).
async fn serves_evictions(client: &Client) -> Result<bool> {
    let served = client.list_core_api_resources("v1").await;
    let served = served.map_err(Error::api("asking whether pods can be evicted"))?;
    Ok(served.resources.iter().any(|resource| resource.name == "pods/eviction"))
}

/// Pods of a DaemonSet and static pods belong to the node and go with it.
fn moves(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.clone().unwrap_or_default();
    let mirror = pod.annotations().contains_key("kubernetes.io/config.mirror");
    !mirror
        && !owners
            .iter()
            .any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true))
}

/// Evicts a pod and waits until it is gone. What was in the way to the end, if anything was.
async fn leave(cluster: &Cluster, pod: Pod, evicts: bool, deadline: Instant) -> Result<Option<String>> {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let title = format!("pod {namespace}/{name}");
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    let asking: Api<Pod> = Api::namespaced(cluster.impatient.clone(), &namespace);
    let mut ticks = tokio::time::interval(AGAIN);
    loop {
        ticks.tick().await;
        let asked = if evicts {
            asking.evict(&name, &EvictParams::default()).await.map(drop)
        } else {
            asking.delete(&name, &DeleteParams::default()).await.map(drop)
        };
        match asked {
            Ok(()) => break,
            Err(kube::Error::Api(status)) if status.code == NOT_FOUND => return Ok(None),
            Err(kube::Error::Api(status)) if status.code == TOO_MANY_REQUESTS => {
                if Instant::now() + AGAIN >= deadline {
                    return Ok(Some(format!("{title}: {}", forbidden_by(&status))));
                }
            }
            Err(error) => return Err(Error::api(format!("evicting {title}"))(error)),
        }
    }
    let uid = pod.uid().unwrap_or_default();
    let gone = until(api, &name, is_deleted(&uid));
    match tokio::time::timeout_at(deadline, gone).await {
        Ok(_) => Ok(None),
        Err(_) => Ok(Some(format!("{title}: it is told to end and has not ended yet"))),
    }
}

/// What the server says is in the way: the budget, if it names it.
fn forbidden_by(status: &Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let told: Vec<&str> = causes
        .map(|cause| cause.message.as_str())
        .filter(|message| !message.is_empty())
        .collect();
    if told.is_empty() {
        status.message.clone()
    } else {
        told.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    #[test]
    fn what_belongs_to_the_node_does_not_move() {
        let mut pod = Pod::default();
        assert!(moves(&pod));
        pod.metadata.owner_references = Some(vec![OwnerReference {
            kind: "DaemonSet".into(),
            controller: Some(true),
            ..Default::default()
        }]);
        assert!(!moves(&pod));
        let mut mirror = Pod::default();
        mirror
            .annotations_mut()
            .insert("kubernetes.io/config.mirror".into(), "x".into());
        assert!(!moves(&mirror));
    }
}
