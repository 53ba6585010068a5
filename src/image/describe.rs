//! All that an image of the store says about itself, for people and programs.

use std::collections::BTreeSet;

use oci::{Descriptor, Digest, REF_NAME};
use serde::Serialize;
use serde_json::Value;

use crate::config::{ClusterConfig, ImageConfig, PREFIX};
use crate::error::Error;
use crate::manifest::{Manifest, is_rootfs, platform_text};
use crate::store::Store;
use crate::view::{ClusterImage, FileEntry, Rootfs};

/// An image with everything but the content of its files.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// All its names in the store.
    pub names: Vec<String>,
    /// The index digest.
    pub digest: Digest,
    /// Bytes of all its blobs, each counted once.
    pub size: u64,
    /// How many blobs it has.
    pub blobs: usize,
    /// When it was made, in RFC 3339, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What it holds for each platform.
    pub platforms: Vec<PlatformDescription>,
    /// Artifacts about it, such as signatures.
    pub artifacts: Vec<ArtifactDescription>,
}

/// What an image holds for one platform.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformDescription {
    /// `os/architecture`.
    pub platform: String,
    /// What it says about itself.
    pub config: ClusterConfig,
    /// The files a host gets.
    pub rootfs: Rootfs,
    /// The container images it carries.
    pub images: Vec<CarriedDescription>,
    /// The lock its images were resolved by, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<Value>,
    /// The files of the rootfs.
    pub files: Vec<FileEntry>,
}

/// A carried container image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CarriedDescription {
    /// Its full name.
    pub reference: String,
    /// Its manifest's digest.
    pub digest: Digest,
    /// Bytes of all its blobs.
    pub size: u64,
}

/// An artifact about an image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactDescription {
    /// What kind of artifact it is.
    pub artifact_type: String,
    /// Its manifest's digest.
    pub digest: Digest,
    /// What it is about.
    pub subject: Digest,
}

/// One step of an image's making.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The instruction.
    pub created_by: String,
    /// When, in RFC 3339, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The layer it made, if it made one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// Bytes of that layer.
    pub size: u64,
}

/// The steps that made one platform of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// `os/architecture`.
    pub platform: String,
    /// The first step first.
    pub steps: Vec<Step>,
}

impl Store {
    /// Describes an image; with the paths of its files if `files` is set.
    ///
    /// # Errors
    /// If it isn't there or can't be read.
    pub fn describe(&self, name: &str, files: bool) -> Result<Description, Error> {
        let _in_use = self.hold()?;
        let index = self.resolve(name)?;
        let list = self.read_index(&index)?;
        let all = self.layout().read_index()?.manifests.into_iter();
        let names = all.filter(|entry| entry.digest == index.digest).filter_map(|entry| {
            let name = entry.annotations.get(REF_NAME);
            name.cloned()
        });
        let rootfs: Vec<&Descriptor> = list.manifests.iter().filter(|entry| is_rootfs(entry)).collect();
        let mut platforms = Vec::new();
        for entry in &rootfs {
            platforms.push(self.describe_platform(&index, entry, files)?);
        }
        let said = list.annotations.get(crate::listing::CREATED).cloned();
        let sizes = self.sizes(&index)?;
        let mut artifacts = Vec::new();
        for artifact in self.attached(&index)? {
            let manifest: Manifest = self.read_json(&artifact.manifest)?;
            artifacts.push(ArtifactDescription {
                artifact_type: manifest.artifact_type(),
                digest: artifact.manifest.digest,
                subject: artifact.subject,
            });
        }
        Ok(Description {
            names: names.collect(),
            size: sizes.values().sum(),
            blobs: sizes.len(),
            created: said.or_else(|| rootfs.iter().find_map(|rootfs| self.created(rootfs))),
            digest: index.digest,
            platforms,
            artifacts,
        })
    }

