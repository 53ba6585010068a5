//! A file tree as data: paths to entries, and the difference between two trees that becomes a layer.
//!
//! Content stays where it is; an entry knows its digest and where to read it. Paths are relative, `/`-separated, and
//! never contain `.` or `..`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use std::sync::Arc;

use oci::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::digests::Stamp;
use crate::error::Error;
use crate::unpack::Unpacked;

/// More links than this in a row are a loop.
const LONGEST_CHAIN: usize = 16;

/// One file, folder or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    File { digest: Digest, size: u64, source: Source },
    Link { target: String },
}

/// Where a file's content can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file of this machine; as long as its stamp is this one, its content is what was hashed.
    Disk { path: PathBuf, stamp: Option<Stamp> },
    /// A member of an archive, by its path there.
    Archive(Arc<Unpacked>, String),
    /// The layer with this digest, under the entry's own path.
    Layer(Digest),
}

impl Source {
    /// The file that has the content; none if that is inside a layer. An archive is unpacked for it.
    pub(crate) fn file(&self) -> Result<Option<PathBuf>, Error> {
        match self {
            Source::Disk { path, .. } => Ok(Some(path.clone())),
            Source::Archive(archive, path) => Ok(Some(archive.folder()?.join(path))),
            Source::Layer(_) => Ok(None),
        }
    }
}

/// Beginning of the names that mean a removal in a layer (image-spec, `layer.md`).
pub(crate) const WHITEOUT: &str = ".wh.";

/// Refuses names that a layer could not hold.
pub(crate) fn check_name(path: &str) -> Result<(), Error> {
    match path.split('/').any(|part| part.starts_with(WHITEOUT)) {
        true => Err(Error::path(
            path,
            "names that begin with .wh. mean a removal in a layer",
        )),
        false => Ok(()),
    }
}

impl Entry {
    pub(crate) fn dir(mode: u32) -> Entry {
        Entry { mode, kind: Kind::Dir }
    }

    /// Whether the two look the same in a layer, wherever their content is read from.
    pub(crate) fn same_as(&self, other: &Entry) -> bool {
        let same_kind = match (&self.kind, &other.kind) {
            (Kind::File { digest, .. }, Kind::File { digest: other, .. }) => digest == other,
            (a, b) => a == b,
        };
        // A link's own mode means nothing on Linux.
        same_kind && (self.mode == other.mode || matches!(self.kind, Kind::Link { .. }))
    }
}

/// What a layer does to a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Put(Entry),
    Remove,
}

/// A layer's content, parents before children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes(pub(crate) BTreeMap<String, Change>);

/// A whole tree.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, Entry>);

/// A [`Change`] as it is remembered beside the store and hashed for its key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    Dir {
        path: String,
        mode: u32,
    },
    File {
        path: String,
        mode: u32,
        size: u64,
        digest: Digest,
    },
    Link {
        path: String,
        target: String,
    },
    Remove {
        path: String,
    },
}

impl Record {
    pub(crate) fn path(&self) -> &str {
        match self {
            Record::Dir { path, .. }
            | Record::File { path, .. }
            | Record::Link { path, .. }
            | Record::Remove { path } => path,
        }
    }

    /// The change that is remembered; `source` says where the content of the file at a path is.
    pub(crate) fn change(self, source: impl FnOnce(&str) -> Source) -> (String, Change) {
        match self {
            Record::Remove { path } => (path, Change::Remove),
            Record::Dir { path, mode } => (path, Change::Put(Entry::dir(mode))),
            Record::Link { path, target } => {
                let kind = Kind::Link { target };
                (path, Change::Put(Entry { mode: 0o777, kind }))
            }
            Record::File {
                path,
                mode,
                size,
                digest,
            } => {
                let source = source(&path);
                let kind = Kind::File { digest, size, source };
                (path, Change::Put(Entry { mode, kind }))
            }
        }
    }
}

