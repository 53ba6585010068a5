//! From requests and limits to what the kernel is told: QoS class, CPU shares and quota, memory limit, OOM score.
//! Pure; applying it is `cgroup`'s and the runtime's business.

use crate::quantity::{amount_of, sum};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Quality of service class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Qos {
    /// Limits equal requests for CPU and memory in every container.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As the API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }

    fn parse(text: &str) -> Option<Qos> {
        let all = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
        all.into_iter().find(|q| q.as_str() == text)
    }

    /// The class of a pod: what the API server decided when it was created, which never changes; of a static pod, what the
    /// API server would decide.
    pub fn of(pod: &Pod) -> Qos {
        let told = pod.status.as_ref().and_then(|s| s.qos_class.as_deref());
        told.and_then(Qos::parse)
            .or_else(|| Qos::parse(api::strategy::qos_class(&resources_of(pod))))
            .unwrap_or(Qos::BestEffort)
    }
}

/// The part of a pod's spec that says something about resources, with the defaults of the API server: a limit alone is
/// also the request.
fn resources_of(pod: &Pod) -> Value {
    let Some(spec) = &pod.spec else { return Value::Null };
    let of = |c: &Container| {
        let mut all = limits(c).cloned().unwrap_or_default();
        all.extend(requests(c).cloned().unwrap_or_default());
        json!({"resources": {"limits": limits(c), "requests": all}})
    };
    json!({
        "resources": of(&whole_pod(pod))["resources"],
        "containers": spec.containers.iter().map(of).collect::<Vec<_>>(),
        "initContainers": spec.init_containers.iter().flatten().map(of).collect::<Vec<_>>(),
    })
}

/// The resources of the pod as a whole (`spec.resources`), in the form of a container.
fn whole_pod(pod: &Pod) -> Container {
    Container {
        resources: pod.spec.as_ref().and_then(|s| s.resources.clone()),
        ..Default::default()
    }
}

fn requests(c: &Container) -> Option<&BTreeMap<String, Quantity>> {
    c.resources.as_ref()?.requests.as_ref()
}

fn limits(c: &Container) -> Option<&BTreeMap<String, Quantity>> {
    c.resources.as_ref()?.limits.as_ref()
}

/// A container's request, in thousandths of a CPU or in whole units of anything else; a limit alone is also the request.
pub fn request(c: &Container, resource: &str) -> Option<i64> {
    amount_of(requests(c), resource).or_else(|| limit(c, resource))
}

/// A container's limit, in the same units.
pub fn limit(c: &Container, resource: &str) -> Option<i64> {
    amount_of(limits(c), resource)
}

/// The limit that holds for a container: its own, or the one of the pod as a whole; 0 for none.
pub fn effective_limit(pod: &Pod, c: &Container, resource: &str) -> i64 {
    let own = limit(c, resource).filter(|n| *n > 0);
    own.or_else(|| limit(&whole_pod(pod), resource)).unwrap_or(0)
}

/// CPU shares of a number of thousandths of a CPU: 2 … 262144.
pub fn cpu_shares(milli_cpu: i64) -> u64 {
    if milli_cpu <= 0 {
        return 2;
    }
    (milli_cpu.saturating_mul(1024) / 1000).clamp(2, 262_144) as u64
}

/// The period of CPU quotas, microseconds.
pub const CPU_PERIOD: i64 = 100_000;

/// CPU quota for a limit, microseconds per [`CPU_PERIOD`]; 0 means none.
pub fn cpu_quota(milli_cpu: i64) -> i64 {
    if milli_cpu <= 0 {
        0
    } else {
        (milli_cpu.saturating_mul(CPU_PERIOD) / 1000).max(1000)
    }
}

/// cgroup v2 weight of v1 shares (1 … 10000).
pub fn cpu_weight(shares: u64) -> u64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

/// The OOM score adjustment of a container's processes.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: u64) -> i64 {
    if pod
        .spec
        .as_ref()
        .and_then(|s| s.priority)
        .is_some_and(|p| p >= 2_000_001_000)
    {
        return -997;
    }
    match Qos::of(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = request(container, "memory")
                .unwrap_or(0)
                .saturating_add(spare_memory(pod));
            let share = i128::from(request) * 1000 / i128::from(memory_capacity.max(1));
            (1000 - share).clamp(3, 999) as i64
        }
    }
}

