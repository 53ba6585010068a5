//! Content-addressed blobs in a folder: `<dir>/sha256/<hex>`.
//!
//! A blob's file appears only when it is whole and verified. What has arrived of an unfinished one is kept beside it as
//! `.<hex>.partial`, so that a transfer can go on where it stopped.

use crate::{Digest, Error, Hasher};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

/// How much is read at once when content is hashed, in bytes.
const CHUNK: usize = 256 << 10;

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct BlobStore {
    dir: PathBuf,
}

impl BlobStore {
    /// Names the store whose blobs lie in `dir/sha256/`; touches nothing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into().join("sha256"),
        }
    }

    /// The folder that holds the blobs' files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the blob lies, or would lie.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!(".{}.partial", digest.hex()))
    }

    /// The blob's size in bytes, if it is there.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest))
            .ok()
            .filter(fs::Metadata::is_file)
            .map(|m| m.len())
    }

    /// Whether the blob is there with exactly `size` bytes.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        self.size(digest) == Some(size)
    }

    /// How many bytes of an unfinished blob have arrived.
    pub fn partial_size(&self, digest: &Digest) -> u64 {
        fs::metadata(self.partial_path(digest)).map_or(0, |m| m.len())
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`Error::Missing`] if it is not there.
    pub fn open(&self, digest: &Digest) -> Result<File, Error> {
        File::open(self.path(digest)).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::Missing(digest.clone()),
            _ => Error::io(self.path(digest), e),
        })
    }

    /// Reads a small blob (a manifest, a configuration) whole and verifies its digest.
    ///
    /// # Errors
    /// When it is missing, has more than `limit` bytes, or does not have its digest.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let path = self.path(digest);
        self.open(digest)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(&path, e))?;
        if bytes.len() as u64 > limit {
            let size = self.size(digest).unwrap_or(bytes.len() as u64);
            return Err(Error::TooLarge {
                path: digest.to_string(),
                size,
                limit,
            });
        }
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Error::Corrupt {
                digest: digest.clone(),
                what: format!("its content has the digest {found}"),
            });
        }
        Ok(bytes)
    }

    /// Stores `bytes`, which are small, and returns their digest.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.has(&digest, bytes.len() as u64) {
            let mut writer = self.writer(&digest, bytes.len() as u64, false)?;
            writer.write(bytes)?;
            writer.commit()?;
        }
        Ok(digest)
    }

    /// Begins to receive a blob, or goes on with it where `resume` is set and some of it has arrived.
    ///
    /// What has arrived is hashed again, so a damaged part is found at [`BlobWriter::commit`]. Two writers of one blob must not
    /// work at once; the callers hold a lock.
    ///
    /// # Errors
    /// When the folder or file cannot be made or read.
    pub fn writer(&self, digest: &Digest, size: u64, resume: bool) -> Result<BlobWriter, Error> {
        fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let partial = self.partial_path(digest);
        let io = |e| Error::io(&partial, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!resume)
            .open(&partial)
            .map_err(io)?;
        let mut hasher = Hasher::default();
        let mut written = 0;
        if resume {
            if file.metadata().map_err(io)?.len() > size {
                file.set_len(0).map_err(io)?;
            }
            written = hash_into(&mut file, &mut hasher).map_err(io)?;
        }
        let path = self.path(digest);
        Ok(BlobWriter {
            file,
            hasher,
            written,
            size,
            digest: digest.clone(),
            partial,
            path,
        })
    }

    /// Moves a finished file into the store under the digest that its content was already found to have.
    ///
    /// # Errors
    /// When it cannot be synced or moved.
    pub fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), Error> {
        fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        File::open(file)
            .and_then(|f| f.sync_all())
            .map_err(|e| Error::io(file, e))?;
        fs::rename(file, self.path(digest)).map_err(|e| Error::io(file, e))
    }

    /// Reads the whole blob, in small pieces, and compares size and digest.
    ///
    /// # Errors
    /// [`Error::Missing`], or [`Error::Corrupt`] with what differs.
    pub fn verify(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        let mut hasher = Hasher::default();
        let mut file = self.open(digest)?;
        let found = hash_into(&mut file, &mut hasher).map_err(|e| Error::io(self.path(digest), e))?;
        check(digest, size, found, hasher.finish())
    }

    /// The digests of all whole blobs.
    ///
    /// # Errors
    /// When the folder cannot be read; an absent one holds nothing.
    pub fn list(&self) -> Result<Vec<Digest>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.dir, e)),
        };
        let mut digests = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.dir, e))?;
            if let Ok(digest) = format!("sha256:{}", entry.file_name().to_string_lossy()).parse() {
                digests.push(digest);
            }
        }
        digests.sort();
        Ok(digests)
    }

    /// Removes a blob and what has arrived of it; an absent one is no error.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), Error> {
        for path in [self.path(digest), self.partial_path(digest)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn hash_into(file: &mut File, hasher: &mut Hasher) -> std::io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                total += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn check(digest: &Digest, size: u64, found_size: u64, found: Digest) -> Result<(), Error> {
    let corrupt = |what| {
        Err(Error::Corrupt {
            digest: digest.clone(),
            what,
        })
    };
    if found_size != size {
        return corrupt(format!("it has {found_size} bytes instead of {size}"));
    }
    if found != *digest {
        return corrupt(format!("its content has the digest {found}"));
    }
    Ok(())
}

/// A blob on its way in.
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    hasher: Hasher,
    written: u64,
    size: u64,
    digest: Digest,
    partial: PathBuf,
    path: PathBuf,
}

