//! The status of one container.

use super::{Input, time};
use crate::machine::{Busy, Waiting, is_started};
use crate::observed::{Container as Seen, State};
use crate::spec::{self, Kind};
use k8s_openapi::api::core::v1 as core;

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
fn container_id(id: &str) -> String {
    format!("containerd://{id}")
}

pub(super) fn container(
    input: &Input<'_>,
    kind: Kind,
    c: &core::Container,
    initialised: bool,
    ended: bool,
) -> core::ContainerStatus {
    let seen = shown(input, c);
    let previous = seen.and_then(|s| input.observed.before(s));
    let old = before(input, kind, &c.name);
    let mut s = core::ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |o| o.restart_count),
        ..Default::default()
    };
    let wait = input.memory.waiting.get(&c.name);
    match seen {
        None => missing(&mut s, input, old, wait, initialised, kind, ended),
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
                _ => s.state = Some(waiting(not_begun(input), "")),
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

/// The instance that the status is about. A container whose start is still under way (its postStart hook runs) is not
/// shown as running: it would be running and not ready, and clients would see the pod run before it is ready.
fn shown<'a>(input: &'a Input<'_>, c: &core::Container) -> Option<&'a Seen> {
    let latest = input.observed.latest(&c.name)?;
    let begins = matches!(latest.state, State::Created | State::Running)
        && input.memory.busy.contains(&Busy::Start(c.name.clone()));
    if begins {
        input.observed.before(latest)
    } else {
        Some(latest)
    }
}

/// Why a container waits of which there is nothing yet.
fn not_begun(input: &Input<'_>) -> &'static str {
    if spec::init_containers(input.pod).next().is_some() {
        "PodInitializing"
    } else {
        "ContainerCreating"
    }
}

fn missing(
    s: &mut core::ContainerStatus,
    input: &Input<'_>,
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
        None => waiting(not_begun(input), ""),
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
