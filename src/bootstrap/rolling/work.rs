//! Carrying a turn out: what can be done beforehand, emptying the node, and waiting until it works again.

use super::{Turn, hold, pods};
use crate::{
    Error, Result,
    cluster::{Cluster, api, nodes, wait::until},
    effects,
    event::Event,
    fan, paths,
    phases::{Outcome, Phase},
    reset::drain::{self, Leaving},
    run::Run,
    site::Seat,
    verify,
};
use futures::{FutureExt as _, future::BoxFuture};
use host::{Effect, effect::Rootfs};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior};

/// How long a node may take from its agent's start until all on it works.
const READY: Duration = Duration::from_secs(180);
/// How long one answer of an API server that may just be replaced is waited for.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a controller may take to take the taints of a node's former state away.
const SCHEDULABLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(500);
/// What can be done about pods that do not leave.
const HINT: &str = "--drain-timeout gives them longer, --no-drain lets all pods stay while their host is changed";

/// The turn of a place of a phase that happens [`crate::phases::On::Rolling`], and its index in the site.
fn turn_at(run: &Run, place: Option<usize>) -> Result<(Turn, &Seat)> {
    let turn = place.and_then(|index| run.rolling.turn(index));
    let turn = turn.ok_or(Error::Interrupted("the turn of a host"))?;
    Ok((*turn, &run.site.seats[turn.index]))
}

/// Unpacks the new rootfs beside the one in use, so that nobody waits for it later.
pub fn unpack(run: Arc<Run>, phase: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let (turn, _) = turn_at(&run, place)?;
        let session = &run.sessions[turn.index];
        let beside = Effect::Rootfs(Rootfs {
            switch: false,
            ..run.site.image.rootfs.clone()
        });
        let changes = session.client.apply(vec![beside]).await;
        let changes = changes.map_err(session.failed(phase.title))?;
        Ok(Outcome {
            changes: changes.iter().filter(|change| change.changed()).count(),
            ..Outcome::default()
        })
    }
    .boxed()
}

/// Cordons a node and lets pods leave that run elsewhere meanwhile.
pub fn drain(run: Arc<Run>, _: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let (turn, seat) = turn_at(&run, place)?;
        if !turn.drain {
            return Ok(Outcome::default());
        }
        let Some(cluster) = run.cluster.get() else {
            run.note(Some(turn.index), "the API server does not answer, so its pods stay");
            return Ok(Outcome::default());
        };
        let api: Api<Node> = Api::all(cluster.client.clone());
        let listed = api.list(&ListParams::default()).await;
        let all = listed.map_err(Error::api("listing nodes"))?.items;
        let Some(node) = all.iter().find(|node| node.name_any() == seat.name) else {
            return Ok(Outcome::default());
        };
        if !nodes::is_ready(node) {
            run.note(
                Some(turn.index),
                "its node is not Ready and could not end pods, so they stay",
            );
            return Ok(Outcome::default());
        }
        let since = jiff::Timestamp::now().to_string();
        patch(&api, &seat.name, hold::take(node, &since), "cordoning").await?;
        match empty(&run, cluster, seat, &all).await {
            Ok(moved) => Ok(Outcome {
                changes: moved,
                ..Outcome::default()
            }),
            Err(error) => {
                // Nothing was changed there, so nothing speaks against new pods.
                let_go(&run, cluster, turn.index).await;
                Err(error)
            }
        }
    }
    .boxed()
}

async fn empty(run: &Run, cluster: &Cluster, seat: &Seat, nodes: &[Node]) -> Result<usize> {
    let stays = |pod: &Pod| {
        let reason = (!pods::has_ended(pod)).then(|| pods::stays(pod, nodes, &seat.name));
        if let Some(Some(reason)) = reason {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            run.observer.event(Event::Note {
                host: Some(seat.name.clone()),
                message: format!("pod {namespace}/{name} stays: {reason}"),
            });
        }
        reason.is_none_or(|reason| reason.is_some())
    };
    let leaving = Leaving {
        patience: run.rolling.care.patience,
        hint: HINT,
        stays: &stays,
    };
    drain::evict(cluster, &seat.name, &leaving).await
}

