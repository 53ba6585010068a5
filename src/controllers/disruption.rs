//! PodDisruptionBudgets: how many of the selected pods may be disrupted now. Evictions (`kubectl drain`) read it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use component::events::{Level, Recorder};
use component::patch::{Part, update};
use component::{ApiErrorExt, Change, Error, ObjectKey, Queue, Requeue, selector};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;

use crate::context::{Context, known};
use crate::meta::{controller_of, is_deleting, name, namespace, scaled, since};
use crate::pods::{is_ready, is_terminal};

/// An eviction that was granted counts until the pod goes, but no longer than this.
const GRANTED: Duration = Duration::from_secs(120);

struct Controller {
    ctx: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
}

/// Starts the disruption controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("disruption");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        events: ctx.events.named("controllermanager"),
        queue: Arc::clone(&queue),
    });
    let on = Arc::clone(&controller);
    ctx.caches
        .budgets
        .on_change(move |c| on.queue.add(ObjectKey::of(&**c.latest())));
    let on = Arc::clone(&controller);
    ctx.caches.pods.on_change(move |c| on.pod_changed(c));
    // The expected number follows the scale of the owners.
    let (add, on) = (Arc::clone(&queue), Arc::clone(ctx));
    ctx.caches
        .replica_sets
        .on_change(move |c| all_of(&on, &add, namespace(&c.latest().metadata)));
    let (add, on) = (Arc::clone(&queue), Arc::clone(ctx));
    ctx.caches
        .deployments
        .on_change(move |c| all_of(&on, &add, namespace(&c.latest().metadata)));
    let (add, on) = (Arc::clone(&queue), Arc::clone(ctx));
    ctx.caches
        .replication_controllers
        .on_change(move |c| all_of(&on, &add, namespace(&c.latest().metadata)));
    ctx.work(
        known!(ctx, budgets, pods, replica_sets, deployments, replication_controllers),
        queue,
        2,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

fn all_of(ctx: &Context, queue: &Queue<ObjectKey>, namespace: &str) {
    for budget in ctx.caches.budgets.list(namespace) {
        queue.add(ObjectKey::of(&*budget));
    }
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    selector::matches(
        budget.spec.as_ref().and_then(|s| s.selector.as_ref()),
        pod.metadata.labels.as_ref(),
    )
}

impl Controller {
    fn pod_changed(&self, change: Change<'_, Pod>) {
        let pod = change.latest();
        for budget in self.ctx.caches.budgets.list(namespace(&pod.metadata)) {
            if selects(&budget, pod) || change.old().is_some_and(|o| selects(&budget, o)) {
                self.queue.add(ObjectKey::of(&*budget));
            }
        }
    }

    /// The number of pods an owner wants, and who that really is (a Deployment for a ReplicaSet's pods).
    fn scale_of(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("apps/v1", "ReplicaSet") => {
                let set = self
                    .ctx
                    .caches
                    .replica_sets
                    .get(namespace, &owner.name)
                    .filter(|s| s.metadata.uid.as_ref() == Some(&owner.uid))?;
                let above = controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
                if let Some(deployment) = above.and_then(|o| self.ctx.caches.deployments.get(namespace, &o.name)) {
                    let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                    return Some((deployment.metadata.uid.clone()?, replicas));
                }
                Some((
                    owner.uid.clone(),
                    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
                ))
            }
            ("v1", "ReplicationController") => {
                let controller = self.ctx.caches.replication_controllers.get(namespace, &owner.name)?;
                Some((
                    owner.uid.clone(),
                    controller.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
                ))
            }
            _ => None,
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(budget) = self.ctx.caches.budgets.get_key(key) else {
            return Ok(Requeue::Done);
        };
        let mut pods = self.ctx.caches.pods.list(&key.namespace);
        pods.retain(|p| selects(&budget, p) && !is_terminal(p));
        let mut scales: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = false;
        for pod in &pods {
            match controller_of(&pod.metadata).and_then(|o| self.scale_of(&key.namespace, o)) {
                Some((owner, replicas)) => {
                    scales.insert(owner, replicas);
                }
                None => unmanaged = true,
            }
        }
        let expected = if unmanaged { None } else { Some(scales.values().sum()) };
        let (wanted, next) = match status(&budget, &pods, expected, Timestamp::now()) {
            Ok(found) => found,
            Err(message) => {
                self.events.event(
                    &*budget,
                    Level::Warning,
                    "CalculateExpectedPodCountFailed",
                    message.clone(),
                );
                (failed(&budget, &message, Timestamp::now()), None)
            }
        };
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.ctx.client.clone(), &key.namespace);
        match update(
            &api,
            &*budget,
            &PodDisruptionBudget {
                status: Some(wanted),
                ..(*budget).clone()
            },
            Part::Status,
        )
        .await
        {
            Ok(_) => Ok(Requeue::after(next)),
            Err(Error::Api(e)) if e.is_not_found() => Ok(Requeue::Done),
            Err(e) => Err(e),
        }
    }
}

