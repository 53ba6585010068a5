//! Volumes of a pod: made before its containers, refreshed while it lives, taken away after it. Safe to repeat at any
//! time. Kinds that need drivers (persistent claims, CSI, network file systems) are refused by name.

pub mod atomic;
pub mod files;
mod host_path;
pub mod subpath;

use crate::env::Facts;
use crate::error::{Error, Result};
use crate::names::{self, Paths};
use crate::objects::Objects;
use crate::quantity;
use atomic::Files;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, Pod, ProjectedVolumeSource, SecretVolumeSource, Volume,
    VolumeProjection,
};
use rustix::mount::{MountFlags, UnmountFlags};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What making volumes needs.
#[derive(Debug, Clone)]
pub struct Volumes {
    /// Folders.
    pub paths: Paths,
    /// Referenced objects.
    pub objects: Objects,
}

/// Default permissions of projected files.
const DEFAULT_MODE: i32 = 0o644;

impl Volumes {
    /// Makes or refreshes all volumes. `age`: how old referenced objects may be.
    pub async fn setup(&self, pod: &Pod, facts: &Facts, age: Duration) -> Result<()> {
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            self.one(pod, volume, facts, age).await.map_err(|e| match e {
                e @ Error::Volume { .. } => e,
                e => Error::volume(&volume.name, e),
            })?;
        }
        Ok(())
    }

    /// Whether any volume shows objects that may change.
    pub fn refreshes(pod: &Pod) -> bool {
        pod.spec
            .iter()
            .flat_map(|s| s.volumes.iter().flatten())
            .any(|v| v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some())
    }

    /// Where a volume lies on the host.
    pub fn host_path(&self, pod: &Pod, name: &str) -> Result<PathBuf> {
        let volume = pod
            .spec
            .iter()
            .flat_map(|s| s.volumes.iter().flatten())
            .find(|v| v.name == name)
            .ok_or_else(|| Error::volume(name, "the pod has no volume of this name"))?;
        if let Some(h) = &volume.host_path {
            return Ok(PathBuf::from(&h.path));
        }
        plugin(volume).map(|p| self.paths.volume(names::uid(pod), p, name))
    }

    /// What a mount of the volume needs to know besides where it lies.
    pub fn content(pod: &Pod, name: &str) -> Content {
        pod.spec
            .iter()
            .flat_map(|s| s.volumes.iter().flatten())
            .find(|v| v.name == name)
            .map_or(Content::Own, Content::of)
    }

    async fn one(&self, pod: &Pod, volume: &Volume, facts: &Facts, age: Duration) -> Result<()> {
        if let Some(h) = &volume.host_path {
            return host_path::prepare(h, &self.paths.made_by_pods()).map_err(|m| Error::volume(&volume.name, m));
        }
        let dir = self.paths.volume(names::uid(pod), plugin(volume)?, &volume.name);
        let group = fs_group(pod);
        if let Some(e) = &volume.empty_dir {
            return empty_dir(&dir, e, pod, group);
        }
        let mut files = if let Some(m) = &volume.config_map {
            self.config_map(pod, m, age).await?
        } else if let Some(s) = &volume.secret {
            self.secret(pod, s, age).await?
        } else if let Some(d) = &volume.downward_api {
            let items = d.items.as_deref().unwrap_or_default();
            files::downward(pod, items, d.default_mode.unwrap_or(DEFAULT_MODE), facts).map_err(Error::Other)?
        } else if let Some(p) = &volume.projected {
            self.projected(pod, p, facts, age).await?
        } else {
            return Err(Error::volume(&volume.name, "this kind of volume is not supported"));
        };
        if group.is_some() {
            files.values_mut().for_each(|f| f.mode |= 0o440);
        }
        // Secrets and tokens must not reach a disk.
        if volume.secret.is_some() || volume.projected.is_some() {
            tmpfs(&dir, None)?;
        }
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))
            .map_err(Error::io("set permissions of", &dir))?;
        let changed = tokio::task::spawn_blocking(move || atomic::write(&dir, &files, group)).await;
        changed.map_err(|e| Error::Other(e.to_string()))?.map(drop)
    }

    async fn config_map(&self, pod: &Pod, source: &ConfigMapVolumeSource, age: Duration) -> Result<Files> {
        let optional = source.optional.unwrap_or(false);
        let payload = self.config_map_payload(pod, &source.name, optional, age).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files::select(&payload, source.items.as_deref(), mode, optional, "configmap").map_err(Error::Other)
    }

    async fn config_map_payload(&self, pod: &Pod, name: &str, optional: bool, age: Duration) -> Result<files::Payload> {
        match self.objects.config_map(names::namespace(pod), name, age).await? {
            Some(map) => Ok(files::of_config_map(&map)),
            None if optional => Ok(files::Payload::new()),
            None => Err(Error::Other(format!("configmap {name:?} not found"))),
        }
    }

    async fn secret(&self, pod: &Pod, source: &SecretVolumeSource, age: Duration) -> Result<Files> {
        let optional = source.optional.unwrap_or(false);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let payload = self.secret_payload(pod, name, optional, age).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files::select(&payload, source.items.as_deref(), mode, optional, "secret").map_err(Error::Other)
    }

    async fn secret_payload(&self, pod: &Pod, name: &str, optional: bool, age: Duration) -> Result<files::Payload> {
        match self.objects.secret(names::namespace(pod), name, age).await? {
            Some(secret) => Ok(files::of_secret(&secret)),
            None if optional => Ok(files::Payload::new()),
            None => Err(Error::Other(format!("secret {name:?} not found"))),
        }
    }

    async fn projected(
        &self,
        pod: &Pod,
        source: &ProjectedVolumeSource,
        facts: &Facts,
        age: Duration,
    ) -> Result<Files> {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let mut out = Files::new();
        for part in source.sources.iter().flatten() {
            out.extend(self.projection(pod, part, mode, facts, age).await?);
        }
        Ok(out)
    }

    async fn projection(
        &self,
        pod: &Pod,
        part: &VolumeProjection,
        mode: i32,
        facts: &Facts,
        age: Duration,
    ) -> Result<Files> {
        if let Some(m) = &part.config_map {
            let optional = m.optional.unwrap_or(false);
            let payload = self.config_map_payload(pod, &m.name, optional, age).await?;
            return files::select(&payload, m.items.as_deref(), mode, optional, "configmap").map_err(Error::Other);
        }
        if let Some(s) = &part.secret {
            let optional = s.optional.unwrap_or(false);
            let payload = self.secret_payload(pod, &s.name, optional, age).await?;
            return files::select(&payload, s.items.as_deref(), mode, optional, "secret").map_err(Error::Other);
        }
        if let Some(d) = &part.downward_api {
            return files::downward(pod, d.items.as_deref().unwrap_or_default(), mode, facts).map_err(Error::Other);
        }
        if let Some(t) = &part.service_account_token {
            atomic::check_path(&t.path).map_err(Error::Other)?;
            let text = self
                .objects
                .token(pod, t.audience.as_deref(), t.expiration_seconds.unwrap_or(3600))
                .await?;
            let owner = single_user(pod);
            let mode = if owner.is_some() || fs_group(pod).is_some() {
                0o600
            } else {
                mode.unsigned_abs() & 0o777
            };
            return Ok([(
                t.path.clone(),
                atomic::File {
                    data: text.into_bytes(),
                    mode,
                    owner,
                },
            )]
            .into());
        }
        Err(Error::Other("this kind of projection is not supported".into()))
    }

    /// Takes a pod's volumes and files away.
    pub async fn teardown(&self, uid: &str) -> Result<()> {
        self.objects.forget(uid);
        let dir = self.paths.pod(uid);
        tokio::task::spawn_blocking(move || remove(&dir))
            .await
            .map_err(|e| Error::Other(e.to_string()))?
    }
}

