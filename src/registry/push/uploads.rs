//! Uploads under way: one file each, which becomes a blob when it is whole and has its digest.
//!
//! ```text
//!            POST               PATCH, PUT (a part)             PUT (digest)
//!   nothing ──────► open, 0 bytes ──────► open, n bytes ──┬──────────────────► blob
//!                      │  ▲                   │  ▲        └─ another digest ─► nothing
//!                      │  └── restart ────────┘  └─ out of order, broken off: n stays
//!                      └─ DELETE, or nothing came for too long ──────────────► nothing
//! ```
//!
//! The file's name says the upload and its repository, its length how much has come, its age when something last came: nothing
//! else is needed to go on after a restart, except that the bytes are hashed again.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use oci::{Digest, Hasher};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::links::entries;
use crate::answer::{Code, Refusal};

/// How much is read at once when what has come is hashed again, in bytes.
const CHUNK: usize = 256 << 10;

/// The uploads of a store.
#[derive(Debug)]
pub struct Uploads {
    dir: PathBuf,
    /// Most uploads that may be open.
    limit: usize,
    open: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<Option<Upload>>>>>,
}

/// An upload that nobody else writes to meanwhile; empty when it has ended.
pub type Held = OwnedMutexGuard<Option<Upload>>;

/// The state of an upload.
#[derive(Debug)]
pub struct Upload {
    path: PathBuf,
    /// Bytes that have come.
    pub size: u64,
    /// Of the bytes that have come; absent after a restart.
    hasher: Option<Hasher>,
}

impl Uploads {
    /// The uploads in a folder. Those of an earlier run go on.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(dir: impl Into<PathBuf>, limit: usize) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        let mut open = HashMap::new();
        for path in entries(&dir)? {
            let upload = Upload {
                size: fs::metadata(&path)?.len(),
                path: path.clone(),
                hasher: None,
            };
            open.insert(path, Arc::new(tokio::sync::Mutex::new(Some(upload))));
        }
        Ok(Self {
            dir,
            limit,
            open: Mutex::new(open),
        })
    }

    /// How many uploads are open.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<tokio::sync::Mutex<Option<Upload>>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, repository: &str, id: &Uuid) -> PathBuf {
        let repository = Digest::of(repository.as_bytes());
        self.dir.join(format!("{id}.{}", repository.short()))
    }

    /// Begins an upload and returns its name.
    ///
    /// # Errors
    /// When too many are open, or the disk refuses.
    pub fn begin(&self, repository: &str) -> Result<Uuid, Refusal> {
        let id = Uuid::new_v4();
        let path = self.path(repository, &id);
        let mut open = self.all();
        if open.len() >= self.limit {
            let message = "too many uploads are open; finish or cancel some, or wait until the oldest are given up";
            let refusal = Refusal::new(Code::TooManyRequests, message, &format!("{} uploads", open.len()));
            return Err(refusal.with(http::header::RETRY_AFTER, "30"));
        }
        File::create_new(&path)?;
        let upload = Upload {
            path: path.clone(),
            size: 0,
            hasher: Some(Hasher::default()),
        };
        open.insert(path, Arc::new(tokio::sync::Mutex::new(Some(upload))));
        Ok(id)
    }

    /// Takes hold of an upload, waiting at most `patience` for who holds it now.
    ///
    /// # Errors
    /// When there is no such upload in this repository, or somebody else goes on writing to it.
    pub async fn hold(&self, repository: &str, id: &str, patience: Duration) -> Result<Held, Refusal> {
        let unknown = || {
            let message = "no such upload: it was never begun here, has ended, or was given up";
            Refusal::new(Code::BlobUploadUnknown, message, id)
        };
        let path = self.path(repository, &id.parse().map_err(|_| unknown())?);
        let upload = self.all().get(&path).map(Arc::clone).ok_or_else(unknown)?;
        let held = tokio::time::timeout(patience, upload.lock_owned()).await.map_err(|_| {
            let message = "another request is writing to this upload";
            Refusal::new(Code::TooManyRequests, message, id).with(http::header::RETRY_AFTER, "10")
        })?;
        if held.is_some() { Ok(held) } else { Err(unknown()) }
    }

    /// Ends an upload without a blob.
    pub fn cancel(&self, held: &mut Held) {
        if let Some(upload) = held.take() {
            self.forget(&upload.path);
        }
    }

    /// Ends an upload whose file was moved away.
    fn forget(&self, path: &Path) {
        self.all().remove(path);
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "an upload's file stays");
            }
            _ => {}
        }
    }

    /// Makes an upload a blob, if it has the digest; it ends either way.
    ///
    /// `adopt` moves the file to where blobs are.
    ///
    /// # Errors
    /// When the content has another digest, or the disk refuses.
    pub fn finish(
        &self,
        held: &mut Held,
        digest: &Digest,
        adopt: impl FnOnce(&Path) -> Result<(), oci::Error>,
    ) -> Result<(), Refusal> {
        let Some(upload) = held.as_mut() else {
            return Err(Refusal::new(Code::BlobUploadUnknown, "the upload has ended", ""));
        };
        let found = upload.hasher()?.clone().finish();
        let result = if found == *digest {
            adopt(&upload.path).map_err(Refusal::from)
        } else {
            let detail = format!(
                "{} with the digest {found} came for {digest}",
                oci::counted(upload.size, "byte")
            );
            Err(Refusal::new(
                Code::DigestInvalid,
                "the content does not have the digest",
                &detail,
            ))
        };
        self.cancel(held);
        result
    }

    /// Gives up the uploads to which nothing has come for `patience`; returns how many.
    pub fn give_up(&self, patience: Duration) -> usize {
        let now = SystemTime::now();
        let all: Vec<_> = self.all().values().map(Arc::clone).collect();
        let mut given_up = 0;
        for upload in all {
            // Who holds it is writing to it.
            let Ok(mut held) = upload.try_lock_owned() else {
                continue;
            };
            let age = held
                .as_ref()
                .and_then(|upload| fs::metadata(&upload.path).ok()?.modified().ok())
                .and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age >= patience) {
                self.cancel(&mut held);
                given_up += 1;
            }
        }
        given_up
    }
}

