//! The decision: `schedule(pod, cluster) → node, or why none`. Pure; ties are broken by a number the caller draws.

use std::collections::{BTreeMap, HashMap};

use crate::affinity::PodAffinity;
use crate::cluster::{Cluster, NodeInfo, PodInfo};
use crate::filters::{Reason, check};
use crate::scores::{image_name, totals};
use crate::spread::Spread;

/// In clusters larger than this not every node is looked at.
const SMALL_CLUSTER: usize = 100;

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run it on this node.
    Node(String),
    /// No node takes it.
    None(Unfit),
}

/// Why no node takes a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfit {
    /// How many nodes there are.
    pub total: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<Reason, usize>,
    /// Nodes where fewer pods could help.
    pub preemptible: Vec<String>,
}

impl Unfit {
    /// The message that users know.
    pub fn message(&self) -> String {
        if self.total == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut texts: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, n)| format!("{n} {}", reason.text()))
            .collect();
        texts.sort();
        format!("0/{} nodes are available: {}.", self.total, texts.join(", "))
    }
}

/// How many nodes that fit are enough to choose from.
fn enough(nodes: usize) -> usize {
    if nodes <= SMALL_CLUSTER {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(SMALL_CLUSTER)
}

/// Everything about a pod to schedule that is counted over the whole cluster.
pub struct Question<'a> {
    pod: &'a PodInfo,
    affinity: PodAffinity,
    spread: Spread<'a>,
}

impl<'a> Question<'a> {
    /// Counts what the pod's rules are about.
    pub fn new(cluster: &Cluster, pod: &'a PodInfo) -> Self {
        Self {
            pod,
            affinity: PodAffinity::of(cluster, pod),
            spread: Spread::of(cluster, pod),
        }
    }

    /// Why `node` does not take the pod; empty if it does.
    pub fn check(&self, node: &NodeInfo) -> Vec<Reason> {
        let reasons = check(self.pod, node);
        if !reasons.is_empty() {
            return reasons;
        }
        self.spread
            .check(node)
            .or_else(|| self.affinity.check(node))
            .into_iter()
            .collect()
    }
}

/// Node-local check that also leaves room for the pods of at least the same priority that were promised this node.
pub fn check_with_nominated(cluster: &Cluster, question: &Question<'_>, node: &NodeInfo) -> Vec<Reason> {
    let pod = question.pod;
    let mut promised = cluster.nominated(&node.name, pod.priority, &pod.uid).peekable();
    if promised.peek().is_none() {
        return question.check(node);
    }
    let mut fuller = node.clone();
    promised.for_each(|p| fuller.add(p.clone()));
    question.check(&fuller)
}

/// Chooses a node for `pod`. `draw` rotates where the search begins and breaks ties.
pub fn schedule(cluster: &Cluster, pod: &PodInfo, draw: usize) -> Decision {
    let question = Question::new(cluster, pod);
    let slots = cluster.slots();
    let total = cluster.nodes().count();
    let wanted = enough(total);
    let mut unfit = Unfit {
        total,
        ..Unfit::default()
    };
    let mut fitting: Vec<&NodeInfo> = Vec::new();
    // Only large clusters are searched in parts; in small ones the order must not matter.
    let start = if total > SMALL_CLUSTER {
        draw % slots.len().max(1)
    } else {
        0
    };
    for node in slots[start..]
        .iter()
        .chain(&slots[..start])
        .filter(|n| n.node.is_some())
    {
        let reasons = check_with_nominated(cluster, &question, node);
        if reasons.is_empty() {
            fitting.push(node);
            if fitting.len() >= wanted {
                break;
            }
            continue;
        }
        if reasons.iter().all(Reason::is_preemptible) {
            unfit.preemptible.push(node.name.clone());
        }
        for reason in reasons {
            *unfit.reasons.entry(reason).or_default() += 1;
        }
    }
    match best(cluster, &question, &fitting, total, draw) {
        Some(node) => Decision::Node(node.name.clone()),
        None => Decision::None(unfit),
    }
}