/// Whose a volume's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The containers': they may write.
    Own,
    /// That of API objects, written by the agent alone: containers only read it, whatever their mount says.
    Projected {
        /// The objects, for people.
        of: String,
        /// Whether objects and keys may be missing.
        optional: bool,
    },
}

impl Content {
    fn of(volume: &Volume) -> Content {
        let from = |of: String, optional: Option<bool>| Content::Projected {
            of,
            optional: optional.unwrap_or(false),
        };
        if let Some(m) = &volume.config_map {
            return from(format!("configMap {:?}", m.name), m.optional);
        }
        if let Some(s) = &volume.secret {
            let name = s.secret_name.as_deref().unwrap_or_default();
            return from(format!("secret {name:?}"), s.optional);
        }
        if volume.downward_api.is_some() {
            return from("downwardAPI".into(), None);
        }
        let Some(projected) = &volume.projected else {
            return Content::Own;
        };
        let optional = projected.sources.iter().flatten().any(|s| {
            let map = s.config_map.as_ref().and_then(|m| m.optional);
            let secret = s.secret.as_ref().and_then(|s| s.optional);
            map.or(secret).unwrap_or(false)
        });
        from("projected".into(), Some(optional))
    }

    /// Whether containers may not write into the volume.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Content::Projected { .. })
    }
}

