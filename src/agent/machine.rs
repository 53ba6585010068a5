//! The life of one pod as a pure decision: desired spec, what the runtime has, what probes said and the time go in;
//! actions come out. It does no I/O and knows no clock of its own; the worker executes and asks again.
//!
//! ```text
//!   Preparing ──volumes, cgroup──▶ Sandbox ──ready──▶ Initialising ──all init done──▶ Running
//!       ▲ retry with back-off        ▲   │ sandbox died      │ init failed, Never        │ all ended, no restart
//!       └────────────────────────────┘◀──┴───────────────────┼───────────────────────────┤
//!                                                            ▼                           ▼
//!   any state ──deleted, evicted, deadline──▶ Stopping (main containers, then sidecars backwards, then the sandbox)
//!                                                            │
//!                                                            ▼
//!                                                          Ended
//! ```
//! In Running each container has its own small cycle: running → (exit, or killed for a failed probe or a new image) →
//! ended → back-off → started again with one more restart.

use crate::backoff::Restart;
use crate::names;
use crate::observed::{Container as Seen, Nanos, Observed, SECOND, State};
use crate::spec::{self, Kind};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Why a pod is stopped for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Seconds the containers get.
    pub grace: i64,
    /// When it was decided.
    pub since: Nanos,
    /// `Evicted`, `DeadlineExceeded`, …: makes the pod `Failed` with this reason. `None`: it is being deleted.
    pub reason: Option<String>,
    /// For people.
    pub message: String,
}

/// Why a single container is killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The pod stops.
    PodStops,
    /// The named probe failed.
    Probe(&'static str),
    /// Its spec changed.
    Changed,
    /// The runtime lost track of it, or its sandbox died.
    Lost,
}

/// What the worker must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make volumes, cgroup and folders; safe to repeat.
    Prepare,
    /// Make a sandbox.
    CreateSandbox {
        /// How many were before it.
        attempt: u32,
    },
    /// Stop a sandbox.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Pull, create and start a container.
    Start {
        /// Its name.
        name: String,
        /// Restarts before it.
        restarts: u32,
        /// Sandbox it belongs into.
        sandbox: String,
    },
    /// Run its preStop hook and stop it.
    Kill {
        /// Runtime's id.
        id: String,
        /// Its name.
        name: String,
        /// Seconds for hook and process together.
        grace: i64,
        /// Why.
        why: Why,
    },
}

/// What an action in flight is about; the same thing is not started twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Busy {
    /// Preparing.
    Prepare,
    /// Sandbox being made.
    CreateSandbox,
    /// A sandbox being stopped, by id.
    StopSandbox(String),
    /// A container being started, by name.
    Start(String),
    /// A container being killed, by id.
    Kill(String),
}

impl Action {
    /// The key under which the action is in flight.
    pub fn busy(&self) -> Busy {
        match self {
            Action::Prepare => Busy::Prepare,
            Action::CreateSandbox { .. } => Busy::CreateSandbox,
            Action::StopSandbox { id } => Busy::StopSandbox(id.clone()),
            Action::Start { name, .. } => Busy::Start(name.clone()),
            Action::Kill { id, .. } => Busy::Kill(id.clone()),
        }
    }
}

/// Reason and message of a container that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// As in `state.waiting.reason`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What probes have said about one container instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Readiness; `None` before the first result.
    pub ready: Option<bool>,
    /// Startup; `None` before the first result.
    pub started: Option<bool>,
    /// The probe that wants the container killed: `liveness` or `startup`.
    pub failed: Option<&'static str>,
}

/// What is remembered between steps; none of it is needed after a restart of the agent.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Volumes and cgroup are there.
    pub prepared: bool,
    /// Actions in flight.
    pub busy: HashSet<Busy>,
    /// Grace with which a container is being killed, by id.
    pub kill_grace: HashMap<String, i64>,
    /// Why containers wait, by name.
    pub waiting: BTreeMap<String, Waiting>,
    /// Not before this time: by container name; `""` is the pod's preparation and sandbox.
    pub retry_at: HashMap<String, Nanos>,
    /// Restart back-offs by container name.
    pub restarts: HashMap<String, Restart>,
    /// Restart counts known from the API, by container name, for containers the runtime has lost.
    pub known_restarts: HashMap<String, u32>,
    /// Probe results by container id.
    pub verdicts: HashMap<String, Verdict>,
    /// Dead sandboxes that were stopped.
    pub stopped: HashSet<String>,
}

