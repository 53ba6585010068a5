//! Node life cycle: a node that nothing is heard from becomes `Unknown`, taints follow conditions, and the pods of a node
//! that is not ready stop being ready. Pods are pushed off by `taint_eviction`.
//!
//! Heartbeats are judged by when they arrive here, never by the clock of the node. There is no polling: every node has a
//! timer that its next heartbeat moves on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use component::events::{Level, Recorder};
use component::patch::{Part, update};
use component::{ApiErrorExt, Change, Error, ObjectKey, Queue, Requeue};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::info;

use crate::context::{Context, known};
use crate::meta::{name, now};
use crate::node_health::{
    Evict, GRACE, STARTUP_GRACE, ZoneState, condition, eviction_key, eviction_pause, is_ready, readiness, taints,
    unknown_conditions, zone_of, zones,
};
use crate::pods;

const WORKERS: usize = 4;

/// What was last heard of a node, and when.
struct Heard {
    beat: (Option<MicroTime>, Option<Time>),
    at: Instant,
    /// Whether its pods were told that it is not ready.
    told: bool,
}

struct Controller {
    ctx: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
    heard: Mutex<HashMap<String, Heard>>,
    /// When a node of that zone was last allowed to be evicted.
    turns: Mutex<HashMap<String, Instant>>,
}

