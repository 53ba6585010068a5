//! Documents about an image that travel with it: signatures and the like.
//!
//! Each is an artifact as image-spec 1.1 says (`manifest.md`, "Guidelines for Artifact Usage"): a manifest with an
//! `artifactType` whose `subject` is the manifest it is about. The store lists it in `index.json` without a name. Whatever
//! copies an image copies what [`Store::attached`] lists; what removes images drops artifacts whose subject is gone.

use std::collections::{BTreeMap, BTreeSet};

use oci::{Descriptor, Digest, Index, REF_NAME, Reference, media_type};

use crate::error::Error;
use crate::manifest::{EMPTY, EMPTY_TYPE, Manifest};
use crate::store::Store;

/// Annotation of an artifact's layer: the name it gets as a file (image-spec, `annotations.md`).
pub const TITLE: &str = "org.opencontainers.image.title";
/// Largest document of an artifact that is read, in bytes.
const LARGEST_DOCUMENT: u64 = 1 << 20;
/// More documents than this is no artifact of ours.
const MOST_DOCUMENTS: usize = 16;

/// A small document of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its media type.
    pub media_type: String,
    /// Its name as a file; tools that fetch artifacts store it under this name.
    pub title: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// An artifact: documents about another manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Artifact {
    /// What kind of artifact it is.
    pub artifact_type: String,
    /// Its documents, in their order.
    pub documents: Vec<Document>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// An artifact in the store, and all that must be copied to have it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its manifest.
    pub manifest: Descriptor,
    /// What it is about.
    pub subject: Digest,
    /// Every blob it needs, its manifest last: a registry takes a manifest only when it has what that names.
    pub blobs: Vec<Descriptor>,
}

impl Store {
    /// The artifacts whose subject is `subject`, as a registry's referrers API describes them: with artifact type and
    /// annotations.
    ///
    /// # Errors
    /// When `index.json` or the manifest of an artifact is damaged.
    pub fn referrers(&self, subject: &Descriptor) -> Result<Vec<Descriptor>, Error> {
        let mut found = Vec::new();
        for (entry, manifest) in self.artifacts()? {
            if manifest
                .subject
                .as_ref()
                .is_some_and(|about| about.digest == subject.digest)
            {
                found.push(Descriptor {
                    artifact_type: Some(manifest.artifact_type()),
                    annotations: manifest.annotations,
                    ..entry
                });
            }
        }
        Ok(found)
    }

    /// The artifacts about an image or anything it carries, and those about these in turn, each after what it is about.
    ///
    /// # Errors
    /// When something on the way is damaged.
    pub fn attached(&self, index: &Descriptor) -> Result<Vec<Attached>, Error> {
        let image = self.reachable(index)?.into_iter().map(|blob| blob.digest).collect();
        Ok(attached_to(image, self.artifacts()?))
    }

    /// The artifacts that stay if only the blobs `kept` do. A damaged artifact is about nothing and doesn't stay.
    pub(crate) fn attached_or_lost(&self, kept: BTreeSet<Digest>) -> Result<Vec<Attached>, Error> {
        let readable = |entry: Descriptor| self.read_json(&entry).ok().map(|manifest| (entry, manifest));
        Ok(attached_to(
            kept,
            self.artifact_entries()?.filter_map(readable).collect(),
        ))
    }

    fn artifact_entries(&self) -> Result<impl Iterator<Item = Descriptor>, Error> {
        Ok(self
            .layout()
            .read_index()?
            .manifests
            .into_iter()
            .filter(is_artifact_entry))
    }

    fn artifacts(&self) -> Result<Vec<(Descriptor, Manifest)>, Error> {
        let read = |entry: Descriptor| Ok((entry.clone(), self.read_json(&entry)?));
        self.artifact_entries()?.map(read).collect()
    }

    /// Stores an artifact about `subject`. The same artifact again changes nothing.
    ///
    /// # Errors
    /// When the store doesn't have the subject, or can't be written.
    pub fn attach(&self, subject: &Descriptor, artifact: &Artifact) -> Result<Descriptor, Error> {
        let _lock = self.lock_shared()?;
        if !self.blobs().has(&subject.digest, subject.size) {
            return Err(oci::Error::Missing(subject.digest.clone()).into());
        }
        let config = Descriptor::new(EMPTY_TYPE, self.put(EMPTY)?, EMPTY.len() as u64);
        let mut layers = Vec::new();
        for document in &artifact.documents {
            let digest = self.put(&document.bytes)?;
            let mut layer = Descriptor::new(document.media_type.clone(), digest, document.bytes.len() as u64);
            layer.annotations.insert(TITLE.to_string(), document.title.clone());
            layers.push(layer);
        }
        let subject = Descriptor::new(subject.media_type.clone(), subject.digest.clone(), subject.size);
        let manifest = Manifest {
            artifact_type: Some(artifact.artifact_type.clone()),
            annotations: artifact.annotations.clone(),
            subject: Some(subject),
            ..Manifest::new(config, layers)
        };
        let entry = self.put_json(media_type::MANIFEST, &manifest)?;
        self.keep_artifact(&entry)?;
        Ok(entry)
    }