impl BlobWriter {
    /// How many bytes are there already: where the sender must go on.
    pub fn offset(&self) -> u64 {
        self.written
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// When the disk refuses, or when more bytes come than were announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let total = self.written + bytes.len() as u64;
        if total > self.size {
            let what = format!("more than the announced {} bytes arrived", self.size);
            return Err(Error::Corrupt {
                digest: self.digest.clone(),
                what,
            });
        }
        self.file.write_all(bytes).map_err(|e| Error::io(&self.partial, e))?;
        self.hasher.update(bytes);
        self.written = total;
        Ok(())
    }

    /// Verifies the content and makes the blob visible, durably.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when size or digest differ; the content is then thrown away.
    pub fn commit(self) -> Result<(), Error> {
        let io = |e| Error::io(&self.partial, e);
        if let Err(corrupt) = check(&self.digest, self.size, self.written, self.hasher.finish()) {
            fs::remove_file(&self.partial).map_err(io)?;
            return Err(corrupt);
        }
        self.file.sync_data().map_err(io)?;
        fs::rename(&self.partial, &self.path).map_err(io)
    }
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, BlobStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::new(dir.path());
        (dir, store)
    }

    #[test]
    fn a_blob_is_visible_only_when_whole_and_verified() {
        let (_dir, store) = store();
        let content = b"some content";
        let digest = Digest::of(content);
        let mut writer = store.writer(&digest, content.len() as u64, true).unwrap();
        writer.write(&content[..4]).unwrap();
        drop(writer);
        assert_eq!((store.size(&digest), store.partial_size(&digest)), (None, 4));
        let mut writer = store.writer(&digest, content.len() as u64, true).unwrap();
        assert_eq!(writer.offset(), 4);
        writer.write(&content[4..]).unwrap();
        writer.commit().unwrap();
        assert_eq!(store.read(&digest, 100).unwrap(), content);
        assert_eq!((store.partial_size(&digest), store.list().unwrap()), (0, vec![digest]));
    }

    #[test]
    fn damaged_content_is_refused_and_forgotten() {
        let (_dir, store) = store();
        let digest = Digest::of(b"right");
        for content in [&b"wrong"[..], b"righ"] {
            let mut writer = store.writer(&digest, 5, false).unwrap();
            writer.write(content).unwrap();
            assert!(matches!(writer.commit(), Err(Error::Corrupt { .. })));
            assert_eq!((store.size(&digest), store.partial_size(&digest)), (None, 0));
        }
        let mut writer = store.writer(&digest, 5, false).unwrap();
        assert!(matches!(writer.write(b"right and more"), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_bit_flipped_on_disk_is_found() {
        let (_dir, store) = store();
        let digest = store.put(b"content").unwrap();
        store.verify(&digest, 7).unwrap();
        fs::write(store.path(&digest), b"c0ntent").unwrap();
        assert!(matches!(store.verify(&digest, 7), Err(Error::Corrupt { .. })));
        assert!(matches!(store.read(&digest, 100), Err(Error::Corrupt { .. })));
        store.remove(&digest).unwrap();
        assert!(matches!(store.open(&digest), Err(Error::Missing(_))));
    }
}
