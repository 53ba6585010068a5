//! A Deployment's status: the counts, and the conditions Available, Progressing, ReplicaFailure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::deployment_plan::Limits;
use crate::meta::{name, since};

/// Why a Deployment progresses or not.
pub(crate) const PAUSED: &str = "DeploymentPaused";
pub(crate) const RESUMED: &str = "DeploymentResumed";
pub(crate) const CREATED: &str = "NewReplicaSetCreated";
pub(crate) const FOUND: &str = "FoundNewReplicaSet";
pub(crate) const CREATE_FAILED: &str = "ReplicaSetCreateError";
const UPDATED: &str = "ReplicaSetUpdated";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

fn spec_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn sum(sets: &[Arc<ReplicaSet>], of: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32) -> i32 {
    sets.iter().filter_map(|s| s.status.as_ref()).map(of).sum()
}

/// The condition of that type.
pub(crate) fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Sets a condition; one that says the same already keeps its times.
pub(crate) fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    is: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    put(status, kind, if is { "True" } else { "False" }, reason, message, now);
}

pub(crate) fn put(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions
        .iter()
        .position(|c| c.type_ == kind)
        .map(|i| conditions.remove(i));
    if let Some(old) = &old
        && old.status == value
        && old.reason.as_deref() == Some(reason)
    {
        conditions.push(old.clone());
        return;
    }
    let transition = old
        .filter(|o| o.status == value)
        .and_then(|o| o.last_transition_time)
        .unwrap_or(Time(now));
    conditions.push(DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(transition),
    });
}