    fn describe_platform(
        &self,
        index: &Descriptor,
        rootfs: &Descriptor,
        files: bool,
    ) -> Result<PlatformDescription, Error> {
        let platform = rootfs.platform.clone().unwrap_or_else(crate::manifest::host_platform);
        let image = ClusterImage::open(self, index.digest.as_str(), &platform)?;
        let config: ImageConfig = self.read_json(&image.rootfs.config)?;
        let labels = config.config.labels.unwrap_or_default();
        let lock = labels
            .get(&format!("{PREFIX}lock"))
            .and_then(|text| serde_json::from_str(text).ok());
        let carried = |carried: &crate::view::Carried| {
            let mut seen = BTreeSet::new();
            let once = carried.blobs.iter().filter(|blob| seen.insert(&blob.digest));
            CarriedDescription {
                reference: carried.reference.to_string(),
                digest: carried.manifest.digest.clone(),
                size: once.map(|blob| blob.size).sum(),
            }
        };
        Ok(PlatformDescription {
            platform: platform_text(&platform),
            images: image.carried.iter().map(carried).collect(),
            files: if files { image.list("")? } else { Vec::new() },
            config: image.config,
            rootfs: image.rootfs,
            lock,
        })
    }

    /// The steps that made an image, for each platform.
    ///
    /// # Errors
    /// If it isn't there or can't be read.
    pub fn history(&self, name: &str) -> Result<Vec<History>, Error> {
        let _in_use = self.hold()?;
        let index = self.read_index(&self.resolve(name)?)?;
        let mut histories = Vec::new();
        for rootfs in index.manifests.iter().filter(|entry| is_rootfs(entry)) {
            let manifest: Manifest = self.read_json(rootfs)?;
            let config: ImageConfig = self.read_json(&manifest.config)?;
            histories.push(History {
                platform: rootfs.platform.as_ref().map(platform_text).unwrap_or_default(),
                steps: steps(&config, &manifest.layers),
            });
        }
        Ok(histories)
    }

    /// Compares every blob of an image, of all its platforms and the artifacts about it, with its digest; gives every
    /// problem in words.
    ///
    /// # Errors
    /// If the image isn't there.
    pub fn verify(&self, name: &str, progress: &dyn crate::Progress) -> Result<crate::VerifyReport, Error> {
        let _in_use = self.hold()?;
        let index = self.resolve(name)?;
        let mut report = crate::VerifyReport::default();
        let mut blobs = match self.sizes(&index) {
            Ok(blobs) => blobs,
            Err(error) => {
                report.problems.push(error.to_string());
                return Ok(report);
            }
        };
        match self.attached(&index) {
            Ok(attached) => {
                let attached = attached.into_iter().flat_map(|artifact| artifact.blobs);
                blobs.extend(attached.map(|blob| (blob.digest, blob.size)));
            }
            Err(error) => report.problems.push(error.to_string()),
        }
        let total = blobs.values().sum();
        for (digest, size) in &blobs {
            report.blobs += 1;
            report.bytes += size;
            let problem = self.blobs().verify(digest, *size).err();
            report.problems.extend(problem.map(|problem| problem.to_string()));
            let done = report.bytes;
            progress.event(crate::Event::Bytes { done, total });
        }
        Ok(report)
    }
}

/// History and layers side by side. Layers that no step tells of come last.
fn steps(config: &ImageConfig, layers: &[Descriptor]) -> Vec<Step> {
    let mut layers = layers.iter();
    let mut steps: Vec<Step> = Vec::new();
    for step in &config.history {
        let layer = if step.empty_layer { None } else { layers.next() };
        steps.push(Step {
            created_by: step.created_by.clone(),
            created: step
                .created
                .clone()
                .filter(|created| !created.starts_with("1970-01-01T00:00:00")),
            layer: layer.map(|layer| layer.digest.clone()),
            size: layer.map_or(0, |layer| layer.size),
        });
    }
    steps.extend(layers.map(|layer| Step {
        created_by: String::new(),
        created: None,
        layer: Some(layer.digest.clone()),
        size: layer.size,
    }));
    steps
}
