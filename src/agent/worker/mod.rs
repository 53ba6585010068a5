//! The worker of one pod: asks the machine what to do, does it in the background, listens to what happens, tells the API.
//! It holds no decisions of its own.

mod probes;
mod tasks;

use crate::actions::{pod_ips, remove_containers, remove_logs, teardown};
use crate::backoff::Doubling;
use crate::ctx::Ctx;
use crate::machine::{self, Busy, Memory, Stage, Stop, Verdict};
use crate::names;
use crate::observed::{Nanos, Observed, SECOND, now};
use crate::probe::{Kind as ProbeKind, worker::Report};
use crate::spec;
use crate::status;
use crate::status_writer::Writer;
use crate::volumes::Volumes;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tasks::Done;
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
            let waited = self.memory.waiting.clone();
            let step = machine::step(&input, &mut self.memory);
            self.tell_back_offs(&desired.pod, &waited);
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
