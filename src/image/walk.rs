//! Folders of this machine as entries: what lies there, with the digest of every file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::digests::{self, Digests, Hashed, Stamp};
use crate::error::Error;
use crate::ignore::{Ignore, Matched};
use crate::io;
use crate::tree::{Entry, Kind, Source};

/// More threads than this wait for the disk, not for the hash.
const MOST_THREADS: usize = 4;

/// Whether modes are taken as they are or reduced to what version control keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Modes {
    /// 0755 for folders and executables, 0644 for the rest: the same in every checkout, whatever its umask.
    Reduced,
    /// As on disk.
    Exact,
}

/// Whether symbolic links may point anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Only relative ones that stay below the walked folder.
    Inside,
    /// Any.
    Any,
}

/// How a folder is walked.
#[derive(Debug, Clone)]
pub(crate) struct Walk<'a> {
    modes: Modes,
    links: Links,
    /// What is left out, where digests are kept, and the walked folder's path as both know it.
    context: Option<(&'a Ignore, &'a Digests, String)>,
}

/// An entry whose digest may not be known yet.
enum Found {
    Known(Entry),
    Unread { mode: u32, path: PathBuf },
}

impl<'a> Walk<'a> {
    pub(crate) fn new(modes: Modes, links: Links) -> Walk<'a> {
        Walk {
            modes,
            links,
            context: None,
        }
    }

    /// The same for a folder of a build context; `at` is its path there.
    pub(crate) fn in_context(mut self, ignore: &'a Ignore, digests: &'a Digests, at: &str) -> Walk<'a> {
        self.context = Some((ignore, digests, at.to_string()));
        self
    }

    /// Everything below `root` (or `root` itself, under the empty path, if it's a file), parents before children.
    pub(crate) fn run(&self, root: &Path) -> Result<Vec<(String, Entry)>, Error> {
        let mut found = Vec::new();
        let meta = root.symlink_metadata().map_err(Error::io("cannot read", root))?;
        if meta.is_dir() {
            let matched = self.context.as_ref().map(|(ignore, _, at)| ignore.matched_from_top(at));
            self.folder(root, "", &matched.unwrap_or_default(), &mut found)?;
        } else {
            found.push((String::new(), self.entry(root, "", &meta)?));
        }
        self.read(found)
    }

    fn folder(
        &self,
        folder: &Path,
        prefix: &str,
        above: &Matched,
        found: &mut Vec<(String, Found)>,
    ) -> Result<(), Error> {
        for (name, path) in list(folder)? {
            let relative = join(prefix, &name);
            let (matched, left_out) = self.judge(above, &relative);
            let meta = path.symlink_metadata().map_err(Error::io("cannot read", &path))?;
            let may_hold = meta.is_dir() && self.context.as_ref().is_some_and(|(ignore, ..)| ignore.takes_in());
            if left_out && !may_hold {
                continue;
            }
            found.push((relative.clone(), self.entry(&path, &relative, &meta)?));
            if meta.is_dir() {
                let before = found.len();
                self.folder(&path, &relative, &matched, found)?;
                if left_out && found.len() == before {
                    found.pop();
                }
            }
        }
        Ok(())
    }

    fn judge(&self, above: &Matched, relative: &str) -> (Matched, bool) {
        match &self.context {
            None => (Matched::default(), false),
            Some((ignore, _, at)) => {
                let matched = ignore.matched(above, &join(at, relative));
                let left_out = ignore.excludes(&matched).is_some();
                (matched, left_out)
            }
        }
    }

    fn entry(&self, path: &Path, relative: &str, meta: &fs::Metadata) -> Result<Found, Error> {
        let exact = meta.permissions().mode() & 0o7777;
        let mode = match self.modes {
            Modes::Exact => exact,
            Modes::Reduced if meta.is_dir() || exact & 0o111 != 0 => 0o755,
            Modes::Reduced => 0o644,
        };
        let kind = if meta.is_dir() {
            Kind::Dir
        } else if meta.is_symlink() {
            let target = fs::read_link(path).map_err(Error::io("cannot read", path))?;
            if self.links == Links::Inside && !link_stays_inside(relative, &target) {
                let reason = format!("the symbolic link to {} leads out of its folder", target.display());
                return Err(Error::path(path.display().to_string(), reason));
            }
            let target = target.into_os_string().into_string();
            let target =
                target.map_err(|_| Error::path(path.display().to_string(), "the link's target is not UTF-8"))?;
            Kind::Link { target }
        } else if meta.is_file() {
            let path = path.to_path_buf();
            let stamp = Stamp::of(meta);
            let known = self
                .context
                .as_ref()
                .and_then(|(_, digests, at)| digests.get(&join(at, relative), &stamp));
            let Some(digest) = known else {
                return Ok(Found::Unread { mode, path });
            };
            let source = Source::Disk {
                path,
                stamp: Some(stamp),
            };
            let size = meta.len();
            Kind::File { digest, size, source }
        } else {
            return Err(Error::path(
                path.display().to_string(),
                "only files, folders and symbolic links are allowed",
            ));
        };
        Ok(Found::Known(Entry { mode, kind }))
    }

    /// Hashes what isn't known, several files at once.
    fn read(&self, found: Vec<(String, Found)>) -> Result<Vec<(String, Entry)>, Error> {
        let unread = found.iter().filter_map(|(_, found)| match found {
            Found::Unread { path, .. } => Some(path.as_path()),
            Found::Known(_) => None,
        });
        let unread: Vec<&Path> = unread.collect();
        let mut hashed = hash_all(&unread)?.into_iter();
        let mut entries = Vec::with_capacity(found.len());
        for (relative, found) in found {
            let entry = match found {
                Found::Known(entry) => entry,
                Found::Unread { mode, path } => {
                    // There are as many as were asked for, in the same order.
                    let Some(Hashed { digest, size, stamp }) = hashed.next() else {
                        break;
                    };
                    if let (Some((_, digests, at)), Some(stamp)) = (&self.context, stamp) {
                        digests.put(&join(at, &relative), stamp, digest.clone());
                    }
                    let source = Source::Disk { path, stamp };
                    let kind = Kind::File { digest, size, source };
                    Entry { mode, kind }
                }
            };
            entries.push((relative, entry));
        }
        Ok(entries)
    }
}

