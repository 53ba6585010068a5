//! Taking nodes out of the cluster whose hosts are gone for good: what the API server keeps of them goes, the hosts are not asked.

use crate::{
    Error, Result,
    cluster::{Cluster, nodes},
    fan,
};
use futures::FutureExt as _;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde::Serialize;
use std::net::Ipv4Addr;

/// Where nodes say that they are alive.
const LEASES: &str = "kube-node-lease";

/// What was taken out of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// The node.
    pub node: String,
    /// How many pods were bound to it.
    pub pods: usize,
    /// What could not be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// The nodes with these addresses, and which address each has.
///
/// # Errors
/// When the API server does not answer.
pub(crate) async fn with_addresses(cluster: &Cluster, ips: &[Ipv4Addr]) -> Result<Vec<(String, Ipv4Addr)>> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(Error::api("listing nodes"))?;
    let known = listed.items.iter();
    let known = known.filter_map(|node| Some((node.name_any(), nodes::internal_ip(node)?)));
    Ok(known.filter(|(_, ip)| ips.contains(ip)).collect())
}

/// Removes nodes and what belongs to them; one that fails hinders no other.
pub(crate) async fn nodes(cluster: &Cluster, names: &[String]) -> Vec<Removed> {
    let work = names.iter().map(|name| {
        async move {
            let (pods, failed) = match one(cluster, name).await {
                Ok(pods) => (pods, None),
                Err(error) => (0, Some(error.to_string())),
            };
            Removed {
                node: name.clone(),
                pods,
                failed,
            }
        }
        .boxed()
    });
    fan::all(work.collect()).await
}

/// The node goes first, so that nothing is bound to it any more while its pods go.
async fn one(cluster: &Cluster, node: &str) -> Result<usize> {
    let client = &cluster.client;
    let nodes: Api<Node> = Api::all(client.clone());
    gone(nodes.delete(node, &DeleteParams::default()).await.map(drop), || {
        format!("deleting node {node}")
    })?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    gone(leases.delete(node, &DeleteParams::default()).await.map(drop), || {
        format!("deleting the lease of {node}")
    })?;
    let bound = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(client.clone()).list(&bound).await;
    let pods = pods.map_err(Error::api(format!("listing the pods of {node}")))?.items;
    // Nobody is there to end them: waiting for that would be for ever.
    let at_once = DeleteParams::default().grace_period(0);
    let removals = pods.iter().map(|pod| {
        let at_once = &at_once;
        async move {
            let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            gone(api.delete(&name, at_once).await.map(drop), || {
                format!("deleting pod {namespace}/{name}")
            })
        }
        .boxed()
    });
    fan::all_good(removals.collect()).await.map(|all| all.len())
}

/// What is not there any more need not be deleted.
fn gone(deleted: kube::Result<()>, doing: impl FnOnce() -> String) -> Result<()> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map_err(Error::api(doing())),
    }
}
