//! What of a store is served: the carried images of its `index.json`, by repository.
//!
//! A host's store holds more than images: the cluster image itself, with rootfs layers that carry configuration. Only content
//! that belongs to an image annotated with its full reference is listed here, and only what is listed here is ever sent. The
//! content itself is not held, only digests.

use std::collections::{BTreeMap, HashMap, HashSet};

use oci::{Descriptor, Digest, Index, Layout, REF_NAME, Reference};
use serde::Deserialize;

/// The largest manifest that is read or served, in bytes (the spec asks for at least 4 MiB).
pub const MAX_MANIFEST: u64 = 8 << 20;

/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 4;

/// Artifact types of ours, such as a cluster image and its rootfs, are no container images.
const OWN_ARTIFACTS: &str = "application/vnd.installer.";

/// All repositories of a store.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By full name: `docker.io/library/nginx`.
    pub repositories: BTreeMap<String, Repository>,
    /// Images that `index.json` names and whose manifest is not there (yet), or cannot be read.
    pub missing: Vec<String>,
}

/// The content of one repository.
#[derive(Debug, Default)]
pub struct Repository {
    /// Manifest or index by tag, in the order in which tags are listed.
    pub tags: BTreeMap<String, Digest>,
    /// Media type and size in bytes of every manifest and index.
    pub manifests: HashMap<Digest, (String, u64)>,
    /// Configurations and layers.
    pub blobs: HashSet<Digest>,
}

/// The fields of manifests and indexes that say what belongs to them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

impl Catalog {
    /// Reads `index.json` and the manifests it leads to. An image that cannot be read is left out and named in
    /// [`Catalog::missing`].
    ///
    /// # Errors
    /// When `index.json` itself cannot be read.
    pub fn load(layout: &Layout) -> Result<Self, oci::Error> {
        let mut catalog = Self::default();
        catalog.add_all(layout, &layout.read_index()?, 0);
        Ok(catalog)
    }

    fn add_all(&mut self, layout: &Layout, index: &Index, depth: usize) {
        for descriptor in &index.manifests {
            if let Err(error) = self.add(layout, descriptor, depth) {
                let name = descriptor
                    .annotations
                    .get(REF_NAME)
                    .map_or(descriptor.digest.as_str(), String::as_str);
                self.missing.push(format!("{name}: {error}"));
            }
        }
    }

    fn add(&mut self, layout: &Layout, descriptor: &Descriptor, depth: usize) -> Result<(), oci::Error> {
        if descriptor.is_index() && depth < MAX_DEPTH {
            let bytes = layout.blobs().read(&descriptor.digest, MAX_MANIFEST)?;
            let index: Index = parse(descriptor, &bytes)?;
            if is_cluster_image(&index) {
                self.add_all(layout, &index, depth + 1);
                return Ok(());
            }
        }
        let Some(reference) = descriptor
            .reference()
            .filter(|_| !is_own(descriptor.artifact_type.as_deref()))
        else {
            return Ok(());
        };
        let mut found = Repository::default();
        if !found.add(layout, descriptor, 0)? {
            return Ok(());
        }
        self.repositories
            .entry(reference.repository())
            .or_default()
            .merge(found, &reference, &descriptor.digest);
        Ok(())
    }

    /// The first of `names` that is carried.
    pub fn find(&self, names: &[String]) -> Option<&Repository> {
        names.iter().find_map(|name| self.repositories.get(name))
    }
}

impl Repository {
    /// Adds a manifest or index with all that belongs to it; `false` if it is none of a container image.
    fn add(&mut self, layout: &Layout, descriptor: &Descriptor, depth: usize) -> Result<bool, oci::Error> {
        let bytes = layout.blobs().read(&descriptor.digest, MAX_MANIFEST)?;
        let document: Document = parse(descriptor, &bytes)?;
        if is_own(document.artifact_type.as_deref()) {
            return Ok(false);
        }
        let media_type = document.media_type.unwrap_or_else(|| descriptor.media_type.clone());
        self.manifests
            .insert(descriptor.digest.clone(), (media_type, bytes.len() as u64));
        self.blobs.extend(
            document
                .config
                .into_iter()
                .chain(document.layers)
                .map(|content| content.digest),
        );
        for child in &document.manifests {
            // An image may be carried for some of its platforms only.
            if depth < MAX_DEPTH && layout.blobs().size(&child.digest).is_some() {
                self.add(layout, child, depth + 1)?;
            }
        }
        Ok(true)
    }

