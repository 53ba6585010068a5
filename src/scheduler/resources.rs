//! Amounts of resources: what a pod asks for and what a node offers. CPU in thousandths, everything else in whole units.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// What is assumed for scoring when a pod does not say: 0.1 CPU and 200 MB.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Everything else, in whole units (bytes for huge pages).
    pub extended: BTreeMap<String, i64>,
}

fn amount(name: &str, text: &Text) -> i64 {
    let Ok(quantity) = text.0.parse::<Quantity>() else {
        return 0;
    };
    if name == "cpu" {
        quantity.millis()
    } else {
        quantity.value()
    }
}

impl Resources {
    /// From a map of quantities; `pods` is left out, it is counted apart.
    pub fn parse(map: Option<&BTreeMap<String, Text>>) -> Self {
        let mut resources = Self::default();
        for (name, text) in map.into_iter().flatten() {
            let amount = amount(name, text);
            match name.as_str() {
                "cpu" => resources.milli_cpu = amount,
                "memory" => resources.memory = amount,
                "ephemeral-storage" => resources.ephemeral_storage = amount,
                "pods" => {}
                _ => {
                    resources.extended.insert(name.clone(), amount);
                }
            }
        }
        resources
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a.saturating_add(b));
    }

    /// Takes `other` away.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |a, b| a.saturating_sub(b));
    }

    /// At least `other`.
    pub fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }
}

/// `status.allocatable.pods`.
pub fn max_pods(map: Option<&BTreeMap<String, Text>>) -> i64 {
    map.and_then(|m| m.get("pods")).map_or(0, |t| amount("pods", t))
}

/// What a pod needs at its peak: its containers and sidecars together, or the init container that needs most (with the
/// sidecars that were started before it), whichever is more; and its overhead.
pub fn pod_requests(spec: &PodSpec) -> Resources {
    let mut peak = sum(spec, container_requests);
    if let Some(of_pod) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let of_pod = Resources::parse(Some(of_pod));
        // Requests of the pod as a whole replace the sum, resource by resource.
        if of_pod.milli_cpu > 0 {
            peak.milli_cpu = of_pod.milli_cpu;
        }
        if of_pod.memory > 0 {
            peak.memory = of_pod.memory;
        }
        for (name, amount) in of_pod.extended {
            peak.extended.insert(name, amount);
        }
    }
    peak.add(&Resources::parse(spec.overhead.as_ref()));
    peak
}

/// As [`pod_requests`], with defaults for what is not said: CPU (thousandths) and memory (bytes).
pub fn scored_requests(spec: &PodSpec) -> (i64, i64) {
    let mut peak = sum(spec, |c| {
        let mut requests = container_requests(c);
        let said = |name: &str| {
            c.resources
                .as_ref()
                .and_then(|r| r.requests.as_ref())
                .is_some_and(|r| r.contains_key(name))
        };
        if !said("cpu") {
            requests.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !said("memory") {
            requests.memory = DEFAULT_MEMORY;
        }
        requests
    });
    peak.add(&Resources::parse(spec.overhead.as_ref()));
    (peak.milli_cpu, peak.memory)
}

fn container_requests(container: &Container) -> Resources {
    Resources::parse(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

fn sum(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut together = Resources::default();
    spec.containers.iter().for_each(|c| together.add(&of(c)));
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&needed);
            needed = sidecars.clone();
        } else {
            needed.add(&sidecars);
        }
        starting.raise_to(&needed);
    }
    together.add(&sidecars);
    together.raise_to(&starting);
    together
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ResourceRequirements;

    fn container(cpu: &str, memory: &str, sidecar: bool) -> Container {
        let mut requests = BTreeMap::new();
        for (name, amount) in [("cpu", cpu), ("memory", memory)] {
            if !amount.is_empty() {
                requests.insert(name.to_owned(), Text(amount.to_owned()));
            }
        }
        Container {
            resources: Some(ResourceRequirements {
                requests: Some(requests),
                ..ResourceRequirements::default()
            }),
            restart_policy: sidecar.then(|| "Always".to_owned()),
            ..Container::default()
        }
    }

    #[test]
    fn a_pod_needs_its_peak() {
        for (what, init, main, expected) in [
            (
                "containers add up",
                vec![],
                vec![container("100m", "1Ki", false), container("1", "1Ki", false)],
                (1100, 2048),
            ),
            (
                "a large init container",
                vec![container("2", "", false)],
                vec![container("1", "1Ki", false)],
                (2000, 1024),
            ),
            (
                "sidecars run along",
                vec![container("1", "", true)],
                vec![container("1", "", false)],
                (2000, 0),
            ),
            (
                "sidecars started before an init container",
                vec![
                    container("1", "", true),
                    container("3", "", false),
                    container("1", "", true),
                ],
                vec![container("1", "", false)],
                (4000, 0),
            ),
        ] {
            let spec = PodSpec {
                containers: main,
                init_containers: Some(init),
                ..PodSpec::default()
            };
            let requests = pod_requests(&spec);
            assert_eq!((requests.milli_cpu, requests.memory), expected, "{what}");
        }
    }

    #[test]
    fn scoring_assumes_something_for_those_who_do_not_say() {
        let spec = PodSpec {
            containers: vec![Container::default(), container("0", "1Mi", false)],
            ..PodSpec::default()
        };
        assert_eq!(scored_requests(&spec), (100, DEFAULT_MEMORY + (1 << 20)));
        let overhead = [("cpu".to_owned(), Text("250m".into()))].into();
        assert_eq!(
            pod_requests(&PodSpec {
                overhead: Some(overhead),
                ..PodSpec::default()
            })
            .milli_cpu,
            250
        );
    }
}
