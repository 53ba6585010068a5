//! Limits of local storage that pods set themselves: `sizeLimit` of an emptyDir on disk, and `ephemeral-storage` of
//! containers. The kernel enforces neither, so their use is measured and a pod above one is evicted. Limits of emptyDirs in
//! memory are the kernel's business (see `volumes`). What is compared is pure; measuring is at the end.

use crate::ctx::Ctx;
use crate::manager::{Pods, Request};
use crate::names::{self, Paths};
use crate::qos::{self, pod_amount};
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often use is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);
const RESOURCE: &str = "ephemeral-storage";

/// What a pod uses of the node's storage, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct StorageUse {
    /// By emptyDir on disk.
    volumes: BTreeMap<String, u64>,
    /// Writable layers and logs, by container.
    containers: BTreeMap<String, u64>,
}

/// EmptyDirs on disk with their limits as written.
fn empty_dirs(pod: &Pod) -> impl Iterator<Item = (&str, Option<&str>)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| {
        let dir = v.empty_dir.as_ref()?;
        let on_disk = dir.medium.as_deref().unwrap_or_default().is_empty();
        on_disk.then(|| (v.name.as_str(), dir.size_limit.as_ref().map(|q| q.0.as_str())))
    })
}

fn storage_limit(c: &Container) -> Option<&str> {
    let limits = c.resources.as_ref()?.limits.as_ref()?;
    limits.get(RESOURCE).map(|q| q.0.as_str())
}

/// Whether anything of the pod has to be measured.
fn is_limited(pod: &Pod) -> bool {
    empty_dirs(pod).any(|(_, limit)| limit.is_some())
        || crate::spec::containers(pod).any(|(_, c)| storage_limit(c).is_some())
}

/// The limit that the pod is above, as a message.
fn exceeded(pod: &Pod, used: &StorageUse) -> Option<String> {
    let above = |amount: u64, limit: &str| {
        let limit = quantity::whole(limit).and_then(|n| u64::try_from(n).ok());
        limit.is_some_and(|n| n > 0 && amount > n)
    };
    for (name, limit) in empty_dirs(pod) {
        let Some(limit) = limit else { continue };
        if above(used.volumes.get(name).copied().unwrap_or(0), limit) {
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "
            ));
        }
    }
    let containers = || crate::spec::containers(pod).map(|(_, c)| c);
    if containers().all(|c| storage_limit(c).is_some()) {
        let total: u64 = used.volumes.values().chain(used.containers.values()).sum();
        let limit = u64::try_from(pod_amount(pod, RESOURCE, qos::limit)).unwrap_or(0);
        if limit > 0 && total > limit {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
            ));
        }
    }
    containers().find_map(|c| {
        let limit = storage_limit(c)?;
        let name = &c.name;
        above(used.containers.get(name).copied().unwrap_or(0), limit)
            .then(|| format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "))
    })
}

/// Measures for ever and asks for the eviction of pods above a limit.
pub async fn run(ctx: Arc<Ctx>, pods: Pods, requests: mpsc::Sender<Request>) {
    let mut ticks = tokio::time::interval(MEASURE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let limited: Vec<Arc<Pod>> = pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .filter(|p| is_limited(p) && !crate::status::is_final(p) && p.metadata.deletion_timestamp.is_none())
            .cloned()
            .collect();
        if limited.is_empty() {
            continue;
        }
        let layers = writable_layers(&ctx).await;
        for pod in limited {
            let (paths, layers) = (ctx.paths.clone(), layers.get(names::uid(&pod)).cloned());
            let measured = pod.clone();
            let used =
                tokio::task::spawn_blocking(move || measure(&measured, &paths, layers.unwrap_or_default())).await;
            let Some(message) = used.ok().and_then(|used| exceeded(&pod, &used)) else {
                continue;
            };
            let uid = names::uid(&pod).to_owned();
            if names::is_static(&pod) {
                tracing::warn!(pod = names::full(&pod), "{message}Static pods are not evicted.");
            } else if requests.send(Request::Evict { uid, message, grace: 0 }).await.is_err() {
                return;
            }
        }
    }
}

/// Bytes of writable layers by pod and container.
async fn writable_layers(ctx: &Ctx) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut out: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for s in ctx.cri.container_stats().await.unwrap_or_default() {
        let Some(labels) = s.attributes.as_ref().map(|a| &a.labels) else {
            continue;
        };
        let (Some(uid), Some(name)) = (labels.get(names::POD_UID), labels.get(names::CONTAINER_NAME)) else {
            continue;
        };
        let used = s.writable_layer.as_ref().and_then(|w| w.used_bytes.as_ref());
        *out.entry(uid.clone()).or_default().entry(name.clone()).or_insert(0) += used.map_or(0, |v| v.value);
    }
    out
}

