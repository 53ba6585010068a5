//! Starting one container: image, environment, mounts, create, start, postStart. Every failure has the reason that
//! users of Kubernetes know.

use crate::ctx::Ctx;
use crate::dns;
use crate::env::{self, Refs};
use crate::make;
use crate::names;
use crate::observed::Nanos;
use crate::probe::{Outcome, run::Target};
use crate::spec;
use crate::volumes::Volumes;
use k8s_cri::v1::{Mount, MountPropagation, PodSandboxConfig};
use k8s_openapi::api::core::v1::{Container, Pod, Secret, VolumeMount};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why a container could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct StartError {
    /// As in `state.waiting.reason`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Not before this time, if that is known.
    pub retry_at: Option<Nanos>,
    /// The back-off that holds.
    pub delay: Nanos,
}

impl StartError {
    /// With a reason.
    pub fn new(reason: &'static str, message: String) -> StartError {
        StartError {
            reason,
            message,
            retry_at: None,
            delay: 0,
        }
    }

    /// The spec or what it refers to cannot be used.
    pub fn config(message: String) -> StartError {
        StartError::new("CreateContainerConfigError", message)
    }
}

/// Objects younger than this serve several containers of a pod's start.
const FRESH: Duration = Duration::from_secs(3);

/// What is started.
#[derive(Debug, Clone)]
pub struct Job {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container's name.
    pub name: String,
    /// Restarts before.
    pub restarts: u32,
    /// Its sandbox.
    pub sandbox: String,
    /// How the sandbox was made.
    pub sandbox_config: PodSandboxConfig,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// Containers of this name that were made and never started, by an agent that ended in between.
    pub stale: Vec<String>,
}

/// Starts a container; its id.
pub async fn start(ctx: &Ctx, job: &Job) -> Result<String, StartError> {
    let (_, c) = spec::container(&job.pod, &job.name)
        .ok_or_else(|| StartError::config(format!("no container {:?}", job.name)))?;
    let event = |reason: &str, message: String| ctx.events.normal(&job.pod, Some(&c.name), reason, message);
    let secrets = pull_secrets(ctx, &job.pod).await;
    let ready = ctx.images.ensure(c, &secrets, &job.sandbox_config).await?;
    let image = c.image.as_deref().unwrap_or_default();
    if ready.pulled {
        event("Pulled", format!("Successfully pulled image {image:?}"));
    } else {
        event(
            "Pulled",
            format!("Container image {image:?} already present on machine"),
        );
    }
    let facts = ctx.facts(job.pod_ips.clone());
    let refs = fetch(ctx, &job.pod, c).await?;
    let services = ctx.services.borrow().clone().unwrap_or_default();
    let env = env::build(&job.pod, c, &refs, &services, &facts)?.into_vec();
    let mounts = mounts(ctx, job, c, &env).await?;
    let parts = make::Parts {
        env,
        mounts,
        image: ready.reference,
        user: ready.user,
        restarts: job.restarts,
        memory: ctx.memory,
    };
    let config = make::container(&job.pod, c, &ctx.config, parts)?;
    make_log_folder(ctx, job, c)?;
    for id in &job.stale {
        let removed = ctx.cri.remove_container(id).await;
        removed.map_err(|e| StartError::new("CreateContainerError", e.to_string()))?;
    }
    let create = ctx
        .cri
        .create_container(&job.sandbox, config, job.sandbox_config.clone())
        .await;
    let id = create.map_err(|e| StartError::new("CreateContainerError", e.to_string()))?;
    event("Created", format!("Created container: {}", c.name));
    if let Err(e) = ctx.cri.start_container(&id).await {
        // A container that never ran would be taken for one that waits to be started.
        if let Err(e) = ctx.cri.remove_container(&id).await {
            tracing::warn!(container = id, "removing a container that could not be started: {e}");
        }
        return Err(StartError::new("RunContainerError", e.to_string()));
    }
    event("Started", format!("Started container {}", c.name));
    link_log(ctx, job, c, &id);
    post_start(ctx, job, c, &id).await?;
    Ok(id)
}

async fn pull_secrets(ctx: &Ctx, pod: &Pod) -> Vec<Arc<Secret>> {
    let mut out = vec![];
    for r in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        match ctx.objects.secret(names::namespace(pod), &r.name, FRESH).await {
            Ok(Some(s)) => out.push(s),
            Ok(None) => tracing::warn!(pod = names::full(pod), secret = r.name, "pull secret not found"),
            Err(e) => tracing::warn!(pod = names::full(pod), secret = r.name, "pull secret: {e}"),
        }
    }
    out
}

