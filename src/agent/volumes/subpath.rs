//! `subPath`: a part of a volume, opened so that no link in the volume can lead out of it (a container may have put one
//! there), then bound to a place of ours that the runtime mounts from.

use super::atomic::check_path;
use crate::error::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Opens `sub` below `volume`, making missing folders with the permissions of the volume's root.
fn open_inside(volume: &Path, sub: &str) -> Result<OwnedFd> {
    let io = |e: rustix::io::Errno| Error::io("open", volume.join(sub))(e.into());
    let root = openat(
        CWD,
        volume,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io)?;
    let open = |path: &Path| openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), INSIDE);
    match open(Path::new(sub)) {
        Ok(fd) => return Ok(fd),
        Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(io(e)),
    }
    let mode = rustix::fs::fstat(&root)
        .map(|s| Mode::from_raw_mode(s.st_mode & 0o7777))
        .unwrap_or(Mode::from_raw_mode(0o755));
    let mut so_far = PathBuf::new();
    for part in Path::new(sub).components() {
        let parent = if so_far.as_os_str().is_empty() {
            root.try_clone().map_err(Error::io("open", volume))?
        } else {
            open(&so_far).map_err(io)?
        };
        match rustix::fs::mkdirat(&parent, Path::new(part.as_os_str()), mode) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(io(e)),
        }
        so_far.push(part);
    }
    open(&so_far).map_err(io)
}

/// Binds `sub` of `volume` to `place` and returns `place`.
pub fn bind(volume: &Path, sub: &str, place: &Path) -> Result<PathBuf> {
    check_path(sub).map_err(Error::Other)?;
    let fd = open_inside(volume, sub)?;
    // A place left by an earlier start of this container shows an older object.
    let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::io("stat", volume)(e.into()))?;
    let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
    let made = if is_dir {
        std::fs::create_dir_all(place)
    } else {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(place)
            .map(drop)
    };
    made.map_err(Error::io("create", place))?;
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::mount::mount_bind(source.as_str(), place).map_err(|e| Error::io("bind", place)(e.into()))?;
    Ok(place.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_out_of_the_volume_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let volume = tmp.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("abs")).unwrap();
        std::os::unix::fs::symlink("../..", volume.join("up")).unwrap();
        std::fs::create_dir(volume.join("d")).unwrap();
        std::os::unix::fs::symlink("d", volume.join("ok")).unwrap();
        for (sub, ok) in [
            ("abs", false),
            ("abs/passwd", false),
            ("up", false),
            ("up/x", false),
            ("d", true),
            ("ok", true),
            ("new/deep", true),
        ] {
            assert_eq!(open_inside(&volume, sub).is_ok(), ok, "{sub}");
        }
        assert!(volume.join("new/deep").is_dir());
    }
}