fn measure(pod: &Pod, paths: &Paths, mut containers: BTreeMap<String, u64>) -> StorageUse {
    let uid = names::uid(pod);
    let volumes = empty_dirs(pod)
        .map(|(name, _)| (name.to_owned(), size_on_disk(&paths.volume(uid, "empty-dir", name))))
        .collect();
    let logs = paths.pod_log(names::namespace(pod), names::name(pod), uid);
    for (_, c) in crate::spec::containers(pod) {
        *containers.entry(c.name.clone()).or_insert(0) += size_on_disk(&logs.join(&c.name));
    }
    StorageUse { volumes, containers }
}

/// Bytes that a folder occupies on its file system. Links are not followed, other file systems not entered, and a file with
/// several names counts once. What goes away meanwhile counts nothing.
fn size_on_disk(dir: &Path) -> u64 {
    let Ok(root) = std::fs::symlink_metadata(dir) else {
        return 0;
    };
    let (mut sum, mut seen, mut open) = (0u64, HashSet::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = std::fs::symlink_metadata(entry.path()) else {
                continue;
            };
            if meta.dev() != root.dev() || meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino()) {
                continue;
            }
            sum += meta.blocks() * 512;
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(volumes: serde_json::Value, containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"volumes": volumes, "containers": containers}})).unwrap()
    }

    #[test]
    fn a_pod_above_a_limit_of_its_own_is_told_which() {
        let limited = |limit: &str| json!({"name": "c", "resources": {"limits": {"ephemeral-storage": limit}}});
        let dir = |source: serde_json::Value| json!([{"name": "v", "emptyDir": source}]);
        let used = |volume: u64, container: u64| StorageUse {
            volumes: [("v".to_owned(), volume)].into(),
            containers: [("c".to_owned(), container)].into(),
        };
        let free = json!({"name": "d"});
        for (pod, used, expected) in [
            (
                pod(dir(json!({"sizeLimit": "1Ki"})), json!([free])),
                used(1025, 0),
                Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". "),
            ),
            (
                pod(dir(json!({"sizeLimit": "1Ki"})), json!([free])),
                used(1024, 0),
                None,
            ),
            (pod(dir(json!({})), json!([free])), used(1 << 40, 1 << 40), None),
            (
                pod(dir(json!({"sizeLimit": "1Ki", "medium": "Memory"})), json!([free])),
                used(2048, 0),
                None,
            ),
            (
                pod(json!([]), json!([limited("1Ki"), free])),
                used(0, 2048),
                Some("Container c exceeded its local ephemeral storage limit \"1Ki\". "),
            ),
            (
                pod(dir(json!({})), json!([limited("2Ki")])),
                used(1500, 1500),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 2048. "),
            ),
            (
                pod(dir(json!({})), json!([limited("2Ki"), free])),
                used(1500, 1500),
                None,
            ),
        ] {
            assert_eq!(exceeded(&pod, &used).as_deref(), expected, "{pod:?} {used:?}");
        }
    }

    #[test]
    fn only_pods_with_limits_are_measured() {
        let limit = json!({"limits": {"ephemeral-storage": "1Gi"}});
        for (volume, resources, expected) in [
            (json!({}), json!({}), false),
            (json!({"medium": "Memory", "sizeLimit": "1Gi"}), json!({}), false),
            (json!({"sizeLimit": "1Gi"}), json!({}), true),
            (json!({}), limit, true),
        ] {
            let pod = pod(
                json!([{"name": "v", "emptyDir": volume}]),
                json!([{"name": "c", "resources": resources}]),
            );
            assert_eq!(is_limited(&pod), expected, "{pod:?}");
        }
    }

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("sub")).unwrap();
        let big = vec![1u8; 1 << 20];
        std::fs::write(tmp.path().join("sub/a"), &big).unwrap();
        let one = size_on_disk(tmp.path());
        assert!((1 << 20..2 << 20).contains(&one), "{one}");
        std::fs::hard_link(tmp.path().join("sub/a"), tmp.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", tmp.path().join("root")).unwrap();
        assert!(size_on_disk(tmp.path()) < 2 << 20);
        assert_eq!(size_on_disk(&tmp.path().join("absent")), 0);
    }
}