/// Hashes every file, or says what is wrong with the first in their order that can't be read.
fn hash_all(files: &[&Path]) -> Result<Vec<Hashed>, Error> {
    let results: Vec<Mutex<Option<Result<Hashed, Error>>>> = files.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; io::CHUNK];
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = files.get(index) else { break };
            let result = digests::hash(path, &mut buffer);
            if let Ok(mut place) = results[index].lock() {
                *place = Some(result);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..threads.min(MOST_THREADS).min(files.len()) {
            scope.spawn(work);
        }
        work();
    });
    let interrupted = || {
        Err(Error::Refused(
            "a file was not read because another could not be".to_string(),
        ))
    };
    let take =
        |result: Mutex<Option<Result<Hashed, Error>>>| result.into_inner().ok().flatten().unwrap_or_else(interrupted);
    results.into_iter().map(take).collect()
}

/// A path below another; either may be empty.
pub(crate) fn join(above: &str, below: &str) -> String {
    match (above, below) {
        ("", path) | (path, "") => path.to_string(),
        (above, below) => format!("{above}/{below}"),
    }
}

/// A folder's entries by name.
pub(crate) fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("cannot read", folder))? {
        let entry = entry.map_err(Error::io("cannot read", folder))?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|name| Error::path(name.to_string_lossy(), "the name is not UTF-8"))?;
        entries.push((name, entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// Whether a link at `relative` with this target stays below the folder that `relative` starts at.
pub(crate) fn link_stays_inside(relative: &str, target: &Path) -> bool {
    let mut depth = relative.matches('/').count();
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}
