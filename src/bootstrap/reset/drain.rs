//! Drain as `kubectl drain` does: cordon, evict what is not bound to the node, wait until it is gone; then delete the node.

use crate::{
    Error, Result,
    cluster::{Cluster, nodes},
    event::{Event, Observer},
    fan,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams},
    runtime::{conditions::is_deleted, wait::await_condition},
};
use serde_json::json;
use std::{net::Ipv4Addr, time::Duration};
use tokio::time::Instant;

/// A disruption budget that forbids an eviction is asked again after this time, as kubectl does.
const AGAIN: Duration = Duration::from_secs(1);
const TOO_MANY_REQUESTS: u16 = 429;

/// Drains and deletes the nodes with these addresses. Those that the cluster does not know have left already.
pub(super) async fn nodes(
    cluster: &Cluster,
    ips: &[Ipv4Addr],
    patience: Duration,
    force: bool,
    observer: &dyn Observer,
) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let list = api
        .list(&ListParams::default())
        .await
        .map_err(Error::api("listing nodes"))?;
    let leaving: Vec<String> = list
        .items
        .iter()
        .filter(|node| nodes::internal_ip(node).is_some_and(|ip| ips.contains(&ip)))
        .map(kube::ResourceExt::name_any)
        .collect();
    // All are cordoned first, so that pods do not move from one leaving node to the next.
    for name in &leaving {
        let patch = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        api.patch(name, &PatchParams::default(), &patch)
            .await
            .map_err(Error::api(format!("cordoning {name}")))?;
    }
    for name in &leaving {
        observer.event(Event::PhaseStarted {
            phase: "drain",
            title: "moving its pods elsewhere",
            host: Some(name.clone()),
        });
        match drain(&cluster.client, name, patience).await {
            Err(error) if !force => return Err(error),
            Err(error) => observer.event(Event::Warning {
                host: Some(name.clone()),
                message: error.to_string(),
            }),
            Ok(()) => {}
        }
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api(format!("deleting node {name}"))(error)),
        }
    }
    Ok(())
}

async fn drain(client: &Client, node: &str, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let all: Api<Pod> = Api::all(client.clone());
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = all
        .list(&params)
        .await
        .map_err(Error::api(format!("listing the pods of {node}")))?;
    let moving = pods.items.into_iter().filter(moves);
    fan::all_good(moving.map(|pod| evict(client, pod, deadline).boxed()).collect())
        .await
        .map(drop)
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

async fn evict(client: &Client, pod: Pod, deadline: Instant) -> Result<()> {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let mut ticks = tokio::time::interval(AGAIN);
    loop {
        ticks.tick().await;
        match api.evict(&name, &EvictParams::default()).await {
            Ok(_) => break,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == TOO_MANY_REQUESTS && Instant::now() < deadline => {}
            Err(error) => return Err(Error::api(format!("evicting pod {namespace}/{name}"))(error)),
        }
    }
    let uid = pod.uid().unwrap_or_default();
    let gone = await_condition(api, &name, is_deleted(&uid));
    match tokio::time::timeout_at(deadline, gone).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Error::Wish(format!("watching pod {namespace}/{name}: {error}"))),
        Err(_) => Err(Error::Timeout {
            what: format!("pod {namespace}/{name}: its end"),
            seconds: 0,
            last: "see --drain-timeout, or --force to go on without waiting".to_owned(),
        }),
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