/// `scale`: what the owners of the pods want together; nothing if some pod has no owner that can be scaled.
fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: Option<i32>,
    now: Timestamp,
) -> Result<(PodDisruptionBudgetStatus, Option<Duration>), String> {
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let spec = budget.spec.clone().unwrap_or_default();
    let owned = || scale.ok_or_else(|| "found no controllers with scale for some of the pods".to_owned());
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let expected = owned()?;
            (expected, (expected - scaled(most, expected, true)).max(0))
        }
        (None, Some(IntOrString::Int(least))) => (count, *least),
        (None, Some(least)) => {
            let expected = owned()?;
            (expected, scaled(least, expected, true))
        }
        (None, None) => (count, 1),
    };
    let old = budget.status.clone().unwrap_or_default();
    let mut next: Option<Duration> = None;
    let granted: BTreeMap<String, Time> = old
        .disrupted_pods
        .unwrap_or_default()
        .into_iter()
        .filter(|(pod, at)| {
            let left = GRANTED.saturating_sub(since(at.0, now));
            let still = pods
                .iter()
                .any(|p| name(&p.metadata) == pod && !is_deleting(&p.metadata))
                && !left.is_zero();
            if still {
                next = Some(next.map_or(left, |n| n.min(left)));
            }
            still
        })
        .collect();
    let healthy = |p: &&Arc<Pod>| is_ready(p) && !is_deleting(&p.metadata) && !granted.contains_key(name(&p.metadata));
    let healthy = i32::try_from(pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let (is, reason, message) = if allowed > 0 {
        ("True", "SufficientPods", "")
    } else {
        ("False", "InsufficientPods", "")
    };
    let status = PodDisruptionBudgetStatus {
        disruptions_allowed: Some(allowed),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disrupted_pods: (!granted.is_empty()).then_some(granted),
        observed_generation: budget.metadata.generation,
        conditions: Some(vec![condition(budget, is, reason, message, now)]),
    };
    Ok((status, next))
}

/// When it cannot be computed nothing may be disrupted.
fn failed(budget: &PodDisruptionBudget, message: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        observed_generation: budget.metadata.generation,
        conditions: Some(vec![condition(budget, "False", "SyncFailed", message, now)]),
        ..budget.status.clone().unwrap_or_default()
    }
}

fn condition(budget: &PodDisruptionBudget, is: &str, reason: &str, message: &str, now: Timestamp) -> Condition {
    let kind = "DisruptionAllowed";
    let old = budget
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == kind && c.status == is);
    Condition {
        type_: kind.into(),
        status: is.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: old.map_or(Time(now), |c| c.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;

    #[test]
    fn budgets_count_what_may_go() {
        let int = IntOrString::Int;
        let percent = |t: &str| IntOrString::String(t.into());
        let now = Timestamp::from_second(1000).unwrap();
        // min, max, ready, unready, scale → allowed, desired; or refused
        for (min, max, ready, unready, scale, expected) in [
            (Some(int(2)), None, 3, 0, None, Some((1, 2))),
            (Some(int(2)), None, 2, 1, None, Some((0, 2))),
            (Some(percent("50%")), None, 3, 0, Some(3), Some((1, 2))),
            (Some(percent("50%")), None, 3, 0, None, None),
            (None, Some(int(1)), 3, 0, Some(3), Some((1, 2))),
            (None, Some(int(1)), 2, 1, Some(3), Some((0, 2))),
            (None, Some(percent("30%")), 10, 0, Some(10), Some((3, 7))),
            (None, Some(int(1)), 0, 0, Some(0), Some((0, 0))),
            (None, None, 2, 0, None, Some((1, 1))),
        ] {
            let budget = PodDisruptionBudget {
                spec: Some(PodDisruptionBudgetSpec {
                    min_available: min.clone(),
                    max_unavailable: max.clone(),
                    ..Default::default()
                }),
                ..PodDisruptionBudget::default()
            };
            let pods: Vec<_> = (0..ready + unready)
                .map(|i| Arc::new(pod(&format!("p{i}"), Some("n"), "Running", (i < ready).then_some(1))))
                .collect();
            let got = status(&budget, &pods, scale, now).ok();
            let got = got.map(|(s, _)| (s.disruptions_allowed.unwrap(), s.desired_healthy.unwrap()));
            assert_eq!(got, expected, "{min:?} {max:?} {ready}+{unready} of {scale:?}");
        }
    }

    #[test]
    fn a_granted_eviction_counts_until_the_pod_goes_or_two_minutes_pass() {
        let now = Timestamp::from_second(1000).unwrap();
        let granted_at = |second| {
            let at = Time(Timestamp::from_second(second).unwrap());
            let status = PodDisruptionBudgetStatus {
                disrupted_pods: Some([("p0".to_owned(), at)].into()),
                ..Default::default()
            };
            let spec = PodDisruptionBudgetSpec {
                min_available: Some(IntOrString::Int(1)),
                ..Default::default()
            };
            PodDisruptionBudget {
                spec: Some(spec),
                status: Some(status),
                ..PodDisruptionBudget::default()
            }
        };
        let pods: Vec<_> = (0..2)
            .map(|i| Arc::new(pod(&format!("p{i}"), Some("n"), "Running", Some(1))))
            .collect();
        for (second, allowed, next) in [(990, 0, Some(Duration::from_secs(110))), (800, 1, None)] {
            let (status, later) = status(&granted_at(second), &pods, None, now).unwrap();
            assert_eq!((status.disruptions_allowed, later), (Some(allowed), next));
        }
    }
}