    /// Lists an artifact whose blobs are all in the store already, as after a pull.
    ///
    /// # Errors
    /// [`Error::Refused`] if the manifest is about nothing, or `index.json` can't be replaced.
    pub fn keep_artifact(&self, artifact: &Descriptor) -> Result<(), Error> {
        let manifest: Manifest = self.read_json(artifact)?;
        if manifest.subject.is_none() {
            let why = format!("{} is no artifact: it has no subject", artifact.digest);
            return Err(Error::Refused(why));
        }
        let mut entry = Descriptor::new(media_type::MANIFEST, artifact.digest.clone(), artifact.size);
        entry.artifact_type = Some(manifest.artifact_type());
        self.change_index(|root| {
            root.manifests
                .retain(|old| old.digest != entry.digest || !is_artifact_entry(old));
            root.manifests.push(entry);
        })
    }

    /// Takes artifacts out of the store's list; their blobs go when an image is removed.
    ///
    /// # Errors
    /// When `index.json` can't be replaced.
    pub fn detach(&self, artifacts: &[Digest]) -> Result<(), Error> {
        self.change_index(|root| {
            root.manifests
                .retain(|entry| !is_artifact_entry(entry) || !artifacts.contains(&entry.digest));
        })
    }

    /// Reads an artifact with its documents, which are small.
    ///
    /// # Errors
    /// When a blob is missing, damaged or larger than any honest one.
    pub fn read_artifact(&self, artifact: &Descriptor) -> Result<Artifact, Error> {
        let manifest: Manifest = self.read_json(artifact)?;
        if manifest.layers.len() > MOST_DOCUMENTS {
            let why = format!("{} has more than {MOST_DOCUMENTS} documents", artifact.digest);
            return Err(Error::Refused(why));
        }
        let read = |layer: &Descriptor| {
            Ok(Document {
                media_type: layer.media_type.clone(),
                title: layer.annotations.get(TITLE).cloned().unwrap_or_default(),
                bytes: self.blobs().read(&layer.digest, LARGEST_DOCUMENT)?,
            })
        };
        Ok(Artifact {
            artifact_type: manifest.artifact_type(),
            documents: manifest.layers.iter().map(read).collect::<Result<_, Error>>()?,
            annotations: manifest.annotations,
        })
    }

    /// The image a name or digest stands for, with the full name it was asked for by, if it was by name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn resolve_named(&self, name: &str) -> Result<(Option<Reference>, Descriptor), Error> {
        let index = self.resolve(name)?;
        let reference: Option<Reference> = name.parse().ok();
        let root = self.layout().read_index()?;
        let has_name = |entry: &Descriptor| entry.digest == index.digest && entry.reference() == reference;
        let by_name = reference.is_some() && root.manifests.iter().any(has_name);
        Ok((reference.filter(|_| by_name), index))
    }
}

/// Those artifacts that are about one of the digests `kept`, or about each other.
fn attached_to(mut kept: BTreeSet<Digest>, mut waiting: Vec<(Descriptor, Manifest)>) -> Vec<Attached> {
    let mut found = Vec::new();
    loop {
        let before = waiting.len();
        for (entry, manifest) in std::mem::take(&mut waiting) {
            match &manifest.subject {
                Some(subject) if kept.contains(&subject.digest) => {
                    kept.insert(entry.digest.clone());
                    let mut blobs = vec![manifest.config];
                    blobs.extend(manifest.layers);
                    blobs.push(entry.clone());
                    found.push(Attached {
                        manifest: entry,
                        subject: subject.digest.clone(),
                        blobs,
                    });
                }
                _ => waiting.push((entry, manifest)),
            }
        }
        if waiting.len() == before {
            return found;
        }
    }
}

/// Whether an entry of a layout's `index.json` may be an artifact: a manifest without a name.
pub(crate) fn is_artifact_entry(entry: &Descriptor) -> bool {
    entry.media_type == media_type::MANIFEST && !entry.annotations.contains_key(REF_NAME)
}

/// Drops artifacts from a list of images that are not among `kept`.
pub(crate) fn retain_artifacts(root: &mut Index, kept: &BTreeSet<Digest>) {
    root.manifests
        .retain(|entry| !is_artifact_entry(entry) || kept.contains(&entry.digest));
}