/// The counts and the Available condition of `deployment` with those sets (`new` is also among `all`).
pub(crate) fn counts(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let available = sum(all, |s| s.available_replicas.unwrap_or(0));
    let total: i32 = all.iter().map(|s| spec_replicas(s)).sum();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(all, |s| s.replicas)),
        updated_replicas: Some(new.and_then(|s| s.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: Some(sum(all, |s| s.ready_replicas.unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some((total - available).max(0)),
        terminating_replicas: Some(sum(all, |s| s.terminating_replicas.unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    if available >= Limits::of(deployment).least_available() {
        let message = "Deployment has minimum availability.".to_owned();
        set_condition(&mut status, "Available", true, "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        set_condition(
            &mut status,
            "Available",
            false,
            "MinimumReplicasUnavailable",
            message,
            now,
        );
    }
    status
}

/// Whether every replica is new and available, and none old is left.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether `new` is nearer the goal than `old`.
fn has_moved(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |n: Option<i32>| n.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| count(s.replicas) - count(s.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

/// The seconds a rollout may go without progress; nothing if there is no limit.
pub(crate) fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    if seconds == i32::MAX {
        None
    } else {
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }
}

/// Completes `status` with Progressing and ReplicaFailure; when nothing else happens, look again after the result.
pub(crate) fn progress(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> Option<Duration> {
    failure(status, all, now);
    let deadline = deadline(deployment)?;
    let old = deployment.status.clone().unwrap_or_default();
    let what = new.map_or_else(
        || format!("Deployment {:?}", name(&deployment.metadata)),
        |s| format!("ReplicaSet {:?}", name(&s.metadata)),
    );
    // A rollout that was complete stays so when pods merely come and go; only a new template begins another.
    let was_complete = status.replicas == status.updated_replicas
        && condition(&old, "Progressing").is_some_and(|c| c.reason.as_deref() == Some(COMPLETE));
    if was_complete {
        return None;
    }
    if is_complete(deployment, status) {
        set_condition(
            status,
            "Progressing",
            true,
            COMPLETE,
            format!("{what} has successfully progressed."),
            now,
        );
        return None;
    }
    if has_moved(&old, status) {
        let moved = condition(status, "Progressing")
            .filter(|c| c.status == "True")
            .and_then(|c| c.last_transition_time.clone());
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != "Progressing");
        conditions.push(DeploymentCondition {
            type_: "Progressing".into(),
            status: "True".into(),
            reason: Some(UPDATED.into()),
            message: Some(format!("{what} is progressing.")),
            last_update_time: Some(Time(now)),
            last_transition_time: Some(moved.unwrap_or(Time(now))),
        });
        return Some(deadline);
    }
    let current = condition(status, "Progressing")?;
    if current.reason.as_deref() == Some(TIMED_OUT) || current.reason.as_deref() == Some(PAUSED) {
        return None;
    }
    let waited = current
        .last_update_time
        .as_ref()
        .map_or(Duration::ZERO, |t| since(t.0, now));
    if waited < deadline {
        return Some(deadline - waited + Duration::from_secs(1));
    }
    set_condition(
        status,
        "Progressing",
        false,
        TIMED_OUT,
        format!("{what} has timed out progressing."),
        now,
    );
    None
}

fn failure(status: &mut DeploymentStatus, all: &[Arc<ReplicaSet>], now: Timestamp) {
    let found = all
        .iter()
        .filter_map(|s| s.status.as_ref())
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    match found {
        Some(c) => {
            let (reason, message) = (
                c.reason.clone().unwrap_or_default(),
                c.message.clone().unwrap_or_default(),
            );
            set_condition(status, "ReplicaFailure", true, &reason, message, now);
        }
        None => {
            if let Some(conditions) = &mut status.conditions {
                conditions.retain(|c| c.type_ != "ReplicaFailure");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec, ReplicaSetStatus};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn deployment(replicas: i32) -> Deployment {
        let spec = DeploymentSpec {
            replicas: Some(replicas),
            progress_deadline_seconds: Some(600),
            ..DeploymentSpec::default()
        };
        Deployment {
            spec: Some(spec),
            ..Deployment::default()
        }
    }

    fn set(spec: i32, status: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(ReplicaSet {
            spec: Some(ReplicaSetSpec {
                replicas: Some(spec),
                ..ReplicaSetSpec::default()
            }),
            status: Some(ReplicaSetStatus {
                replicas: status,
                available_replicas: Some(available),
                ..ReplicaSetStatus::default()
            }),
            ..ReplicaSet::default()
        })
    }

    fn step(d: &mut Deployment, sets: &[Arc<ReplicaSet>], now: i64) -> (String, Option<Duration>) {
        let mut status = counts(d, sets.first().map(|s| &**s), sets, at(now));
        let next = progress(d, &mut status, sets.first().map(|s| &**s), sets, at(now));
        let reason = condition(&status, "Progressing")
            .and_then(|c| c.reason.clone())
            .unwrap_or_default();
        d.status = Some(status);
        (reason, next)
    }

    #[test]
    fn a_rollout_progresses_completes_and_stays_complete() {
        let mut d = deployment(2);
        assert_eq!(
            step(&mut d, &[set(2, 2, 0)], 10),
            (UPDATED.into(), Some(Duration::from_secs(600)))
        );
        assert_eq!(
            step(&mut d, &[set(2, 2, 0)], 20),
            (UPDATED.into(), Some(Duration::from_secs(591)))
        );
        assert_eq!(step(&mut d, &[set(2, 2, 2)], 30), (COMPLETE.into(), None));
        assert_eq!(step(&mut d, &[set(2, 2, 1)], 40), (COMPLETE.into(), None));
        let available = condition(d.status.as_ref().unwrap(), "Available").unwrap();
        assert_eq!(available.status, "False");
    }

    #[test]
    fn a_rollout_without_progress_times_out_once() {
        let mut d = deployment(2);
        step(&mut d, &[set(2, 2, 0)], 10);
        assert_eq!(step(&mut d, &[set(2, 2, 0)], 610), (TIMED_OUT.into(), None));
        assert_eq!(step(&mut d, &[set(2, 2, 0)], 700), (TIMED_OUT.into(), None));
        assert_eq!(step(&mut d, &[set(2, 2, 2)], 800), (COMPLETE.into(), None));
    }
}
