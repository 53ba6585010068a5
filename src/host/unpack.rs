//! Unpacking a rootfs: layers of tar, tar+gzip or tar+zstd, lowest first, into a folder that appears only when it is whole.
//!
//! Nothing leaves the folder: `..`, absolute names, names that lead through a link, links whose target lies outside (but for
//! `/opt/installer/…`, where the rootfs will be seen), devices, pipes and sockets are refused with the entry's name. Whiteouts
//! (image-spec, `layer.md`) take away what lower layers brought.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use oci::{BlobStore, Bounded, Descriptor};
use tar::EntryType;

use crate::{CURRENT, Error, Result, fsops};

/// Unpacks `layers` to `dest`, durably. `closing` set by somebody else ends it.
///
/// # Errors
/// When a layer is damaged or leads out of `dest`, with the entry's name, or the system refuses; `dest` is then not there.
pub fn rootfs(blobs: &BlobStore, layers: &[Descriptor], dest: &Path, closing: &AtomicBool) -> Result<()> {
    let tmp = fsops::temporary(dest);
    fsops::remove_tree(&tmp)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&tmp)
        .map_err(Error::io(&tmp))?;
    for layer in layers {
        let blob = BufReader::with_capacity(256 << 10, blobs.open(&layer.digest)?);
        let refuse = |e: Error| match e {
            Error::Io { .. } => e,
            other => Error::corrupt(format!("layer {}: {other}", layer.digest)),
        };
        match layer.media_type.rsplit('+').next() {
            Some("zstd") => {
                let reader = zstd::Decoder::with_buffer(blob).map_err(Error::io(&tmp))?;
                unpack(Bounded::layer(reader, layer), &tmp, closing).map_err(refuse)?;
            }
            Some("gzip") => {
                let reader = flate2::bufread::MultiGzDecoder::new(blob);
                unpack(Bounded::layer(reader, layer), &tmp, closing).map_err(refuse)?;
            }
            _ if layer.media_type.ends_with(".tar") => unpack(blob, &tmp, closing).map_err(refuse)?,
            _ => {
                return Err(Error::invalid(format!(
                    "layer {} is of unknown type {}",
                    layer.digest, layer.media_type
                )));
            }
        }
    }
    // One flush for the file system instead of one per file.
    let folder = File::open(&tmp).map_err(Error::io(&tmp))?;
    rustix::fs::syncfs(&folder).map_err(|e| Error::io(&tmp)(e.into()))?;
    fs::rename(&tmp, dest).map_err(Error::io(dest))?;
    fsops::sync_parent(dest)
}

/// One layer on its way out.
struct Layer<'a> {
    root: &'a Path,
    /// Folders known to be real folders below the root.
    real: HashSet<PathBuf>,
    /// What this layer brought; whiteouts do not touch it.
    own: HashSet<PathBuf>,
    /// Modes of folders, set at the end so that a read-only one can be filled.
    modes: Vec<(PathBuf, u32)>,
    root_user: bool,
    buffer: Vec<u8>,
}

fn unpack(reader: impl Read, root: &Path, closing: &AtomicBool) -> Result<()> {
    let mut archive = tar::Archive::new(reader);
    let root_user = rustix::process::geteuid().is_root();
    let mut layer = Layer {
        root,
        real: HashSet::new(),
        own: HashSet::new(),
        modes: Vec::new(),
        root_user,
        buffer: vec![0; oci::PIECE],
    };
    let broken = |e: io::Error| Error::corrupt(format!("the archive is damaged: {e}"));
    for entry in archive.entries().map_err(broken)? {
        if closing.load(Ordering::Relaxed) {
            return Err(Error::failed("the client is gone"));
        }
        layer.entry(&mut entry.map_err(broken)?)?;
    }
    for (path, mode) in layer.modes.iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(*mode)).map_err(Error::io(path))?;
    }
    Ok(())
}