async fn fetch(ctx: &Ctx, pod: &Pod, c: &Container) -> Result<Refs, StartError> {
    let (maps, secrets) = env::references(c);
    let namespace = names::namespace(pod);
    let mut refs = Refs::default();
    for name in maps {
        let found = ctx
            .objects
            .config_map(namespace, &name, FRESH)
            .await
            .map_err(|e| StartError::config(e.to_string()))?;
        refs.config_maps.insert(name, found.map(|m| (*m).clone()));
    }
    for name in secrets {
        let found = ctx
            .objects
            .secret(namespace, &name, FRESH)
            .await
            .map_err(|e| StartError::config(e.to_string()))?;
        refs.secrets.insert(name, found.map(|s| (*s).clone()));
    }
    Ok(refs)
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> StartError {
    let path = path.to_path_buf();
    move |e| StartError::new("CreateContainerError", format!("{}: {e}", path.display()))
}

fn make_log_folder(ctx: &Ctx, job: &Job, c: &Container) -> Result<(), StartError> {
    let dir = ctx
        .paths
        .pod_log(names::namespace(&job.pod), names::name(&job.pod), names::uid(&job.pod))
        .join(&c.name);
    std::fs::create_dir_all(&dir).map_err(file_error(&dir))
}

fn link_log(ctx: &Ctx, job: &Job, c: &Container, id: &str) {
    let pod = &job.pod;
    let log = ctx
        .paths
        .pod_log(names::namespace(pod), names::name(pod), names::uid(pod))
        .join(names::log_path(&c.name, job.restarts));
    let link = ctx
        .paths
        .container_logs
        .join(names::log_link(names::name(pod), names::namespace(pod), &c.name, id));
    let _ = std::fs::create_dir_all(&ctx.paths.container_logs);
    if let Err(e) = std::os::unix::fs::symlink(&log, &link) {
        tracing::debug!("link {}: {e}", link.display());
    }
}

async fn mounts(ctx: &Ctx, job: &Job, c: &Container, env: &[(String, String)]) -> Result<Vec<Mount>, StartError> {
    let mut out = vec![];
    for (index, m) in c.volume_mounts.iter().flatten().enumerate() {
        out.push(volume_mount(ctx, job, c, index, m, env)?);
    }
    if c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(StartError::config("volumeDevices are not supported".into()));
    }
    let has = |path: &str| {
        c.volume_mounts
            .iter()
            .flatten()
            .any(|m| m.mount_path.trim_end_matches('/') == path)
    };
    if !has("/etc/hosts") {
        out.push(plain(hosts_file(ctx, job)?, "/etc/hosts"));
    }
    let message = c.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !message.is_empty() {
        let dir = ctx.paths.container(names::uid(&job.pod), &c.name);
        std::fs::create_dir_all(&dir).map_err(file_error(&dir))?;
        let file = dir.join(format!("{:08x}", rand::random::<u32>()));
        std::fs::write(&file, b"").map_err(file_error(&file))?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).map_err(file_error(&file))?;
        out.push(plain(file, message));
    }
    Ok(out)
}

