//! Nodes: that they appear, carry the labels and taints that were wished, become Ready; and how they leave.

use super::{api, wait::until};
use crate::{
    Error, Result, fan, paths,
    phases::{Outcome, Phase},
    rolling,
    run::Run,
    site::{CONTROL_PLANE, Seat},
};
use component::ApiErrorExt as _;
use futures::{FutureExt as _, future::BoxFuture};
use host::Effect;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a node may take from its agent's start to Ready.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often others may be faster than we in changing a node.
const RACES: usize = 20;
/// Keys of the labels we set, so that one that leaves the Clusterfile leaves the node.
const OUR_LABELS: &str = "installer.internal/labels";
/// `key:effect` of the taints we set.
const OUR_TAINTS: &str = "installer.internal/taints";

/// Waits for every node, gives it its labels and taints, and takes the token away when all have joined.
pub fn join(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let deadline = Instant::now() + PATIENCE;
        let all = (0..run.site.seats.len())
            .map(|index| one(&run, index, deadline).boxed())
            .collect();
        let changes = fan::all_good(all).await?.into_iter().sum();
        forget(&run).await?;
        Ok(Outcome {
            changes,
            ..Outcome::default()
        })
    }
    .boxed()
}

/// The token is of no more use: neither to the API server nor on the hosts.
async fn forget(run: &Run) -> Result<()> {
    let new = run
        .site
        .seats
        .iter()
        .zip(&run.sessions)
        .filter(|(seat, _)| !seat.seen.joined);
    let gone = Effect::Absent {
        path: paths::BOOTSTRAP_CONF.to_owned(),
    };
    let removals = new.map(|(_, session)| {
        let gone = gone.clone();
        async move {
            session
                .client
                .apply(vec![gone])
                .await
                .map(drop)
                .map_err(session.failed("taking the bootstrap token away"))
        }
        .boxed()
    });
    fan::all_good(removals.collect()).await?;
    api::forget_token(run).await
}

async fn one(run: &Arc<Run>, index: usize, deadline: Instant) -> Result<usize> {
    let seat = &run.site.seats[index];
    let nodes: Api<Node> = Api::all(run.cluster()?.client.clone());
    let node = wait(run, index, &nodes, deadline, "appear in the cluster", |node| {
        node.is_some()
    })
    .await?;
    let given = give_metadata(&nodes, node, seat).await?;
    wait(run, index, &nodes, deadline, "become Ready", |node| {
        node.is_some_and(is_ready)
    })
    .await?;
    // What an interrupted apply has cordoned has nobody else to let it go.
    let released = rolling::work::release(&nodes, &seat.name).await?;
    run.note(Some(index), "node is Ready");
    Ok(usize::from(given) + usize::from(released))
}

/// Gives a node the labels and taints of its seat; whether it lacked some. `node` may have been seen a while ago.
///
/// # Errors
/// When the API server refuses.
pub(crate) async fn give_metadata(nodes: &Api<Node>, mut node: Node, seat: &Seat) -> Result<bool> {
    let failed = |error| Error::api(format!("labelling node {}", seat.name))(error);
    let mut races = 0;
    loop {
        let Some(patch) = metadata_patch(&node, seat) else {
            return Ok(false);
        };
        let patched = nodes
            .patch(&seat.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        match patched {
            Ok(_) => return Ok(true),
            // The agent or the controllers were faster: what they wrote counts, too.
            Err(error) if error.is_conflict() && races < RACES => races += 1,
            Err(error) => return Err(failed(error)),
        }
        node = nodes.get(&seat.name).await.map_err(failed)?;
    }
}

async fn wait(
    run: &Run,
    index: usize,
    nodes: &Api<Node>,
    deadline: Instant,
    what: &str,
    condition: fn(Option<&Node>) -> bool,
) -> Result<Node> {
    let (seat, session) = (&run.site.seats[index], &run.sessions[index]);
    let left = deadline.saturating_duration_since(Instant::now());
    let waited = tokio::time::timeout(left, until(nodes.clone(), &seat.name, condition)).await;
    if let Ok(Some(node)) = waited {
        return Ok(node);
    }
    let mut last = seen(nodes, &seat.name).await;
    if let Ok(unit) = session.client.unit_status(paths::unit::AGENT, 5).await {
        last = format!(
            "{last}\n  {} is {}; it says:\n    {}",
            paths::unit::AGENT,
            unit.active,
            unit.log.join("\n    ")
        );
    }
    Err(Error::Timeout {
        what: format!("{} ({}): that its node {what}", seat.ip, seat.name),
        seconds: PATIENCE.as_secs(),
        last,
    })
}

/// What is to be told of a node that was waited for in vain.
pub(crate) async fn seen(nodes: &Api<Node>, name: &str) -> String {
    match nodes.get_opt(name).await {
        Ok(Some(node)) => not_ready_because(&node),
        Ok(None) => "the API server knows no such node".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Whether the node's Ready condition is true.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// When the node's agent last said how it is, by the host's clock.
pub(crate) fn heard(node: &Node) -> Option<jiff::Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
    ready.last_heartbeat_time.as_ref().map(|time| time.0)
}

/// Why it is not, in its own words.
pub fn not_ready_because(node: &Node) -> String {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|list| list.iter().find(|c| c.type_ == "Ready"));
    ready
        .and_then(|c| c.message.clone())
        .unwrap_or_else(|| "it has not said whether it is Ready".to_owned())
}

/// The node's address as it says itself.
pub fn internal_ip(node: &Node) -> Option<std::net::Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses
        .iter()
        .filter(|a| a.type_ == "InternalIP")
        .find_map(|a| a.address.parse().ok())
}