impl Upload {
    /// The hasher of what has come; after a restart that is read again.
    fn hasher(&mut self) -> io::Result<&mut Hasher> {
        if self.hasher.is_none() {
            let mut file = File::open(&self.path)?;
            let mut hasher = Hasher::default();
            let mut buffer = vec![0; CHUNK];
            let mut size = 0;
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => {
                        hasher.update(&buffer[..count]);
                        size += count as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.size = size;
            self.hasher = Some(hasher);
        }
        Ok(self.hasher.get_or_insert_default())
    }

    /// Opens the upload's file to add to it.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub fn append(&mut self) -> io::Result<Appending<'_>> {
        self.hasher()?;
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        // What a write that failed half-way has left behind was not hashed.
        file.set_len(self.size)?;
        file.seek(SeekFrom::End(0))?;
        let before = (self.size, self.hasher.clone());
        Ok(Appending {
            upload: self,
            file,
            before,
        })
    }
}

/// An upload that bytes are being added to.
#[derive(Debug)]
pub struct Appending<'a> {
    upload: &'a mut Upload,
    file: File,
    before: (u64, Option<Hasher>),
}

impl Appending<'_> {
    /// Adds bytes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&mut self, bytes: &Bytes) -> io::Result<()> {
        self.file.write_all(bytes)?;
        if let Some(hasher) = &mut self.upload.hasher {
            hasher.update(bytes);
        }
        self.upload.size += bytes.len() as u64;
        Ok(())
    }

    /// Takes back what was added since the upload was opened.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn undo(self) -> io::Result<()> {
        (self.upload.size, self.upload.hasher) = self.before;
        self.file.set_len(self.upload.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(10);

    fn uploads(dir: &Path, limit: usize) -> Uploads {
        Uploads::open(dir.join("uploads"), limit).unwrap()
    }

    fn add(held: &mut Held, bytes: &'static [u8]) {
        let mut appending = held.as_mut().unwrap().append().unwrap();
        appending.write(&Bytes::from_static(bytes)).unwrap();
    }

    #[tokio::test]
    async fn an_upload_goes_on_after_a_restart_and_becomes_the_blob_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let before = uploads(dir.path(), 9);
        let id = before.begin("localhost/a").unwrap().to_string();
        add(&mut before.hold("localhost/a", &id, PATIENCE).await.unwrap(), b"first ");
        drop(before);

        let after = uploads(dir.path(), 9);
        assert_eq!(after.count(), 1);
        let mut held = after.hold("localhost/a", &id, PATIENCE).await.unwrap();
        assert_eq!(held.as_ref().unwrap().size, 6);
        add(&mut held, b"second");
        let target = dir.path().join("blob");
        let adopt = |path: &Path| fs::rename(path, &target).map_err(|error| oci::Error::io(path, error));
        after.finish(&mut held, &Digest::of(b"first second"), adopt).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"first second");
        drop(held);
        let ended = after.hold("localhost/a", &id, PATIENCE).await.unwrap_err();
        assert_eq!((ended.code(), after.count()), (Code::BlobUploadUnknown, 0));
    }

    #[tokio::test]
    async fn content_with_another_digest_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = uploads(dir.path(), 9);
        let id = uploads.begin("localhost/a").unwrap().to_string();
        let mut held = uploads.hold("localhost/a", &id, PATIENCE).await.unwrap();
        add(&mut held, b"wrong");
        let refused = uploads
            .finish(&mut held, &Digest::of(b"right"), |_| panic!("adopted"))
            .unwrap_err();
        assert_eq!((refused.code(), uploads.count()), (Code::DigestInvalid, 0));
        assert!(entries(&dir.path().join("uploads")).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_was_added_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = uploads(dir.path(), 9);
        let id = uploads.begin("localhost/a").unwrap().to_string();
        let mut held = uploads.hold("localhost/a", &id, PATIENCE).await.unwrap();
        add(&mut held, b"kept");
        let mut appending = held.as_mut().unwrap().append().unwrap();
        appending.write(&Bytes::from_static(b" not kept")).unwrap();
        appending.undo().unwrap();
        add(&mut held, b"!");
        let adopt = |path: &Path| {
            assert_eq!(fs::read(path).unwrap(), b"kept!");
            Ok(())
        };
        uploads.finish(&mut held, &Digest::of(b"kept!"), adopt).unwrap();
    }

    #[tokio::test]
    async fn uploads_are_of_one_repository_one_writer_and_limited_in_number() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = uploads(dir.path(), 1);
        let id = uploads.begin("localhost/a").unwrap().to_string();
        assert_eq!(uploads.begin("localhost/a").unwrap_err().code(), Code::TooManyRequests);
        for (repository, id) in [("localhost/b", id.as_str()), ("localhost/a", "../../etc/passwd")] {
            let unknown = uploads.hold(repository, id, PATIENCE).await.unwrap_err();
            assert_eq!(unknown.code(), Code::BlobUploadUnknown);
        }
        let held = uploads.hold("localhost/a", &id, PATIENCE).await.unwrap();
        let busy = uploads.hold("localhost/a", &id, PATIENCE).await.unwrap_err();
        assert_eq!(busy.code(), Code::TooManyRequests);
        assert_eq!(uploads.give_up(Duration::ZERO), 0, "it is being written to");
        drop(held);
        assert_eq!(uploads.give_up(Duration::from_secs(60)), 0, "it is new");
        assert_eq!((uploads.give_up(Duration::ZERO), uploads.count()), (1, 0));
    }
}
