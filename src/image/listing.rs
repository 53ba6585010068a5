//! What the store holds, image by image, and what each costs that no other shares.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::SystemTime;

use oci::{Descriptor, Digest, Platform, REF_NAME, Reference};
use serde::Serialize;

use crate::config::ImageConfig;
use crate::error::Error;
use crate::manifest::{self, Manifest, fits};
use crate::referrers::is_artifact_entry;
use crate::store::Store;

/// Annotation that says when an image was made (image-spec, `annotations.md`).
pub(crate) const CREATED: &str = "org.opencontainers.image.created";

/// One line of `installer images`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSummary {
    /// The image's name in its short form.
    pub name: String,
    /// The index digest.
    pub digest: Digest,
    /// Bytes of all its blobs, each counted once.
    pub size: u64,
    /// Bytes of blobs that no image with another digest needs: what removing it frees.
    pub unique: u64,
    /// Bytes of blobs that other images need too.
    pub shared: u64,
    /// How many blobs it has.
    pub blobs: usize,
    /// `os/architecture` of each rootfs.
    pub platforms: Vec<String>,
    /// How many container images it carries.
    pub carried: usize,
    /// When it was made, in RFC 3339, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it came into the store, seconds since 1970.
    pub stored: u64,
    /// Why it can't be used, if it can't, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Store {
    /// The entries by which images of the store carry a container image for a platform.
    ///
    /// # Errors
    /// When `index.json` or an index can't be read.
    pub(crate) fn carried(&self, reference: &Reference, platform: &Platform) -> Result<Vec<Descriptor>, Error> {
        let mut found = Vec::new();
        for image in self.layout().read_index()?.manifests {
            if image.is_index() {
                let entries = self.read_index(&image)?.manifests.into_iter();
                let offers = |entry: &Descriptor| entry.platform.as_ref().is_none_or(|offered| fits(offered, platform));
                found.extend(entries.filter(|entry| entry.reference().as_ref() == Some(reference) && offers(entry)));
            }
        }
        Ok(found)
    }

    /// All images that have a name, sorted by it. One that is damaged is listed with its problem.
    ///
    /// # Errors
    /// When `index.json` can't be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>, Error> {
        let _in_use = self.hold()?;
        let mut root = self.layout().read_index()?.manifests;
        root.retain(|entry| !is_artifact_entry(entry));
        let sizes: BTreeMap<&Digest, Result<BTreeMap<Digest, u64>, Error>> =
            root.iter().map(|entry| (&entry.digest, self.sizes(entry))).collect();
        let mut users: BTreeMap<&Digest, usize> = BTreeMap::new();
        for digest in sizes.values().flatten().flat_map(BTreeMap::keys) {
            *users.entry(digest).or_default() += 1;
        }
        let summary = |entry: &Descriptor| {
            let mut summary = self.summary(entry);
            match &sizes[&entry.digest] {
                Ok(blobs) => {
                    summary.blobs = blobs.len();
                    summary.size = blobs.values().sum();
                    let unique = blobs.iter().filter(|(digest, _)| users[digest] == 1);
                    summary.unique = unique.map(|(_, size)| size).sum();
                    summary.shared = summary.size - summary.unique;
                    let missing = blobs.iter().find(|(digest, size)| !self.blobs().has(digest, **size));
                    let missing = missing.map(|(digest, _)| format!("blob {digest} is missing or damaged"));
                    summary.problem = summary.problem.or(missing);
                }
                Err(error) => summary.problem = Some(error.to_string()),
            }
            summary.problem = summary.problem.map(|problem| match self.contradiction(entry) {
                Some(why) => format!(
                    "it can never be used ({why}); `installer prune --damaged` takes such names away, `installer rmi {}` this one",
                    summary.name
                ),
                None => format!("{problem}; build, load or pull it again, or `installer rmi {}`", summary.name),
            });
            summary
        };
        Ok(root.iter().map(summary).collect())
    }

    /// What an image's own documents say.
    fn summary(&self, entry: &Descriptor) -> ImageSummary {
        let modified = fs::metadata(self.blobs().path(&entry.digest)).and_then(|meta| meta.modified());
        let stored = modified
            .ok()
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let mut summary = ImageSummary {
            name: entry.annotations.get(REF_NAME).cloned().unwrap_or_default(),
            digest: entry.digest.clone(),
            size: 0,
            unique: 0,
            shared: 0,
            blobs: 0,
            platforms: Vec::new(),
            carried: 0,
            created: None,
            stored: stored.map_or(0, |time| time.as_secs()),
            problem: None,
        };
        match self.read_index(entry) {
            Ok(index) => {
                let rootfs: Vec<_> = index.manifests.iter().filter(|m| manifest::is_rootfs(m)).collect();
                let platforms = rootfs.iter().filter_map(|m| m.platform.as_ref());
                summary.platforms = platforms.map(manifest::platform_text).collect();
                let carried: BTreeSet<_> = index.manifests.iter().filter_map(Descriptor::reference).collect();
                summary.carried = carried.len();
                let said = index.annotations.get(CREATED).cloned();
                summary.created = said.or_else(|| rootfs.iter().find_map(|rootfs| self.created(rootfs)));
            }
            Err(error) => summary.problem = Some(error.to_string()),
        }
        summary
    }

    /// When a manifest's configuration says it was made. 1970 stands for not saying it.
    pub(crate) fn created(&self, rootfs: &Descriptor) -> Option<String> {
        let manifest: Manifest = self.read_json(rootfs).ok()?;
        let config: ImageConfig = self.read_json(&manifest.config).ok()?;
        config
            .created
            .filter(|created| !created.starts_with("1970-01-01T00:00:00"))
    }
}
