//! The probes of a pod: which run, and what their reports change.

use super::Worker;
use crate::actions::pod_ips;
use crate::machine::Busy;
use crate::observed::{Container as Seen, Observed, State};
use crate::probe::worker::{Job, Report};
use crate::probe::{Kind, run::Target};
use crate::spec;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

impl Worker {
    pub(super) fn heard(&mut self, pod: &Pod, report: Report) {
        if let Some(message) = &report.failure {
            let text = format!("{} probe failed: {message}", capital(report.kind.as_str()));
            self.ctx.events.warning(pod, Some(&report.container), "Unhealthy", text);
        }
        if let Some(message) = &report.warning {
            let text = format!("{} probe warning: {message}", capital(report.kind.as_str()));
            self.ctx
                .events
                .warning(pod, Some(&report.container), "ProbeWarning", text);
        }
        let Some(verdict) = report.verdict else { return };
        let entry = self.memory.verdicts.entry(report.container_id.clone()).or_default();
        match (report.kind, verdict) {
            (Kind::Readiness, ready) => entry.ready = Some(ready),
            (Kind::Startup, true) => {
                entry.started = Some(true);
                if let Some(sender) = self.started.get(&report.container_id) {
                    sender.send_replace(true);
                }
            }
            (Kind::Startup, false) => entry.failed = Some("startup"),
            (Kind::Liveness, false) => entry.failed = Some("liveness"),
            (Kind::Liveness, true) => {}
        }
    }

    /// One probe worker per probe of every running container, none of any other.
    pub(super) fn sync_probes(&mut self, pod: &Pod, observed: &Observed, stopping: bool) {
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
            let keep = running.iter().any(|c| c.id == *id) && !(stopping && *kind != Kind::Readiness);
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
            for probe in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
                let over =
                    probe == Kind::Startup && started_now || verdict.failed.is_some() && probe != Kind::Readiness;
                let key = (seen.id.clone(), probe);
                if probe.of(c).is_none() || over || stopping || self.probes.contains_key(&key) {
                    continue;
                }
                let job = Job {
                    cri: self.ctx.cri.clone(),
                    target: Target {
                        container_id: seen.id.clone(),
                        ip: ips.first().cloned().unwrap_or_default(),
                    },
                    container: c.clone(),
                    kind: probe,
                    started_at: seen.started_at,
                    known: if probe == Kind::Readiness { verdict.ready } else { None },
                    started: started.clone(),
                    reports: self.reports.0.clone(),
                };
                self.probes
                    .insert(key, tokio::spawn(crate::probe::worker::work(job)).abort_handle());
            }
        }
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map(|c| c.to_uppercase().collect::<String>() + chars.as_str())
        .unwrap_or_default()
}
