//! Static pods: manifests in a folder. The folder is read every second; a pod's identity is the hash of its manifest and
//! the node's name, so a restarted agent knows its pods again, and a changed manifest is another pod.

use crate::config;
use crate::names;
use crate::spec;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// Size and times of a file: a change of any means to read it again.
type Stamp = (u64, Option<SystemTime>);

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    pod: Option<Arc<Pod>>,
}

/// Watches the folder and sends the whole set of pods whenever it changes, and once at the start.
pub async fn watch(dir: PathBuf, node: String, period: Duration, sender: mpsc::Sender<Vec<Arc<Pod>>>) {
    let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        ticks.tick().await;
        let changed = scan(&dir, &node, &mut known);
        if changed || std::mem::take(&mut first) {
            let pods = known.values().filter_map(|k| k.pod.clone()).collect();
            if sender.send(pods).await.is_err() {
                return;
            }
        }
    }
}

fn scan(dir: &Path, node: &str, known: &mut BTreeMap<PathBuf, Known>) -> bool {
    let mut present = vec![];
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Ok(meta) = std::fs::metadata(entry.path()) else {
                    continue;
                };
                if meta.is_file() && !name.to_string_lossy().starts_with('.') {
                    present.push((entry.path(), (meta.len(), meta.modified().ok())));
                }
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        // A folder that cannot be read for a moment must not stop the control plane.
        Err(e) => {
            tracing::warn!("static pods: {}: {e}", dir.display());
            return false;
        }
    }
    let before = known.len();
    known.retain(|path, _| present.iter().any(|(p, _)| p == path));
    let mut changed = known.len() != before;
    for (path, stamp) in present {
        let entry = known.entry(path.clone()).or_default();
        if entry.stamp == Some(stamp) {
            continue;
        }
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) => {
                tracing::warn!("static pod {}: {e}", path.display());
                continue;
            }
        };
        entry.stamp = Some(stamp);
        match parse(&text, &path, node) {
            Ok(pod) => {
                if entry.pod.as_deref().map(names::uid) != Some(names::uid(&pod)) {
                    changed = true;
                    entry.pod = Some(Arc::new(pod));
                }
            }
            // What runs goes on running while its manifest is broken.
            Err(message) => tracing::error!("static pod {}: {message}", path.display()),
        }
    }
    changed
}

/// A static pod from a manifest's text.
pub fn parse(text: &str, path: &Path, node: &str) -> Result<Pod, String> {
    let value = config::yaml(text)?;
    let kind = (
        value.get("apiVersion").and_then(|v| v.as_str()),
        value.get("kind").and_then(|v| v.as_str()),
    );
    if kind != (Some("v1"), Some("Pod")) {
        return Err(format!(
            "expected a Pod of v1, found {} of {}",
            kind.1.unwrap_or("nothing"),
            kind.0.unwrap_or("nothing")
        ));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if names::name(&pod).is_empty() || pod.spec.as_ref().is_none_or(|s| s.containers.is_empty()) {
        return Err("a name and at least one container are needed".into());
    }
    if let Some(c) = spec::containers(&pod).find(|(_, c)| c.image.as_deref().unwrap_or_default().is_empty()) {
        return Err(format!("container {:?} has no image", c.1.name));
    }
    for v in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() {
            return Err(format!(
                "volume {:?}: a static pod may not refer to objects of the API",
                v.name
            ));
        }
    }
    let hash = names::hash_of(&(&pod, node, path.display().to_string()));
    let hash = format!("{hash}{}", names::hash_of(&(&hash, "static")));
    pod.metadata.name = Some(format!("{}-{}", names::name(&pod), node.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".into());
    pod.metadata.uid = Some(hash.clone());
    pod.status = None;
    let notes = pod.metadata.annotations.get_or_insert_default();
    notes.insert(names::CONFIG_HASH.into(), hash);
    notes.insert(names::CONFIG_SOURCE.into(), "file".into());
    notes
        .entry(names::CONFIG_SEEN.into())
        .or_insert_with(|| k8s_openapi::jiff::Timestamp::now().to_string());
    if let Some(spec) = pod.spec.as_mut() {
        spec.node_name = Some(node.to_owned());
        // No taint may drive a static pod away.
        let all = Toleration {
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            ..Default::default()
        };
        spec.tolerations.get_or_insert_default().push(all);
        if spec.priority.is_none() {
            spec.priority = match spec.priority_class_name.as_deref() {
                Some("system-node-critical") => Some(2_000_001_000),
                Some("system-cluster-critical") => Some(2_000_000_000),
                _ => None,
            };
        }
    }
    spec::default(&mut pod);
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd, namespace: kube-system}\nspec:\n  containers: [{name: c, image: a:1}]\n";

    #[test]
    fn identity_is_stable_and_follows_the_manifest() {
        let path = Path::new("/m/etcd.yaml");
        let a = parse(TEXT, path, "N1").unwrap();
        let b = parse(TEXT, path, "N1").unwrap();
        let c = parse(&TEXT.replace("a:1", "a:2"), path, "N1").unwrap();
        let d = parse(TEXT, path, "n2").unwrap();
        assert_eq!(names::name(&a), "etcd-n1");
        assert_eq!(names::uid(&a), names::uid(&b));
        assert_eq!(names::uid(&a).len(), 32);
        assert!(names::uid(&a) != names::uid(&c) && names::uid(&a) != names::uid(&d));
        assert!(names::is_static(&a));
        assert_eq!(a.spec.unwrap().restart_policy.as_deref(), Some("Always"));
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        for (text, word) in [
            ("kind: List\napiVersion: v1", "List"),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}",
                "container",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c}]}",
                "image",
            ),
            ("a: [", ""),
        ] {
            assert!(parse(text, Path::new("x"), "n").unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn a_scan_sees_new_changed_and_removed_manifests() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("a.yaml");
        let mut known = BTreeMap::new();
        assert!(!scan(tmp.path(), "n", &mut known));
        std::fs::write(&file, TEXT).unwrap();
        assert!(scan(tmp.path(), "n", &mut known));
        assert!(!scan(tmp.path(), "n", &mut known));
        std::fs::write(&file, "broken: [").unwrap();
        assert!(!scan(tmp.path(), "n", &mut known) && known[&file].pod.is_some());
        std::fs::write(&file, TEXT.replace("a:1", "a:22")).unwrap();
        assert!(scan(tmp.path(), "n", &mut known));
        std::fs::remove_file(&file).unwrap();
        assert!(scan(tmp.path(), "n", &mut known) && known.is_empty());
    }
}