/// Waits until the new agent says that its node is Ready and the system's pods on it are, and lets the node go if it was held.
pub fn settle(run: Arc<Run>, _: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let (turn, seat) = turn_at(&run, place)?;
        let cluster = run.cluster()?;
        let session = &run.sessions[turn.index];
        let deadline = Instant::now() + READY;
        let mut ticks = tokio::time::interval(AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let agent = session.client.unit_status(paths::unit::AGENT, 0).await;
            let agent = agent.map_err(session.failed("looking at the node agent"))?;
            let since = (agent.active_since_us > 0).then_some(agent.active_since_us / 1_000_000);
            // While the control plane is replaced the API server does not answer.
            let looked = tokio::time::timeout(ANSWER, look(&run, cluster, seat, since)).await;
            let waiting = match looked {
                Ok(Ok(waiting)) => waiting,
                Ok(Err(error)) => vec![error.to_string()],
                Err(_) => vec!["the API server does not answer".to_owned()],
            };
            if waiting.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout {
                    what: format!("{} ({}): that its node works again", seat.ip, seat.name),
                    seconds: READY.as_secs(),
                    last: waiting.join("; "),
                });
            }
        }
        let api: Api<Node> = Api::all(cluster.client.clone());
        let changes = release(&api, &seat.name).await?;
        await_placement(&api, seat, SCHEDULABLE_TIMEOUT).await?;
        Ok(Outcome {
            changes: usize::from(changes),
            ..Outcome::default()
        })
    }
    .boxed()
}

/// Waits until a node that works and was let go can be given pods: those of the next host have to go somewhere.
pub(crate) async fn await_placement(api: &Api<Node>, seat: &Seat, limit: Duration) -> Result<()> {
    let takes_pods = |node: Option<&Node>| node.is_none_or(pods::takes_pods_again);
    let waited = tokio::time::timeout(limit, until(api.clone(), &seat.name, takes_pods)).await;
    waited.map(drop).map_err(|_| Error::Timeout {
        what: format!("{} ({}): that its node can be given pods again", seat.ip, seat.name),
        seconds: limit.as_secs(),
        last: "a controller has not taken away the taint of its former state".to_owned(),
    })
}

/// What is not yet so.
async fn look(run: &Run, cluster: &Cluster, seat: &Seat, since: Option<u64>) -> Result<Vec<String>> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = nodes.get_opt(&seat.name).await;
    let node = node.map_err(Error::api(format!("looking at node {}", seat.name)))?;
    let mut waiting: Vec<String> = node_waits(node.as_ref(), since).into_iter().collect();
    let on_it = ListParams::default().fields(&format!("spec.nodeName={}", seat.name));
    let listed = Api::<Pod>::all(cluster.client.clone()).list(&on_it).await;
    let listed = listed.map_err(Error::api(format!("listing the pods of {}", seat.name)))?;
    let pods: BTreeMap<(String, String), &Pod> = listed
        .items
        .iter()
        .map(|pod| ((pod.namespace().unwrap_or_default(), pod.name_any()), pod))
        .collect();
    let system = pods.iter().filter(|((namespace, _), _)| namespace == "kube-system");
    waiting.extend(system.filter_map(|((_, name), pod)| Some(format!("{name}: {}", verify::unready_because(pod)?))));
    if seat.master {
        for pod in effects::static_pods(&run.site, seat)? {
            let shown = pod.shown(&seat.name);
            let why = api::unsettled(pods.get(&shown).copied(), pod.digest());
            waiting.extend(why.map(|why| format!("{}: {why}", shown.1)));
        }
    }
    Ok(waiting)
}