/// Starts the node life cycle controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("node-lifecycle");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        events: ctx.events.named("node-controller"),
        queue: Arc::clone(&queue),
        heard: Mutex::default(),
        turns: Mutex::default(),
    });
    let on = Arc::clone(&controller);
    ctx.caches.nodes.on_change(move |c| on.node_changed(c));
    let on = Arc::clone(&controller);
    ctx.caches
        .node_leases
        .on_change(move |c| on.queue.add(ObjectKey::new("", name(&c.latest().metadata))));
    let on = Arc::clone(&controller);
    // A pod that says it is ready on a node that is not is told otherwise.
    ctx.caches.pods.on_change(move |c| {
        if !c.is_deleted()
            && pods::is_ready(c.latest())
            && let Some(node) = pods::node_name(c.latest())
            && on
                .ctx
                .caches
                .nodes
                .get("", node)
                .is_some_and(|n| readiness(&n) == Some("Unknown"))
        {
            on.retell(node);
        }
    });
    ctx.work(
        known!(ctx, nodes, node_leases, pods),
        queue,
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

impl Controller {
    fn node_changed(&self, change: Change<'_, Node>) {
        let node = change.latest();
        self.queue.add(ObjectKey::of(&**node));
        if change.is_deleted() {
            self.heard().remove(name(&node.metadata));
        }
        // Whether others may be evicted depends on how many are ready.
        if change.is_deleted() || change.old().is_none_or(|o| is_ready(o) != is_ready(node)) {
            for other in self.ctx.caches.nodes.all() {
                if eviction_key(&other).is_some() {
                    self.queue.add(ObjectKey::of(&*other));
                }
            }
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, HashMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retell(&self, node: &str) {
        if let Some(heard) = self.heard().get_mut(node) {
            heard.told = false;
        }
        self.queue.add(ObjectKey::new("", node));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(node) = self.ctx.caches.nodes.get("", &key.name) else {
            return Ok(Requeue::Done);
        };
        let silence = self.listen(&node);
        let grace = if condition(&node, "Ready").is_some() {
            GRACE
        } else {
            STARTUP_GRACE
        };
        let mut next = grace.saturating_sub(silence);
        if next.is_zero() {
            self.give_up(&node).await?;
            next = GRACE;
        }
        if let Some(turn) = self.write_taints(&node).await? {
            next = next.min(turn);
        }
        self.tell_pods(&node).await?;
        Ok(Requeue::After(next))
    }

    /// For how long nothing was heard.
    fn listen(&self, node: &Node) -> Duration {
        let lease = self.ctx.caches.node_leases.get("kube-node-lease", name(&node.metadata));
        let renewed = lease.and_then(|l| l.spec.as_ref().and_then(|s| s.renew_time.clone()));
        let posted = condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        let beat = (renewed, posted);
        let mut all = self.heard();
        let heard = all.entry(name(&node.metadata).to_owned()).or_insert_with(|| Heard {
            beat: beat.clone(),
            at: Instant::now(),
            // Only losing readiness is told; a node that comes up has never had it.
            told: true,
        });
        if heard.beat != beat {
            heard.beat = beat;
            heard.at = Instant::now();
        }
        heard.at.elapsed()
    }

    async fn give_up(&self, node: &Node) -> Result<(), Error> {
        let conditions = unknown_conditions(node, Timestamp::now());
        if conditions.is_empty() {
            return Ok(());
        }
        info!(node = name(&node.metadata), "nothing heard from the node");
        let api: Api<Node> = Api::all(self.ctx.client.clone());
        let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
        match api
            .patch_status(name(&node.metadata), &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => Ok(()),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Brings the taints up to date; if the node's turn to be evicted comes later, when.
    async fn write_taints(&self, node: &Arc<Node>) -> Result<Option<Duration>, Error> {
        let (evict, later) = self.turn(node);
        let mut wanted = (**node).clone();
        let spec = wanted.spec.get_or_insert_default();
        let taints = taints(node, evict, Timestamp::now());
        spec.taints = (!taints.is_empty()).then_some(taints);
        let api: Api<Node> = Api::all(self.ctx.client.clone());
        match update(&api, &**node, &wanted, Part::Main).await {
            Ok(_) => Ok(later),
            Err(Error::Api(e)) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn turn(&self, node: &Node) -> (Evict, Option<Duration>) {
        let Some(key) = eviction_key(node) else {
            return (Evict::NotYet, None);
        };
        let nodes = self.ctx.caches.nodes.all();
        let zones = zones(nodes.iter().map(|n| &**n));
        if zones.values().all(|(state, _)| *state == ZoneState::Full) {
            return (Evict::Never, None);
        }
        let has = node
            .spec
            .iter()
            .flat_map(|s| s.taints.iter().flatten())
            .any(|t| t.key == key && t.effect == "NoExecute");
        let zone = zone_of(node);
        let Some(pause) = zones.get(&zone).and_then(|(state, size)| eviction_pause(*state, *size)) else {
            return (Evict::NotYet, None);
        };
        if has {
            return (Evict::NotYet, None);
        }
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let since = turns.get(&zone).map(Instant::elapsed);
        match since
            .and_then(|since| pause.checked_sub(since))
            .filter(|left| !left.is_zero())
        {
            Some(left) => (Evict::NotYet, Some(left)),
            None => {
                turns.insert(zone, Instant::now());
                (Evict::Yes, None)
            }
        }
    }

    /// The pods of a node that was ready and is not any more are not ready either.
    async fn tell_pods(&self, node: &Arc<Node>) -> Result<(), Error> {
        let node_name = name(&node.metadata);
        if is_ready(node) || readiness(node).is_none() {
            if let Some(heard) = self.heard().get_mut(node_name) {
                heard.told = false;
            }
            return Ok(());
        }
        if self.heard().get(node_name).is_none_or(|h| h.told) {
            return Ok(());
        }
        self.events.event(
            &**node,
            Level::Normal,
            "NodeNotReady",
            format!("Node {node_name} status is now: NodeNotReady"),
        );
        for pod in self.ctx.caches.pods.indexed(node_name) {
            if pods::is_ready(&pod) {
                self.mark_not_ready(&pod).await?;
            }
        }
        if let Some(heard) = self.heard().get_mut(node_name) {
            heard.told = true;
        }
        Ok(())
    }

    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), Error> {
        let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now()});
        pods::set_condition(&self.ctx.client, pod, condition, json!({})).await?;
        self.events
            .event(pod, Level::Warning, "NodeNotReady", "Node is not ready");
        Ok(())
    }
}