fn best<'a>(
    cluster: &Cluster,
    question: &Question<'_>,
    fitting: &[&'a NodeInfo],
    total: usize,
    draw: usize,
) -> Option<&'a NodeInfo> {
    if fitting.len() < 2 {
        return fitting.first().copied();
    }
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let mut images: HashMap<String, i64> = HashMap::new();
    if fitting.iter().any(|n| !n.images.is_empty())
        && let Some(spec) = question.pod.spec()
    {
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let name = image_name(container.image.as_deref().unwrap_or_default());
            let have = cluster.nodes().filter(|n| n.images.contains_key(&name)).count();
            images.insert(name, count(have));
        }
    }
    let have = |name: &str| images.get(name).copied().unwrap_or(0);
    let totals = totals(
        question.pod,
        fitting,
        &question.affinity,
        &question.spread,
        &have,
        count(total),
    );
    let most = totals.iter().copied().max()?;
    let best: Vec<&NodeInfo> = fitting
        .iter()
        .zip(&totals)
        .filter(|(_, t)| **t == most)
        .map(|(n, _)| *n)
        .collect();
    best.get(draw % best.len()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{cluster, info, labels, node, pod};
    use proptest::prelude::*;
    use std::time::Instant;

    #[test]
    fn the_message_names_every_reason_with_its_count() {
        let mut cordoned = node("c", "4", "4Gi", &[]);
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        let cluster = cluster(vec![node("a", "1", "4Gi", &[]), node("b", "1", "4Gi", &[]), cordoned]);
        let Decision::None(unfit) = schedule(&cluster, &info(pod("p", "2", "1Mi")), 0) else {
            panic!("it fits nowhere")
        };
        assert_eq!(
            unfit.message(),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."
        );
        assert_eq!(unfit.preemptible, ["a", "b"]);
        assert_eq!(Unfit::default().message(), "no nodes available to schedule pods");
    }

    #[test]
    fn a_promised_node_has_no_room_for_others_of_lower_priority() {
        let mut cluster = cluster(vec![node("a", "2", "4Gi", &[])]);
        let mut important = pod("important", "2", "1Mi");
        important.spec.as_mut().unwrap().priority = Some(10);
        let important = info(important);
        cluster.nominate(important.clone(), "a");
        assert!(matches!(
            schedule(&cluster, &info(pod("p", "1", "1Mi")), 0),
            Decision::None(_)
        ));
        assert_eq!(schedule(&cluster, &important, 0), Decision::Node("a".into()));
    }

    #[test]
    fn pods_spread_over_equal_nodes() {
        let mut cluster = cluster((0..3).map(|i| node(&format!("n{i}"), "4", "4Gi", &[])).collect());
        for i in 0..9 {
            let pod = info(pod(&format!("p{i}"), "100m", "64Mi"));
            let Decision::Node(node) = schedule(&cluster, &pod, i) else {
                panic!("it fits")
            };
            cluster.place(pod, &node);
        }
        assert!(cluster.nodes().all(|n| n.pods.len() == 3));
    }

    #[test]
    fn large_clusters_are_searched_in_part() {
        for (nodes, expected) in [(3, 3), (100, 100), (101, 100), (1000, 420), (5000, 500), (10_000, 500)] {
            assert_eq!(enough(nodes), expected, "{nodes}");
        }
    }

    proptest! {
        #[test]
        fn no_node_is_ever_given_more_than_it_has(sizes in prop::collection::vec((1u32..8, 1u32..8), 1..6), pods in prop::collection::vec((0u32..3000, 0u32..3000), 1..60), draw in any::<usize>()) {
            let nodes = sizes.iter().enumerate().map(|(i, (cpu, gi))| node(&format!("n{i}"), &cpu.to_string(), &format!("{gi}Gi"), &[])).collect();
            let mut cluster = cluster(nodes);
            for (i, (cpu, mi)) in pods.iter().enumerate() {
                let pod = info(pod(&format!("p{i}"), &format!("{cpu}m"), &format!("{mi}Mi")));
                match schedule(&cluster, &pod, draw) {
                    Decision::Node(node) => cluster.place(pod, &node),
                    Decision::None(unfit) => {
                        // Each node gave a reason, and none of them has room.
                        prop_assert_eq!(unfit.total, sizes.len());
                        for node in cluster.nodes() {
                            prop_assert!(!check(&pod, node).is_empty());
                        }
                    }
                }
            }
            for node in cluster.nodes() {
                prop_assert!(node.requested.milli_cpu <= node.allocatable.milli_cpu);
                prop_assert!(node.requested.memory <= node.allocatable.memory);
            }
        }
    }

    /// Not a test but a measurement: `cargo nextest run -p scheduler --run-ignored all --no-capture measure`.
    #[test]
    #[ignore = "a measurement"]
    fn measure_decisions_per_second() {
        for (nodes, count) in [(3, 20_000), (100, 5_000), (1000, 2_000)] {
            let mut cluster = cluster(
                (0..nodes)
                    .map(|i| node(&format!("n{i}"), "6400", "640Ti", &[("zone", &format!("{}", i % 3))]))
                    .collect(),
            );
            for slot in 0..nodes {
                let mut roomy = node(&format!("n{slot}"), "6400", "640Ti", &[]);
                roomy
                    .metadata
                    .labels
                    .as_mut()
                    .unwrap()
                    .extend(labels(&[("zone", &format!("{}", slot % 3))]));
                let pods = k8s_openapi::apimachinery::pkg::api::resource::Quantity("100k".into());
                roomy
                    .status
                    .as_mut()
                    .unwrap()
                    .allocatable
                    .as_mut()
                    .unwrap()
                    .insert("pods".into(), pods);
                cluster.set_node(std::sync::Arc::new(roomy));
            }
            let pods: Vec<_> = (0..count).map(|i| info(pod(&format!("p{i}"), "10m", "16Mi"))).collect();
            let start = Instant::now();
            for (i, pod) in pods.into_iter().enumerate() {
                if let Decision::Node(node) = schedule(&cluster, &pod, i) {
                    cluster.place(pod, &node);
                }
            }
            let rate = f64::from(count) / start.elapsed().as_secs_f64();
            println!("{nodes} nodes: {rate:.0} pods/s");
        }
    }
}
