//! Waiting until what an application's manifests run is there: Deployments and DaemonSets whose pods are all of the newest kind and
//! available, as `kubectl rollout status` judges it.

use super::{helm::blockers, ledger::ObjectRef, wait::until};
use crate::{Error, Result, apps::NAMESPACE, fan};
use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::{
    NamespaceResourceScope,
    api::apps::v1::{DaemonSet, Deployment},
};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{collections::BTreeSet, fmt::Debug, time::Duration};

/// Waits for all workloads among the objects.
///
/// # Errors
/// When they are not there in time, with the pods and claims that are in the way.
pub async fn wait(client: &Client, what: &str, objects: &[Value], limit: Duration) -> Result<()> {
    let ended = tokio::time::timeout(limit, fan::all(waits(client, objects))).await;
    if ended.is_ok() {
        return Ok(());
    }
    let timeout = Error::Timeout {
        what: format!("the rollout of {what}"),
        seconds: limit.as_secs(),
        last: String::new(),
    };
    let namespaces = namespaces(objects);
    let mut all = Vec::new();
    for namespace in &namespaces {
        all.extend(blockers(client, namespace).await?);
    }
    Err(Error::Blocked {
        source: Box::new(timeout),
        place: format!(
            "the namespaces {}",
            namespaces.into_iter().collect::<Vec<_>>().join(", ")
        ),
        blockers: all,
    })
}

fn waits(client: &Client, objects: &[Value]) -> Vec<BoxFuture<'static, ()>> {
    let mut waits = Vec::new();
    for object in objects.iter().map(ObjectRef::of) {
        let client = client.clone();
        match (object.api_version.as_str(), object.kind.as_str()) {
            ("apps/v1", "Deployment") => waits.push(one::<Deployment>(client, object, is_rolled_out).boxed()),
            ("apps/v1", "DaemonSet") => waits.push(one::<DaemonSet>(client, object, is_everywhere).boxed()),
            _ => {}
        }
    }
    waits
}

fn namespaces(objects: &[Value]) -> BTreeSet<String> {
    objects.iter().map(|object| namespace(&ObjectRef::of(object))).collect()
}

fn namespace(object: &ObjectRef) -> String {
    object.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())
}

async fn one<K>(client: Client, object: ObjectRef, is_done: fn(&K) -> bool)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let api = Api::<K>::namespaced(client, &namespace(&object));
    let condition = move |found: Option<&K>| found.is_some_and(is_done);
    until(api, &object.name, condition).await;
}

/// The controller has seen the newest wish, and as many pods of it as wished are available, and no others are left.
fn is_rolled_out(deployment: &Deployment) -> bool {
    let wished = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return false };
    let count = |number: Option<i32>| number.unwrap_or_default();
    status.observed_generation >= deployment.metadata.generation
        && count(status.updated_replicas) >= wished
        && count(status.available_replicas) >= wished
        && count(status.replicas) <= count(status.updated_replicas)
}

/// The same on every node it is for.
fn is_everywhere(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    let wished = status.desired_number_scheduled;
    status.observed_generation >= set.metadata.generation
        && status.updated_number_scheduled.unwrap_or_default() >= wished
        && status.number_available.unwrap_or_default() >= wished
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployment_is_there_when_only_the_newest_pods_are_left_and_available() {
        let judge = |status: Value| {
            let object = json!({"metadata": {"generation": 3}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
            is_rolled_out(&serde_json::from_value(object).unwrap())
        };
        let good = json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert!(judge(good.clone()));
        for (field, value) in [
            ("observedGeneration", 2),
            ("replicas", 3),
            ("updatedReplicas", 1),
            ("availableReplicas", 1),
        ] {
            let mut bad = good.clone();
            bad[field] = value.into();
            assert!(!judge(bad), "{field} = {value}");
        }
        assert!(!judge(json!({})));
    }

    #[test]
    fn a_daemon_set_is_there_when_every_wanted_node_has_its_newest_pod() {
        let judge = |observed: i64, updated: i32, available: i32| {
            let status = json!({"observedGeneration": observed, "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0,
                "numberReady": available, "updatedNumberScheduled": updated, "numberAvailable": available});
            let object =
                json!({"metadata": {"generation": 1}, "spec": {"selector": {}, "template": {}}, "status": status});
            is_everywhere(&serde_json::from_value(object).unwrap())
        };
        assert!(judge(1, 2, 2));
        assert!(!judge(0, 2, 2) && !judge(1, 1, 2) && !judge(1, 2, 1));
    }
}
