//! Pods that nobody will ever clean up: of nodes that are gone, deleted before they were ever bound, ended in too large a
//! number, and those on nodes that are declared out of service.

use std::sync::Arc;
use std::time::Duration;

use component::{ApiErrorExt, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use serde_json::json;
use tracing::info;

use crate::context::{Context, NO_NODE, known};
use crate::meta::{is_deleting, name, now};
use crate::pods::{self, is_terminal, phase};

/// So many ended pods are kept for people to look at.
const KEPT: usize = 12_500;
/// A node may come back under its name within this time (it re-registers after a restart).
const QUARANTINE: Duration = Duration::from_secs(40);

struct Controller {
    ctx: Arc<Context>,
}

/// Starts the pod collector. Its keys are pods, or (without namespace) names of nodes that were deleted.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("pod-garbage-collector");
    let controller = Arc::new(Controller { ctx: Arc::clone(ctx) });
    let (add, on) = (Arc::clone(&queue), Arc::clone(ctx));
    ctx.caches.pods.on_change(move |c| {
        let pod = c.latest();
        if c.is_deleted() {
            return;
        }
        let nodeless_end = is_deleting(&pod.metadata) && pods::node_name(pod).is_none();
        let ended = is_terminal(pod) && c.old().is_none_or(|o| !is_terminal(o)) && on.caches.pods.len() > KEPT;
        let bound = c.old().is_none_or(|o| pods::node_name(o).is_none());
        let lost = bound
            && on.caches.nodes.is_synced()
            && pods::node_name(pod).is_some_and(|n| on.caches.nodes.get("", n).is_none());
        if nodeless_end || ended {
            add.add(ObjectKey::of(&**pod));
        }
        if lost && let Some(node) = pods::node_name(pod) {
            add.add_after(ObjectKey::new("", node), QUARANTINE);
        }
    });
    let add = Arc::clone(&queue);
    ctx.caches.nodes.on_change(move |c| {
        if c.is_deleted() || out_of_service(c.latest()) {
            add.add_after(
                ObjectKey::new("", name(&c.latest().metadata)),
                if c.is_deleted() { QUARANTINE } else { Duration::ZERO },
            );
        }
    });
    let (on, add, known) = (Arc::clone(ctx), Arc::clone(&queue), known!(ctx, pods, nodes));
    let known = async move {
        known.await;
        for pod in on.caches.pods.all() {
            if let Some(node) = pods::node_name(&pod).filter(|n| on.caches.nodes.get("", n).is_none()) {
                add.add_after(ObjectKey::new("", node), QUARANTINE);
            }
        }
    };
    ctx.work(known, queue, 4, controller, |controller, key| async move {
        if key.namespace.is_empty() {
            controller.node(&key.name).await
        } else {
            controller.pod(&key).await
        }
    })
}

fn out_of_service(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.any(|t| t.key == "node.kubernetes.io/out-of-service")
}

impl Controller {
    async fn node(&self, node_name: &str) -> Result<Requeue, Error> {
        let known = self.ctx.caches.nodes.get("", node_name);
        let dead = match &known {
            Some(node) => out_of_service(node) && !crate::node_health::is_ready(node),
            // Deleting is final: ask the server before.
            None => Api::<Node>::all(self.ctx.client.clone())
                .get_opt(node_name)
                .await?
                .is_none(),
        };
        if !dead {
            return Ok(Requeue::Done);
        }
        for pod in self.ctx.caches.pods.indexed(node_name) {
            // On a node out of service only what is already on its way out is forced.
            if known.is_none() || is_deleting(&pod.metadata) {
                self.collect(&pod, known.is_none()).await?;
            }
        }
        Ok(Requeue::Done)
    }

    async fn pod(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(pod) = self.ctx.caches.pods.get_key(key) else {
            return Ok(Requeue::Done);
        };
        if is_deleting(&pod.metadata) && pods::node_name(&pod).is_none() {
            self.collect(&pod, false).await?;
        } else if is_terminal(&pod) {
            self.thin_out().await?;
        }
        Ok(Requeue::Done)
    }

    /// Deletes the oldest ended pods beyond those kept.
    async fn thin_out(&self) -> Result<(), Error> {
        let mut ended = self.ctx.caches.pods.all();
        ended.retain(|p| is_terminal(p) && !is_deleting(&p.metadata));
        let surplus = ended.len().saturating_sub(KEPT);
        ended.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
        for pod in ended.iter().take(surplus) {
            self.collect(pod, false).await?;
        }
        Ok(())
    }

    /// Deletes at once; a pod that might seem alive is marked failed before.
    async fn collect(&self, pod: &Pod, node_is_gone: bool) -> Result<(), Error> {
        if !is_terminal(pod) && !matches!(phase(pod), "") {
            let (reason, message) = if node_is_gone {
                ("DeletionByPodGC", "PodGC: node no longer exists")
            } else {
                ("DeletionByPodGC", "PodGC: pod will never run")
            };
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastTransitionTime": now(),
            });
            let failed = json!({"phase": "Failed"});
            match pods::set_condition(&self.ctx.client, pod, condition, failed).await {
                Err(Error::Api(e)) if e.is_conflict() => {}
                other => other?,
            }
        }
        info!(pod = Context::describe(&pod.metadata), "collected");
        match pods::delete_exactly(&self.ctx.client, pod, Some(0)).await {
            Err(Error::Api(e)) if e.is_not_found() || e.is_conflict() => Ok(()),
            other => other,
        }
    }
}

/// The value under which pods without node are indexed is never the name of a node.
const _: () = assert!(NO_NODE.is_empty());
