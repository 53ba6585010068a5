//! The phase of a pod, from the states of its containers.
//!
//! `Succeeded` and `Failed` are final: nothing is written after them, and others reuse what the pod held. So a pod gets
//! one of them only when nothing of it runs any more, together with the last states of its containers.

use super::Input;
use crate::spec::{self, Kind};
use k8s_openapi::api::core::v1 as core;

fn exit_code(s: &core::ContainerStatus) -> Option<i32> {
    s.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code)
}

pub(super) fn phase(
    input: &Input<'_>,
    init: &[core::ContainerStatus],
    main: &[core::ContainerStatus],
    ended: bool,
) -> &'static str {
    let before = input.before.and_then(|b| b.phase.as_deref());
    match before {
        Some("Failed") => return "Failed",
        Some("Succeeded") => return "Succeeded",
        _ => {}
    }
    let decided = if input.stop.is_some_and(|s| s.reason.is_some()) {
        "Failed"
    } else {
        of_containers(input, init, main, ended)
    };
    if ended || !matches!(decided, "Succeeded" | "Failed") {
        return decided;
    }
    match before {
        Some("Pending") => "Pending",
        None if main.iter().all(|s| s.container_id.is_none()) => "Pending",
        _ => "Running",
    }
}

fn of_containers(
    input: &Input<'_>,
    init: &[core::ContainerStatus],
    main: &[core::ContainerStatus],
    ended: bool,
) -> &'static str {
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
        _ if policy == "Always" && restarting > 0 => "Running",
        _ if stopped == succeeded => "Succeeded",
        _ => "Failed",
    }
}
