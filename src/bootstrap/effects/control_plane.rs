//! The control plane of a master: static pods that its node agent starts.
//!
//! Each names its images by digest and carries the digest of its whole manifest as an annotation, which the API server shows with
//! the pod: so anybody can see whether what runs is what was wished.

use super::{Learned, file, owned_dir};
use crate::{
    Error, Result, paths, pin, render,
    site::{Seat, Site},
};
use host::Effect;
use serde_json::{Value, json};

/// The annotation that names the manifest a static pod was made of.
pub const MANIFEST: &str = "installer.internal/manifest";

/// A static pod of a master.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticPod {
    /// Name of its file.
    pub file: String,
    /// Its manifest.
    pub manifest: Value,
}

impl StaticPod {
    /// Its namespace and its name as the API server of the master called `node` shows it.
    pub fn shown(&self, node: &str) -> (String, String) {
        let metadata = &self.manifest["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let name = metadata["name"].as_str().unwrap_or_default();
        (namespace.to_owned(), format!("{name}-{node}"))
    }

    /// Which manifest it is.
    pub fn digest(&self) -> &str {
        self.manifest["metadata"]["annotations"][MANIFEST]
            .as_str()
            .unwrap_or_default()
    }
}

/// The static pods of a master.
///
/// # Errors
/// When the image has none, or one cannot be rendered or is no pod.
pub fn static_pods(site: &Site, seat: &Seat) -> Result<Vec<StaticPod>> {
    let bad = |message: String| Error::Image {
        image: site.image.reference.clone(),
        message,
    };
    let mut pods = Vec::new();
    for path in render::paths(site, paths::source::STATIC_PODS) {
        let name = path.strip_prefix(paths::source::STATIC_PODS).unwrap_or(path);
        let file = name.strip_suffix(".tmpl").unwrap_or(name).to_owned();
        let documents = render::documents(path, &render::file(site, seat, path)?)?;
        let [document] = documents.as_slice() else {
            return Err(bad(format!(
                "{path}: a static pod is one document, not {}",
                documents.len()
            )));
        };
        let mut manifest = document.clone();
        pin::object(site, &mut manifest);
        let digest = oci::Digest::of(manifest.to_string().as_bytes());
        let Some(metadata) = manifest["metadata"]
            .as_object_mut()
            .filter(|_| document["kind"] == "Pod")
        else {
            return Err(bad(format!("{path}: it is no pod with metadata")));
        };
        metadata.entry("annotations").or_insert_with(|| json!({}))[MANIFEST] = json!(digest.short());
        pods.push(StaticPod { file, manifest });
    }
    if pods.is_empty() {
        return Err(bad(format!(
            "its rootfs has no static pods in {}",
            paths::source::STATIC_PODS
        )));
    }
    Ok(pods)
}

/// Static pod manifests; nothing on hosts that are no masters.
///
/// # Errors
/// As [`static_pods`].
pub fn control_plane(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    if !seat.master {
        return Ok(Vec::new());
    }
    let mut effects = vec![owned_dir("/var/lib/etcd", 0o700)];
    for pod in static_pods(site, seat)? {
        let path = format!("{}/{}", paths::STATIC_PODS, pod.file);
        effects.push(file(path, render::yaml(&pod.manifest)?, 0o600));
    }
    Ok(effects)
}
