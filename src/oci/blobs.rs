//! Content-addressed blobs in a folder: `<dir>/sha256/<hex>`.
//!
//! A blob's file appears only when it is whole and verified. What has arrived of an unfinished one is kept beside it as
//! `.<hex>.partial`, so that a transfer can go on where it stopped. Its writer holds a lock on that file, so a second one
//! waits, in whatever process it is.

use crate::{Digest, Eager, Error, Hasher, PIECE};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek as _, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

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

    /// Opens what has arrived of an unfinished blob, for reading along while it grows. Nothing of it is verified. The file stays readable when
    /// the blob becomes whole.
    ///
    /// # Errors
    /// [`Error::Missing`] if nothing has arrived, or all.
    pub fn open_partial(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.partial_path(digest);
        File::open(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::Missing(digest.clone()),
            _ => Error::io(path, e),
        })
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
    /// What has arrived is hashed again, so a damaged part is found at [`BlobWriter::commit`]. Waits while another process
    /// or thread writes the same blob; the caller then looks again whether the blob is there.
    ///
    /// # Errors
    /// When the folder or file cannot be made, locked or read.
    pub fn writer(&self, digest: &Digest, size: u64, resume: bool) -> Result<BlobWriter, Error> {
        fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let partial = self.partial_path(digest);
        let file = lock_partial(&partial).map_err(|e| Error::io(&partial, e))?;
        let mut writer = BlobWriter {
            file,
            hasher: Hasher::default(),
            written: 0,
            eager: Eager::default(),
            size,
            digest: digest.clone(),
            path: self.path(digest),
            partial,
        };
        let length = writer.file.metadata().map_err(|e| Error::io(&writer.partial, e))?.len();
        if !resume || length > size {
            writer.restart()?;
        } else {
            let found = writer.hasher.read(&mut writer.file, &mut vec![0; PIECE]);
            writer.written = found.map_err(|e| Error::io(&writer.partial, e))?;
        }
        Ok(writer)
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
        let mut file = self.open(digest)?;
        let (found, found_size) = Digest::of_reader(&mut file).map_err(|e| Error::io(self.path(digest), e))?;
        check(digest, size, found_size, found)
    }

    /// Makes sure that blobs which came before are found after a power failure.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync(&self) -> Result<(), Error> {
        match File::open(&self.dir).and_then(|dir| dir.sync_all()) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(&self.dir, e)),
            _ => Ok(()),
        }
    }

    /// What has arrived of unfinished blobs: digest and bytes so far.
    ///
    /// # Errors
    /// When the folder cannot be read; an absent one holds nothing.
    pub fn list_partial(&self) -> Result<Vec<(Digest, u64)>, Error> {
        let name = |name: &str| name.strip_prefix('.')?.strip_suffix(".partial").map(str::to_owned);
        let mut partial = Vec::new();
        for digest in self.names(name)? {
            partial.push((digest.clone(), self.partial_size(&digest)));
        }
        Ok(partial)
    }

    /// Forgets what has arrived of an unfinished blob; nothing is no error. The caller makes sure that nobody writes it.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn remove_partial(&self, digest: &Digest) -> Result<(), Error> {
        remove_file(&self.partial_path(digest))
    }

    /// The digests of all whole blobs.
    ///
    /// # Errors
    /// When the folder cannot be read; an absent one holds nothing.
    pub fn list(&self) -> Result<Vec<Digest>, Error> {
        self.names(|name| Some(name.to_owned()))
    }

    /// The digests in the names of files, sorted; `hex` takes them out of the names.
    fn names(&self, hex: impl Fn(&str) -> Option<String>) -> Result<Vec<Digest>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.dir, e)),
        };
        let mut digests = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.dir, e))?;
            let hex = hex(&entry.file_name().to_string_lossy());
            digests.extend(hex.and_then(|hex| format!("sha256:{hex}").parse().ok()));
        }
        digests.sort();
        Ok(digests)
    }

    /// Removes a blob and what has arrived of it; an absent one is no error.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), Error> {
        remove_file(&self.path(digest))?;
        self.remove_partial(digest)
    }
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Opens the file and waits until nobody else writes it.
fn lock_partial(path: &Path) -> std::io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.lock()?;
        // Whoever was waited for has moved the file away, or removed it: a lock on that one is worth nothing.
        let same = fs::symlink_metadata(path).is_ok_and(|now| match file.metadata() {
            Ok(held) => (held.dev(), held.ino()) == (now.dev(), now.ino()),
            Err(_) => false,
        });
        if same {
            return Ok(file);
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
        return corrupt(format!(
            "it has {} instead of {size}",
            crate::counted(found_size, "byte")
        ));
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
    eager: Eager,
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
            let what = format!("more than the announced {} arrived", crate::counted(self.size, "byte"));
            return Err(Error::Corrupt {
                digest: self.digest.clone(),
                what,
            });
        }
        self.file.write_all(bytes).map_err(|e| Error::io(&self.partial, e))?;
        self.hasher.update(bytes);
        self.written = total;
        self.eager.grown(&self.file, total);
        Ok(())
    }

    /// Forgets what has arrived and begins again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn restart(&mut self) -> Result<(), Error> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|e| Error::io(&self.partial, e))?;
        self.hasher = Hasher::default();
        self.written = 0;
        self.eager = Eager::default();
        Ok(())
    }

    /// Forgets what has arrived, and ends.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub fn discard(self) -> Result<(), Error> {
        remove_file(&self.partial)
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
    fn a_second_writer_of_one_blob_waits_for_the_first_and_then_finds_the_blob() {
        let (_dir, store) = store();
        let digest = Digest::of(b"content");
        let mut first = store.writer(&digest, 7, true).unwrap();
        first.write(b"con").unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sender.send(None).unwrap();
                let second = store.writer(&digest, 7, true).unwrap();
                sender.send(Some((store.has(&digest, 7), second.offset()))).unwrap();
                second.discard().unwrap();
            });
            assert_eq!(receiver.recv().unwrap(), None);
            let waited = receiver.recv_timeout(std::time::Duration::from_millis(100));
            assert!(waited.is_err(), "the second one did not wait");
            first.write(b"tent").unwrap();
            first.commit().unwrap();
            assert_eq!(receiver.recv().unwrap(), Some((true, 0)));
        });
        assert_eq!(store.read(&digest, 10).unwrap(), b"content");
        assert!(store.list_partial().unwrap().is_empty());
    }

    #[test]
    fn what_has_arrived_is_listed_started_again_and_forgotten() {
        let (_dir, store) = store();
        let digest = Digest::of(b"content");
        let mut writer = store.writer(&digest, 7, false).unwrap();
        writer.write(b"xyz").unwrap();
        assert_eq!(store.list_partial().unwrap(), [(digest.clone(), 3)]);
        assert!(store.list().unwrap().is_empty());
        writer.restart().unwrap();
        writer.write(b"content").unwrap();
        writer.commit().unwrap();
        assert_eq!(store.read(&digest, 10).unwrap(), b"content");
        drop(store.writer(&digest, 7, false).unwrap());
        store.remove_partial(&digest).unwrap();
        assert_eq!(
            (store.list_partial().unwrap(), store.list().unwrap()),
            (vec![], vec![digest])
        );
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
