//! The local store: an OCI image layout that several processes may use at once.
//!
//! Blobs appear whole under their digest; `index.json` is replaced in one step under a lock. Whoever adds or uses blobs
//! holds the store shared, whoever removes some holds it alone, so nothing is removed under anybody's feet. A process
//! that is killed leaves temporary files and unnamed blobs, never a visible blob that isn't whole; `garbage.rs` removes
//! both.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use oci::{BlobStore, Descriptor, Digest, Index, Layout, REF_NAME, Reference};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::error::Error;
use crate::manifest;
use crate::referrers::is_artifact_entry;

/// What no build asked for in so long is not kept.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 86_400);

/// A folder of cluster images.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

/// The file that is locked shared by who uses blobs, and alone by who removes some.
const LOCK: &str = ".lock";
/// The file that is locked by who replaces `index.json`.
const INDEX_LOCK: &str = ".index.lock";

/// Held while blobs are used, added or removed; ends with its scope, and with the process whatever happens to it.
#[must_use]
#[derive(Debug)]
pub struct InUse {
    _file: File,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there.
    ///
    /// # Errors
    /// When its folders can't be made.
    pub fn open(root: &Path) -> Result<Store, Error> {
        let layout = Layout::create(root)?;
        for folder in [
            "tmp",
            "cache/layers",
            "cache/files",
            "cache/digests",
            "cache/archives",
            "cache/downloads",
        ] {
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

    /// Keeps every blob where it is until the result is dropped, whoever removes images meanwhile.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn hold(&self) -> Result<InUse, Error> {
        self.lock_shared()
    }

    pub(crate) fn lock_shared(&self) -> Result<InUse, Error> {
        self.lock(LOCK, File::lock_shared)
    }

    /// Waits until nobody uses the store.
    pub(crate) fn lock_alone(&self) -> Result<InUse, Error> {
        self.lock(LOCK, File::lock)
    }

    /// Waits until nobody replaces `index.json`.
    pub(crate) fn lock_index(&self) -> Result<InUse, Error> {
        self.lock(INDEX_LOCK, File::lock)
    }

    /// None if somebody uses the store.
    pub(crate) fn try_lock_alone(&self) -> Result<Option<InUse>, Error> {
        let (path, file) = self.lock_file(LOCK)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(InUse { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(Error::io("cannot lock", path)(error)),
        }
    }

    fn lock(&self, name: &str, lock: impl Fn(&File) -> std::io::Result<()>) -> Result<InUse, Error> {
        let (path, file) = self.lock_file(name)?;
        loop {
            match lock(&file) {
                Ok(()) => return Ok(InUse { _file: file }),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("cannot lock", path)(error)),
            }
        }
    }

    fn lock_file(&self, name: &str) -> Result<(PathBuf, File), Error> {
        let path = self.root().join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(Error::io("cannot lock", &path))?;
        Ok((path, file))
    }

    /// A file that will become a blob, or vanish.
    pub(crate) fn temporary(&self) -> Result<NamedTempFile, Error> {
        let folder = self.root().join("tmp");
        NamedTempFile::new_in(&folder).map_err(Error::io("cannot write in", &folder))
    }

    /// Refuses what is sure to fill the disk, before anything is moved.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<(), Error> {
        let stat = rustix::fs::statvfs(self.root());
        let stat = stat.map_err(|error| Error::io("cannot look at the disk of", self.root())(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if bytes > free {
            let store = self.root().display();
            return Err(Error::Refused(format!(
                "{bytes} bytes are needed for the store {store}, its disk has {free} left; `installer prune` frees some"
            )));
        }
        Ok(())
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

    pub(crate) fn cache_path(&self, kind: &str, key: &Digest) -> PathBuf {
        self.root().join("cache").join(kind).join(key.hex())
    }

    /// Gives an index in the store a name; the name's old image keeps its blobs until it's removed. The caller holds the
    /// store since before it found the index there ([`Store::hold`]).
    ///
    /// # Errors
    /// When the name asks for another digest than the index has, when something that the index needs is missing or has not the
    /// size that its descriptor says, or when `index.json` can't be replaced.
    pub fn tag(&self, reference: &Reference, index: &Descriptor) -> Result<(), Error> {
        if let Some(wanted) = reference.digest().filter(|wanted| **wanted != index.digest) {
            let found = &index.digest;
            return Err(Error::Refused(format!(
                "{reference}: the image has the digest {found}, not {wanted}"
            )));
        }
        self.check_complete(index)?;
        let mut entry = Descriptor::new(index.media_type.clone(), index.digest.clone(), index.size);
        entry.annotations.insert(REF_NAME.to_string(), reference.familiar());
        // A name must not outlive a power failure that its blobs don't.
        self.blobs().sync()?;
        self.change_index(|root| {
            root.manifests
                .retain(|entry| entry.reference().as_ref() != Some(reference));
            root.manifests.push(entry);
        })
    }

    /// Replaces `index.json` by what `change` makes of it, names in order, artifacts after them.
    pub(crate) fn change_index(&self, change: impl FnOnce(&mut Index)) -> Result<(), Error> {
        let _lock = self.lock_index()?;
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
    /// [`Error::NotFound`] with the nearest name; [`Error::Refused`] if the beginning fits several digests.
    pub fn resolve(&self, name: &str) -> Result<Descriptor, Error> {
        let root = self.layout.read_index()?;
        let bare = |entry: &Descriptor| Descriptor {
            annotations: Default::default(),
            ..entry.clone()
        };
        let reference = name.parse::<Reference>().ok();
        let named = |entry: &&Descriptor| reference.is_some() && entry.reference() == reference;
        if let Some(entry) = root.manifests.iter().find(named) {
            return Ok(bare(entry));
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = hex.len() >= 6 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let images = root.manifests.iter().filter(|entry| !is_artifact_entry(entry));
        let mut fitting: Vec<_> = images
            .filter(|entry| is_hex && entry.digest.hex().starts_with(hex))
            .collect();
        fitting.sort_by_key(|entry| &entry.digest);
        fitting.dedup_by_key(|entry| &entry.digest);
        match fitting.as_slice() {
            [entry] => return Ok(bare(entry)),
            [] => {}
            several => {
                let digests: Vec<_> = several.iter().map(|entry| entry.digest.short()).collect();
                let digests = digests.join(", ");
                return Err(Error::Refused(format!(
                    "{name} is the beginning of several digests: {digests}"
                )));
            }
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

    pub(crate) fn read_index(&self, descriptor: &Descriptor) -> Result<Index, Error> {
        self.read_json(descriptor)
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, Error> {
        manifest::read_json(self.blobs(), descriptor)
    }

    /// Every blob an index or manifest needs, itself included; a digest may come more than once.
    pub(crate) fn reachable(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>, Error> {
        let read = |document: &Descriptor| Ok(self.blobs().read(&document.digest, manifest::MAX_JSON)?);
        manifest::reachable(descriptor, &read)
    }

    /// Everything that a descriptor needs is in the store, with the sizes that descriptors say. Content is not read again.
    ///
    /// # Errors
    /// The first blob that is missing or has another size.
    pub(crate) fn check_complete(&self, descriptor: &Descriptor) -> Result<(), Error> {
        for blob in self.reachable(descriptor)? {
            let size = self.blobs().size(&blob.digest);
            let size = size.ok_or_else(|| oci::Error::Missing(blob.digest.clone()))?;
            if size != blob.size {
                let what = format!("it has {} instead of {}", oci::counted(size, "byte"), blob.size);
                return Err(oci::Error::Corrupt {
                    digest: blob.digest,
                    what,
                }
                .into());
            }
        }
        Ok(())
    }

    /// Why an image of the store can never be used, whatever is fetched again: its documents say of content that is whole what
    /// is not so. None if it can be used, or could be once what is missing or damaged is there.
    pub(crate) fn contradiction(&self, image: &Descriptor) -> Option<String> {
        let unreadable = Cell::new(false);
        let read = |document: &Descriptor| {
            let read = self.blobs().read(&document.digest, manifest::MAX_JSON);
            unreadable.set(unreadable.get() || read.is_err());
            Ok(read?)
        };
        let blobs = match manifest::reachable(image, &read) {
            Ok(blobs) => blobs,
            Err(_) if unreadable.get() => return None,
            Err(error) => return Some(error.to_string()),
        };
        // Read is only what has another size than it should: it may be damaged.
        blobs.iter().find_map(|blob| {
            let size = self.blobs().size(&blob.digest).filter(|size| *size != blob.size)?;
            self.blobs().verify(&blob.digest, size).ok()?;
            Some(format!(
                "{}: the image says that it has {} bytes, but it has {size}",
                blob.digest, blob.size
            ))
        })
    }

    /// As [`Store::reachable`], each blob once and with its size.
    pub(crate) fn sizes(&self, descriptor: &Descriptor) -> Result<BTreeMap<Digest, u64>, Error> {
        let blobs = self.reachable(descriptor)?.into_iter();
        Ok(blobs.map(|blob| (blob.digest, blob.size)).collect())
    }

    /// Says that something remembered was of use, so that it is kept.
    pub(crate) fn cache_used(&self, kind: &str, key: &Digest) {
        let path = self.cache_path(kind, key);
        let age = fs::metadata(&path).and_then(|meta| meta.modified());
        // Not at every build: a new time makes the file look changed.
        let is_old = age.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > FORGOTTEN_AFTER / 4));
        if is_old && let Ok(file) = File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

/// Temporary files are private; blobs are for everybody who may see the store.
fn readable(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(Error::io("cannot change the mode of", path))
}