impl Changes {
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.0.iter().map(|(path, change)| {
            let path = path.clone();
            match change {
                Change::Remove => Record::Remove { path },
                Change::Put(Entry { mode, kind: Kind::Dir }) => Record::Dir { path, mode: *mode },
                Change::Put(Entry {
                    mode,
                    kind: Kind::File { digest, size, .. },
                }) => Record::File {
                    path,
                    mode: *mode,
                    size: *size,
                    digest: digest.clone(),
                },
                Change::Put(Entry {
                    kind: Kind::Link { target },
                    ..
                }) => Record::Link {
                    path,
                    target: target.clone(),
                },
            }
        })
    }

    pub(crate) fn from_records(records: Vec<Record>, layer: &Digest) -> Changes {
        let change = |record: Record| record.change(|_| Source::Layer(layer.clone()));
        Changes(records.into_iter().map(change).collect())
    }

    /// A digest of everything that decides the layer's bytes.
    pub(crate) fn key(&self, format: &str) -> Result<Digest, Error> {
        let mut hasher = Hasher::default();
        hasher.update(format.as_bytes());
        for record in self.records() {
            let line = serde_json::to_vec(&record).map_err(|source| oci::Error::Json {
                path: "layer key".to_string(),
                source,
            })?;
            hasher.update(&line);
            hasher.update(b"\n");
        }
        Ok(hasher.finish())
    }

    /// Adds an entry, and the folders above it that `tree` lacks.
    ///
    /// Fails if something above it is a file or link, or if a folder would take a file's place or the other way round.
    pub(crate) fn put(&mut self, tree: &Tree, path: &str, entry: Entry) -> Result<(), Error> {
        check_name(path)?;
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.effective(tree, parent) {
                Some(Entry { kind: Kind::Dir, .. }) => {}
                Some(_) => return Err(Error::path(path, format!("{parent} is a file, not a folder"))),
                None => {
                    self.0.insert(parent.to_string(), Change::Put(Entry::dir(0o755)));
                }
            }
        }
        let is_dir = |entry: &Entry| matches!(entry.kind, Kind::Dir);
        match self.effective(tree, path) {
            Some(old) if is_dir(old) && !is_dir(&entry) => {
                return Err(Error::path(path, "a folder is there already"));
            }
            Some(old) if !is_dir(old) && is_dir(&entry) => {
                return Err(Error::path(path, "a file is there already"));
            }
            // A copied folder that exists keeps its mode.
            Some(old) if is_dir(old) => return Ok(()),
            _ => {}
        }
        self.0.insert(path.to_string(), Change::Put(entry));
        Ok(())
    }

    fn effective<'a>(&'a self, tree: &'a Tree, path: &str) -> Option<&'a Entry> {
        match self.0.get(path) {
            Some(Change::Put(entry)) => Some(entry),
            Some(Change::Remove) => None,
            None => tree.0.get(path),
        }
    }

    /// Drops what `tree` has already.
    pub(crate) fn without_same(mut self, tree: &Tree) -> Changes {
        self.0.retain(|path, change| match (change, tree.0.get(path)) {
            (Change::Put(new), Some(old)) => !new.same_as(old),
            (Change::Remove, None) => false,
            _ => true,
        });
        self
    }
}

impl Tree {
    /// Lays a layer over the tree.
    pub(crate) fn apply(&mut self, changes: &Changes) {
        for (path, change) in &changes.0 {
            let was_dir = matches!(self.0.get(path), Some(Entry { kind: Kind::Dir, .. }));
            let stays_dir = matches!(change, Change::Put(Entry { kind: Kind::Dir, .. }));
            if was_dir && !stays_dir {
                let below = format!("{path}/");
                self.0.retain(|other, _| !other.starts_with(&below));
            }
            match change {
                Change::Put(entry) => self.0.insert(path.clone(), entry.clone()),
                Change::Remove => self.0.remove(path),
            };
        }
    }

    /// The tree without a folder and what is below it.
    pub(crate) fn without(&self, folder: &str) -> Tree {
        let below = format!("{folder}/");
        let kept = self
            .0
            .iter()
            .filter(|(path, _)| *path != folder && !path.starts_with(&below));
        Tree(kept.map(|(path, entry)| (path.clone(), entry.clone())).collect())
    }

    /// The part of the tree that is a file or folder and what is below it, under the same paths, with the folders above.
    pub(crate) fn part(&self, folder: &str) -> Tree {
        let below = format!("{folder}/");
        let wanted = |path: &str| path == folder || path.starts_with(&below) || folder.starts_with(&format!("{path}/"));
        let kept = self.0.iter().filter(|(path, _)| wanted(path));
        Tree(kept.map(|(path, entry)| (path.clone(), entry.clone())).collect())
    }

