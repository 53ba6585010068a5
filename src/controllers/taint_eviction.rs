//! Pods leave nodes with `NoExecute` taints that they do not tolerate, or no longer tolerate.

use std::sync::Arc;
use std::time::Duration;

use component::events::{Level, Recorder};
use component::placement::tolerates;
use component::{ApiErrorExt, Change, Error, ObjectKey, Queue, Requeue};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use serde_json::json;

use crate::context::{Context, known};
use crate::meta::{is_deleting, name, now, since};
use crate::pods;

const WORKERS: usize = 8;

/// When a pod must go.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    Go,
    GoAfter(Duration),
}

struct Controller {
    ctx: Arc<Context>,
    events: Recorder,
}

/// Starts the taint eviction controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("taint-eviction");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        events: ctx.events.named("taint-eviction-controller"),
    });
    let (add, on) = (Arc::clone(&queue), Arc::clone(&controller));
    ctx.caches.pods.on_change(move |c| on.pod_changed(&add, c));
    let (add, on) = (Arc::clone(&queue), Arc::clone(&controller));
    ctx.caches.nodes.on_change(move |c| on.node_changed(&add, c));
    ctx.work(
        known!(ctx, nodes, pods),
        queue,
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

fn executing(node: &Node) -> Vec<Taint> {
    node.spec
        .iter()
        .flat_map(|s| s.taints.iter().flatten())
        .filter(|t| t.effect == "NoExecute")
        .cloned()
        .collect()
}

impl Controller {
    fn pod_changed(&self, queue: &Queue<ObjectKey>, change: Change<'_, Pod>) {
        let Some(node) = pods::node_name(change.latest()) else {
            return;
        };
        let news = change
            .old()
            .is_none_or(|o| pods::node_name(o).is_none() || tolerations(o) != tolerations(change.latest()));
        if !change.is_deleted()
            && news
            && self
                .ctx
                .caches
                .nodes
                .get("", node)
                .is_some_and(|n| !executing(&n).is_empty())
        {
            queue.add(ObjectKey::of(&**change.latest()));
        }
    }

    fn node_changed(&self, queue: &Queue<ObjectKey>, change: Change<'_, Node>) {
        let now = if change.is_deleted() {
            Vec::new()
        } else {
            executing(change.latest())
        };
        if change.old().map(|o| executing(o)).unwrap_or_default() != now {
            for pod in self.ctx.caches.pods.indexed(name(&change.latest().metadata)) {
                queue.add(ObjectKey::of(&*pod));
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(pod) = self.ctx.caches.pods.get_key(key).filter(|p| !is_deleting(&p.metadata)) else {
            return Ok(Requeue::Done);
        };
        let Some(node) = pods::node_name(&pod).and_then(|n| self.ctx.caches.nodes.get("", n)) else {
            return Ok(Requeue::Done);
        };
        match verdict(&executing(&node), tolerations(&pod), Timestamp::now()) {
            Verdict::Stay => Ok(Requeue::Done),
            Verdict::GoAfter(delay) => Ok(Requeue::After(delay)),
            Verdict::Go => {
                let message = "Taint manager: deleting due to NoExecute taint";
                let condition = json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": message,
                    "lastTransitionTime": now(),
                });
                pods::set_condition(&self.ctx.client, &pod, condition, json!({})).await?;
                self.events.event(
                    &*pod,
                    Level::Normal,
                    "TaintManagerEviction",
                    format!("Marking for deletion Pod {key}"),
                );
                match pods::delete_exactly(&self.ctx.client, &pod, None).await {
                    Err(Error::Api(e)) if e.is_not_found() || e.is_conflict() => Ok(Requeue::Done),
                    other => other.map(|()| Requeue::Done),
                }
            }
        }
    }
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default()
}

/// A taint that nothing tolerates evicts at once. Of the times tolerated the shortest counts, from when the taint came.
fn verdict(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Verdict {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if covering.is_empty() {
            return Verdict::Go;
        }
        let age = taint.time_added.as_ref().map_or(Duration::ZERO, |t| since(t.0, now));
        for seconds in covering.iter().filter_map(|t| t.toleration_seconds) {
            let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            let left = allowed.saturating_sub(age);
            shortest = Some(shortest.map_or(left, |s| s.min(left)));
        }
    }
    match shortest {
        None => Verdict::Stay,
        Some(Duration::ZERO) => Verdict::Go,
        Some(left) => Verdict::GoAfter(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let taint = Taint {
            key: "k".into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(Timestamp::from_second(100).unwrap())),
            value: None,
        };
        let tolerating = |seconds: Option<i64>| Toleration {
            key: Some("k".into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        for (tolerations, at, expected) in [
            (vec![], 100, Verdict::Go),
            (vec![tolerating(None)], 100, Verdict::Stay),
            (
                vec![tolerating(Some(300))],
                100,
                Verdict::GoAfter(Duration::from_secs(300)),
            ),
            (
                vec![tolerating(Some(300))],
                350,
                Verdict::GoAfter(Duration::from_secs(50)),
            ),
            (
                vec![tolerating(Some(300)), tolerating(Some(10))],
                105,
                Verdict::GoAfter(Duration::from_secs(5)),
            ),
            (vec![tolerating(Some(300))], 400, Verdict::Go),
            (vec![tolerating(Some(0))], 100, Verdict::Go),
        ] {
            let got = verdict(
                std::slice::from_ref(&taint),
                &tolerations,
                Timestamp::from_second(at).unwrap(),
            );
            assert_eq!(got, expected, "{tolerations:?} at {at}");
        }
        assert_eq!(verdict(&[], &[], Timestamp::UNIX_EPOCH), Verdict::Stay);
    }
}
