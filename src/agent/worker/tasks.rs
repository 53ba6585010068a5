//! The actions of a pod in flight: started as tasks, ended by hand when a newer one takes their place, and what their
//! results mean for the next step.

use super::Worker;
use crate::actions::{create_sandbox, kill, pod_ips, prepare, sandbox_config};
use crate::backoff::Doubling;
use crate::error::Error;
use crate::machine::{Action, Busy, Waiting, Why};
use crate::names;
use crate::observed::{Container as Seen, Nanos, Observed, SECOND, State, now};
use crate::probe::run::Target;
use crate::spec;
use crate::start::{self, StartError};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What an action came to.
pub(super) enum Done {
    Ok,
    Failed(String),
    Start(Result<String, StartError>),
}

impl Worker {
    pub(super) fn launch(&mut self, action: Action, pod: &Arc<Pod>, observed: &Observed, stopping: bool) {
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

    pub(super) fn finished(&mut self, pod: &Arc<Pod>, done: Result<(Busy, Done), tokio::task::JoinError>) {
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
                if e.reason != "ImagePullBackOff" {
                    self.ctx
                        .events
                        .warning(pod, Some(name), "Failed", format!("{}: {}", e.reason, e.message));
                } else if changed {
                    // Why the image cannot be pulled is told by the attempts to pull it.
                    let image = spec::container(pod, name).and_then(|(_, c)| c.image.as_deref());
                    let text = format!("Back-off pulling image {:?}", image.unwrap_or_default());
                    self.ctx.events.normal(pod, Some(name), "BackOff", text);
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

    /// An event for each container that has come to wait for its restart; `waited` is what was known before the step.
    pub(super) fn tell_back_offs(&self, pod: &Pod, waited: &BTreeMap<String, Waiting>) {
        for name in newly_backing_off(waited, &self.memory.waiting) {
            let text = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                names::name(pod),
                names::namespace(pod),
                names::uid(pod)
            );
            self.ctx.events.warning(pod, Some(name), "BackOff", text);
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

    pub(super) fn abort_starts(&mut self) {
        for (busy, abort) in &self.aborts {
            if matches!(busy, Busy::Start(_) | Busy::CreateSandbox | Busy::Prepare) {
                abort.abort();
            }
        }
    }
}

/// Containers whose restart is held back now, for another time than before.
fn newly_backing_off<'a>(
    before: &'a BTreeMap<String, Waiting>,
    now: &'a BTreeMap<String, Waiting>,
) -> impl Iterator<Item = &'a str> {
    now.iter()
        .filter(|(name, waiting)| waiting.reason == "CrashLoopBackOff" && before.get(*name) != Some(*waiting))
        .map(|(name, _)| name.as_str())
}

fn outcome<T>(result: Result<T, Error>) -> Done {
    match result {
        Ok(_) => Done::Ok,
        Err(e) => Done::Failed(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_off_is_told_once_each_time() {
        let waiting = |reason: &str, message: &str| -> BTreeMap<String, Waiting> {
            let waiting = Waiting {
                reason: reason.into(),
                message: message.into(),
            };
            [("c".to_owned(), waiting)].into()
        };
        let first = waiting("CrashLoopBackOff", "back-off 10s");
        for (before, now, told) in [
            (BTreeMap::new(), first.clone(), true),
            (first.clone(), first.clone(), false),
            (first.clone(), waiting("CrashLoopBackOff", "back-off 20s"), true),
            (waiting("RunContainerError", "x"), first.clone(), true),
            (BTreeMap::new(), waiting("RunContainerError", "x"), false),
            (first, BTreeMap::new(), false),
        ] {
            assert_eq!(
                newly_backing_off(&before, &now).count(),
                usize::from(told),
                "{before:?} {now:?}"
            );
        }
    }
}
