//! What a pod's status means to its controllers, what the cache need not keep of it, and creating and deleting pods.

use std::time::Duration;

use component::events::{Level, Recorder};
use component::{ApiErrorExt, Error, plain};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};

use crate::meta::{controller_reference, is_deleting, name, namespace, since, uid};

/// Drops what no controller asks for; most of a pod's bytes are in there.
pub(crate) fn prune(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    if let Some(spec) = &mut pod.spec {
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            container.args = None;
            container.command = None;
            container.env = None;
            container.env_from = None;
            container.volume_mounts = None;
            container.liveness_probe = None;
            container.readiness_probe = None;
            container.startup_probe = None;
            container.lifecycle = None;
            container.security_context = None;
            container.image = None;
            container.termination_message_path = None;
            container.termination_message_policy = None;
        }
        spec.volumes = None;
        spec.security_context = None;
        spec.ephemeral_containers = None;
        spec.image_pull_secrets = None;
        spec.topology_spread_constraints = None;
        spec.dns_config = None;
    }
    if let Some(status) = &mut pod.status {
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
        for container in status.container_statuses.iter_mut().flatten() {
            let restarts = container.restart_count;
            let name = std::mem::take(&mut container.name);
            *container = Default::default();
            container.name = name;
            container.restart_count = restarts;
        }
    }
}

/// The node a pod is bound to; empty counts as none.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// `status.phase`, or nothing.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether all containers have ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither ended nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(&pod.metadata)
}

/// A condition by type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
}

/// Whether the pod serves, as its probes say.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|c| c.status == "True")?
        .last_transition_time
        .as_ref()
        .map(|t| t.0)
}

/// Whether the pod has been ready for `min_ready_seconds`; if only time is missing, how much.
pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Result<(), Option<Duration>> {
    if !is_ready(pod) {
        return Err(None);
    }
    let Ok(wanted) = u64::try_from(min_ready_seconds) else {
        return Ok(());
    };
    if wanted == 0 {
        return Ok(());
    }
    let Some(ready) = ready_since(pod) else {
        return Err(None);
    };
    match Duration::from_secs(wanted).checked_sub(since(ready, now)) {
        None | Some(Duration::ZERO) => Ok(()),
        Some(missing) => Err(Some(missing)),
    }
}

/// A pod from `template`, owned by `owner`, its name left to the server.
pub(crate) fn from_template<K: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &K) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(owner.meta()))),
            namespace: owner.meta().namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone().unwrap_or_default()),
        status: None,
    }
}

/// Creates `pod` for `owner` and says so in an event.
pub(crate) async fn create<K>(client: &Client, events: &Recorder, owner: &K, pod: &Pod) -> Result<Pod, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace(owner.meta()));
    match api.create(&PostParams::default(), pod).await {
        Ok(pod) => {
            events.event(
                owner,
                Level::Normal,
                "SuccessfulCreate",
                format!("Created pod: {}", name(&pod.metadata)),
            );
            Ok(pod)
        }
        Err(error) => {
            if !error.is_namespace_terminating() {
                events.event(
                    owner,
                    Level::Warning,
                    "FailedCreate",
                    format!("Error creating: {}", plain(&error)),
                );
            }
            Err(error.into())
        }
    }
}

/// Deletes exactly this `pod` for `owner` and says so in an event; one that is gone already is fine.
pub(crate) async fn delete<K>(client: &Client, events: &Recorder, owner: &K, pod: &Pod) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match delete_exactly(client, pod, None).await {
        Ok(()) => {
            events.event(
                owner,
                Level::Normal,
                "SuccessfulDelete",
                format!("Deleted pod: {}", name(&pod.metadata)),
            );
            Ok(())
        }
        Err(Error::Api(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => {
            events.event(
                owner,
                Level::Warning,
                "FailedDelete",
                format!("Error deleting: {error}"),
            );
            Err(error)
        }
    }
}

/// Deletes this pod and no other that may have taken its name; `grace` in seconds replaces the pod's own.
pub(crate) async fn delete_exactly(client: &Client, pod: &Pod, grace: Option<u32>) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace(&pod.metadata));
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid(&pod.metadata).to_owned()),
            resource_version: None,
        }),
        grace_period_seconds: grace,
        ..DeleteParams::default()
    };
    api.delete(name(&pod.metadata), &params).await?;
    Ok(())
}

/// Sets one condition of a pod's status (strategic merge by type); `more` are further status fields.
pub(crate) async fn set_condition(client: &Client, pod: &Pod, condition: Value, more: Value) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace(&pod.metadata));
    let mut status = more;
    status["conditions"] = json!([condition]);
    let patch = json!({"metadata": {"uid": uid(&pod.metadata)}, "status": status});
    match api
        .patch_status(name(&pod.metadata), &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    /// A pod of namespace `ns` for tests; `ready` seconds since the epoch, if it is.
    pub(crate) fn pod(name: &str, node: Option<&str>, phase: &str, ready: Option<i64>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.spec = Some(PodSpec {
            node_name: node.map(str::to_owned),
            ..PodSpec::default()
        });
        let ready = ready.map(|at| PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(Timestamp::from_second(at).unwrap())),
            ..PodCondition::default()
        });
        pod.status = Some(PodStatus {
            phase: Some(phase.into()),
            conditions: ready.map(|c| vec![c]),
            ..PodStatus::default()
        });
        pod
    }

    #[test]
    fn a_pod_is_available_after_its_minimum_ready_time() {
        let now = Timestamp::from_second(100).unwrap();
        for (ready, min, expected) in [
            (None, 0, Err(None)),
            (Some(100), 0, Ok(())),
            (Some(90), 10, Ok(())),
            (Some(95), 10, Err(Some(Duration::from_secs(5)))),
            (Some(200), 10, Err(Some(Duration::from_secs(10)))),
        ] {
            assert_eq!(
                availability(&pod("a", None, "Running", ready), min, now),
                expected,
                "{ready:?} {min}"
            );
        }
    }
}
