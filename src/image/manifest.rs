//! Image manifests and platforms (image-spec 1.1, `manifest.md`).

use std::collections::BTreeMap;

use oci::{BlobStore, Descriptor, Digest, Index, Platform, Reference, media_type};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Largest JSON document read, in bytes. Registries accept 4 MiB; no honest manifest comes near.
pub(crate) const MAX_JSON: u64 = 16 << 20;
/// A descriptor that claims more bytes is wrong; sums of honest sizes don't overflow.
const LARGEST_BLOB: u64 = 1 << 44;
/// Indexes may list indexes, but no honest ones so deeply.
pub(crate) const DEEPEST: usize = 4;
/// Annotation of a cluster image's index entries: what the manifest is for.
pub(crate) const CONTENT: &str = "installer.internal/content";
/// Value of [`CONTENT`] for the manifest that holds the rootfs.
pub(crate) const ROOTFS: &str = "rootfs";
/// Artifact type of a cluster image's index.
pub(crate) const CLUSTER_IMAGE: &str = "application/vnd.installer.cluster-image.v1";

/// Media type of the configuration of artifacts that need none (image-spec 1.1, `manifest.md`).
pub(crate) const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The content of such a configuration.
pub(crate) const EMPTY: &[u8] = b"{}";

/// An image or artifact manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    /// What an artifact is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Manifest {
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        let media_type = Some(media_type::MANIFEST.to_string());
        Manifest {
            schema_version: 2,
            media_type,
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The type of an artifact: its own word, else its configuration's media type (distribution-spec, "Listing Referrers").
    pub(crate) fn artifact_type(&self) -> String {
        let own = self.artifact_type.clone();
        own.unwrap_or_else(|| self.config.media_type.clone())
    }
}

pub(crate) fn is_rootfs(descriptor: &Descriptor) -> bool {
    descriptor
        .annotations
        .get(CONTENT)
        .is_some_and(|content| content == ROOTFS)
}

/// `os/architecture[/variant]`.
pub(crate) fn platform_text(platform: &Platform) -> String {
    let variant = platform
        .variant
        .as_ref()
        .map(|variant| format!("/{variant}"))
        .unwrap_or_default();
    format!("{}/{}{variant}", platform.os, platform.architecture)
}

/// The platform this program runs on, in OCI's (Go's) names.
#[must_use]
pub fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform {
        architecture: architecture.to_string(),
        os: "linux".to_string(),
        variant: None,
    }
}

/// Whether content for `offered` runs on `wanted`.
pub(crate) fn fits(offered: &Platform, wanted: &Platform) -> bool {
    let same_variant = wanted.variant.is_none() || offered.variant.is_none() || offered.variant == wanted.variant;
    offered.os == wanted.os && offered.architecture == wanted.architecture && same_variant
}

pub(crate) fn read_json<T: DeserializeOwned>(blobs: &BlobStore, descriptor: &Descriptor) -> Result<T, Error> {
    let bytes = blobs.read(&descriptor.digest, MAX_JSON)?;
    parse(descriptor, &bytes)
}

pub(crate) fn parse<T: DeserializeOwned>(descriptor: &Descriptor, bytes: &[u8]) -> Result<T, Error> {
    let path = descriptor.digest.to_string();
    Ok(serde_json::from_slice(bytes).map_err(|source| oci::Error::Json { path, source })?)
}

/// Whether the content names other blobs.
pub(crate) fn is_document(descriptor: &Descriptor) -> bool {
    let kind = descriptor.media_type.as_str();
    descriptor.is_index() || matches!(kind, media_type::MANIFEST | media_type::DOCKER_MANIFEST)
}

/// What a document names, in its order; nothing for any other content.
pub(crate) fn children(descriptor: &Descriptor, bytes: &[u8]) -> Result<Vec<Descriptor>, Error> {
    if !is_document(descriptor) {
        return Ok(Vec::new());
    }
    if bytes.len() as u64 != descriptor.size {
        let what = format!("it has {} bytes instead of {}", bytes.len(), descriptor.size);
        let digest = descriptor.digest.clone();
        return Err(oci::Error::Corrupt { digest, what }.into());
    }
    let below = if descriptor.is_index() {
        parse::<Index>(descriptor, bytes)?.manifests
    } else {
        let manifest: Manifest = parse(descriptor, bytes)?;
        std::iter::once(manifest.config).chain(manifest.layers).collect()
    };
    if let Some(child) = below.iter().find(|child| child.size > LARGEST_BLOB) {
        let (at, digest, size) = (&descriptor.digest, &child.digest, child.size);
        return Err(Error::Refused(format!("{at}: it claims {size} bytes for {digest}")));
    }
    Ok(below)
}