/// Keys of the labels that an installer gave a node.
pub fn given_labels(node: &Node) -> Vec<String> {
    note(node, OUR_LABELS)
}

/// `key:effect` of the taints that an installer gave a node.
pub fn given_taints(node: &Node) -> Vec<String> {
    note(node, OUR_TAINTS)
}

fn note(node: &Node, name: &str) -> Vec<String> {
    let text = node.metadata.annotations.as_ref().and_then(|notes| notes.get(name));
    let keys = text.map_or("", String::as_str).split(',');
    keys.filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

/// The labels a seat's node shall have.
fn wished_labels(seat: &Seat) -> BTreeMap<String, String> {
    let mut labels = seat.labels.clone();
    if seat.master {
        labels.insert(CONTROL_PLANE.to_owned(), String::new());
    }
    labels
}

fn wished_taints(seat: &Seat) -> Vec<(String, String, String)> {
    let mut taints: Vec<_> = seat
        .taints
        .iter()
        .map(|t| (t.key.clone(), t.value.clone(), t.effect.clone()))
        .collect();
    if seat.master {
        taints.push((CONTROL_PLANE.to_owned(), String::new(), "NoSchedule".to_owned()));
    }
    taints
}

/// The patch that gives a node the labels and taints of its seat and takes those away that we gave it and nobody wants any more.
/// What others set stays.
pub fn metadata_patch(node: &Node, seat: &Seat) -> Option<Value> {
    let annotation = |name: &str| node.metadata.annotations.as_ref().and_then(|a| a.get(name)).cloned();
    let labels = wished_labels(seat);
    let have = node.metadata.labels.clone().unwrap_or_default();
    let mut label_patch = serde_json::Map::new();
    for (key, value) in &labels {
        if have.get(key) != Some(value) {
            label_patch.insert(key.clone(), json!(value));
        }
    }
    for key in given_labels(node)
        .into_iter()
        .filter(|key| !labels.contains_key(key) && have.contains_key(key))
    {
        label_patch.insert(key, Value::Null);
    }
    let taints = wished_taints(seat);
    let taint_patch = taint_list(node, &taints, &given_taints(node));
    let keys: Vec<&str> = labels.keys().map(String::as_str).collect();
    let taint_keys: Vec<String> = taints
        .iter()
        .map(|(key, _, effect)| format!("{key}:{effect}"))
        .collect();
    let annotations = [(OUR_LABELS, keys.join(",")), (OUR_TAINTS, taint_keys.join(","))];
    let same_notes = annotations
        .iter()
        .all(|(name, text)| annotation(name).unwrap_or_default() == *text);
    if label_patch.is_empty() && taint_patch.is_none() && same_notes {
        return None;
    }
    let mut patch = json!({"metadata": {
        "labels": label_patch,
        "annotations": annotations.into_iter().map(|(name, text)| (name.to_owned(), json!(text))).collect::<serde_json::Map<_, _>>(),
    }});
    if let Some(list) = taint_patch {
        // Lists are replaced as a whole, so nobody may have changed it meanwhile.
        patch["spec"]["taints"] = list;
        patch["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
    }
    Some(patch)
}

/// Labels and taints that we gave a node and that somebody took away.
pub fn lost_metadata(node: &Node) -> Vec<String> {
    let noted = |name: &str| {
        let text = node.metadata.annotations.as_ref().and_then(|notes| notes.get(name));
        let keys = text.map(String::as_str).unwrap_or_default().split(',');
        keys.filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let has_taint = |wanted: &String| {
        taints
            .iter()
            .any(|taint| format!("{}:{}", taint.key, taint.effect) == *wanted)
    };
    let lost_labels = noted(OUR_LABELS).into_iter().filter(|key| !labels.contains_key(key));
    let lost_taints = noted(OUR_TAINTS).into_iter().filter(|wanted| !has_taint(wanted));
    lost_labels
        .map(|key| format!("metadata.labels[{key}]"))
        .chain(lost_taints.map(|taint| format!("spec.taints[{taint}]")))
        .collect()
}

/// The node's taints with ours in place, if that is a change.
fn taint_list(node: &Node, wished: &[(String, String, String)], ours: &[String]) -> Option<Value> {
    let have = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let key = |key: &str, effect: &str| format!("{key}:{effect}");
    let is_wished = |k: &str, e: &str| wished.iter().any(|(key, _, effect)| key == k && effect == e);
    let mut list: Vec<Value> = Vec::new();
    for taint in &have {
        if !is_wished(&taint.key, &taint.effect) && !ours.contains(&key(&taint.key, &taint.effect)) {
            list.push(json!(taint));
        }
    }
    let others = list.len();
    for (key, value, effect) in wished {
        let mut taint = json!({"key": key, "effect": effect});
        if !value.is_empty() {
            taint["value"] = json!(value);
        }
        list.push(taint);
    }
    let same = have.len() == list.len()
        && wished.iter().all(|(k, v, e)| {
            have.iter()
                .any(|t| t.key == *k && t.effect == *e && t.value.as_deref().unwrap_or_default() == v)
        })
        && have.len() - wished.len() == others;
    (!same).then_some(Value::Array(list))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seat;

    fn node(labels: &[(&str, &str)], taints: &[(&str, &str)], notes: &[(&str, &str)]) -> Node {
        let map = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut node = Node::default();
        node.metadata.labels = Some(map(labels));
        node.metadata.annotations = Some(map(notes));
        node.metadata.resource_version = Some("7".into());
        let taint = |(key, effect): &(&str, &str)| k8s_openapi::api::core::v1::Taint {
            key: (*key).to_owned(),
            effect: (*effect).to_owned(),
            ..Default::default()
        };
        node.spec = Some(k8s_openapi::api::core::v1::NodeSpec {
            taints: Some(taints.iter().map(taint).collect()),
            ..Default::default()
        });
        node
    }

    #[test]
    fn a_node_that_is_as_wished_is_left_alone() {
        let mut master = seat("10.0.0.1", "m1", true);
        master.labels.insert("disk".into(), "ssd".into());
        let notes = [
            (OUR_LABELS, "disk,node-role.kubernetes.io/control-plane"),
            (OUR_TAINTS, "node-role.kubernetes.io/control-plane:NoSchedule"),
        ];
        let node = node(
            &[("disk", "ssd"), (CONTROL_PLANE, ""), ("other", "x")],
            &[
                (CONTROL_PLANE, "NoSchedule"),
                ("node.kubernetes.io/not-ready", "NoExecute"),
            ],
            &notes,
        );
        assert_eq!(metadata_patch(&node, &master), None);
    }

    #[test]
    fn what_we_gave_and_is_wanted_no_more_goes_and_what_others_gave_stays() {
        let worker = seat("10.0.0.2", "n1", false);
        let node = node(
            &[("disk", "ssd"), ("other", "x")],
            &[("gpu", "NoSchedule"), ("theirs", "NoExecute")],
            &[(OUR_LABELS, "disk"), (OUR_TAINTS, "gpu:NoSchedule")],
        );
        let patch = metadata_patch(&node, &worker).unwrap();
        assert_eq!(patch["metadata"]["labels"], json!({"disk": null}));
        assert_eq!(patch["spec"]["taints"].as_array().unwrap().len(), 1);
        assert_eq!(patch["spec"]["taints"][0]["key"], "theirs");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn labels_and_taints_of_ours_that_somebody_took_away_are_told() {
        let notes = [(OUR_LABELS, "disk,zone"), (OUR_TAINTS, "gpu:NoSchedule,old:NoExecute")];
        let node = node(
            &[("zone", "a")],
            &[("gpu", "NoSchedule"), ("old", "NoSchedule")],
            &notes,
        );
        assert_eq!(
            lost_metadata(&node),
            ["metadata.labels[disk]", "spec.taints[old:NoExecute]"]
        );
        assert!(lost_metadata(&super::Node::default()).is_empty());
    }
}
