//! The worker of one pod: asks the machine what to do, does it in the background, listens to what happens, tells the API.
//! It holds no decisions of its own.

use crate::actions::{
    create_sandbox, kill, pod_ips, prepare, remove_containers, remove_logs, sandbox_config, teardown,
};
use crate::backoff::Doubling;
use crate::ctx::Ctx;
use crate::error::Error;
use crate::machine::{self, Action, Busy, Memory, Stage, Stop, Verdict, Waiting, Why};
use crate::names;
use crate::observed::{Container as Seen, Nanos, Observed, SECOND, State, now};
use crate::probe::worker::{Job as ProbeJob, Report};
use crate::probe::{Kind as ProbeKind, run::Target};
use crate::spec;
use crate::start::{self, StartError};
use crate::status;
use crate::status_writer::Writer;
use crate::volumes::Volumes;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

/// The wish as the manager gives it.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The pod.
    pub pod: Arc<Pod>,
    /// It must stop.
    pub stop: Option<Stop>,
    /// It is to be removed altogether when it has stopped.
    pub remove: bool,
    /// The API no longer has it (or never had): nothing to write or delete there.
    pub gone: bool,
}

/// What an action came to.
enum Done {
    Ok,
    Failed(String),
    Start(Result<String, StartError>),
}

/// State of a worker.
pub struct Worker {
    ctx: Arc<Ctx>,
    desired: watch::Receiver<Desired>,
    observed: watch::Receiver<Arc<Observed>>,
    memory: Memory,
    tasks: JoinSet<(Busy, Done)>,
    aborts: HashMap<Busy, AbortHandle>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    probes: HashMap<(String, ProbeKind), AbortHandle>,
    started: HashMap<String, watch::Sender<bool>>,
    failures: HashMap<String, Doubling>,
    writer: Writer,
    last: Option<PodStatus>,
    own_stop: Option<Stop>,
    torn_down: bool,
    refresh_at: Nanos,
    refresh: Option<tokio::task::JoinHandle<()>>,
}

impl Worker {
    /// A worker for a pod; it knows what the API last said about it.
    pub fn new(ctx: Arc<Ctx>, desired: watch::Receiver<Desired>, mirrors: crate::status_writer::Mirrors) -> Worker {
        let pod = desired.borrow().pod.clone();
        let mut memory = Memory::default();
        let before = pod.status.clone().filter(|s| s.phase.is_some());
        for s in before.iter().flat_map(|b| {
            b.container_statuses
                .iter()
                .flatten()
                .chain(b.init_container_statuses.iter().flatten())
        }) {
            let Some(id) = s.container_id.as_deref().and_then(|i| i.rsplit('/').next()) else {
                continue;
            };
            memory
                .known_restarts
                .insert(s.name.clone(), s.restart_count.max(0).unsigned_abs());
            let verdict = Verdict {
                ready: Some(s.ready),
                started: s.started.filter(|x| *x),
                failed: None,
            };
            memory.verdicts.insert(id.to_owned(), verdict);
        }
        // A pod that is final in the API is never run again, whatever the runtime still has of it.
        let own_stop = status::is_final(&pod).then(|| Stop {
            grace: spec::grace(&pod),
            since: now(),
            reason: None,
            message: String::new(),
        });
        let writer = Writer::spawn(ctx.clone(), desired.clone(), mirrors);
        Worker {
            observed: ctx.relist.subscribe(names::uid(&pod)),
            ctx,
            desired,
            memory,
            tasks: JoinSet::new(),
            aborts: HashMap::new(),
            reports: mpsc::channel(32),
            probes: HashMap::new(),
            started: HashMap::new(),
            failures: HashMap::new(),
            writer,
            last: before,
            own_stop,
            torn_down: false,
            refresh_at: 0,
            refresh: None,
        }
    }

