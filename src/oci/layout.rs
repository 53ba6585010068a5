//! An OCI image layout on disk (image-spec, `image-layout.md`): `oci-layout`, `index.json`, `blobs/`.

use crate::{BlobStore, Error, Index};
use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// The largest `index.json` that is read, in bytes.
const MAX_INDEX: u64 = 16 << 20;

/// A folder that is an OCI image layout.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    blobs: BlobStore,
}

impl Layout {
    /// Opens the layout at `root`, making it if it is not there.
    ///
    /// # Errors
    /// When a folder or file cannot be made.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let layout = Self::open(root);
        fs::create_dir_all(layout.blobs.dir()).map_err(|e| Error::io(layout.blobs.dir(), e))?;
        write_new(&layout.root.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        write_new(&layout.index_path(), &layout.encode(&Index::default())?)?;
        Ok(layout)
    }

    fn encode(&self, index: &Index) -> Result<Vec<u8>, Error> {
        let path = || self.index_path().display().to_string();
        let text = serde_json::to_vec(index).map_err(|source| Error::Json { path: path(), source })?;
        if text.len() as u64 > MAX_INDEX {
            return Err(Error::TooLarge {
                path: path(),
                size: text.len() as u64,
                limit: MAX_INDEX,
            });
        }
        Ok(text)
    }

    /// Names the layout at `root` without touching the disk.
    pub fn open(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let blobs = BlobStore::new(root.join("blobs"));
        Self { root, blobs }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The blobs.
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Where `index.json` lies.
    pub fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// Reads `index.json`; an absent one is an empty index.
    ///
    /// # Errors
    /// When it cannot be read, is too large, or is no index.
    pub fn read_index(&self) -> Result<Index, Error> {
        let path = self.index_path();
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Index::default()),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let mut text = Vec::new();
        file.take(MAX_INDEX + 1)
            .read_to_end(&mut text)
            .map_err(|e| Error::io(&path, e))?;
        if text.len() as u64 > MAX_INDEX {
            return Err(Error::TooLarge {
                path: path.display().to_string(),
                size: text.len() as u64,
                limit: MAX_INDEX,
            });
        }
        serde_json::from_slice(&text).map_err(|source| Error::Json {
            path: path.display().to_string(),
            source,
        })
    }

    /// Replaces `index.json` in one step: readers see the old or the new one.
    ///
    /// # Errors
    /// When it cannot be written, or would be too large to be read again.
    pub fn write_index(&self, index: &Index) -> Result<(), Error> {
        write_atomic(&self.index_path(), &self.encode(index)?)
    }
}

/// Writes a synced file beside `path`, whose name nobody else uses.
fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf, Error> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let tmp = path.with_extension(format!("tmp{}-{number}", std::process::id()));
    let mut file = fs::File::create(&tmp).map_err(|e| Error::io(path, e))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io(path, e))?;
    Ok(tmp)
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let dir = fs::File::open(dir).and_then(|d| d.sync_all());
    dir.map_err(|e| Error::io(path, e))
}

/// Writes a file so that after a crash it is wholly the old or wholly the new one.
fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let tmp = write_beside(path, bytes)?;
    fs::rename(&tmp, path).map_err(|e| Error::io(path, e))?;
    sync_parent(path)
}

/// The same for a file that stays as it is if somebody else has made it already.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if path.exists() {
        return Ok(());
    }
    let tmp = write_beside(path, bytes)?;
    let linked = fs::hard_link(&tmp, path);
    let made = match linked {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        // Not every removable medium has links; then the last one wins.
        Err(_) => return fs::rename(&tmp, path).map_err(|e| Error::io(path, e)),
        Ok(()) => sync_parent(path),
    };
    fs::remove_file(&tmp).map_err(|e| Error::io(&tmp, e))?;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_could_not_be_read_again_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let mut index = Index::default();
        index.annotations.insert("a".into(), "b".repeat(17 << 20));
        assert!(matches!(layout.write_index(&index), Err(Error::TooLarge { .. })));
        assert!(layout.read_index().unwrap().annotations.is_empty());
    }

    #[test]
    fn a_new_layout_is_empty_and_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path().join("store")).unwrap();
        assert!(layout.read_index().unwrap().manifests.is_empty());
        let mut index = Index::default();
        index.annotations.insert("a".into(), "b".into());
        layout.write_index(&index).unwrap();
        assert_eq!(Layout::create(layout.root()).unwrap().read_index().unwrap(), index);
    }
}