    fn merge(&mut self, other: Self, reference: &Reference, digest: &Digest) {
        self.manifests.extend(other.manifests);
        self.blobs.extend(other.blobs);
        if let Some(tag) = reference.tag() {
            self.tags.insert(tag.to_owned(), digest.clone());
        }
    }

    /// The manifest that a tag or digest names, with media type and size in bytes.
    pub fn manifest(&self, reference: &str) -> Option<(&Digest, &str, u64)> {
        let (digest, (media_type, size)) = match reference.parse::<Digest>() {
            Ok(digest) => self.manifests.get_key_value(&digest)?,
            Err(_) => self.manifests.get_key_value(self.tags.get(reference)?)?,
        };
        Some((digest, media_type, *size))
    }
}

/// A cluster image is the only index whose entries carry full references: those of an image for several platforms do not.
fn is_cluster_image(index: &Index) -> bool {
    is_own(index.artifact_type.as_deref())
        || index
            .manifests
            .iter()
            .any(|entry| entry.annotations.contains_key(REF_NAME))
}

fn is_own(artifact_type: Option<&str>) -> bool {
    artifact_type.is_some_and(|artifact_type| artifact_type.starts_with(OWN_ARTIFACTS))
}

fn parse<T: for<'de> Deserialize<'de>>(descriptor: &Descriptor, bytes: &[u8]) -> Result<T, oci::Error> {
    serde_json::from_slice(bytes).map_err(|source| oci::Error::Json {
        path: descriptor.digest.to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Store;

    #[test]
    fn only_images_with_a_full_reference_are_served() {
        let store = Store::new();
        let carried = store.image(b"layer of a carried image");
        let rootfs = store.image(b"layer of the rootfs");
        let index = Index {
            manifests: vec![rootfs.clone(), Store::named(&carried, "quay.io/a/b:1")],
            ..Index::default()
        };
        let cluster = store.index(&index);
        store.list(vec![Store::named(&cluster, "local/native:dev"), rootfs.clone()]);

        let catalog = Catalog::load(&store.layout).unwrap();
        assert_eq!(catalog.repositories.keys().collect::<Vec<_>>(), ["quay.io/a/b"]);
        let repository = &catalog.repositories["quay.io/a/b"];
        assert_eq!(repository.manifest("1").map(|found| found.0), Some(&carried.digest));
        assert!(repository.manifest(rootfs.digest.as_str()).is_none());
        assert!(!repository.blobs.contains(&Digest::of(b"layer of the rootfs")));
        assert!(catalog.missing.is_empty());
    }

    #[test]
    fn an_image_for_several_platforms_is_served_with_the_platforms_that_are_there() {
        let store = Store::new();
        let here = store.image(b"amd64");
        let absent = Descriptor::of(oci::media_type::MANIFEST, b"never stored");
        let index = store.index(&Index {
            manifests: vec![here.clone(), absent.clone()],
            ..Index::default()
        });
        store.list(vec![Store::named(&index, "docker.io/library/multi:1")]);

        let catalog = Catalog::load(&store.layout).unwrap();
        let repository = &catalog.repositories["docker.io/library/multi"];
        assert_eq!(
            repository.manifest("1").map(|found| found.1),
            Some(oci::media_type::INDEX)
        );
        assert!(repository.manifest(here.digest.as_str()).is_some());
        assert!(repository.manifest(absent.digest.as_str()).is_none());
    }

    #[test]
    fn a_missing_or_damaged_image_does_not_hide_the_others() {
        let store = Store::new();
        let good = store.image(b"good");
        let bad = store.image(b"bad");
        std::fs::write(store.layout.blobs().path(&bad.digest), b"{}").unwrap();
        let gone = Descriptor::of(oci::media_type::MANIFEST, b"gone");
        store.list(vec![
            Store::named(&bad, "a.b/bad:1"),
            Store::named(&gone, "a.b/gone:1"),
            Store::named(&good, "a.b/good:1"),
        ]);
        let catalog = Catalog::load(&store.layout).unwrap();
        assert_eq!(catalog.repositories.keys().collect::<Vec<_>>(), ["a.b/good"]);
        assert_eq!(catalog.missing.len(), 2, "{:?}", catalog.missing);
    }

    #[test]
    fn references_pinned_to_a_digest_need_no_tag() {
        let store = Store::new();
        let image = store.image(b"pinned");
        store.list(vec![Store::named(&image, &format!("a.b/c@{}", image.digest))]);
        let catalog = Catalog::load(&store.layout).unwrap();
        let repository = &catalog.repositories["a.b/c"];
        assert!(repository.tags.is_empty() && repository.manifest(image.digest.as_str()).is_some());
    }
}