/// What the pod requests as a whole beyond its containers' requests, shared out equally among them; bytes.
fn spare_memory(pod: &Pod) -> i64 {
    let Some(of_pod) = request(&whole_pod(pod), "memory") else {
        return 0;
    };
    let containers: Vec<_> = crate::spec::containers(pod)
        .filter(|(kind, _)| *kind != crate::spec::Kind::Init)
        .map(|(_, c)| c)
        .collect();
    let of_containers = sum(containers.iter().filter_map(|c| request(c, "memory")));
    let count = i64::try_from(containers.len().max(1)).unwrap_or(i64::MAX);
    (of_pod - of_containers).max(0) / count
}

/// What a pod's cgroup is limited to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// Relative CPU weight, in v1 shares.
    pub cpu_shares: u64,
    /// Microseconds per [`CPU_PERIOD`], if every container is limited.
    pub cpu_quota: Option<i64>,
    /// Bytes, if every container is limited.
    pub memory: Option<i64>,
    /// Most processes.
    pub pids: Option<i64>,
}

/// A pod's effective amount of a resource: the larger of all main containers plus sidecars, and any step of the
/// initialisation (each init container beside the sidecars started before it); what the pod says as a whole stands for
/// that. Plus overhead.
pub fn pod_amount(pod: &Pod, resource: &str, of: fn(&Container, &str) -> Option<i64>) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let main = sum(spec.containers.iter().filter_map(|c| of(c, resource)));
    let (mut sidecars, mut peak) = (0i64, 0i64);
    for c in spec.init_containers.iter().flatten() {
        let amount = of(c, resource).unwrap_or(0);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(amount);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(amount));
        }
    }
    let overhead = amount_of(spec.overhead.as_ref(), resource).unwrap_or(0);
    let of_pod = of(&whole_pod(pod), resource).filter(|n| *n > 0);
    let of_containers = || main.saturating_add(sidecars).max(peak);
    of_pod.unwrap_or_else(of_containers).saturating_add(overhead)
}

