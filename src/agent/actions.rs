//! What a pod's worker does outside itself: cgroup, folders and volumes before, sandboxes, kills, and taking everything
//! away at the end. Each is one step of the runtime or of the host, safe to repeat.

use crate::ctx::Ctx;
use crate::error::Error;
use crate::make;
use crate::names;
use crate::observed::{Observed, SECOND, now};
use crate::probe::run::Target;
use crate::qos::{self, Qos};
use crate::spec;
use crate::start;
use k8s_cri::v1::PodSandboxConfig;
use k8s_openapi::api::core::v1::Pod;
use std::time::Duration;

/// Addresses of a pod.
pub fn pod_ips(ctx: &Ctx, pod: &Pod, observed: &Observed) -> Vec<String> {
    if spec::host_network(pod) {
        return ctx.host_ips.clone();
    }
    observed
        .ready_sandbox()
        .or_else(|| observed.newest_sandbox())
        .map(|s| s.ips.clone())
        .unwrap_or_default()
}

/// Configuration of the sandbox after `attempt` others.
pub fn sandbox_config(ctx: &Ctx, pod: &Pod, attempt: u32) -> PodSandboxConfig {
    let host = crate::dns::Resolver::of_host(&ctx.config);
    let parent = ctx.cgroups.pod_parent(Qos::of(pod), names::uid(pod));
    let limits = qos::pod_limits(pod, ctx.config.pod_pids_limit, ctx.config.cpu_cfs_quota);
    make::sandbox(pod, &ctx.config, &ctx.paths, &host, parent, attempt, limits)
}

/// Makes cgroup, folders and volumes.
pub async fn prepare(ctx: &Ctx, pod: &Pod, ips: Vec<String>) -> Result<(), Error> {
    let uid = names::uid(pod);
    if !names::is_static(pod) && ctx.services.borrow().is_none() {
        return Err(Error::Other("services have not been read yet".into()));
    }
    let qos = Qos::of(pod);
    let limits = qos::pod_limits(pod, ctx.config.pod_pids_limit, ctx.config.cpu_cfs_quota);
    ctx.cgroups.ensure_pod(qos, uid, limits).await?;
    if qos == Qos::Burstable {
        ctx.weigh_burstable(uid, Some(limits.cpu_shares)).await;
    }
    for dir in [
        ctx.paths.pod(uid),
        ctx.paths.pod_log(names::namespace(pod), names::name(pod), uid),
    ] {
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    }
    ctx.volumes.setup(pod, &ctx.facts(ips), Duration::from_secs(3)).await
}

/// Makes a sandbox.
pub async fn create_sandbox(ctx: &Ctx, pod: &Pod, attempt: u32) -> Result<(), Error> {
    if let Some(message) = crate::security::missing_isolation(pod) {
        return Err(Error::Other(message));
    }
    let handler = runtime_handler(ctx, pod).await?;
    let result = ctx.cri.run_sandbox(sandbox_config(ctx, pod, attempt), &handler).await;
    ctx.relist.refresh().await;
    result.map(drop)
}

/// The runtime's handler for the pod's RuntimeClass.
async fn runtime_handler(ctx: &Ctx, pod: &Pod) -> Result<String, Error> {
    let Some(class) = pod
        .spec
        .as_ref()
        .and_then(|s| s.runtime_class_name.as_deref())
        .filter(|c| !c.is_empty())
    else {
        return Ok(String::new());
    };
    let api: kube::Api<k8s_openapi::api::node::v1::RuntimeClass> = kube::Api::all(ctx.api.client()?);
    let found = api.get_opt(class).await?;
    found
        .map(|c| c.handler)
        .ok_or_else(|| Error::Other(format!("RuntimeClass {class:?} not found")))
}

/// preStop hook, then the runtime's stop; both within `grace` seconds.
pub async fn kill(ctx: &Ctx, pod: &Pod, name: &str, target: &Target, grace: i64, graceful: bool) -> Result<(), Error> {
    let began = now();
    let hook = spec::container(pod, name).and_then(|(_, c)| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((c, hook)) = hook.filter(|_| graceful && grace > 0) {
        let limit = Duration::from_secs(grace.unsigned_abs());
        if let Err(message) = start::run_hook(ctx, target, c, hook, limit).await {
            ctx.events.warning(
                pod,
                Some(name),
                "FailedPreStopHook",
                format!("PreStopHook failed: {message}"),
            );
        }
    }
    let used = (now() - began) / SECOND;
    let left = if grace > 0 { (grace - used).max(2) } else { 0 };
    let result = ctx.cri.stop_container(&target.container_id, left).await;
    ctx.relist.refresh().await;
    result
}

/// Removes all containers and sandboxes of a pod; they must have stopped.
pub async fn remove_containers(ctx: &Ctx, uid: &str) -> Result<(), Error> {
    ctx.relist.refresh().await;
    if let Some(p) = ctx.relist.snapshot().get(uid) {
        for c in &p.observed.containers {
            ctx.cri.remove_container(&c.id).await?;
            remove_log_link(ctx, &p.namespace, &p.name, &c.name, &c.id);
        }
        for s in &p.observed.sandboxes {
            ctx.cri.stop_sandbox(&s.id).await?;
            ctx.cri.remove_sandbox(&s.id).await?;
        }
        ctx.relist.refresh().await;
    }
    Ok(())
}

/// Removes the link that log collectors follow.
pub fn remove_log_link(ctx: &Ctx, namespace: &str, pod: &str, container: &str, id: &str) {
    let link = ctx
        .paths
        .container_logs
        .join(names::log_link(pod, namespace, container, id));
    let _ = std::fs::remove_file(link);
}

/// Takes away volumes, files and cgroup.
pub async fn teardown(ctx: &Ctx, pod: &Pod) -> Result<(), Error> {
    let uid = names::uid(pod);
    ctx.volumes.teardown(uid).await?;
    ctx.weigh_burstable(uid, None).await;
    ctx.cgroups.remove_pod(Qos::of(pod), uid).await
}

/// Removes a pod's logs.
pub fn remove_logs(ctx: &Ctx, pod: &Pod) {
    let dir = ctx
        .paths
        .pod_log(names::namespace(pod), names::name(pod), names::uid(pod));
    if let Err(e) = std::fs::remove_dir_all(&dir)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("removing {}: {e}", dir.display());
    }
}