/// The plain relative path an entry means, or why it is refused.
fn plain(path: &Path) -> Result<PathBuf> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            // The operator's program names files in JSON: a name it cannot tell exactly must not come here under another.
            Component::Normal(name) if name.to_str().is_none() => {
                return Err(Error::corrupt(format!(
                    "the name of entry '{}' is not UTF-8",
                    path.display()
                )));
            }
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            _ => return Err(Error::corrupt(format!("entry '{}' escapes", path.display()))),
        }
    }
    Ok(out)
}

/// Whether a link at `at` (relative) that says `target` stays inside.
fn stays_inside(at: &Path, target: &Path) -> bool {
    if target.is_absolute() {
        let below = target.strip_prefix(CURRENT).ok();
        return below.is_some_and(|p| p.components().all(|c| matches!(c, Component::Normal(_))));
    }
    let mut depth = at.components().count() as i64 - 1;
    for component in target.components() {
        depth += match component {
            Component::ParentDir => -1,
            Component::Normal(_) => 1,
            _ => 0,
        };
        if depth < 0 {
            return false;
        }
    }
    true
}

impl Layer<'_> {
    fn entry(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let name = entry.path().map_err(|e| Error::corrupt(e.to_string()))?.into_owned();
        let path = plain(&name)?;
        let kind = entry.header().entry_type();
        if path.as_os_str().is_empty() {
            return if kind.is_dir() {
                Ok(())
            } else {
                Err(Error::corrupt(format!("entry '{}' has no name", name.display())))
            };
        }
        self.parents(&path)?;
        if let Some(hidden) = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_prefix(".wh."))
        {
            return self.whiteout(&path, hidden);
        }
        let at = self.root.join(&path);
        let mode = entry.header().mode().map_err(|e| Error::corrupt(e.to_string()))? & 0o7777;
        match kind {
            EntryType::Directory => self.directory(&path, &at, mode)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.replace(&at)?;
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&at)
                    .map_err(Error::io(&at))?;
                oci::copy_by(entry, &mut file, &mut self.buffer).map_err(|e| match e.raw_os_error() {
                    Some(_) => Error::io(&at)(e),
                    None => Error::corrupt(format!("the archive is damaged: {e}")),
                })?;
                self.own_as(entry.header(), &at)?;
                file.set_permissions(fs::Permissions::from_mode(mode))
                    .map_err(Error::io(&at))?;
            }
            EntryType::Symlink => {
                let target = link_target(entry, &name)?;
                if !stays_inside(&path, &target) {
                    return Err(Error::corrupt(format!(
                        "link '{}' → '{}' leads outside",
                        name.display(),
                        target.display()
                    )));
                }
                self.replace(&at)?;
                std::os::unix::fs::symlink(&target, &at).map_err(Error::io(&at))?;
                self.own_as(entry.header(), &at)?;
            }
            EntryType::Link => {
                let target = plain(&link_target(entry, &name)?)?;
                self.parents(&target)?;
                self.replace(&at)?;
                let from = self.root.join(&target);
                if !matches!(fsops::look(&from)?, fsops::There::File(_)) {
                    return Err(Error::corrupt(format!(
                        "hard link '{}' to what is no file",
                        name.display()
                    )));
                }
                fs::hard_link(&from, &at).map_err(Error::io(&at))?;
            }
            other => {
                return Err(Error::corrupt(format!(
                    "entry '{}' is a {other:?}; only files, folders and links are taken",
                    name.display()
                )));
            }
        }
        self.own.insert(path);
        Ok(())
    }

    fn directory(&mut self, path: &Path, at: &Path, mode: u32) -> Result<()> {
        if !matches!(fsops::look(at)?, fsops::There::Dir(_)) {
            self.replace(at)?;
            fs::create_dir(at).map_err(Error::io(at))?;
        }
        self.real.insert(path.to_owned());
        self.modes.push((at.to_owned(), mode));
        Ok(())
    }

    /// Makes sure that every folder above is a real folder, so that no name leads through a link.
    fn parents(&mut self, path: &Path) -> Result<()> {
        let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else {
            return Ok(());
        };
        if self.real.contains(parent) {
            return Ok(());
        }
        self.parents(parent)?;
        let at = self.root.join(parent);
        match fsops::look(&at)? {
            fsops::There::Dir(_) => {}
            fsops::There::Nothing => fs::create_dir(&at).map_err(Error::io(&at))?,
            _ => {
                return Err(Error::corrupt(format!(
                    "entry '{}' leads through '{}', which is no folder",
                    path.display(),
                    parent.display()
                )));
            }
        }
        self.real.insert(parent.to_owned());
        Ok(())
    }

    /// Takes away what is in the place of an entry.
    fn replace(&mut self, at: &Path) -> Result<()> {
        match fsops::look(at)? {
            fsops::There::Nothing => Ok(()),
            fsops::There::Dir(_) => {
                self.forget(at);
                fs::remove_dir_all(at).map_err(Error::io(at))
            }
            _ => fs::remove_file(at).map_err(Error::io(at)),
        }
    }

    fn forget(&mut self, at: &Path) {
        let root = self.root;
        self.real.retain(|known| !root.join(known).starts_with(at));
        self.modes.retain(|(known, _)| !known.starts_with(at));
    }

    fn whiteout(&mut self, path: &Path, hidden: &str) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new(""));
        if hidden == ".wh..opq" {
            let at = self.root.join(folder);
            for entry in fs::read_dir(&at).map_err(Error::io(&at))? {
                let name = entry.map_err(Error::io(&at))?.file_name();
                let inner = folder.join(&name);
                if !self.own.iter().any(|own| own.starts_with(&inner)) {
                    self.replace(&at.join(&name))?;
                }
            }
            return Ok(());
        }
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(Error::corrupt(format!("entry '{}' hides nothing", path.display())));
        }
        let target = folder.join(hidden);
        if self.own.iter().any(|own| own.starts_with(&target)) {
            let what = format!("entry '{}' takes away what the same layer brings", path.display());
            return Err(Error::corrupt(what));
        }
        self.replace(&self.root.join(target))
    }

    fn own_as(&self, header: &tar::Header, at: &Path) -> Result<()> {
        let id = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let (uid, gid) = (id(header.uid()), id(header.gid()));
        if self.root_user && (uid, gid) != (0, 0) {
            fsops::chown(at, uid, gid)
        } else {
            Ok(())
        }
    }
}

