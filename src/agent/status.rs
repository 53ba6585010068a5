//! PodStatus from spec and observation: container states, conditions, phase. Pure. Conditions of others (PodScheduled,
//! readiness gates) are carried over, never invented.

use crate::machine::{Memory, Stage, Stop, Waiting, is_started};
use crate::names;
use crate::observed::{Container as Seen, Nanos, Observed, State};
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
        let status = container(input, kind, c, initialised, ended);
        if kind == Kind::Main {
            main.push(status)
        } else {
            init.push(status)
        }
    }
    let phase = phase(input, &init, &main, ended);
    let sandbox = input
        .observed
        .ready_sandbox()
        .or_else(|| input.observed.newest_sandbox());
    let pod_ips: Vec<String> = match sandbox {
        Some(_) if spec::host_network(input.pod) => input.host_ips.to_vec(),
        Some(s) => s.ips.clone(),
        None => vec![],
    };
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
    if let Some(stop) = input.stop.filter(|s| s.reason.is_some()) {
        status.reason = stop.reason.clone();
        status.message = Some(stop.message.clone());
    } else if let Some(b) = input
        .before
        .filter(|b| b.phase.as_deref() == Some("Failed") && phase == "Failed")
    {
        status.reason = b.reason.clone();
        status.message = b.message.clone();
    }
    status.conditions = Some(conditions(input, phase, &init, &main, initialised));
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = Some(main);
    status
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

fn before<'a>(input: &'a Input<'_>, kind: Kind, name: &str) -> Option<&'a core::ContainerStatus> {
    let b = input.before?;
    let list = if kind == Kind::Main {
        &b.container_statuses
    } else {
        &b.init_container_statuses
    };
    list.iter().flatten().find(|s| s.name == name)
}

fn terminated(c: &Seen) -> core::ContainerState {
    core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            container_id: Some(container_id(&c.id)),
            exit_code: c.exit_code,
            started_at: time(c.started_at),
            finished_at: time(c.finished_at),
            reason: Some(if c.reason.is_empty() {
                if c.exit_code == 0 { "Completed" } else { "Error" }.to_owned()
            } else {
                c.reason.clone()
            }),
            message: (!c.message.is_empty()).then(|| c.message.clone()),
            signal: None,
        }),
        ..Default::default()
    }
}

fn waiting(reason: &str, message: &str) -> core::ContainerState {
    core::ContainerState {
        waiting: Some(core::ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..Default::default()
    }
}

fn lost() -> core::ContainerState {
    core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The id as the API shows it; the runtime's name is part of it.
pub fn container_id(id: &str) -> String {
    format!("containerd://{id}")
}

fn container(
    input: &Input<'_>,
    kind: Kind,
    c: &core::Container,
    initialised: bool,
    ended: bool,
) -> core::ContainerStatus {
    let seen = input.observed.latest(&c.name);
    let previous = input.observed.previous(&c.name);
    let old = before(input, kind, &c.name);
    let mut s = core::ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |o| o.restart_count),
        ..Default::default()
    };
    let wait = input.memory.waiting.get(&c.name);
    match seen {
        None => missing(&mut s, old, wait, initialised, kind, ended),
        Some(seen) => {
            s.image = if seen.image.is_empty() {
                s.image
            } else {
                seen.image.clone()
            };
            s.image_id = seen.image_ref.clone();
            s.container_id = Some(container_id(&seen.id));
            s.restart_count = i32::try_from(seen.restarts).unwrap_or(i32::MAX);
            s.last_state = previous.map(terminated).or_else(|| {
                old.filter(|o| o.container_id == s.container_id)
                    .and_then(|o| o.last_state.clone())
            });
            match (seen.state, wait) {
                (State::Running, _) => {
                    s.state = Some(core::ContainerState {
                        running: Some(core::ContainerStateRunning {
                            started_at: time(seen.started_at),
                        }),
                        ..Default::default()
                    });
                }
                (State::Exited, Some(w)) if !ended => {
                    s.last_state = Some(terminated(seen));
                    s.state = Some(waiting(&w.reason, &w.message));
                }
                (State::Exited, _) => s.state = Some(terminated(seen)),
                (State::Unknown, _) if ended => s.state = Some(lost()),
                (_, Some(w)) => s.state = Some(waiting(&w.reason, &w.message)),
                _ if ended => s.state = Some(lost()),
                _ => s.state = Some(waiting("ContainerCreating", "")),
            }
        }
    }
    let started = is_started(c, seen, input.memory);
    s.started = Some(started);
    s.ready = ready(input, kind, c, seen, started);
    s.resources = c
        .resources
        .clone()
        .filter(|r| r.limits.is_some() || r.requests.is_some());
    s
}