fn plain(host: PathBuf, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

fn volume_mount(
    ctx: &Ctx,
    job: &Job,
    c: &Container,
    index: usize,
    m: &VolumeMount,
    env: &[(String, String)],
) -> Result<Mount, StartError> {
    let error =
        |e: crate::error::Error| StartError::config(format!("failed to prepare volume mount {:?}: {e}", m.name));
    let mut host = ctx.volumes.host_path(&job.pod, &m.name).map_err(error)?;
    let content = Volumes::content(&job.pod, &m.name);
    if let Some(sub) = sub_path(m, env)? {
        let place = ctx
            .paths
            .pod(names::uid(&job.pod))
            .join("volume-subpaths")
            .join(&m.name)
            .join(&c.name)
            .join(index.to_string());
        host = crate::volumes::subpath::bind(&host, sub.trim_end_matches('/'), &place, &content).map_err(|e| {
            StartError::config(format!(
                "failed to prepare subPath for volumeMount {:?} of container {:?}: {e}",
                m.name, c.name
            ))
        })?;
    }
    let path = if m.mount_path.starts_with('/') {
        m.mount_path.clone()
    } else {
        format!("/{}", m.mount_path)
    };
    let mut out = plain(host, &path);
    out.readonly = m.read_only.unwrap_or(false) || content.is_read_only();
    out.set_propagation(match m.mount_propagation.as_deref() {
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        _ => MountPropagation::PropagationPrivate,
    });
    Ok(out)
}

/// The part of the volume that is mounted. Variables of `subPathExpr` that are not set, or are empty, would lead to
/// another folder than the one meant: they are refused by name.
fn sub_path(m: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, StartError> {
    let filled = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    if let Some(path) = filled(&m.sub_path) {
        return Ok(Some(path));
    }
    let Some(expression) = filled(&m.sub_path_expr) else {
        return Ok(None);
    };
    let missing = std::cell::RefCell::new(BTreeSet::new());
    let text = env::expand(&expression, |name| {
        let value = env.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        if value.is_none_or(str::is_empty) {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() {
        Ok(Some(text))
    } else {
        Err(StartError::config(format!("missing value for {}", missing.join(", "))))
    }
}

fn hosts_file(ctx: &Ctx, job: &Job) -> Result<PathBuf, StartError> {
    let path = ctx.paths.pod(names::uid(&job.pod)).join("etc-hosts");
    let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let text = dns::hosts_file(&job.pod, &ctx.config, &job.pod_ips, &own);
    if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
        std::fs::write(&path, text).map_err(file_error(&path))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).map_err(file_error(&path))?;
    }
    Ok(path)
}

async fn post_start(ctx: &Ctx, job: &Job, c: &Container, id: &str) -> Result<(), StartError> {
    let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
        return Ok(());
    };
    let target = Target {
        container_id: id.to_owned(),
        ip: job.pod_ips.first().cloned().unwrap_or_default(),
    };
    // There is no limit of time on this hook; deleting the pod ends it.
    if let Err(message) = run_hook(ctx, &target, c, hook, Duration::from_secs(24 * 3600)).await {
        ctx.events.warning(
            &job.pod,
            Some(&c.name),
            "FailedPostStartHook",
            format!("PostStartHook failed: {message}"),
        );
        if let Err(e) = ctx.cri.stop_container(id, spec::grace(&job.pod)).await {
            tracing::warn!(container = id, "stopping after a failed postStart hook: {e}");
        }
        return Err(StartError::new("PostStartHookError", message));
    }
    Ok(())
}

/// Runs a life cycle hook.
pub async fn run_hook(
    ctx: &Ctx,
    target: &Target,
    c: &Container,
    hook: &k8s_openapi::api::core::v1::LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    let work = async {
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            let answer = ctx
                .cri
                .exec_sync(&target.container_id, command, limit)
                .await
                .map_err(|e| e.to_string())?;
            return match answer.exit_code {
                0 => Ok(()),
                code => Err(format!(
                    "command exited with {code}: {}",
                    String::from_utf8_lossy(&answer.stderr).trim()
                )),
            };
        }
        if let Some(get) = &hook.http_get {
            return match crate::probe::http::get(target, c, get, "kube-lifecycle/1.36").await {
                Outcome::Success | Outcome::Warning(_) => Ok(()),
                Outcome::Failure(m) | Outcome::Unknown(m) => Err(m),
            };
        }
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
            return Ok(());
        }
        Err("the hook has no action that is supported".into())
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("not done within {} s", limit.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_names_the_variables_it_lacks() {
        let env = [("A", "a"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let of = |path: Option<&str>, expression: Option<&str>| {
            let mount = VolumeMount {
                sub_path: path.map(str::to_owned),
                sub_path_expr: expression.map(str::to_owned),
                ..Default::default()
            };
            sub_path(&mount, &env).map_err(|e| e.message)
        };
        assert_eq!(of(None, None), Ok(None));
        assert_eq!(of(Some(""), Some("")), Ok(None));
        assert_eq!(of(Some("$(A)"), None), Ok(Some("$(A)".into())));
        assert_eq!(of(None, Some("x/$(A)")), Ok(Some("x/a".into())));
        assert_eq!(of(None, Some("$$(A)")), Ok(Some("$(A)".into())));
        assert_eq!(
            of(None, Some("$(POD)/$(EMPTY)/$(A)")),
            Err("missing value for EMPTY, POD".into())
        );
    }
}