/// Why a node is not what it shall be: its agent, which runs `since` that second of 1970, has not said that it is Ready.
fn node_waits(node: Option<&Node>, since: Option<u64>) -> Option<String> {
    let Some(since) = since else {
        return Some("its agent does not run".to_owned());
    };
    let Some(node) = node else {
        return Some("the API server knows no such node".to_owned());
    };
    if !nodes::is_ready(node) {
        return Some(nodes::not_ready_because(node));
    }
    let heard = nodes::heard(node).and_then(|at| u64::try_from(at.as_second()).ok());
    // Both are the host's clock; what is heard has no fractions of seconds.
    heard
        .is_none_or(|heard| heard < since)
        .then(|| "its agent has not told its state since it was started".to_owned())
}

/// Takes a node's hold away, if it is ours.
pub(crate) async fn release(api: &Api<Node>, name: &str) -> Result<bool> {
    let node = api.get_opt(name).await;
    let node = node.map_err(Error::api(format!("looking at node {name}")))?;
    patch(api, name, node.as_ref().and_then(hold::release), "uncordoning").await
}

async fn patch(api: &Api<Node>, name: &str, wanted: Option<Value>, doing: &str) -> Result<bool> {
    let Some(wanted) = wanted else { return Ok(false) };
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(&wanted)).await;
    patched.map_err(Error::api(format!("{doing} node {name}")))?;
    Ok(true)
}

/// As well as it can be done: tells what to do where it cannot.
async fn let_go(run: &Run, cluster: &Cluster, index: usize) {
    let name = run.host_name(index);
    let api: Api<Node> = Api::all(cluster.client.clone());
    let released = tokio::time::timeout(ANSWER, release(&api, &name)).await;
    if !matches!(released, Ok(Ok(_))) {
        run.observer.event(Event::Warning {
            message: format!(
                "the node may have stayed cordoned: the next apply lets it go, or kubectl uncordon {name}"
            ),
            host: Some(name),
        });
    }
}

/// After a run that was undone: its hosts are what they were before, and so are the nodes.
pub(crate) async fn let_all_go(run: &Run) {
    let Some(cluster) = run.cluster.get() else { return };
    let all = run
        .rolling
        .turns
        .iter()
        .map(|turn| let_go(run, cluster, turn.index).boxed());
    fan::all(all.collect()).await;
}

/// After a run that failed and may be gone on with: tells which nodes it still holds.
pub(crate) async fn tell_held(run: &Run) {
    let Some(cluster) = run.cluster.get().filter(|_| !run.rolling.turns.is_empty()) else {
        return;
    };
    let api: Api<Node> = Api::all(cluster.client.clone());
    let listed = tokio::time::timeout(ANSWER, api.list(&ListParams::default())).await;
    let Ok(Ok(listed)) = listed else { return };
    for node in listed.items.iter().filter(|node| hold::is_held(node)) {
        run.observer.event(Event::Warning {
            host: Some(node.name_any()),
            message: "its node stays cordoned; the next apply goes on with it and lets it go".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_works_again_when_its_new_agent_says_so_and_not_because_the_old_one_did() {
        let node = |ready: &str, heard: &str| -> Node {
            let condition =
                json!({"type": "Ready", "status": ready, "lastHeartbeatTime": heard, "message": "no network"});
            serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": [condition]}})).unwrap()
        };
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_second().unsigned_abs();
        let started = Some(at("2026-01-01T10:00:05Z"));
        // what the node says, since when the agent runs → what is missing
        for (node, since, missing) in [
            (Some(node("True", "2026-01-01T10:00:05Z")), started, None),
            (
                Some(node("True", "2026-01-01T10:00:04Z")),
                started,
                Some("has not told its state"),
            ),
            (Some(node("False", "2026-01-01T10:00:09Z")), started, Some("no network")),
            (Some(node("True", "2026-01-01T10:00:09Z")), None, Some("does not run")),
            (None, started, Some("knows no such node")),
        ] {
            let told = node_waits(node.as_ref(), since);
            match missing {
                None => assert_eq!(told, None),
                Some(part) => assert!(told.as_deref().is_some_and(|told| told.contains(part)), "{told:?}"),
            }
        }
    }
}