/// Where the pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Volumes and cgroup are being made.
    Preparing,
    /// A sandbox is being made.
    Sandbox,
    /// Init containers run.
    Initialising,
    /// Main containers run.
    Running,
    /// Everything is being stopped.
    Stopping,
    /// Nothing of it runs any more, and nothing will.
    Ended,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where the pod stands.
    pub stage: Stage,
    /// What to do now.
    pub actions: Vec<Action>,
    /// When to ask again at the latest, if a time matters.
    pub wake_at: Option<Nanos>,
}

/// What a decision depends on besides memory.
#[derive(Debug)]
pub struct Input<'a> {
    /// The wish.
    pub pod: &'a Pod,
    /// What there is.
    pub observed: &'a Observed,
    /// Whether the pod must stop.
    pub stop: Option<&'a Stop>,
    /// Whether pods can get addresses now.
    pub network_ready: bool,
    /// The time.
    pub now: Nanos,
}

/// Hash of what makes a running container outdated: its name and image.
pub fn container_hash(c: &Container) -> String {
    names::hash_of(&(&c.name, &c.image))
}

/// The result of a pod that has nothing more to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every main container ended well.
    Succeeded,
    /// One did not, or the initialisation failed.
    Failed,
}

/// Whether the pod has ended by itself, and how.
pub fn outcome(pod: &Pod, observed: &Observed) -> Option<Outcome> {
    for (kind, c) in spec::init_containers(pod) {
        if kind == Kind::Init
            && let Some(seen) = observed.latest(&c.name)
            && seen.state == State::Exited
            && seen.exit_code != 0
            && !spec::should_restart(pod, kind, c, seen.exit_code)
        {
            return Some(Outcome::Failed);
        }
    }
    let mut failed = false;
    for c in spec::main_containers(pod) {
        let seen = observed.latest(&c.name)?;
        if seen.state != State::Exited || spec::should_restart(pod, Kind::Main, c, seen.exit_code) {
            return None;
        }
        failed |= seen.exit_code != 0;
    }
    Some(if failed { Outcome::Failed } else { Outcome::Succeeded })
}

/// Decides. Memory changes only in what this very decision implies (back-offs, waiting reasons).
pub fn step(input: &Input<'_>, memory: &mut Memory) -> Step {
    let mut out = Step {
        stage: Stage::Running,
        actions: vec![],
        wake_at: None,
    };
    match input.stop {
        Some(stop) => stopping(input, memory, stop.grace, stop.since, &mut out),
        None if outcome(input.pod, input.observed).is_some() => {
            // Sidecars get the pod's grace period from the moment the last main container ended.
            let since = input
                .observed
                .containers
                .iter()
                .map(|c| c.finished_at)
                .max()
                .unwrap_or(input.now);
            stopping(input, memory, spec::grace(input.pod), since, &mut out);
        }
        None => living(input, memory, &mut out),
    }
    out.actions
        .retain(|a| !memory.busy.contains(&a.busy()) || matches!(a, Action::Kill { .. }));
    out
}

fn wake(out: &mut Step, at: Nanos) {
    out.wake_at = Some(out.wake_at.map_or(at, |w| w.min(at)));
}

fn stopping(input: &Input<'_>, memory: &mut Memory, grace: i64, since: Nanos, out: &mut Step) {
    out.stage = Stage::Stopping;
    let elapsed = (input.now - since).max(0) / SECOND;
    let left = if grace <= 0 { 0 } else { (grace - elapsed).max(2) };
    let sidecar_order: Vec<&str> = spec::init_containers(input.pod)
        .filter(|(k, _)| *k == Kind::Sidecar)
        .map(|(_, c)| c.name.as_str())
        .collect();
    let (sidecars, main): (Vec<&Seen>, Vec<&Seen>) = input
        .observed
        .alive()
        .partition(|c| sidecar_order.contains(&c.name.as_str()));
    if !main.is_empty() {
        for c in main {
            kill(memory, c, left, Why::PodStops, out);
        }
        return;
    }
    // Sidecars end last, the one that started last first; each waits for the one after it.
    for name in sidecar_order.iter().rev() {
        let alive: Vec<_> = sidecars.iter().filter(|c| c.name == **name).collect();
        if !alive.is_empty() {
            for c in alive {
                kill(memory, c, left, Why::PodStops, out);
            }
            return;
        }
    }
    if memory
        .busy
        .iter()
        .any(|b| matches!(b, Busy::Start(_) | Busy::CreateSandbox))
    {
        return;
    }
    let ready: Vec<_> = input.observed.sandboxes.iter().filter(|s| s.ready).collect();
    if ready.is_empty() {
        out.stage = if memory.busy.iter().any(|b| matches!(b, Busy::StopSandbox(_))) {
            Stage::Stopping
        } else {
            Stage::Ended
        };
        return;
    }
    if waiting_to_retry(input, memory, "", out) {
        return;
    }
    out.actions
        .extend(ready.into_iter().map(|s| Action::StopSandbox { id: s.id.clone() }));
}

