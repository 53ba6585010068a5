//! The conditions of a pod. Those of others (PodScheduled, readiness gates) are carried over, never invented.

use super::{Input, time};
use crate::spec::{self, Kind};
use k8s_openapi::api::core::v1 as core;

pub(super) fn conditions(
    input: &Input<'_>,
    phase: &str,
    init: &[core::ContainerStatus],
    main: &[core::ContainerStatus],
    initialised: bool,
) -> Vec<core::PodCondition> {
    let mut out: Vec<core::PodCondition> = vec![];
    let mut put = |kind: &str, ok: bool, reason: &str, message: String| {
        out.push(condition(input, kind, ok, reason, message));
    };
    let sandbox_ready = input
        .observed
        .ready_sandbox()
        .is_some_and(|s| !s.ips.is_empty() || spec::host_network(input.pod));
    put("PodReadyToStartContainers", sandbox_ready, "", String::new());
    let over = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    if initialised || phase == "Succeeded" {
        put(
            "Initialized",
            true,
            if phase == "Succeeded" { "PodCompleted" } else { "" },
            String::new(),
        );
    } else {
        let names: Vec<_> = init.iter().filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
        put(
            "Initialized",
            false,
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", names.join(" ")),
        );
    }
    let unready: Vec<_> = spec::init_containers(input.pod)
        .zip(init)
        .filter(|((kind, _), s)| *kind == Kind::Sidecar && !s.ready)
        .map(|(_, s)| s.name.as_str())
        .chain(main.iter().filter(|s| !s.ready).map(|s| s.name.as_str()))
        .collect();
    let text = format!("containers with unready status: [{}]", unready.join(" "));
    let containers_ready = over.is_none() && unready.is_empty();
    let gates = gates(input);
    match over {
        Some(reason) => {
            put("ContainersReady", false, reason, String::new());
            put("Ready", false, reason, String::new());
        }
        None if containers_ready => {
            put("ContainersReady", true, "", String::new());
            match &gates {
                None => put("Ready", true, "", String::new()),
                Some(message) => put("Ready", false, "ReadinessGatesNotReady", message.clone()),
            }
        }
        None => {
            put("ContainersReady", false, "ContainersNotReady", text.clone());
            put("Ready", false, "ContainersNotReady", text);
        }
    }
    match foreign(input, "PodScheduled") {
        Some(c) => out.push(c.clone()),
        None => out.push(condition(input, "PodScheduled", true, "", String::new())),
    }
    out
}

fn foreign<'a>(input: &'a Input<'_>, kind: &str) -> Option<&'a core::PodCondition> {
    let own = input.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    own.into_iter().flatten().find(|c| c.type_ == kind)
}

/// A message if a readiness gate is not open.
fn gates(input: &Input<'_>) -> Option<String> {
    let mut closed = vec![];
    for gate in input.pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten()) {
        match foreign(input, &gate.condition_type) {
            Some(c) if c.status == "True" => {}
            Some(c) => closed.push(format!(
                "the status of pod readiness gate {:?} is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            None => closed.push(format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                gate.condition_type
            )),
        }
    }
    (!closed.is_empty()).then(|| closed.join(", "))
}

fn condition(input: &Input<'_>, kind: &str, ok: bool, reason: &str, message: String) -> core::PodCondition {
    let status = if ok { "True" } else { "False" };
    let old = input
        .before
        .and_then(|b| b.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|c| c.type_ == kind);
    core::PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then_some(message),
        last_probe_time: None,
        last_transition_time: old
            .filter(|o| o.status == status)
            .and_then(|o| o.last_transition_time.clone())
            .or_else(|| time(input.now)),
        observed_generation: input.pod.metadata.generation,
    }
}