fn missing(
    s: &mut core::ContainerStatus,
    old: Option<&core::ContainerStatus>,
    wait: Option<&Waiting>,
    initialised: bool,
    kind: Kind,
    ended: bool,
) {
    // Removed containers of a finished pod: what the API already knows is the best there is.
    if let Some(o) = old.filter(|o| o.state.as_ref().is_some_and(|s| s.terminated.is_some())) {
        s.state = o.state.clone();
        s.last_state = o.last_state.clone();
        s.container_id = o.container_id.clone();
        s.image_id = o.image_id.clone();
        return;
    }
    s.state = Some(match wait {
        _ if ended && initialised && kind == Kind::Main => lost(),
        Some(w) => waiting(&w.reason, &w.message),
        None if initialised => waiting("ContainerCreating", ""),
        None => waiting("PodInitializing", ""),
    });
}

fn ready(input: &Input<'_>, kind: Kind, c: &core::Container, seen: Option<&Seen>, started: bool) -> bool {
    let Some(seen) = seen else { return false };
    match (kind, seen.state) {
        (Kind::Init, State::Exited) => seen.exit_code == 0,
        (Kind::Init, _) => false,
        (_, State::Running) if started => match &c.readiness_probe {
            None => true,
            Some(_) => input
                .memory
                .verdicts
                .get(&seen.id)
                .and_then(|v| v.ready)
                .unwrap_or(false),
        },
        _ => false,
    }
}

fn exit_code(s: &core::ContainerStatus) -> Option<i32> {
    s.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code)
}

fn phase(
    input: &Input<'_>,
    init: &[core::ContainerStatus],
    main: &[core::ContainerStatus],
    ended: bool,
) -> &'static str {
    if input.stop.is_some_and(|s| s.reason.is_some()) {
        return "Failed";
    }
    if let Some(p @ ("Succeeded" | "Failed")) = input.before.and_then(|b| b.phase.as_deref()) {
        return if p == "Failed" { "Failed" } else { "Succeeded" };
    }
    let policy = spec::restart_policy(input.pod);
    let (mut pending_init, mut failed_init) = (0, 0);
    for ((kind, c), s) in spec::init_containers(input.pod).zip(init) {
        if kind == Kind::Sidecar {
            pending_init += usize::from(s.started != Some(true) && main.iter().all(|m| m.container_id.is_none()));
            continue;
        }
        match exit_code(s) {
            Some(0) => {}
            Some(code) if spec::should_restart(input.pod, kind, c, code) => pending_init += 1,
            Some(_) => failed_init += 1,
            None => pending_init += 1,
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded, mut restarting) = (0, 0, 0, 0, 0);
    for (c, s) in spec::main_containers(input.pod).zip(main) {
        let state = s.state.as_ref();
        if state.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if let Some(code) = exit_code(s) {
            stopped += 1;
            succeeded += usize::from(code == 0);
            restarting += usize::from(spec::should_restart(input.pod, Kind::Main, c, code));
        } else if s.last_state.as_ref().is_some_and(|l| l.terminated.is_some()) {
            stopped += 1;
            restarting += 1;
        } else {
            waiting += 1;
        }
    }
    if failed_init > 0 {
        return "Failed";
    }
    if ended && (stopped > 0 || main.is_empty()) && running == 0 {
        return if stopped == succeeded && waiting == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if pending_init > 0 && running + stopped == 0 || waiting > 0 {
        return "Pending";
    }
    if running > 0 || restarting > 0 {
        return "Running";
    }
    match stopped {
        0 => "Pending",
        // Sidecars may still be ending: the pod is not over before them.
        _ if !ended
            && init
                .iter()
                .any(|s| s.state.as_ref().is_some_and(|s| s.running.is_some())) =>
        {
            "Running"
        }
        _ if policy == "Always" && restarting > 0 => "Running",
        _ if stopped == succeeded => "Succeeded",
        _ => "Failed",
    }
}

fn conditions(
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
