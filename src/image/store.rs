//! The local store: an OCI image layout that several processes may use at once.
//!
//! Blobs appear whole under their digest; `index.json` is replaced in one step under a lock. Whoever adds blobs holds
//! the store shared, whoever removes some holds it alone, so nothing is removed under a build's feet.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci::{BlobStore, Descriptor, Digest, Index, Layout, REF_NAME, Reference, media_type};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::error::Error;
use crate::layer::Layer;
use crate::manifest::{self, Manifest};
use crate::referrers::{is_artifact_entry, retain_artifacts};

/// A folder of cluster images.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

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
    /// `os/architecture` of each rootfs.
    pub platforms: Vec<String>,
    /// How many container images it carries.
    pub carried: usize,
    /// When it came into the store, seconds since 1970.
    pub stored: u64,
}

/// What removing an image freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// How many blobs went.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Held while blobs are added or removed; ends with its scope.
#[must_use]
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Store {
    /// Opens the store at `root`, making it if it is not there.
    ///
    /// # Errors
    /// When its folders can't be made.
    pub fn open(root: &Path) -> Result<Store, Error> {
        let layout = Layout::create(root)?;
        for folder in ["tmp", "cache/layers", "cache/files"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(Error::io("cannot make", &folder))?;
        }
        Ok(Store { layout })
    }

    /// The store's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The blobs.
    #[must_use]
    pub fn blobs(&self) -> &BlobStore {
        self.layout.blobs()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn lock_shared(&self) -> Result<Lock, Error> {
        self.lock(".lock", FlockOperation::LockShared)
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> Result<Lock, Error> {
        let path = self.root().join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(Error::io("cannot lock", &path))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot lock", &path)(error.into())),
            }
        }
    }

    /// A file that will become a blob, or vanish.
    pub(crate) fn temporary(&self) -> Result<NamedTempFile, Error> {
        let folder = self.root().join("tmp");
        NamedTempFile::new_in(&folder).map_err(Error::io("cannot write in", &folder))
    }

    /// A folder for a build's work; it vanishes with the value.
    pub(crate) fn work_folder(&self) -> Result<tempfile::TempDir, Error> {
        let folder = self.root().join("tmp");
        tempfile::TempDir::new_in(&folder).map_err(Error::io("cannot write in", &folder))
    }

    /// Makes a finished temporary file the blob `digest`, which its content was found to have.
    pub(crate) fn adopt(&self, file: NamedTempFile, digest: &Digest) -> Result<(), Error> {
        self.adopt_path(file.into_temp_path(), digest)
    }

    /// The same for a file that is closed already.
    pub(crate) fn adopt_path(&self, path: tempfile::TempPath, digest: &Digest) -> Result<(), Error> {
        readable(&path)?;
        self.blobs().adopt(&path, digest)?;
        // The file has moved away; there's nothing left to remove.
        let _ = path.keep();
        Ok(())
    }

    /// Stores a small document.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.blobs().has(&digest, bytes.len() as u64) {
            let mut file = self.temporary()?;
            file.write_all(bytes).map_err(Error::io("cannot write", file.path()))?;
            self.adopt(file, &digest)?;
        }
        Ok(digest)
    }

    /// Stores a document as compact JSON and describes it.
    pub(crate) fn put_json(&self, media_type: &str, document: &impl Serialize) -> Result<Descriptor, Error> {
        let bytes = serde_json::to_vec(document).map_err(|source| oci::Error::Json {
            path: media_type.to_string(),
            source,
        })?;
        let digest = self.put(&bytes)?;
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Something remembered under a key; anything unreadable counts as forgotten.
    pub(crate) fn cache_get<T: DeserializeOwned>(&self, kind: &str, key: &Digest) -> Option<T> {
        let bytes = fs::read(self.cache_path(kind, key)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn cache_put(&self, kind: &str, key: &Digest, value: &impl Serialize) -> Result<(), Error> {
        let path = self.cache_path(kind, key);
        let mut file = self.temporary()?;
        serde_json::to_writer(std::io::BufWriter::new(&mut file), value).map_err(|source| oci::Error::Json {
            path: path.display().to_string(),
            source,
        })?;
        file.persist(&path)
            .map_err(|error| Error::io("cannot write", &path)(error.error))?;
        Ok(())
    }

    fn cache_path(&self, kind: &str, key: &Digest) -> PathBuf {
        self.root().join("cache").join(kind).join(key.hex())
    }

    /// Gives an index in the store a name; the name's old image keeps its blobs until it's removed.
    ///
    /// # Errors
    /// When `index.json` can't be replaced.
    pub fn tag(&self, reference: &Reference, index: &Descriptor) -> Result<(), Error> {
        let mut entry = Descriptor::new(index.media_type.clone(), index.digest.clone(), index.size);
        entry.annotations.insert(REF_NAME.to_string(), reference.familiar());
        self.change_index(|root| {
            root.manifests
                .retain(|entry| entry.reference().as_ref() != Some(reference));
            root.manifests.push(entry);
        })
    }

    /// Replaces `index.json` by what `change` makes of it, names in order, artifacts after them.
    pub(crate) fn change_index(&self, change: impl FnOnce(&mut Index)) -> Result<(), Error> {
        let _lock = self.lock(".index.lock", FlockOperation::LockExclusive)?;
        let mut root = self.layout.read_index()?;
        change(&mut root);
        root.manifests.sort_by_cached_key(|entry| {
            let name = entry.annotations.get(REF_NAME).cloned();
            (name.is_none(), name, entry.digest.clone())
        });
        Ok(self.layout.write_index(&root)?)
    }

    /// The index that a name, a digest, or the beginning of a digest stands for.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the nearest name.
    pub fn resolve(&self, name: &str) -> Result<Descriptor, Error> {
        let root = self.layout.read_index()?;
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = hex.len() >= 6 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let reference = name.parse::<Reference>().ok();
        let found = root
            .manifests
            .iter()
            .find(|entry| reference.is_some() && entry.reference() == reference);
        let by_digest = || {
            root.manifests
                .iter()
                .find(|entry| is_hex && !is_artifact_entry(entry) && entry.digest.hex().starts_with(hex))
        };
        if let Some(entry) = found.or_else(by_digest) {
            return Ok(Descriptor {
                annotations: Default::default(),
                ..entry.clone()
            });
        }
        let known: Vec<String> = root
            .manifests
            .iter()
            .filter_map(|e| e.annotations.get(REF_NAME).cloned())
            .collect();
        let hint = clusterfile::names::did_you_mean(name, known.iter().map(String::as_str));
        let (reference, store) = (name.to_string(), self.root().to_path_buf());
        Err(Error::NotFound { reference, store, hint })
    }

    /// All images that have a name, sorted by it.
    ///
    /// # Errors
    /// When `index.json` or an index can't be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>, Error> {
        let root = self.layout.read_index()?;
        let images = root.manifests.iter().filter(|entry| !is_artifact_entry(entry));
        images.map(|entry| self.summary(entry)).collect()
    }

    fn summary(&self, entry: &Descriptor) -> Result<ImageSummary, Error> {
        let index = self.read_index(entry)?;
        let rootfs = index.manifests.iter().filter(|m| manifest::is_rootfs(m));
        let platforms = rootfs
            .filter_map(|m| m.platform.as_ref())
            .map(manifest::platform_text)
            .collect();
        let carried = index.manifests.iter().filter(|m| m.reference().is_some());
        let carried: BTreeSet<_> = carried.filter_map(Descriptor::reference).collect();
        let sizes: std::collections::BTreeMap<_, _> = self
            .reachable(entry)?
            .into_iter()
            .map(|blob| (blob.digest, blob.size))
            .collect();
        let modified = fs::metadata(self.blobs().path(&entry.digest))
            .and_then(|meta| meta.modified())
            .ok();
        let stored = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        Ok(ImageSummary {
            name: entry.annotations.get(REF_NAME).cloned().unwrap_or_default(),
            digest: entry.digest.clone(),
            size: sizes.values().sum(),
            platforms,
            carried: carried.len(),
            stored: stored.map_or(0, |time| time.as_secs()),
        })
    }

    pub(crate) fn read_index(&self, descriptor: &Descriptor) -> Result<Index, Error> {
        self.read_json(descriptor)
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, Error> {
        manifest::read_json(self.blobs(), descriptor)
    }

    /// Every blob an index or manifest needs, itself included; a digest may come more than once.
    pub(crate) fn reachable(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>, Error> {
        let mut blobs = vec![descriptor.clone()];
        if descriptor.is_index() {
            for entry in self.read_index(descriptor)?.manifests {
                blobs.extend(self.reachable(&entry)?);
            }
        } else if matches!(
            descriptor.media_type.as_str(),
            media_type::MANIFEST | media_type::DOCKER_MANIFEST
        ) {
            let manifest: Manifest = self.read_json(descriptor)?;
            blobs.push(manifest.config);
            blobs.extend(manifest.layers);
        }
        Ok(blobs)
    }

    /// Takes a name away, and every blob that no remaining name needs.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when something can't be removed.
    pub fn remove(&self, name: &str) -> Result<Removed, Error> {
        let alone = self.lock(".lock", FlockOperation::LockExclusive)?;
        let target = self.resolve(name)?;
        let reference = name.parse::<Reference>().ok();
        self.change_index(|root| {
            let named = reference.is_some() && root.manifests.iter().any(|entry| entry.reference() == reference);
            root.manifests.retain(|entry| match named {
                true => entry.reference() != reference,
                false => entry.digest != target.digest,
            });
        })?;
        let removed = self.collect_garbage();
        drop(alone);
        removed
    }

    /// Drops what is remembered of layers that are gone; what can't be dropped is only ignored later.
    fn forget_lost_layers(&self) {
        let Ok(entries) = fs::read_dir(self.root().join("cache/layers")) else {
            return;
        };
        for entry in entries.flatten() {
            let layer = fs::read(entry.path())
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Layer>(&bytes).ok());
            if layer.is_none_or(|layer| self.blobs().size(&layer.descriptor.digest).is_none()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes what nothing names; the caller holds the store alone.
    fn collect_garbage(&self) -> Result<Removed, Error> {
        let mut wanted = BTreeSet::new();
        let root = self.layout.read_index()?;
        for entry in root.manifests.iter().filter(|entry| !is_artifact_entry(entry)) {
            wanted.extend(self.reachable(entry)?.into_iter().map(|blob| blob.digest));
        }
        let attached = self.attached_or_lost(wanted.clone())?;
        let kept = attached
            .iter()
            .map(|artifact| artifact.manifest.digest.clone())
            .collect();
        self.change_index(|root| retain_artifacts(root, &kept))?;
        let blobs = attached.into_iter().flat_map(|artifact| artifact.blobs);
        wanted.extend(blobs.map(|blob| blob.digest));
        let mut removed = Removed::default();
        for digest in self.blobs().list()? {
            if !wanted.contains(&digest) {
                removed.bytes += self.blobs().size(&digest).unwrap_or(0);
                removed.blobs += 1;
                self.blobs().remove(&digest)?;
                let _ = fs::remove_file(self.cache_path("files", &digest));
            }
        }
        self.forget_lost_layers();
        // Nobody else is at work, so what lies here was left by a crash. A failure only leaves it for the next time.
        if let Ok(left) = fs::read_dir(self.root().join("tmp")) {
            for entry in left.flatten() {
                let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
            }
        }
        Ok(removed)
    }
}

/// Temporary files are private; blobs are for everybody who may see the store.
fn readable(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(Error::io("cannot change the mode of", path))
}
