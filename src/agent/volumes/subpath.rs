//! `subPath`: a part of a volume, opened so that no link in the volume can lead out of it (a container may have put one
//! there), then bound to a place of ours that the runtime mounts from.

use super::Content;
use super::atomic::check_path;
use crate::error::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Opens `sub` below `volume`. Folders that are missing get the permissions of the volume's root, so that whoever may
/// write there may write into them as well; they are made unless `content` says that the file would have to be there.
fn open_inside(volume: &Path, sub: &str, content: &Content) -> Result<OwnedFd> {
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
    if let Content::Projected { of, optional: false } = content {
        return Err(Error::Other(format!("the volume shows no {sub:?} (its content: {of})")));
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
        let made = rustix::fs::mkdirat(&parent, Path::new(part.as_os_str()), mode);
        so_far.push(part);
        match made {
            // What mkdir was asked for is less the umask.
            Ok(()) => open_folder(&root, &so_far)
                .and_then(|made| rustix::fs::fchmod(&made, mode))
                .map_err(io)?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(io(e)),
        }
    }
    open(&so_far).map_err(io)
}

/// A folder itself, for changes; a link that took its place in the meantime is refused.
fn open_folder(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), INSIDE)
}

/// Binds `sub` of `volume` to `place` and returns `place`.
pub fn bind(volume: &Path, sub: &str, place: &Path, content: &Content) -> Result<PathBuf> {
    check_path(sub).map_err(Error::Other)?;
    let fd = open_inside(volume, sub, content)?;
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
            assert_eq!(open_inside(&volume, sub, &Content::Own).is_ok(), ok, "{sub}");
        }
        assert!(volume.join("new/deep").is_dir());
    }

    #[test]
    fn folders_that_are_made_have_the_mode_of_the_volume() {
        use std::os::unix::fs::PermissionsExt;
        for mode in [0o777, 0o2777, 0o750] {
            let tmp = tempfile::tempdir().unwrap();
            std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(mode)).unwrap();
            open_inside(tmp.path(), "new/deep", &Content::Own).unwrap();
            for made in ["new", "new/deep"] {
                let got = std::fs::metadata(tmp.path().join(made)).unwrap().permissions().mode();
                assert_eq!(got & 0o7777, mode, "{made}: {got:o}");
            }
        }
    }

    #[test]
    fn a_key_that_the_objects_lack_is_named_unless_it_may_be_missing() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("there"), "").unwrap();
        let content = |optional| Content::Projected {
            of: "configMap \"settings\"".into(),
            optional,
        };
        assert!(open_inside(tmp.path(), "there", &content(false)).is_ok());
        let error = open_inside(tmp.path(), "colour", &content(false))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"colour\"") && error.contains("\"settings\""),
            "{error}"
        );
        assert!(!tmp.path().join("colour").exists());
        assert!(open_inside(tmp.path(), "colour", &content(true)).is_ok());
    }
}