/// The folder name of the kind of volume.
fn plugin(volume: &Volume) -> Result<&'static str> {
    let known = [
        (volume.empty_dir.is_some(), "empty-dir"),
        (volume.config_map.is_some(), "configmap"),
        (volume.secret.is_some(), "secret"),
        (volume.downward_api.is_some(), "downward-api"),
        (volume.projected.is_some(), "projected"),
    ];
    known.iter().find(|(is, _)| *is).map(|(_, name)| *name).ok_or_else(|| {
        Error::volume(&volume.name, "this kind of volume is not supported (supported: emptyDir, hostPath, configMap, secret, downwardAPI, projected)")
    })
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The user all containers run as, if it is one and the same.
fn single_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users =
        crate::spec::containers(pod).map(|(_, c)| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users
        .all(|u| u == Some(first))
        .then_some(first)
        .and_then(|u| u32::try_from(u).ok())
}

fn empty_dir(dir: &Path, source: &EmptyDirVolumeSource, pod: &Pod, group: Option<u32>) -> Result<()> {
    match source.medium.as_deref() {
        None | Some("") => {}
        Some("Memory") => {
            let limit = source
                .size_limit
                .as_ref()
                .and_then(|q| quantity::whole(&q.0))
                .filter(|n| *n > 0);
            let memory = crate::qos::pod_limits(pod, -1, false).memory;
            tmpfs(
                dir,
                match (limit, memory) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                },
            )?;
        }
        Some(other) => return Err(Error::Other(format!("medium {other:?} is not supported"))),
    }
    let fresh = !dir.exists();
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let mode = std::fs::metadata(dir)
        .map(|m| m.permissions().mode() & 0o7777)
        .unwrap_or(0);
    if fresh || mode & 0o777 != 0o777 && source.medium.as_deref() == Some("Memory") {
        let bits = if group.is_some() { 0o2777 } else { 0o777 };
        std::os::unix::fs::chown(dir, None, group).map_err(Error::io("change the group of", dir))?;
        std::fs::set_permissions(dir, PermissionsExt::from_mode(bits)).map_err(Error::io("set permissions of", dir))?;
    }
    Ok(())
}

/// Mounts a tmpfs unless one is there.
fn tmpfs(dir: &Path, size: Option<i64>) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    if is_mount(dir) {
        return Ok(());
    }
    let mut options = "mode=0755".to_owned();
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let options = std::ffi::CString::new(options).map_err(|e| Error::Other(e.to_string()))?;
    rustix::mount::mount(
        "tmpfs",
        dir,
        "tmpfs",
        MountFlags::NODEV | MountFlags::NOSUID,
        options.as_c_str(),
    )
    .map_err(|e| Error::io("mount tmpfs on", dir)(e.into()))
}

fn is_mount(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(own), Some(Ok(parent))) = (std::fs::metadata(dir), dir.parent().map(std::fs::metadata)) else {
        return false;
    };
    own.dev() != parent.dev()
}

/// Unmounts everything below a folder, then removes it. Never enters a mount: what is still mounted makes it fail.
pub fn remove(dir: &Path) -> Result<()> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read", "/proc/self/mountinfo"))?;
    let mut below: Vec<PathBuf> = text
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| PathBuf::from(p.replace("\\040", " ").replace("\\134", "\\")))
        .filter(|p| p.starts_with(dir))
        .collect();
    below.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().len()));
    for point in below {
        rustix::mount::unmount(&point, UnmountFlags::DETACH).map_err(|e| Error::io("unmount", &point)(e.into()))?;
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_of_api_objects_are_read_only_and_name_their_objects() {
        for (volume, expected) in [
            (json!({"emptyDir": {}}), None),
            (json!({"hostPath": {"path": "/x"}}), None),
            (json!({"configMap": {"name": "m"}}), Some(("configMap \"m\"", false))),
            (
                json!({"configMap": {"name": "m", "optional": true}}),
                Some(("configMap \"m\"", true)),
            ),
            (json!({"secret": {"secretName": "s"}}), Some(("secret \"s\"", false))),
            (json!({"downwardAPI": {}}), Some(("downwardAPI", false))),
            (json!({"projected": {}}), Some(("projected", false))),
            (
                json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"secret": {"name": "s", "optional": true}}]}}),
                Some(("projected", true)),
            ),
        ] {
            let mut named = volume.clone();
            named["name"] = json!("v");
            let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [named]}})).unwrap();
            let content = Volumes::content(&pod, "v");
            let expected = expected.map_or(Content::Own, |(of, optional)| Content::Projected {
                of: of.into(),
                optional,
            });
            assert_eq!(content, expected, "{volume}");
            assert_eq!(content.is_read_only(), expected != Content::Own, "{volume}");
        }
    }
}
