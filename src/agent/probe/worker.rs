//! The task of one probe of one container instance: waits for its initial delay and for the startup probe, runs,
//! counts, reports. It ends with the instance (the pod's worker aborts it) or after a killing verdict.

use super::{Kind, Outcome, Series, run};
use crate::cri::Cri;
use crate::observed::{self, Nanos, SECOND};
use k8s_openapi::api::core::v1::Container;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often the same probe of the same container warns at most. What a server answers may differ each time, so the events
/// would not be counted as one.
const WARNING_INTERVAL: Duration = Duration::from_secs(300);

/// A verdict that has changed, or a failed run worth an event.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which instance.
    pub container_id: String,
    /// Name in the pod.
    pub container: String,
    /// Which probe.
    pub kind: Kind,
    /// The new verdict, if it changed.
    pub verdict: Option<bool>,
    /// Why a run failed.
    pub failure: Option<String>,
    /// What is to be known about a run that passed.
    pub warning: Option<String>,
}

/// What a worker needs.
#[derive(Debug)]
pub struct Job {
    /// The runtime.
    pub cri: Cri,
    /// Where to.
    pub target: run::Target,
    /// The container's spec.
    pub container: Container,
    /// Which probe.
    pub kind: Kind,
    /// When the instance was started.
    pub started_at: Nanos,
    /// A verdict that already holds.
    pub known: Option<bool>,
    /// Whether the startup probe has passed.
    pub started: watch::Receiver<bool>,
    /// Where to report to.
    pub reports: mpsc::Sender<Report>,
}

/// Runs until a killing verdict, a passed startup probe, or the end of the pod's worker.
pub async fn work(mut job: Job) {
    let Some(probe) = job.kind.of(&job.container).cloned() else {
        return;
    };
    if job.kind != Kind::Startup && job.started.wait_for(|s| *s).await.is_err() {
        return;
    }
    let delay = Nanos::from(probe.initial_delay_seconds.unwrap_or(0).max(0)) * SECOND;
    let first = (job.started_at + delay - observed::now()).max(0);
    tokio::time::sleep(Duration::from_nanos(first.unsigned_abs())).await;
    let period = Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1).unsigned_abs().into());
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut series = Series::new(&probe, job.known.or((job.kind == Kind::Liveness).then_some(true)));
    let mut warned: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let outcome = run::probe(&job.cri, &job.target, &job.container, &probe).await;
        let (success, failure, warning) = match outcome {
            Outcome::Success => (true, None, None),
            Outcome::Warning(message) if warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) => {
                warned = Some(Instant::now());
                (true, None, Some(message))
            }
            Outcome::Warning(_) => (true, None, None),
            Outcome::Failure(message) => (false, Some(message), None),
            Outcome::Unknown(message) => {
                tracing::debug!(
                    container = job.container.name,
                    probe = job.kind.as_str(),
                    "prober error: {message}"
                );
                continue;
            }
        };
        let verdict = series.record(success);
        if verdict.is_some() || failure.is_some() || warning.is_some() {
            let report = Report {
                container_id: job.target.container_id.clone(),
                container: job.container.name.clone(),
                kind: job.kind,
                verdict,
                failure,
                warning,
            };
            if job.reports.send(report).await.is_err() {
                return;
            }
        }
        match (job.kind, verdict) {
            (Kind::Startup, Some(_)) | (Kind::Liveness, Some(false)) => return,
            _ => {}
        }
    }
}
