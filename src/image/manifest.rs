//! Image manifests and platforms (image-spec 1.1, `manifest.md`).

use std::collections::BTreeMap;

use oci::{BlobStore, Descriptor, Platform, media_type};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Largest JSON document read, in bytes.
pub(crate) const MAX_JSON: u64 = 64 << 20;
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
    let path = descriptor.digest.to_string();
    Ok(serde_json::from_slice(&bytes).map_err(|source| oci::Error::Json { path, source })?)
}
