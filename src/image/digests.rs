//! Digests of files that have not changed since they were last read.
//!
//! A file is the same as before if everything the kernel changes together with its content is: device, inode, size, times of
//! modification and of change. The change time can't be set by anybody, so a file rewritten with its old size and its old
//! modification time is noticed. What remains is the clock's grain: a file written again within the same tick in which it
//! was hashed looks unchanged. Therefore a digest is only kept for files that had been left alone for [`GRAIN`] when they were read.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::io;
use crate::store::Store;

/// Coarser than any file system's clock.
const GRAIN: Duration = Duration::from_secs(2);
/// What nobody asked for in so many days is forgotten.
const FORGOTTEN_AFTER: u64 = 30;
const KIND: &str = "digests";
/// Part of the key: changes when what is kept changes.
const FORMAT: &str = "digests/1\n";

/// What changes whenever a file's content does. Times in seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(meta: &Metadata) -> Stamp {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn of_file(file: &File) -> std::io::Result<Stamp> {
        Ok(Stamp::of(&file.metadata()?))
    }

    /// Whether another change after `now` would give another stamp.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        Duration::new(seconds, nanos) + GRAIN <= now
    }
}

/// What is known of the files below one folder.
#[derive(Debug)]
pub(crate) struct Digests {
    key: Digest,
    today: u64,
    files: Mutex<BTreeMap<String, Known>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    digest: Digest,
    /// The day it was last asked for, since 1970.
    used: u64,
}

impl Digests {
    /// What the store remembers of `folder`; nothing if that can't be read.
    pub(crate) fn load(store: &Store, folder: &Path) -> Digests {
        let key = Digest::of(format!("{FORMAT}{}", folder.display()).as_bytes());
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Digests {
            files: Mutex::new(store.cache_get(KIND, &key).unwrap_or_default()),
            today: now.as_secs() / 86_400,
            key,
        }
    }

    /// The digest of the file at `path` below the folder, if it still has this stamp.
    pub(crate) fn get(&self, path: &str, stamp: &Stamp) -> Option<Digest> {
        let mut files = self.files.lock().ok()?;
        let known = files.get_mut(path).filter(|known| known.stamp == *stamp)?;
        known.used = self.today;
        Some(known.digest.clone())
    }

    /// Keeps a digest together with the stamp that [`hash`] gave.
    pub(crate) fn put(&self, path: &str, stamp: Stamp, digest: Digest) {
        let used = self.today;
        if let Ok(mut files) = self.files.lock() {
            files.insert(path.to_string(), Known { stamp, digest, used });
        }
    }

    /// Writes it all down for the next build. It is only a shortcut, so a failure changes nothing.
    pub(crate) fn save(&self, store: &Store) {
        if let Ok(mut files) = self.files.lock() {
            files.retain(|_, known| known.used + FORGOTTEN_AFTER >= self.today);
            let _ = store.cache_put(KIND, &self.key, &*files);
        }
    }
}

/// What [`hash`] found.
pub(crate) struct Hashed {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// The file's stamp, if it stands for this content for good.
    pub(crate) stamp: Option<Stamp>,
}

/// Reads a file that is no link. `buffer` is only for use.
pub(crate) fn hash(path: &Path, buffer: &mut [u8]) -> Result<Hashed, Error> {
    use rustix::fs::{Mode, OFlags};
    let cannot = |error: std::io::Error| Error::io("cannot read", path)(error);
    let started = SystemTime::now();
    // Without waiting: since it was looked at, the file may have become a pipe.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| cannot(error.into()))?;
    let mut file = File::from(file);
    let before = Stamp::of_file(&file).map_err(cannot)?;
    let (digest, size) = io::digest_by(&mut file, buffer).map_err(cannot)?;
    if Stamp::of_file(&file).map_err(cannot)? != before {
        return Err(Error::path(path.display().to_string(), "it changed while it was read"));
    }
    Ok(Hashed {
        digest,
        size,
        stamp: before.is_settled(started).then_some(before),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn stamp(path: &Path) -> Stamp {
        Stamp::of(&fs::symlink_metadata(path).unwrap())
    }

    #[test]
    fn any_rewrite_gives_another_stamp_even_with_the_old_size_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "one").unwrap();
        let (first, modified) = (stamp(&path), fs::metadata(&path).unwrap().modified().unwrap());
        // In place, and replaced by another file: the clock may not have ticked yet, so until it has.
        for replace in [false, true] {
            let mut rewritten = first;
            while rewritten == first {
                let target = if replace { dir.path().join("g") } else { path.clone() };
                fs::write(&target, "two").unwrap();
                fs::File::options()
                    .write(true)
                    .open(&target)
                    .unwrap()
                    .set_modified(modified)
                    .unwrap();
                fs::rename(&target, &path).unwrap();
                rewritten = stamp(&path);
            }
            assert_eq!((rewritten.size, rewritten.modified), (first.size, first.modified));
            assert_ne!(rewritten, first);
        }
    }

    #[test]
    fn a_file_changed_just_now_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "one").unwrap();
        let hashed = hash(&path, &mut [0; 16]).unwrap();
        assert_eq!((hashed.digest, hashed.size), (Digest::of(b"one"), 3));
        assert_eq!(hashed.stamp, None);
        let stamp = stamp(&path);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(stamp.changed.0 as u64, stamp.changed.1 as u32);
        for (after, settled) in [(0, false), (1_999, false), (2_000, true), (60_000, true)] {
            assert_eq!(
                stamp.is_settled(changed + Duration::from_millis(after)),
                settled,
                "{after}"
            );
        }
        assert!(
            !stamp.is_settled(changed - Duration::from_secs(3600)),
            "a clock that was set back proves nothing"
        );
    }

    #[test]
    fn what_is_kept_survives_and_what_differs_or_is_old_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "one").unwrap();
        let digests = Digests::load(&store, dir.path());
        digests.put("f", stamp(&path), Digest::of(b"one"));
        digests.put("old", stamp(&path), Digest::of(b"one"));
        digests.files.lock().unwrap().get_mut("old").unwrap().used = digests.today - FORGOTTEN_AFTER - 1;
        digests.save(&store);
        let again = Digests::load(&store, dir.path());
        assert_eq!(again.get("f", &stamp(&path)), Some(Digest::of(b"one")));
        assert_eq!(again.get("old", &stamp(&path)), None);
        assert_eq!(
            Digests::load(&store, &path).get("f", &stamp(&path)),
            None,
            "of another folder"
        );
        let other = Stamp {
            inode: 0,
            ..stamp(&path)
        };
        assert_eq!(again.get("f", &other), None);
    }

    #[test]
    fn links_and_pipes_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (link, pipe) = (dir.path().join("link"), dir.path().join("pipe"));
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
        assert!(hash(&link, &mut [0; 16]).is_err());
        assert_eq!(
            hash(&pipe, &mut [0; 16]).unwrap().size,
            0,
            "it does not wait for a writer"
        );
    }
}
