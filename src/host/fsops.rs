//! The one way files are written, copied and removed here: atomically, durably, never through somebody else's mount.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

use crate::{Error, Result};

/// The file system's root: `/`, or a folder in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// `/` itself.
    pub fn real() -> Self {
        Self(PathBuf::from("/"))
    }

    /// A folder that plays `/`; nothing that is not a file (units, links, modules) is touched then.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Whether it is the host's own.
    pub fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where an absolute path of the host lies.
    ///
    /// # Errors
    /// When it is not absolute or has `..` in it.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        let relative = path
            .strip_prefix('/')
            .ok_or_else(|| Error::invalid(format!("'{path}' is not an absolute path")))?;
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
        if relative.contains('\0') || !Path::new(relative).components().all(plain) {
            return Err(Error::invalid(format!("'{path}' is not a plain path")));
        }
        Ok(self.0.join(relative))
    }
}

/// What a file system has in its root from the beginning (mke2fs(8)): a folder with nothing else is as good as empty.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// What lies at a path, without following a link there.
#[derive(Debug)]
pub(crate) enum There {
    Nothing,
    File(fs::Metadata),
    Dir(fs::Metadata),
    Link(PathBuf),
    /// A device, socket or pipe.
    Special,
}

pub(crate) fn look(path: &Path) -> Result<There> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(There::Nothing);
        }
        Err(e) => return Err(Error::io(path)(e)),
    };
    Ok(match meta.file_type() {
        t if t.is_file() => There::File(meta),
        t if t.is_dir() => There::Dir(meta),
        t if t.is_symlink() => There::Link(fs::read_link(path).map_err(Error::io(path))?),
        _ => There::Special,
    })
}

/// The name under which a file is written before it gets its own; the same every time, so that a crash leaves at most one to sweep.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.installer~"))
}

pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|d| d.sync_all()).map_err(Error::io(parent))
}

/// Writes `bytes` so that after a crash the old or the new file is there, whole.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let tmp = temporary(path);
    let mut file = fresh(&tmp, mode)?;
    file.write_all(bytes).map_err(Error::io(path))?;
    finish(&file, &tmp, path, mode, owner)
}

/// Like [`write_atomic`], from another file of any size.
pub(crate) fn copy_atomic(from: &Path, path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let tmp = temporary(path);
    let mut source = File::open(from).map_err(Error::io(from))?;
    let mut file = fresh(&tmp, mode)?;
    oci::copy(&mut source, &mut file).map_err(Error::io(path))?;
    finish(&file, &tmp, path, mode, owner)
}

/// An empty file where a crash may have left another.
fn fresh(tmp: &Path, mode: u32) -> Result<File> {
    sweep(tmp)?;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o7777)
        .open(tmp)
        .map_err(Error::io(tmp))
}

fn finish(file: &File, tmp: &Path, path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    if let Some((uid, gid)) = owner {
        chown(tmp, uid, gid)?;
    }
    // After chown, which clears setuid; and beyond the umask.
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
        .map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))?;
    fs::rename(tmp, path).map_err(Error::io(path))?;
    sync_parent(path)
}

/// Puts a symbolic link at `path`, replacing what is there in one step.
pub(crate) fn link_atomic(target: &Path, path: &Path) -> Result<()> {
    let tmp = temporary(path);
    sweep(&tmp)?;
    std::os::unix::fs::symlink(target, &tmp).map_err(Error::io(&tmp))?;
    fs::rename(&tmp, path).map_err(Error::io(path))?;
    sync_parent(path)
}

pub(crate) fn chown(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let meta = fs::symlink_metadata(path).map_err(Error::io(path))?;
    if (meta.uid(), meta.gid()) == (uid, gid) {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(Error::io(path))
}

/// Removes a file or link; none there is fine.
pub(crate) fn sweep(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(Error::io(path)(e))
        }
        _ => Ok(()),
    }
}

/// Removes whatever is at `path`, folders with their content; refuses if something is mounted below, because that content is not ours.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match look(path)? {
        There::Nothing => Ok(()),
        There::Dir(_) => {
            if let Some(mount) = mounts()?.into_iter().find(|m| m.starts_with(path)) {
                return Err(Error::failed(format!(
                    "{} is not removed: {} is still mounted below it",
                    path.display(),
                    mount.display()
                )));
            }
            match fs::remove_dir_all(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(e)),
                _ => Ok(()),
            }
        }
        _ => sweep(path),
    }
}

/// Mount points of this process' namespace, in mount order (`proc_pid_mountinfo(5)`).
pub(crate) fn mounts() -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|p| PathBuf::from(unescape(p)))
        .collect())
}

/// The kernel writes blanks and backslashes in octal.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\' && tail.len() >= 3)
            .then(|| {
                std::str::from_utf8(&tail[..3])
                    .ok()
                    .and_then(|o| u8::from_str_radix(o, 8).ok())
            })
            .flatten();
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads a file of at most `limit` bytes; `None` if there is none.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::io(path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::invalid(format!(
            "{} has more than {limit} bytes",
            path.display()
        )));
    }
    Ok(Some(bytes))
}

/// Text of a small file (`/proc`, `/sys`, configuration), empty if there is none or it cannot be read.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    let bytes = read_small(path.as_ref(), 4 << 20).ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Moves a tree; across file systems it is copied with modes, owners and links, then removed.
pub(crate) fn move_tree(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Ok(()) => sync_parent(to),
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            copy_tree(from, to)?;
            sync_parent(to)?;
            remove_tree(from)
        }
        Err(e) => Err(Error::io(from)(e)),
    }
}

pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    match look(from)? {
        There::Nothing => Ok(()),
        There::Link(target) => link_atomic(&target, to),
        There::File(meta) => copy_atomic(from, to, meta.mode(), Some((meta.uid(), meta.gid()))),
        There::Special => Err(Error::invalid(format!(
            "{} is a device, socket or pipe",
            from.display()
        ))),
        There::Dir(meta) => {
            match fs::create_dir(to) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io(to)(e)),
                _ => {}
            }
            for entry in fs::read_dir(from).map_err(Error::io(from))? {
                let name = entry.map_err(Error::io(from))?.file_name();
                copy_tree(&from.join(&name), &to.join(&name))?;
            }
            chown(to, meta.uid(), meta.gid())?;
            fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777)).map_err(Error::io(to))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_taken() {
        let root = Root::at("/r");
        assert_eq!(root.path("/etc/x").unwrap(), Path::new("/r/etc/x"));
        for bad in ["etc/x", "", "/etc/../x", "/..", "/a\0b"] {
            assert!(root.path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn octal_escapes_of_the_kernel_are_read() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\"), r"/a\");
    }
}