/// The limits of a pod's cgroup.
pub fn pod_limits(pod: &Pod, pids: i64, quota: bool) -> PodLimits {
    let all_limited = |resource: &str| {
        limit(&whole_pod(pod), resource).unwrap_or(0) > 0
            || pod.spec.as_ref().is_some_and(|s| {
                s.containers
                    .iter()
                    .chain(s.init_containers.iter().flatten())
                    .all(|c| limit(c, resource).unwrap_or(0) > 0)
            })
    };
    PodLimits {
        cpu_shares: cpu_shares(pod_amount(pod, "cpu", request)),
        cpu_quota: (quota && all_limited("cpu")).then(|| cpu_quota(pod_amount(pod, "cpu", limit))),
        memory: all_limited("memory").then(|| pod_amount(pod, "memory", limit)),
        pids: (pids > 0).then_some(pids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &[serde_json::Value]) -> Pod {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(i, r)| json!({"name": format!("c{i}"), "resources": r}))
            .collect();
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}});
        for (resources, expected) in [
            (vec![json!({})], Qos::BestEffort),
            (vec![full.clone()], Qos::Guaranteed),
            (vec![json!({"limits": {"cpu": "1", "memory": "1Gi"}})], Qos::Guaranteed),
            (vec![full.clone(), json!({})], Qos::Burstable),
            (vec![json!({"requests": {"cpu": "1"}})], Qos::Burstable),
            (vec![json!({"limits": {"memory": "1Gi"}})], Qos::Burstable),
        ] {
            assert_eq!(Qos::of(&pod(&resources)), expected, "{resources:?}");
        }
    }

    #[test]
    fn the_class_that_the_api_server_decided_holds() {
        for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let mut p = pod(&[json!({"requests": {"cpu": "1"}})]);
            p.status = serde_json::from_value(json!({"qosClass": class.as_str()})).unwrap();
            assert_eq!(Qos::of(&p), class);
        }
    }

    #[test]
    fn an_amount_that_is_too_large_is_not_none() {
        let huge = json!({"cpu": "100E", "memory": "100E"});
        let p = pod(&[
            json!({"requests": huge, "limits": huge}),
            json!({"limits": {"cpu": "1", "memory": "10P"}}),
        ]);
        assert_eq!(Qos::of(&p), Qos::Guaranteed);
        let limits = pod_limits(&p, -1, true);
        assert_eq!((limits.cpu_shares, limits.memory), (262_144, Some(i64::MAX)));
        assert!(limits.cpu_quota.is_some());
        let p = pod(&[json!({"limits": {"memory": "10P"}})]);
        assert_eq!(pod_limits(&p, -1, true).memory, Some(10_000_000_000_000_000));
    }

    #[test]
    fn a_container_without_a_limit_has_the_one_of_its_pod() {
        let p: Pod = serde_json::from_value(json!({"spec": {"resources": {"limits": {"memory": "4Gi"}},
            "containers": [{"name": "a", "resources": {"limits": {"memory": "1Gi"}}}, {"name": "b"}]}}))
        .unwrap();
        let of = |i: usize, resource| effective_limit(&p, &p.spec.as_ref().unwrap().containers[i], resource);
        assert_eq!((of(0, "memory"), of(1, "memory"), of(1, "cpu")), (1 << 30, 4 << 30, 0));
    }

    #[test]
    fn kernel_numbers_are_upstreams() {
        for (m, shares) in [(0, 2), (1, 2), (100, 102), (1000, 1024), (300_000, 262_144)] {
            assert_eq!(cpu_shares(m), shares, "{m}");
        }
        for (m, quota) in [(0, 0), (5, 1000), (500, 50_000), (2000, 200_000)] {
            assert_eq!(cpu_quota(m), quota, "{m}");
        }
        assert_eq!((cpu_weight(2), cpu_weight(1024), cpu_weight(262_144)), (1, 39, 10_000));
    }

    #[test]
    fn oom_scores_are_upstreams() {
        let capacity = 10 << 30;
        let score = |r: serde_json::Value| {
            let p = pod(&[r]);
            oom_score_adj(&p, &p.spec.as_ref().unwrap().containers[0], capacity)
        };
        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), -997);
        assert_eq!(score(json!({"requests": {"memory": "1Gi"}})), 900);
        assert_eq!(score(json!({"requests": {"cpu": "1"}})), 999);
        assert_eq!(score(json!({"requests": {"memory": "100Gi"}})), 3);
    }

    #[test]
    fn what_the_pod_says_as_a_whole_stands_for_its_containers() {
        let whole = |resources: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"spec": {"resources": resources, "containers": [
                {"name": "a", "resources": {"requests": {"memory": "1Gi"}}}, {"name": "b"}]}}))
            .unwrap()
        };
        let limited =
            whole(json!({"requests": {"cpu": "1", "memory": "3Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}}));
        assert_eq!(Qos::of(&limited), Qos::Burstable);
        assert_eq!(pod_amount(&limited, "memory", request), 3 << 30);
        let limits = pod_limits(&limited, -1, true);
        assert_eq!((limits.cpu_quota, limits.memory), (Some(200_000), Some(4 << 30)));
        let equal = json!({"cpu": "2", "memory": "4Gi"});
        assert_eq!(
            Qos::of(&whole(json!({"requests": equal, "limits": equal}))),
            Qos::Guaranteed
        );
        assert_eq!(Qos::of(&whole(json!({}))), Qos::Burstable);
        // Of 3 GiB for the pod, 1 is a's own; each container is given one of the others.
        let score = |i: usize| oom_score_adj(&limited, &limited.spec.as_ref().unwrap().containers[i], 10 << 30);
        assert_eq!((score(0), score(1)), (800, 900));
    }

    #[test]
    fn pod_amounts_count_init_containers_as_peaks_and_sidecars_as_residents() {
        let p: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}}}],
            "initContainers": [
                {"name": "i", "resources": {"requests": {"cpu": "300m"}}},
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"name": "j", "resources": {"requests": {"cpu": "200m"}}}]}}))
        .unwrap();
        assert_eq!(pod_amount(&p, "cpu", request), 300);
        let limits = pod_limits(&p, -1, true);
        assert_eq!((limits.cpu_quota, limits.memory, limits.pids), (None, None, None));
    }
}