/// Kills unless that is under way with no more time than `grace`.
fn kill(memory: &mut Memory, c: &Seen, grace: i64, why: Why, out: &mut Step) {
    let under_way = memory.busy.contains(&Busy::Kill(c.id.clone()));
    let shorter = memory.kill_grace.get(&c.id).is_some_and(|g| grace + 2 < *g);
    if under_way && !shorter {
        return;
    }
    memory.kill_grace.insert(c.id.clone(), grace);
    out.actions.push(Action::Kill {
        id: c.id.clone(),
        name: c.name.clone(),
        grace,
        why,
    });
}

fn waiting_to_retry(input: &Input<'_>, memory: &Memory, key: &str, out: &mut Step) -> bool {
    match memory.retry_at.get(key) {
        Some(at) if *at > input.now => {
            wake(out, *at);
            true
        }
        _ => false,
    }
}

fn living(input: &Input<'_>, memory: &mut Memory, out: &mut Step) {
    let Some(sandbox) = input.observed.ready_sandbox() else {
        return without_sandbox(input, memory, out);
    };
    for old in input
        .observed
        .sandboxes
        .iter()
        .filter(|s| s.ready && s.id != sandbox.id)
    {
        out.actions.push(Action::StopSandbox { id: old.id.clone() });
    }
    for c in input
        .observed
        .alive()
        .filter(|c| c.sandbox_id != sandbox.id || c.state == State::Unknown)
    {
        kill(memory, c, 2, Why::Lost, out);
    }
    // Adopted pods must be prepared as well before anything is started, but what runs is watched meanwhile.
    if !memory.prepared && !waiting_to_retry(input, memory, "", out) {
        out.actions.push(Action::Prepare);
    }
    let id = sandbox.id.clone();
    let current = |name: &str| input.observed.latest(name).filter(|c| c.sandbox_id == id);
    let main_began = spec::main_containers(input.pod).any(|c| current(&c.name).is_some());
    let mut initialised = true;
    let mut start: Option<Action> = None;
    for (kind, c) in spec::init_containers(input.pod) {
        let seen = current(&c.name);
        if kind == Kind::Init && (main_began || seen.is_some_and(|s| s.state == State::Exited && s.exit_code == 0)) {
            continue;
        }
        let running = container_cycle(input, memory, kind, c, seen, &id, &mut start, out);
        let passed = kind == Kind::Sidecar && running && is_started(c, seen, memory);
        if !passed && !main_began {
            initialised = false;
            break;
        }
    }
    out.stage = if initialised {
        Stage::Running
    } else {
        Stage::Initialising
    };
    if initialised {
        for c in spec::main_containers(input.pod) {
            container_cycle(input, memory, Kind::Main, c, current(&c.name), &id, &mut start, out);
        }
    }
    // One at a time and in order, so that a postStart hook can hold back those after it.
    if let Some(action) = start
        && memory.prepared
        && !memory.busy.iter().any(|b| matches!(b, Busy::Start(_)))
    {
        if let Action::Start { name, .. } = &action
            && let Some(old) = input.observed.latest(name).filter(|o| o.state == State::Exited)
        {
            memory
                .restarts
                .entry(name.clone())
                .or_default()
                .restarted(old.finished_at);
        }
        out.actions.push(action);
    }
}

fn without_sandbox(input: &Input<'_>, memory: &mut Memory, out: &mut Step) {
    out.stage = Stage::Sandbox;
    for c in input.observed.alive() {
        kill(memory, c, 2, Why::Lost, out);
    }
    if !out.actions.is_empty() || memory.busy.iter().any(|b| matches!(b, Busy::Kill(_))) {
        return;
    }
    if !memory.prepared {
        out.stage = Stage::Preparing;
    }
    if waiting_to_retry(input, memory, "", out) {
        return;
    }
    if !memory.prepared {
        out.actions.push(Action::Prepare);
        return;
    }
    // A dead sandbox still holds its address until it is stopped.
    let dead: Vec<_> = input
        .observed
        .sandboxes
        .iter()
        .filter(|s| !memory.stopped.contains(&s.id))
        .collect();
    if !dead.is_empty() {
        out.actions
            .extend(dead.into_iter().map(|s| Action::StopSandbox { id: s.id.clone() }));
        return;
    }
    if !input.network_ready && !spec::host_network(input.pod) {
        return;
    }
    let attempt = input.observed.newest_sandbox().map_or(0, |s| s.attempt + 1);
    out.actions.push(Action::CreateSandbox { attempt });
}

