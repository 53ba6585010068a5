//! Node IPAM: every node gets its own part of the cluster's pod network (`spec.podCIDR`, `spec.podCIDRs`).
//!
//! What is taken is read from the Node objects; what has been decided and not yet seen back is remembered by node, so that
//! a write whose answer was lost is repeated with the same range.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use component::events::{Level, Recorder};
use component::{ApiErrorExt, Change, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::info;

use crate::cidr::{Cidr, Pool};
use crate::context::{Context, known};
use crate::meta::{is_deleting, name, uid};

struct State {
    pools: Vec<Pool>,
    /// By node UID, until the node shows them or is gone.
    decided: HashMap<String, Vec<Cidr>>,
}

struct Controller {
    ctx: Arc<Context>,
    events: Recorder,
    state: Mutex<State>,
}

/// The pools of the cluster network: one a family, without what Services use.
pub(crate) fn pools(cluster: &[Cidr], services: &[Cidr], part_v4: u8, part_v6: u8) -> Result<Vec<Pool>, String> {
    let mut pools = Vec::new();
    for range in cluster {
        if pools.iter().any(|p: &Pool| p.is_v6() == range.is_v6()) {
            return Err("--cluster-cidr takes at most one range of each IP family".into());
        }
        let mut pool = Pool::new(*range, if range.is_v6() { part_v6 } else { part_v4 })?;
        services.iter().for_each(|s| pool.occupy(*s));
        pools.push(pool);
    }
    Ok(pools)
}

/// The ranges a node has.
fn ranges(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let many = spec.pod_cidrs.iter().flatten();
    let texts: Vec<&String> = if spec.pod_cidrs.is_some() {
        many.collect()
    } else {
        spec.pod_cidr.iter().collect()
    };
    texts.iter().filter_map(|t| t.parse().ok()).collect()
}

/// Starts the node IPAM controller; it does nothing if nodes are not to be given ranges.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let options = &ctx.options;
    let pools = match pools(
        &options.cluster_cidrs,
        &options.service_cidrs,
        options.node_mask_v4,
        options.node_mask_v6,
    ) {
        Ok(pools) if options.allocate_node_cidrs && !pools.is_empty() => pools,
        // Wrong flags were refused at start.
        _ => return Box::pin(async {}),
    };
    let queue = ctx.queue("node-ipam");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        events: ctx.events.named("cidrAllocator"),
        state: Mutex::new(State {
            pools,
            decided: HashMap::new(),
        }),
    });
    let (add, on) = (Arc::clone(&queue), Arc::clone(&controller));
    ctx.caches.nodes.on_change(move |change| {
        on.observe(change);
        if change.is_deleted() {
            // A range came free: somebody may be waiting for one.
            for node in on.ctx.caches.nodes.all().iter().filter(|n| ranges(n).is_empty()) {
                add.add(ObjectKey::of(&**node));
            }
        } else if ranges(change.latest()).is_empty() {
            add.add(ObjectKey::of(&**change.latest()));
        }
    });
    // Nothing is given away before everything taken is known.
    ctx.work(known!(ctx, nodes), queue, 4, controller, |controller, key| async move {
        controller.reconcile(&key).await
    })
}

impl Controller {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, change: Change<'_, Node>) {
        let node = change.latest();
        let mut state = self.state();
        let shown = ranges(node);
        if change.is_deleted() {
            let decided = state.decided.remove(uid(&node.metadata)).unwrap_or_default();
            let others = self.ctx.caches.nodes.all();
            for range in shown.into_iter().chain(decided) {
                // Two nodes with one range is somebody's mistake, which must not be made worse.
                if !others
                    .iter()
                    .any(|n| n.metadata.uid != node.metadata.uid && ranges(n).contains(&range))
                {
                    state
                        .pools
                        .iter_mut()
                        .filter(|p| p.is_v6() == range.is_v6())
                        .for_each(|p| p.release(range));
                }
            }
        } else if !shown.is_empty() {
            for range in state.decided.remove(uid(&node.metadata)).unwrap_or_default() {
                if !shown.contains(&range) {
                    state
                        .pools
                        .iter_mut()
                        .filter(|p| p.is_v6() == range.is_v6())
                        .for_each(|p| p.release(range));
                }
            }
            for range in shown {
                state
                    .pools
                    .iter_mut()
                    .filter(|p| p.is_v6() == range.is_v6())
                    .for_each(|p| p.occupy(range));
            }
        }
    }

    /// The ranges for a node: those decided before, or new ones. Nothing if the network is full.
    fn decide(&self, node: &Node) -> Option<Vec<Cidr>> {
        let mut state = self.state();
        if let Some(decided) = state.decided.get(uid(&node.metadata)) {
            return Some(decided.clone());
        }
        let mut ranges = Vec::new();
        for i in 0..state.pools.len() {
            match state.pools[i].allocate() {
                Some(range) => ranges.push(range),
                None => {
                    for (pool, range) in state.pools.iter_mut().zip(ranges) {
                        pool.release(range);
                    }
                    return None;
                }
            }
        }
        state.decided.insert(uid(&node.metadata).to_owned(), ranges.clone());
        Some(ranges)
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(node) = self.ctx.caches.nodes.get("", &key.name) else {
            return Ok(Requeue::Done);
        };
        if !ranges(&node).is_empty() || is_deleting(&node.metadata) {
            return Ok(Requeue::Done);
        }
        let Some(ranges) = self.decide(&node) else {
            self.events.event(
                &*node,
                Level::Warning,
                "CIDRNotAvailable",
                "Node has no pod address range: the cluster network is full",
            );
            return Ok(Requeue::Done);
        };
        let texts: Vec<String> = ranges.iter().map(Cidr::to_string).collect();
        info!(node = key.name, ranges = texts.join(","), "pod address range");
        let patch =
            json!({"metadata": {"uid": uid(&node.metadata)}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        let api: Api<Node> = Api::all(self.ctx.client.clone());
        match api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => Ok(Requeue::Done),
            Err(e) if e.is_not_found() => Ok(Requeue::Done),
            Err(e) if e.is_conflict() || e.is_invalid() => {
                // It was given a range by somebody else, or is another node of that name: its event will say.
                info!(node = key.name, answer = component::plain(&e), "range not written");
                Err(Error::Retry("the node changed".into()))
            }
            Err(e) => {
                self.events.event(
                    &*node,
                    Level::Warning,
                    "CIDRAssignmentFailed",
                    format!("Node {} could not be given a range", name(&node.metadata)),
                );
                Err(e.into())
            }
        }
    }
}