/// Every blob that `descriptor` needs, itself first; a digest may come more than once. `read` gives documents.
pub(crate) fn reachable(
    descriptor: &Descriptor,
    read: &impl Fn(&Descriptor) -> Result<Vec<u8>, Error>,
) -> Result<Vec<Descriptor>, Error> {
    let mut found = Vec::new();
    let mut waiting = vec![(descriptor.clone(), 0)];
    while let Some((descriptor, depth)) = waiting.pop() {
        if is_document(&descriptor) {
            if depth > DEEPEST {
                let why = format!(
                    "{}: indexes that list indexes more than {DEEPEST} deep",
                    descriptor.digest
                );
                return Err(Error::Refused(why));
            }
            let below = children(&descriptor, &read(&descriptor)?)?;
            waiting.extend(below.into_iter().rev().map(|child| (child, depth + 1)));
        }
        found.push(descriptor);
    }
    Ok(found)
}

/// The first name that stands for two different contents, with what it is for and both digests.
pub(crate) fn ambiguous(entries: &[Descriptor]) -> Option<String> {
    let mut seen: BTreeMap<(Reference, Option<String>), &Digest> = BTreeMap::new();
    for entry in entries {
        let Some(reference) = entry.reference() else { continue };
        let platform = entry.platform.as_ref().map(platform_text);
        let shown = platform
            .as_ref()
            .map(|platform| format!(" for {platform}"))
            .unwrap_or_default();
        let text = format!("{reference}{shown}");
        match seen.insert((reference, platform), &entry.digest) {
            Some(other) if *other != entry.digest => {
                return Some(format!("{text} is both {other} and {}", entry.digest));
            }
            _ => {}
        }
    }
    None
}

/// Checks that an index is that of a cluster image: it has a rootfs, and no name stands for two contents.
pub(crate) fn check_cluster_index(index: &Index) -> Result<(), String> {
    if !index.manifests.iter().any(is_rootfs) {
        return Err("it is a container image, not a cluster image (it has no rootfs)".to_string());
    }
    match ambiguous(&index.manifests) {
        Some(what) => Err(format!("two images have one name: {what}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, content: &str, architecture: Option<&str>) -> Descriptor {
        let mut entry = Descriptor::of(media_type::MANIFEST, content.as_bytes());
        entry.annotations.insert(oci::REF_NAME.into(), name.into());
        entry.platform = architecture.map(|architecture| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: None,
        });
        entry
    }

    #[test]
    fn one_name_may_stand_for_one_content_per_platform() {
        let (amd, arm) = (Some("amd64"), Some("arm64"));
        for (entries, bad) in [
            (vec![entry("a:1", "x", amd), entry("a:1", "y", arm)], false),
            (vec![entry("a:1", "x", amd), entry("a:1", "x", amd)], false),
            (
                vec![entry("a:1", "x", amd), entry("docker.io/library/a:1", "y", amd)],
                true,
            ),
            (vec![entry("a:1", "x", None), entry("a:1", "y", None)], true),
        ] {
            assert_eq!(ambiguous(&entries).is_some(), bad, "{entries:?}");
        }
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused_and_wrong_sizes_are_named() {
        let mut inner = Descriptor::of(media_type::LAYER_TAR, b"x");
        let mut documents = BTreeMap::new();
        for _ in 0..6 {
            let index = Index {
                manifests: vec![inner],
                ..Index::default()
            };
            let bytes = serde_json::to_vec(&index).unwrap();
            inner = Descriptor::of(media_type::INDEX, &bytes);
            documents.insert(inner.digest.clone(), bytes);
        }
        let read = |descriptor: &Descriptor| Ok::<_, Error>(documents[&descriptor.digest].clone());
        let error = reachable(&inner, &read).unwrap_err().to_string();
        assert!(error.contains("more than 4 deep"), "{error}");
        inner.size += 1;
        let error = reachable(&inner, &read).unwrap_err().to_string();
        assert!(error.contains("instead of"), "{error}");
    }
}