/// Whether a running container counts as started: its startup probe, if any, has passed.
pub fn is_started(c: &Container, seen: Option<&Seen>, memory: &Memory) -> bool {
    let Some(seen) = seen.filter(|s| s.state == State::Running) else {
        return false;
    };
    if memory.busy.contains(&Busy::Start(c.name.clone())) {
        return false;
    }
    c.startup_probe.is_none() || memory.verdicts.get(&seen.id).and_then(|v| v.started).unwrap_or(false)
}

/// The cycle of one container; whether it runs and is to go on running. The first container that wants to start is
/// put into `start`.
#[allow(clippy::too_many_arguments)]
fn container_cycle(
    input: &Input<'_>,
    memory: &mut Memory,
    kind: Kind,
    c: &Container,
    seen: Option<&Seen>,
    sandbox: &str,
    start: &mut Option<Action>,
    out: &mut Step,
) -> bool {
    if memory.busy.contains(&Busy::Start(c.name.clone())) {
        return seen.is_some_and(|s| s.state == State::Running);
    }
    if let Some(seen) = seen.filter(|s| s.state == State::Running) {
        memory.waiting.remove(&c.name);
        if !seen.hash.is_empty() && seen.hash != container_hash(c) {
            kill(memory, seen, spec::grace(input.pod), Why::Changed, out);
            return false;
        }
        if let Some(probe) = memory.verdicts.get(&seen.id).and_then(|v| v.failed) {
            let own = match probe {
                "startup" => c.startup_probe.as_ref(),
                _ => c.liveness_probe.as_ref(),
            };
            let grace = own
                .and_then(|p| p.termination_grace_period_seconds)
                .unwrap_or_else(|| spec::grace(input.pod));
            kill(memory, seen, grace, Why::Probe(probe), out);
            return false;
        }
        return true;
    }
    let latest = input.observed.latest(&c.name);
    if let Some(old) = latest {
        if old.state == State::Unknown {
            return false; // being killed as lost
        }
        // A container of an earlier sandbox that ended well is not run again where the policy says so; init
        // containers run again in every new sandbox.
        let changed = !old.hash.is_empty() && old.hash != container_hash(c);
        let rerun_init = kind == Kind::Init && old.sandbox_id != sandbox;
        if old.state == State::Exited
            && !changed
            && !rerun_init
            && !spec::should_restart(input.pod, kind, c, old.exit_code)
        {
            return false;
        }
        if old.state == State::Exited && old.sandbox_id == sandbox && crash_loop(input, memory, c, old, out) {
            return false;
        }
    }
    if waiting_to_retry(input, memory, &c.name, out) {
        return false;
    }
    if start.is_none() {
        *start = Some(Action::Start {
            name: c.name.clone(),
            restarts: next_restarts(latest, memory.known_restarts.get(&c.name).copied()),
            sandbox: sandbox.to_owned(),
        });
    }
    false
}

fn crash_loop(input: &Input<'_>, memory: &mut Memory, c: &Container, old: &Seen, out: &mut Step) -> bool {
    let backoff = memory.restarts.entry(c.name.clone()).or_default();
    let at = backoff.ready_at(old.finished_at);
    if at <= input.now {
        return false;
    }
    let message = format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(backoff.delay()),
        c.name,
        names::name(input.pod),
        names::namespace(input.pod),
        names::uid(input.pod)
    );
    memory.waiting.insert(
        c.name.clone(),
        Waiting {
            reason: "CrashLoopBackOff".into(),
            message,
        },
    );
    wake(out, at);
    true
}

fn next_restarts(latest: Option<&Seen>, known: Option<u32>) -> u32 {
    match (latest, known) {
        // Made and never started: what was begun is done again, it was no restart.
        (Some(old), _) if old.state == State::Created => old.restarts,
        (Some(old), _) => old.restarts + 1,
        (None, Some(n)) => n + 1,
        (None, None) => 0,
    }
}

/// Whole seconds in Go's notation: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(nanos: Nanos) -> String {
    let s = nanos / SECOND;
    if s < 60 {
        format!("{s}s")
    } else {
        format!("{}m{}s", s / 60, s % 60)
    }
}
