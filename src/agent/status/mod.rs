//! PodStatus from spec and observation: container states, conditions, phase. Pure.

mod conditions;
mod container;
mod phase;

use crate::machine::{Memory, Stage, Stop, is_started};
use crate::names;
use crate::observed::{Nanos, Observed, State};
use crate::qos::Qos;
use crate::spec::{self, Kind};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What the status depends on.
#[derive(Debug)]
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a core::Pod,
    /// What the runtime has.
    pub observed: &'a Observed,
    /// What is remembered.
    pub memory: &'a Memory,
    /// Where the pod stands.
    pub stage: Stage,
    /// Whether it must stop.
    pub stop: Option<&'a Stop>,
    /// The status written before.
    pub before: Option<&'a core::PodStatus>,
    /// Addresses of the node.
    pub host_ips: &'a [String],
    /// The time.
    pub now: Nanos,
}

/// A time for the API; 0 is none.
pub fn time(at: Nanos) -> Option<Time> {
    if at <= 0 {
        return None;
    }
    // The API keeps whole seconds; comparing what was sent with what is to be sent needs the same.
    k8s_openapi::jiff::Timestamp::from_second(at / 1_000_000_000)
        .ok()
        .map(Time)
}

/// Computes the status.
pub fn compute(input: &Input<'_>) -> core::PodStatus {
    let ended = input.stage == Stage::Ended;
    let mut init: Vec<core::ContainerStatus> = vec![];
    let mut main: Vec<core::ContainerStatus> = vec![];
    let initialised = initialised(input);
    for (kind, c) in spec::containers(input.pod) {
        let status = container::container(input, kind, c, initialised, ended);
        if kind == Kind::Main {
            main.push(status)
        } else {
            init.push(status)
        }
    }
    let phase = phase::phase(input, &init, &main, ended);
    let pod_ips = pod_ips(input);
    let mut status = core::PodStatus {
        observed_generation: input.pod.metadata.generation,
        phase: Some(phase.into()),
        host_ip: input.host_ips.first().cloned(),
        host_ips: Some(
            input
                .host_ips
                .iter()
                .map(|ip| core::HostIP { ip: ip.clone() })
                .collect(),
        ),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty()).then(|| pod_ips.iter().map(|ip| core::PodIP { ip: ip.clone() }).collect()),
        qos_class: Some(Qos::of(input.pod).as_str().into()),
        start_time: input
            .before
            .and_then(|b| b.start_time.clone())
            .or_else(|| time(input.now)),
        ..Default::default()
    };
    // The reason belongs to the final phase, which comes when everything has ended.
    if let Some(stop) = input.stop.filter(|s| s.reason.is_some() && phase == "Failed") {
        status.reason = stop.reason.clone();
        status.message = Some(stop.message.clone());
    } else if let Some(b) = input
        .before
        .filter(|b| b.phase.as_deref() == Some("Failed") && phase == "Failed")
    {
        status.reason = b.reason.clone();
        status.message = b.message.clone();
    }
    status.conditions = Some(conditions::conditions(input, phase, &init, &main, initialised));
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = Some(main);
    status
}

/// The addresses of the pod. The runtime forgets those of a sandbox that has stopped; the API keeps them, so that people
/// can tell later who a pod that has ended was.
fn pod_ips(input: &Input<'_>) -> Vec<String> {
    let observed = input.observed;
    let sandbox = observed.ready_sandbox().or_else(|| observed.newest_sandbox());
    let now = match sandbox {
        Some(_) if spec::host_network(input.pod) => input.host_ips.to_vec(),
        Some(s) => s.ips.clone(),
        None => vec![],
    };
    if !now.is_empty() || observed.ready_sandbox().is_some() {
        return now;
    }
    let before = input.before.into_iter().flat_map(|b| b.pod_ips.iter().flatten());
    before.map(|i| i.ip.clone()).collect()
}

/// Whether all init containers are done (and sidecars started).
fn initialised(input: &Input<'_>) -> bool {
    let main_began = spec::main_containers(input.pod).any(|c| input.observed.latest(&c.name).is_some());
    main_began
        || spec::init_containers(input.pod).all(|(kind, c)| {
            let seen = input.observed.latest(&c.name);
            match kind {
                Kind::Sidecar => is_started(c, seen, input.memory),
                _ => seen.is_some_and(|s| s.state == State::Exited && s.exit_code == 0),
            }
        })
}

/// The patch that turns what the API has into `status`: strategic merge on /status, guarded by the UID. Lists that the
/// API merges by address are replaced when an address has gone; texts that are gone are deleted by null.
pub fn patch(uid: &str, before: Option<&core::PodStatus>, status: &core::PodStatus) -> serde_json::Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    // Conditions are merged by type, so what one no longer says must be taken away by name.
    let conditions = body.get_mut("conditions").and_then(|list| list.as_array_mut());
    for condition in conditions.into_iter().flatten() {
        for key in ["reason", "message"] {
            if let Some(map) = condition.as_object_mut().filter(|map| !map.contains_key(key)) {
                map.insert(key.into(), serde_json::Value::Null);
            }
        }
    }
    if let Some(map) = body.as_object_mut() {
        for key in ["reason", "message", "podIP"] {
            if !map.contains_key(key) {
                map.insert(key.into(), serde_json::Value::Null);
            }
        }
        let ips = |s: &core::PodStatus| -> Vec<String> { s.pod_ips.iter().flatten().map(|i| i.ip.clone()).collect() };
        let (new, old) = (ips(status), before.map(ips).unwrap_or_default());
        if new.is_empty() {
            map.insert("podIPs".into(), serde_json::Value::Null);
        } else if old.iter().any(|ip| !new.contains(ip))
            && let Some(list) = map.get_mut("podIPs").and_then(|l| l.as_array_mut())
        {
            list.insert(0, serde_json::json!({"$patch": "replace"}));
        }
    }
    serde_json::json!({"metadata": {"uid": uid}, "status": body})
}

/// What a status says in the conditions that are the agent's to decide: type and status, sorted.
pub fn said(status: Option<&core::PodStatus>) -> Vec<(String, String)> {
    const OURS: [&str; 4] = ["ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready"];
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ours = conditions.iter().filter(|c| OURS.contains(&c.type_.as_str()));
    let mut said: Vec<_> = ours.map(|c| (c.type_.clone(), c.status.clone())).collect();
    said.sort();
    said
}

/// Whether a pod's phase is final in the API.
pub fn is_final(pod: &core::Pod) -> bool {
    !names::is_static(pod)
        && matches!(
            pod.status.as_ref().and_then(|s| s.phase.as_deref()),
            Some("Succeeded" | "Failed")
        )
}