    /// What turns this tree into `new`.
    pub(crate) fn difference(&self, new: &Tree) -> Changes {
        let mut changes = BTreeMap::new();
        for (path, entry) in &new.0 {
            if self.0.get(path).is_none_or(|old| !old.same_as(entry)) {
                changes.insert(path.clone(), Change::Put(entry.clone()));
            }
        }
        let mut removed: Option<String> = None;
        for path in self.0.keys().filter(|path| !new.0.contains_key(*path)) {
            // Removing a folder removes what is below it.
            if removed.as_ref().is_some_and(|above| path.starts_with(above.as_str())) {
                continue;
            }
            let replaced = parent_of(path)
                .is_some_and(|parent| new.0.get(parent).is_none_or(|entry| !matches!(entry.kind, Kind::Dir)));
            if !replaced {
                changes.insert(path.clone(), Change::Remove);
            }
            removed = Some(format!("{path}/"));
        }
        Changes(changes)
    }
}

pub(crate) fn parent_of(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

/// A destination or archive path made relative and plain; `..` is refused, `/` and `.` are the root (empty).
pub(crate) fn normalize(path: &str) -> Result<String, Error> {
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => match name.to_str() {
                Some(name) => parts.push(name),
                None => return Err(Error::path(path, "the name is not UTF-8")),
            },
            Component::ParentDir | Component::Prefix(_) => return Err(Error::path(path, "`..` is not allowed")),
        }
    }
    if path.contains('\0') {
        return Err(Error::path(path.replace('\0', "?"), "the name holds a zero byte"));
    }
    Ok(parts.join("/"))
}

/// The path a chain of symbolic links ends at.
pub(crate) fn follow(tree: &Tree, path: &str) -> Result<String, Error> {
    let mut path = path.to_string();
    for _ in 0..LONGEST_CHAIN {
        let Some(Kind::Link { target }) = tree.0.get(&path).map(|entry| &entry.kind) else {
            return Ok(path);
        };
        let mut parts: Vec<&str> = path.split('/').collect();
        parts.pop();
        for part in target.split('/') {
            match part {
                ".." if parts.pop().is_none() => return Err(Error::path(&path, "the link leads out of the rootfs")),
                "" if parts.is_empty() || target.starts_with('/') => {
                    return Err(Error::path(&path, "the link is absolute"));
                }
                ".." | "." | "" => {}
                name => parts.push(name),
            }
        }
        path = parts.join("/");
    }
    Err(Error::path(path, "too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> Entry {
        let source = Source::Disk {
            path: PathBuf::from("x"),
            stamp: None,
        };
        Entry {
            mode: 0o644,
            kind: Kind::File {
                digest: Digest::of(content.as_bytes()),
                size: 1,
                source,
            },
        }
    }

    fn tree(paths: &[&str]) -> Tree {
        Tree(
            paths
                .iter()
                .map(|p| {
                    (
                        p.to_string(),
                        if p.ends_with('d') { Entry::dir(0o755) } else { file(p) },
                    )
                })
                .collect(),
        )
    }

    #[test]
    fn a_difference_applied_gives_the_new_tree() {
        let old = tree(&["ad", "ad/bd", "ad/bd/x", "ad/y", "cd", "cd/z"]);
        let mut new = tree(&["ad", "ad/y", "cd", "cd/z", "cd/n"]);
        new.0.insert("ad/y".into(), file("other"));
        let changes = old.difference(&new);
        let shown: Vec<_> = changes
            .0
            .iter()
            .map(|(p, c)| (p.as_str(), *c == Change::Remove))
            .collect();
        assert_eq!(shown, [("ad/bd", true), ("ad/y", false), ("cd/n", false)]);
        let mut applied = old.clone();
        applied.apply(&changes);
        assert_eq!(applied.0, new.0);
    }

    #[test]
    fn parents_are_made_and_files_are_no_parents() {
        let old = tree(&["f"]);
        let mut changes = Changes::default();
        changes.put(&old, "a/b/c", file("c")).unwrap();
        assert_eq!(changes.0.keys().collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
        assert!(changes.put(&old, "f/x", file("x")).is_err());
        assert!(changes.put(&old, "a/b", file("x")).is_err());
        assert!(changes.put(&old, "f", Entry::dir(0o755)).is_err());
        for reserved in ["a/.wh.x", ".wh..wh..opq", ".wh.d/y"] {
            let error = changes.put(&old, reserved, file("x")).unwrap_err().to_string();
            assert!(error.contains("mean a removal"), "{reserved}: {error}");
        }
    }

    #[test]
    fn paths_become_relative_and_never_climb() {
        for (path, expected) in [
            ("/a//b/", Some("a/b")),
            ("./a", Some("a")),
            ("/", Some("")),
            ("a/../b", None),
        ] {
            assert_eq!(normalize(path).ok().as_deref(), expected, "{path}");
        }
    }
}
