//! Reading files out of layers, and a staging folder that holds a whole tree for RUN.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use oci::{BlobStore, Descriptor, Digest};

use crate::error::Error;
use crate::io;
use crate::layer::open_layer;
use crate::store::Store;
use crate::tarball;
use crate::tree::{Change, Changes, Entry, Kind, Source, Tree, check_name, normalize};
use crate::walk::{Links, Modes, Walk};

/// Calls `take` with every wanted regular file of a layer, as it streams by.
pub(crate) fn files_of_layer(
    blobs: &BlobStore,
    layer: &Descriptor,
    wanted: &BTreeSet<String>,
    mut take: impl FnMut(&str, &mut dyn Read) -> Result<(), Error>,
) -> Result<(), Error> {
    let cannot = |error| Error::io("cannot read the layer", blobs.path(&layer.digest))(error);
    let mut left = wanted.len();
    if left == 0 {
        return Ok(());
    }
    tarball::visit(open_layer(blobs, layer)?, cannot, |item, reader| {
        let path = normalize(&item.exact_path()?)?;
        if wanted.contains(&path) && item.kind.is_file() {
            left -= 1;
            take(&path, reader)?;
        }
        Ok(match left {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    })
}

/// A folder on disk that is made equal to a tree.
pub(crate) struct Staging {
    folder: tempfile::TempDir,
    holds: Tree,
}

impl Staging {
    pub(crate) fn new(store: &Store) -> Result<Staging, Error> {
        Ok(Staging {
            folder: store.work_folder()?,
            holds: Tree::default(),
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    /// Brings the folder from what it holds to `tree`.
    pub(crate) fn fill(
        &mut self,
        store: &Store,
        layers: &BTreeMap<Digest, Descriptor>,
        tree: &Tree,
    ) -> Result<(), Error> {
        let root = self.path();
        fs::create_dir_all(&root).map_err(Error::io("cannot make", &root))?;
        let changes = self.holds.difference(tree);
        let mut from_layers: BTreeMap<&Digest, BTreeSet<String>> = BTreeMap::new();
        for (path, change) in &changes.0 {
            remove(&root.join(path), change)?;
            if let Change::Put(Entry {
                kind:
                    Kind::File {
                        source: Source::Layer(layer),
                        ..
                    },
                ..
            }) = change
            {
                from_layers.entry(layer).or_default().insert(path.clone());
            } else if let Change::Put(entry) = change {
                put(&root.join(path), entry)?;
            }
        }
        for (digest, wanted) in from_layers {
            let layer = layers.get(digest).ok_or_else(|| oci::Error::Missing(digest.clone()))?;
            files_of_layer(store.blobs(), layer, &wanted, |path, reader| {
                let target = root.join(path);
                let mut file = File::create(&target).map_err(Error::io("cannot write", &target))?;
                io::copy(reader, &mut file).map_err(Error::io("cannot write", &target))?;
                tree.0.get(path).map_or(Ok(()), |entry| set_mode(&target, entry.mode))
            })?;
        }
        // Folders last: one without write permission must not stop its own content.
        for (path, change) in changes.0.iter().rev() {
            if let Change::Put(Entry { mode, kind: Kind::Dir }) = change {
                set_mode(&root.join(path), *mode)?;
            }
        }
        self.holds = tree.clone();
        Ok(())
    }

    /// What happened in the folder since [`Staging::fill`]; from now on that is what it holds.
    pub(crate) fn changes(&mut self) -> Result<Changes, Error> {
        let now = Walk::new(Modes::Exact, Links::Any).run(&self.path())?;
        let now = Tree(now.into_iter().collect());
        let changes = self.holds.difference(&now);
        changes.0.keys().try_for_each(|path| check_name(path))?;
        self.holds = now;
        Ok(changes)
    }
}

fn remove(path: &Path, change: &Change) -> Result<(), Error> {
    let Ok(meta) = path.symlink_metadata() else {
        return Ok(());
    };
    let cannot = Error::io("cannot remove", path);
    match change {
        Change::Put(Entry { kind: Kind::Dir, .. }) if meta.is_dir() => Ok(()),
        _ if meta.is_dir() => fs::remove_dir_all(path).map_err(cannot),
        _ => fs::remove_file(path).map_err(cannot),
    }
}

fn put(path: &Path, entry: &Entry) -> Result<(), Error> {
    let cannot = Error::io("cannot write", path);
    match &entry.kind {
        Kind::Dir if path.is_dir() => Ok(()),
        Kind::Dir => fs::create_dir(path).map_err(cannot),
        Kind::Link { target } => symlink(target, path).map_err(cannot),
        Kind::File { source, .. } => {
            if let Some(from) = source.file()? {
                fs::copy(from, path).map_err(cannot)?;
                set_mode(path, entry.mode)?;
            }
            Ok(())
        }
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("cannot change the mode of", path))
}