fn link_target(entry: &tar::Entry<'_, impl Read>, name: &Path) -> Result<PathBuf> {
    let target = entry.link_name().map_err(|e| Error::corrupt(e.to_string()))?;
    target
        .map(|t| t.into_owned())
        .ok_or_else(|| Error::corrupt(format!("link '{}' says nothing", name.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    enum E<'a> {
        Dir(&'a str),
        File(&'a str, &'a str),
        Link(&'a str, &'a str),
        Hard(&'a str, &'a str),
        Other(&'a str, EntryType),
    }

    fn layer(entries: &[E<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for entry in entries {
            let mut header = tar::Header::new_gnu();
            let (kind, name, body, link) = match entry {
                E::Dir(name) => (EntryType::Directory, *name, "", ""),
                E::File(name, body) => (EntryType::Regular, *name, *body, ""),
                E::Link(name, to) => (EntryType::Symlink, *name, "", *to),
                E::Hard(name, to) => (EntryType::Link, *name, "", *to),
                E::Other(name, kind) => (*kind, *name, "", ""),
            };
            header.set_entry_type(kind);
            header.set_mode(0o755);
            header.set_size(body.len() as u64);
            // By hand: the library itself refuses to write names that escape.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn run(layers: &[Vec<u8>]) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::new(dir.path().join("blobs"));
        let layers: Vec<Descriptor> = layers
            .iter()
            .map(|bytes| {
                let packed = zstd::encode_all(&bytes[..], 1).unwrap();
                Descriptor::new(
                    oci::media_type::LAYER_ZSTD,
                    blobs.put(&packed).unwrap(),
                    packed.len() as u64,
                )
            })
            .collect();
        let result = rootfs(&blobs, &layers, &dir.path().join("rootfs/x"), &AtomicBool::new(false));
        (dir, result)
    }

    #[test]
    fn entries_that_escape_are_refused_by_name() {
        let table: &[(&[E<'_>], &str)] = &[
            (&[E::File("../evil", "x")], "../evil"),
            (&[E::File("/etc/evil", "x")], "/etc/evil"),
            (&[E::File("a/../../evil", "x")], "a/../../evil"),
            (&[E::Link("a", "/etc"), E::File("a/evil", "x")], "leads outside"),
            (&[E::Link("a", "../../etc")], "leads outside"),
            (
                &[E::Dir("d"), E::Link("d/a", "../.."), E::File("d/a/evil", "x")],
                "leads outside",
            ),
            (
                &[E::Dir("d"), E::Link("a", "d"), E::File("a/x", "x")],
                "leads through 'a'",
            ),
            (&[E::Hard("a", "../evil")], "../evil"),
            (&[E::Hard("a", "nothing")], "no file"),
            (&[E::Other("tty", EntryType::Char)], "tty"),
            (&[E::Other("pipe", EntryType::Fifo)], "pipe"),
            (&[E::Link("a", "/opt/installer/../etc")], "leads outside"),
            (
                &[E::File("d/x", ""), E::File(".wh.d", "")],
                "takes away what the same layer brings",
            ),
        ];
        for (entries, expected) in table {
            let (dir, result) = run(&[layer(entries)]);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error} / {expected}");
            assert!(!dir.path().join("rootfs/x").exists() && !dir.path().join("evil").exists());
        }
    }

    #[test]
    fn layers_stack_and_whiteouts_take_away() {
        let lower = layer(&[
            E::File("keep", "1"),
            E::File("gone", "1"),
            E::Dir("d"),
            E::File("d/old", "1"),
            E::Link("bin", "d"),
            E::Link("abs", "/opt/installer/d/old"),
            E::File("f", "1"),
            E::Hard("h", "f"),
        ]);
        let upper = layer(&[
            E::File(".wh.gone", ""),
            E::File("d/new", "2"),
            E::File("d/.wh..wh..opq", ""),
            E::File("f", "2"),
            E::File("n/e/w", "2"),
        ]);
        let (dir, result) = run(&[lower, upper]);
        result.unwrap();
        let at = |name: &str| dir.path().join("rootfs/x").join(name);
        let text = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!(
            (text("keep"), text("d/new"), text("f"), text("h"), text("n/e/w")),
            ("1".into(), "2".into(), "2".into(), "1".into(), "2".into())
        );
        assert!(!at("gone").exists() && !at("d/old").exists());
        assert_eq!(fs::read_link(at("bin")).unwrap(), Path::new("d"));
    }

    #[test]
    fn a_layer_that_unpacks_to_more_than_it_declares_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::new(dir.path().join("blobs"));
        let content = "0".repeat(1 << 20);
        let archive = layer(&[E::File("zeros", &content)]);
        let packed = zstd::encode_all(&archive[..], 1).unwrap();
        let digest = blobs.put(&packed).unwrap();
        for (declared, good) in [(archive.len(), true), (archive.len() - 1024, false), (4096, false)] {
            let mut bomb = Descriptor::new(oci::media_type::LAYER_ZSTD, digest.clone(), packed.len() as u64);
            bomb.annotations
                .insert(oci::UNCOMPRESSED_SIZE.into(), declared.to_string());
            let dest = dir.path().join(format!("rootfs/{declared}"));
            let result = rootfs(&blobs, &[bomb], &dest, &AtomicBool::new(false));
            assert_eq!((result.is_ok(), dest.exists()), (good, good), "{result:?}");
            if let Err(error) = result {
                let text = error.to_string();
                assert!(
                    text.contains(digest.as_str()) && text.contains(&format!("{declared} bytes")),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_damaged_archive_leaves_nothing() {
        let mut bytes = layer(&[E::File("a", "content")]);
        bytes.truncate(700);
        bytes[3] = 0xff;
        let (dir, result) = run(&[bytes]);
        assert!(result.is_err());
        assert!(!dir.path().join("rootfs/x").exists());
    }
}
