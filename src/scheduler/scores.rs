//! Which of the nodes that may take a pod is best: every plugin gives 0 to 100, weighted as Kubernetes does by default.

use component::placement::{term_matches, tolerates};
use k8s_openapi::api::core::v1::Toleration;

use crate::affinity::PodAffinity;
use crate::cluster::{NodeInfo, PodInfo};
use crate::spread::Spread;

const TAINTS: i64 = 3;
const NODE_AFFINITY: i64 = 2;
const POD_AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
const BEST: i64 = 100;

/// Images smaller than this do not matter, and larger than the other (a container) matter no more.
const SMALL_IMAGE: i64 = 23 << 20;
const LARGE_IMAGE: i64 = 1000 << 20;

/// The total score of each node; `total` is the number of nodes of the cluster.
pub fn totals(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    affinity: &PodAffinity,
    spread: &Spread<'_>,
    spread_of_images: &dyn Fn(&str) -> i64,
    total: i64,
) -> Vec<i64> {
    let mut totals: Vec<i64> = nodes
        .iter()
        .map(|n| least_allocated(pod, n) + balanced(pod, n))
        .collect();
    let mut add = |scores: Vec<i64>, weight: i64| totals.iter_mut().zip(scores).for_each(|(t, s)| *t += s * weight);
    add(upside_down(nodes.iter().map(|n| intolerable(pod, n)).collect()), TAINTS);
    let preferred = nodes.iter().map(|n| preferred(pod, n)).collect::<Vec<_>>();
    add(proportional(preferred), NODE_AFFINITY);
    if affinity.has_scores() {
        add(between(nodes.iter().map(|n| affinity.score(n)).collect()), POD_AFFINITY);
    }
    if let Some(scores) = spread.scores(nodes) {
        add(scores, SPREAD);
    }
    add(
        nodes
            .iter()
            .map(|n| locality(pod, n, spread_of_images, total))
            .collect(),
        1,
    );
    totals
}

fn free(capacity: i64, used: i64) -> i64 {
    if capacity <= 0 || used > capacity {
        0
    } else {
        (capacity - used) * BEST / capacity
    }
}

/// Prefers nodes with much left.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let cpu = free(node.allocatable.milli_cpu, node.scored.0 + pod.scored.0);
    let memory = free(node.allocatable.memory, node.scored.1 + pod.scored.1);
    (cpu + memory) / 2
}

/// Prefers nodes whose CPU and memory are used to about the same part.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    #[allow(clippy::cast_precision_loss)]
    let part = |used: i64, capacity: i64| {
        if capacity <= 0 {
            1.0
        } else {
            (used as f64 / capacity as f64).min(1.0)
        }
    };
    let cpu = part(
        node.requested.milli_cpu + pod.requests.milli_cpu,
        node.allocatable.milli_cpu,
    );
    let memory = part(node.requested.memory + pod.requests.memory, node.allocatable.memory);
    #[allow(clippy::cast_possible_truncation)]
    let score = ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64;
    score
}

/// How many `PreferNoSchedule` taints the pod does not tolerate.
fn intolerable(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let tolerations: &[Toleration] = pod.spec().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let hurts = |t: &&k8s_openapi::api::core::v1::Taint| {
        t.effect == "PreferNoSchedule" && !tolerations.iter().any(|x| tolerates(x, t))
    };
    i64::try_from(node.taints().iter().filter(hurts).count()).unwrap_or(i64::MAX)
}

/// The weights of the preferred node affinity terms that match.
fn preferred(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let terms = pod
        .spec()
        .and_then(|s| s.affinity.as_ref())
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    let labels = node.node.as_ref().and_then(|n| n.metadata.labels.as_ref());
    terms
        .iter()
        .filter(|t| term_matches(&t.preference, &node.name, labels))
        .map(|t| i64::from(t.weight))
        .sum()
}

/// Prefers nodes that have the images already; images that few nodes have count less, or pods would pile up there.
fn locality(pod: &PodInfo, node: &NodeInfo, have: &dyn Fn(&str) -> i64, total: i64) -> i64 {
    let Some(spec) = pod.spec().filter(|_| !node.images.is_empty() && total > 0) else {
        return 0;
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let (mut sum, mut count) = (0, 0);
    for container in containers {
        count += 1;
        let name = image_name(container.image.as_deref().unwrap_or_default());
        if let Some(size) = node.images.get(&name) {
            sum += size * have(&name) / total;
        }
    }
    let large = LARGE_IMAGE * count;
    if large <= SMALL_IMAGE {
        0
    } else {
        BEST * (sum.clamp(SMALL_IMAGE, large) - SMALL_IMAGE) / (large - SMALL_IMAGE)
    }
}

/// An image without tag or digest means `latest`.
pub fn image_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

/// The most becomes 0 and 0 becomes 100.
fn upside_down(scores: Vec<i64>) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    scores
        .into_iter()
        .map(|s| if most == 0 { BEST } else { BEST - BEST * s / most })
        .collect()
}

/// The most becomes 100.
fn proportional(scores: Vec<i64>) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    scores
        .into_iter()
        .map(|s| if most == 0 { 0 } else { BEST * s / most })
        .collect()
}

/// The least becomes 0 and the most 100.
fn between(scores: Vec<i64>) -> Vec<i64> {
    let (least, most) = (
        scores.iter().copied().min().unwrap_or(0),
        scores.iter().copied().max().unwrap_or(0),
    );
    scores
        .into_iter()
        .map(|s| {
            if most == least {
                0
            } else {
                BEST * (s - least) / (most - least)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{cluster, info, node, pod};

    #[test]
    fn free_and_balanced_nodes_score_higher() {
        let mut cluster = cluster(vec![
            node("empty", "4", "4Gi", &[]),
            node("busy", "4", "4Gi", &[]),
            node("lopsided", "4", "4Gi", &[]),
        ]);
        cluster.place(info(pod("a", "2", "2Gi")), "busy");
        cluster.place(info(pod("b", "3", "128Mi")), "lopsided");
        let pod = info(pod("p", "500m", "512Mi"));
        let of = |name: &str| {
            (
                least_allocated(&pod, cluster.node(name).unwrap()),
                balanced(&pod, cluster.node(name).unwrap()),
            )
        };
        assert_eq!(of("empty"), (87, 100));
        assert_eq!(of("busy"), (37, 100));
        assert!(of("lopsided").1 < 70);
    }

    #[test]
    fn normalisation_keeps_the_order() {
        assert_eq!(upside_down(vec![0, 1, 2]), [100, 50, 0]);
        assert_eq!(proportional(vec![0, 5, 10]), [0, 50, 100]);
        assert_eq!(between(vec![-10, 0, 10]), [0, 50, 100]);
        assert_eq!(between(vec![3, 3]), [0, 0]);
    }

    #[test]
    fn an_image_without_tag_is_the_latest() {
        for (image, expected) in [
            ("web", "web:latest"),
            ("sea.hub:5000/web", "sea.hub:5000/web:latest"),
            ("a/b:1", "a/b:1"),
            ("a@sha256:0", "a@sha256:0"),
        ] {
            assert_eq!(image_name(image), expected);
        }
    }
}