    /// Runs until the pod is removed.
    pub async fn run(mut self) {
        let uid = names::uid(&self.desired.borrow().pod).to_owned();
        self.ctx.relist.refresh().await;
        let mut network = self.ctx.network_ready.clone();
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let observed = self.observed.borrow_and_update().clone();
            let network_ready = *network.borrow_and_update();
            self.check_deadline(&desired);
            let stop = shorter(desired.stop.clone(), self.own_stop.clone());
            if stop.is_some() {
                self.abort_starts();
            }
            let at = now();
            let input = machine::Input {
                pod: &desired.pod,
                observed: &observed,
                stop: stop.as_ref(),
                network_ready,
                now: at,
            };
            let step = machine::step(&input, &mut self.memory);
            self.sync_probes(&desired.pod, &observed, stop.is_some());
            let status = self.publish(&desired, &observed, step.stage, stop.as_ref(), at);
            for action in step.actions {
                self.launch(action, &desired.pod, &observed, stop.is_some());
            }
            if step.stage == Stage::Ended && self.tasks.is_empty() && self.end(&desired, &status).await {
                break;
            }
            let wake = self.next_wake(step.wake_at, &desired, at);
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { break },
                _ = self.observed.changed() => {}
                _ = network.changed() => {}
                Some(done) = self.tasks.join_next_with_id() => self.finished(&desired.pod, done.map(|(_, d)| d)),
                Some(report) = self.reports.1.recv() => self.heard(&desired.pod, report),
                () = tokio::time::sleep(wake) => self.refresh_volumes(&desired.pod, &observed, step.stage),
            }
        }
        self.ctx.relist.forget(&uid);
        self.ctx.weigh_burstable(&uid, None).await;
    }

    fn next_wake(&self, wake: Option<Nanos>, desired: &Desired, at: Nanos) -> Duration {
        let mut next = wake.unwrap_or(Nanos::MAX);
        if self.memory.prepared {
            next = next.min(self.refresh_at);
        }
        if let Some(deadline) = self.deadline(desired) {
            next = next.min(deadline);
        }
        // Never longer than a minute: a clock that was set must not stall a pod.
        let nanos = next.saturating_sub(at).clamp(1_000_000, 60 * SECOND);
        Duration::from_nanos(nanos.unsigned_abs())
    }

    fn deadline(&self, desired: &Desired) -> Option<Nanos> {
        if self.own_stop.is_some() || desired.stop.is_some() {
            return None;
        }
        let seconds = desired.pod.spec.as_ref()?.active_deadline_seconds?;
        let start = self.last.as_ref()?.start_time.as_ref()?.0.as_second();
        Some((start + seconds) * SECOND)
    }

    fn check_deadline(&mut self, desired: &Desired) {
        if self.deadline(desired).is_some_and(|d| d <= now())
            && machine::outcome(&desired.pod, &self.observed.borrow()).is_none()
        {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.ctx
                .events
                .normal(&desired.pod, None, "DeadlineExceeded", message.clone());
            self.own_stop = Some(Stop {
                grace: spec::grace(&desired.pod),
                since: now(),
                reason: Some("DeadlineExceeded".into()),
                message,
            });
        }
    }

    fn abort_starts(&mut self) {
        for (busy, abort) in &self.aborts {
            if matches!(busy, Busy::Start(_) | Busy::CreateSandbox | Busy::Prepare) {
                abort.abort();
            }
        }
    }

    /// Computes the status and hands it to the writer if it changed.
    fn publish(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        stage: Stage,
        stop: Option<&Stop>,
        at: Nanos,
    ) -> PodStatus {
        let input = status::Input {
            pod: &desired.pod,
            observed,
            memory: &self.memory,
            stage,
            stop,
            before: self.last.as_ref(),
            host_ips: &self.ctx.host_ips,
            now: at,
        };
        let status = status::compute(&input);
        if self.last.as_ref() != Some(&status) || !self.writer.has_written() {
            self.last = Some(status.clone());
            // What is final in the API is only ever deleted.
            if !desired.gone && !status::is_final(&desired.pod) {
                self.writer.put(status.clone());
            }
        }
        status
    }

    fn launch(&mut self, action: Action, pod: &Arc<Pod>, observed: &Observed, stopping: bool) {
        let busy = action.busy();
        if let Some(old) = self.aborts.remove(&busy) {
            old.abort();
        }
        self.memory.busy.insert(busy.clone());
        let (ctx, pod) = (self.ctx.clone(), pod.clone());
        let ips = pod_ips(&ctx, &pod, observed);
        let key = busy.clone();
        let future: std::pin::Pin<Box<dyn Future<Output = Done> + Send>> = match action {
            Action::Prepare => Box::pin(async move { outcome(prepare(&ctx, &pod, ips).await) }),
            Action::CreateSandbox { attempt } => {
                Box::pin(async move { outcome(create_sandbox(&ctx, &pod, attempt).await) })
            }
            Action::StopSandbox { id } => Box::pin(async move {
                let result = ctx.cri.stop_sandbox(&id).await;
                ctx.relist.refresh().await;
                outcome(result)
            }),
            Action::Start {
                name,
                restarts,
                sandbox,
            } => {
                let attempt = observed
                    .sandboxes
                    .iter()
                    .find(|s| s.id == sandbox)
                    .map_or(0, |s| s.attempt);
                let sandbox_config = sandbox_config(&ctx, &pod, attempt);
                let never_ran = |c: &&Seen| c.name == name && c.state == State::Created;
                let stale = observed
                    .containers
                    .iter()
                    .filter(never_ran)
                    .map(|c| c.id.clone())
                    .collect();
                let job = start::Job {
                    pod,
                    name,
                    restarts,
                    sandbox,
                    sandbox_config,
                    pod_ips: ips,
                    stale,
                };
                Box::pin(async move {
                    let result = start::start(&ctx, &job).await;
                    ctx.relist.refresh().await;
                    Done::Start(result)
                })
            }
            Action::Kill { id, name, grace, why } => {
                let graceful = !matches!(why, Why::Lost);
                self.explain_kill(&pod, &name, &why, stopping);
                let target = Target {
                    container_id: id,
                    ip: ips.first().cloned().unwrap_or_default(),
                };
                Box::pin(async move { outcome(kill(&ctx, &pod, &name, &target, grace, graceful).await) })
            }
        };
        let abort = self.tasks.spawn(async move { (key, future.await) });
        self.aborts.insert(busy, abort);
    }

    fn explain_kill(&self, pod: &Pod, name: &str, why: &Why, stopping: bool) {
        let message = match why {
            Why::PodStops if stopping => format!("Stopping container {name}"),
            Why::PodStops => return,
            Why::Probe(kind) => format!("Container {name} failed {kind} probe, will be restarted"),
            Why::Changed => format!("Container {name} definition changed, will be restarted"),
            Why::Lost => format!("Container {name} lost its sandbox, stopping it"),
        };
        self.ctx.events.normal(pod, Some(name), "Killing", message);
    }

    fn finished(&mut self, pod: &Arc<Pod>, done: Result<(Busy, Done), tokio::task::JoinError>) {
        let (busy, done) = match done {
            Ok(done) => done,
            Err(e) => {
                if !e.is_cancelled() {
                    tracing::error!(pod = names::full(pod), "an action failed: {e}");
                }
                // Which action it was is told by the handle that is finished now.
                let over: Vec<Busy> = self
                    .aborts
                    .iter()
                    .filter(|(_, a)| a.is_finished())
                    .map(|(b, _)| b.clone())
                    .collect();
                for busy in over {
                    self.memory.busy.remove(&busy);
                    self.aborts.remove(&busy);
                }
                return;
            }
        };
        self.memory.busy.remove(&busy);
        self.aborts.remove(&busy);
        match (busy, done) {
            (Busy::Prepare, Done::Ok) => {
                self.memory.prepared = true;
                self.clear_failure("");
                self.schedule_refresh();
            }
            (Busy::CreateSandbox, Done::Ok) => self.clear_failure(""),
            (Busy::StopSandbox(id), Done::Ok) => drop(self.memory.stopped.insert(id)),
            (Busy::Prepare, Done::Failed(message)) => {
                self.retry("", None);
                self.ctx.events.warning(pod, None, "FailedMount", message);
            }
            (Busy::CreateSandbox, Done::Failed(message)) => {
                self.retry("", None);
                self.ctx.events.warning(
                    pod,
                    None,
                    "FailedCreatePodSandBox",
                    format!("Failed to create pod sandbox: {message}"),
                );
            }
            (Busy::StopSandbox(_), Done::Failed(message)) => {
                self.retry("", None);
                self.ctx.events.warning(pod, None, "FailedKillPod", message);
            }
            (Busy::Kill(id), Done::Failed(message)) => {
                self.memory.kill_grace.remove(&id);
                self.ctx.events.warning(pod, None, "FailedKillPod", message);
            }
            (Busy::Start(name), Done::Start(result)) => self.start_finished(pod, &name, result),
            _ => {}
        }
    }

    fn start_finished(&mut self, pod: &Pod, name: &str, result: Result<String, StartError>) {
        match result {
            Ok(_) => {
                self.clear_failure(name);
                self.memory.waiting.remove(name);
            }
            Err(e) => {
                let changed = self
                    .memory
                    .waiting
                    .get(name)
                    .is_none_or(|w| w.reason != e.reason || w.message != e.message);
                let waiting = Waiting {
                    reason: e.reason.to_owned(),
                    message: e.message.clone(),
                };
                if e.reason == "ImagePullBackOff" {
                    if changed {
                        self.ctx.events.normal(pod, Some(name), "BackOff", e.message.clone());
                    }
                } else {
                    self.ctx
                        .events
                        .warning(pod, Some(name), "Failed", format!("{}: {}", e.reason, e.message));
                }
                self.memory.waiting.insert(name.to_owned(), waiting);
                let at = match e.reason {
                    // Shown for a moment, then the back-off itself is.
                    "ErrImagePull" => Some(now() + 2 * SECOND),
                    _ => e.retry_at,
                };
                self.retry(name, at);
            }
        }
    }

    fn retry(&mut self, key: &str, at: Option<Nanos>) {
        let backoff = self
            .failures
            .entry(key.to_owned())
            .or_insert_with(|| Doubling::new(Duration::from_millis(500), Duration::from_secs(10)));
        let at = at.unwrap_or_else(|| now() + i64::try_from(backoff.next().as_nanos()).unwrap_or(SECOND));
        self.memory.retry_at.insert(key.to_owned(), at);
    }

    fn clear_failure(&mut self, key: &str) {
        self.failures.remove(key);
        self.memory.retry_at.remove(key);
    }

    fn schedule_refresh(&mut self) {
        // Spread over a third of the period, so that pods made together do not ask together.
        let period = i64::try_from(self.ctx.config.sync_frequency.as_nanos())
            .unwrap_or(60 * SECOND)
            .max(SECOND);
        self.refresh_at = now() + (period as f64 * (2.0 + rand::random::<f64>()) / 3.0) as Nanos;
    }

    fn refresh_volumes(&mut self, pod: &Arc<Pod>, observed: &Observed, stage: Stage) {
        if !self.memory.prepared || self.refresh_at > now() || matches!(stage, Stage::Stopping | Stage::Ended) {
            return;
        }
        self.schedule_refresh();
        if !Volumes::refreshes(pod) {
            return;
        }
        if self.refresh.as_ref().is_some_and(|r| !r.is_finished()) {
            return;
        }
        let (ctx, pod) = (self.ctx.clone(), pod.clone());
        let ips = pod_ips(&ctx, &pod, observed);
        let age = (ctx.config.sync_frequency / 4).min(Duration::from_secs(15));
        self.refresh = Some(tokio::spawn(async move {
            if let Err(e) = ctx.volumes.setup(&pod, &ctx.facts(ips), age).await {
                tracing::warn!(pod = names::full(&pod), "volumes not refreshed: {e}");
            }
        }));
    }

    fn heard(&mut self, pod: &Pod, report: Report) {
        if let Some(message) = &report.failure {
            let text = format!("{} probe failed: {message}", capital(report.kind.as_str()));
            self.ctx.events.warning(pod, Some(&report.container), "Unhealthy", text);
        }
        let Some(verdict) = report.verdict else { return };
        let entry = self.memory.verdicts.entry(report.container_id.clone()).or_default();
        match (report.kind, verdict) {
            (ProbeKind::Readiness, ready) => entry.ready = Some(ready),
            (ProbeKind::Startup, true) => {
                entry.started = Some(true);
                if let Some(sender) = self.started.get(&report.container_id) {
                    sender.send_replace(true);
                }
            }
            (ProbeKind::Startup, false) => entry.failed = Some("startup"),
            (ProbeKind::Liveness, false) => entry.failed = Some("liveness"),
            (ProbeKind::Liveness, true) => {}
        }
    }

    /// One probe worker per probe of every running container, none of any other.
    fn sync_probes(&mut self, pod: &Pod, observed: &Observed, stopping: bool) {
        let running: Vec<&Seen> = observed
            .containers
            .iter()
            .filter(|c| c.state == State::Running)
            .collect();
        let known: Vec<&str> = observed.containers.iter().map(|c| c.id.as_str()).collect();
        self.memory
            .verdicts
            .retain(|id, _| known.contains(&id.as_str()) || observed.containers.is_empty());
        self.memory.kill_grace.retain(|id, _| known.contains(&id.as_str()));
        self.started.retain(|id, _| running.iter().any(|c| c.id == *id));
        self.probes.retain(|(id, kind), abort| {
            let keep = running.iter().any(|c| c.id == *id) && !(stopping && *kind != ProbeKind::Readiness);
            if !keep {
                abort.abort();
            }
            keep
        });
        let ips = pod_ips(&self.ctx, pod, observed);
        for seen in running {
            let Some((kind, c)) = spec::container(pod, &seen.name) else {
                continue;
            };
            if kind == spec::Kind::Init || self.memory.busy.contains(&Busy::Start(seen.name.clone())) {
                continue;
            }
            let verdict = self.memory.verdicts.get(&seen.id).cloned().unwrap_or_default();
            let started_now = c.startup_probe.is_none() || verdict.started == Some(true);
            let started = self
                .started
                .entry(seen.id.clone())
                .or_insert_with(|| watch::channel(started_now).0)
                .subscribe();
            for probe in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
                let over = probe == ProbeKind::Startup && started_now
                    || verdict.failed.is_some() && probe != ProbeKind::Readiness;
                let key = (seen.id.clone(), probe);
                if probe.of(c).is_none() || over || stopping || self.probes.contains_key(&key) {
                    continue;
                }
                let job = ProbeJob {
                    cri: self.ctx.cri.clone(),
                    target: Target {
                        container_id: seen.id.clone(),
                        ip: ips.first().cloned().unwrap_or_default(),
                    },
                    container: c.clone(),
                    kind: probe,
                    started_at: seen.started_at,
                    known: if probe == ProbeKind::Readiness {
                        verdict.ready
                    } else {
                        None
                    },
                    started: started.clone(),
                    reports: self.reports.0.clone(),
                };
                self.probes
                    .insert(key, tokio::spawn(crate::probe::worker::work(job)).abort_handle());
            }
        }
    }

    /// Everything has stopped: clean up; whether the worker itself is done.
    async fn end(&mut self, desired: &Desired, status: &PodStatus) -> bool {
        let pod = &desired.pod;
        let uid = names::uid(pod);
        if desired.remove
            && let Err(e) = remove_containers(&self.ctx, uid).await
        {
            tracing::warn!(pod = names::full(pod), "removing: {e}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            return false;
        }
        // A refresh under way would make anew what is being removed.
        if let Some(refresh) = self.refresh.take() {
            let _ = refresh.await;
        }
        if !self.torn_down {
            if let Err(e) = teardown(&self.ctx, pod).await {
                tracing::warn!(pod = names::full(pod), "cleaning up: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return false;
            }
            self.torn_down = true;
            self.memory.prepared = false;
        }
        if !desired.remove {
            return false;
        }
        remove_logs(&self.ctx, pod);
        if names::is_static(pod) {
            self.writer.remove_mirror().await;
        } else if !desired.gone {
            self.writer.finish(status.clone(), self.desired.clone()).await;
        }
        tracing::info!(pod = names::full(pod), "removed");
        true
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.probes.values().for_each(AbortHandle::abort);
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map(|c| c.to_uppercase().collect::<String>() + chars.as_str())
        .unwrap_or_default()
}

fn outcome<T>(result: Result<T, Error>) -> Done {
    match result {
        Ok(_) => Done::Ok,
        Err(e) => Done::Failed(e.to_string()),
    }
}

/// Of two reasons to stop the one with less time; a reason given is kept.
fn shorter(a: Option<Stop>, b: Option<Stop>) -> Option<Stop> {
    match (a, b) {
        (Some(a), Some(b)) => {
            let (mut first, other) = if a.grace <= b.grace { (a, b) } else { (b, a) };
            if first.reason.is_none() {
                first.reason = other.reason;
                first.message = other.message;
            }
            Some(first)
        }
        (a, b) => a.or(b),
    }
}
