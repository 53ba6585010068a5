//! Names that other programs rely on: labels and annotations of sandboxes and containers (crictl, log collectors and a
//! restarted agent read them), folders of logs and of pods.

use k8s_openapi::api::core::v1::Pod;
use std::path::{Path, PathBuf};

/// Label: pod name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: pod namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: pod UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: hash of the container's spec.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how often the container was restarted before this one.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: path of the termination message inside the container.
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the pod's grace period, seconds.
pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation: where a pod came from (`file`, `api`).
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: when a pod was first seen.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// Annotation: identity of a static pod's manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation: on a mirror pod, the hash of the static pod it shows.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Identity of a pod as text for logs and folders.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// The pod's name.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pod's UID.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `namespace/name`, for logs.
pub fn full(pod: &Pod) -> String {
    format!("{}/{}", namespace(pod), name(pod))
}

/// Whether a pod is a static one (it was read from a file).
pub fn is_static(pod: &Pod) -> bool {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(CONFIG_SOURCE))
        .is_some_and(|s| s != "api")
}

/// The mirrored hash if the pod is a mirror pod.
pub fn mirror_hash(pod: &Pod) -> Option<&str> {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(CONFIG_MIRROR))
        .map(String::as_str)
}

/// Name of the list of paths that were made for pods, in the agent's folder.
pub const MADE_BY_PODS: &str = "made-by-pods";

/// Folders of the agent.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `/var/lib/kubelet`.
    pub root: PathBuf,
    /// `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// `/var/log/containers`.
    pub container_logs: PathBuf,
}

impl Paths {
    /// Folders below a state root and the log root.
    pub fn new(root: &Path, log_root: &Path) -> Paths {
        Paths {
            root: root.to_path_buf(),
            pod_logs: log_root.join("pods"),
            container_logs: log_root.join("containers"),
        }
    }

    /// List of the paths that were made for `hostPath` volumes. They outlive pods and agent, so a reset has to tell them from its own.
    pub fn made_by_pods(&self) -> PathBuf {
        self.root.join(MADE_BY_PODS)
    }

    /// Folder of a pod's volumes and files.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// Folder of one volume; the middle part names the plugin as other tools expect it.
    pub fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod(uid)
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(name)
    }

    /// Folder of a container's own files (termination messages).
    pub fn container(&self, uid: &str, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    /// Folder of a pod's logs.
    pub fn pod_log(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs.join(format!("{namespace}_{name}_{uid}"))
    }
}

/// Path of a container's log below its pod's log folder.
pub fn log_path(container: &str, restarts: u32) -> String {
    format!("{container}/{restarts}.log")
}

/// Name of the link in `/var/log/containers` that log collectors follow.
pub fn log_link(pod: &str, namespace: &str, container: &str, id: &str) -> String {
    let mut s = format!("{pod}_{namespace}_{container}-{id}");
    const MAX: usize = 255 - ".log".len();
    if s.len() > MAX {
        let mut at = MAX;
        while !s.is_char_boundary(at) {
            at -= 1;
        }
        s.truncate(at);
    }
    s.push_str(".log");
    s
}

/// A stable hash of anything that can be serialised, as 16 hex digits.
pub fn hash_of(value: &impl serde::Serialize) -> String {
    use sha2::{Digest, Sha256};
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    hex::encode(&Sha256::digest(&bytes)[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_links_stay_within_a_file_name() {
        let link = log_link(&"p".repeat(253), "ns", "c", &"f".repeat(64));
        assert_eq!(link.len(), 255);
        assert!(link.ends_with(".log"));
        assert_eq!(log_link("p", "ns", "c", "id"), "p_ns_c-id.log");
    }

    #[test]
    fn hashes_differ_with_content_and_are_stable() {
        assert_eq!(hash_of(&"a"), hash_of(&"a"));
        assert_ne!(hash_of(&"a"), hash_of(&"b"));
    }
}
