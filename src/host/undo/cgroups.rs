//! Control groups of ours, in every mounted hierarchy of either version, and the processes in them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{Error, Result};

const MOUNT: &str = "/sys/fs/cgroup";
/// How long killed processes may take to vanish.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whether a group of this name is ours: pods', or that of one of our units.
fn is_ours(name: &str) -> bool {
    name.starts_with("kubepods")
        || name.starts_with("installer-")
        || name == "installer.slice"
        || name.starts_with("cri-containerd-")
}

/// The topmost groups that are ours.
pub(crate) fn ours() -> Vec<PathBuf> {
    let mut out = Vec::new();
    search(Path::new(MOUNT), &mut out);
    out.sort();
    out
}

fn folders(at: &Path) -> impl Iterator<Item = PathBuf> {
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|t| t.is_dir());
    fs::read_dir(at)
        .into_iter()
        .flatten()
        .flatten()
        .filter(is_dir)
        .map(|entry| entry.path())
}

fn search(at: &Path, out: &mut Vec<PathBuf>) {
    for folder in folders(at) {
        if folder.file_name().and_then(|n| n.to_str()).is_some_and(is_ours) {
            out.push(folder);
        } else {
            search(&folder, out);
        }
    }
}

fn processes(at: &Path, out: &mut Vec<i32>) {
    let text = fs::read_to_string(at.join("cgroup.procs")).unwrap_or_default();
    out.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for folder in folders(at) {
        processes(&folder, out);
    }
}

/// Lets go on what is frozen: runc freezes what it begins, and where control groups are of version 1 the frozen cannot be killed
/// (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst of the kernel).
fn thaw(at: &Path) {
    let state = at.join("freezer.state");
    if state.exists() {
        // Whoever stays frozen is named as a process that does not end.
        let _ = fs::write(state, "THAWED");
    }
    folders(at).for_each(|folder| thaw(&folder));
}

/// Kills every process in our groups and waits until they are gone. A process that forks while it is killed is caught by the next round.
///
/// # Errors
/// Names the processes that do not go (they hang in the kernel).
pub(super) fn kill() -> Result<usize> {
    let begun = Instant::now();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut killed = 0;
    loop {
        let mut pids = Vec::new();
        for group in ours() {
            thaw(&group);
            processes(&group, &mut pids);
        }
        pids.retain(|pid| *pid != own && *pid > 1);
        pids.sort_unstable();
        pids.dedup();
        if pids.is_empty() {
            return Ok(killed);
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::failed(format!("processes {pids:?} were killed but do not end")));
        }
        killed = killed.max(pids.len());
        for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes our groups, innermost first.
///
/// # Errors
/// When one is still in use.
pub(super) fn remove() -> Result<()> {
    ours().iter().try_for_each(|group| remove_below(group))
}

fn remove_below(group: &Path) -> Result<()> {
    for folder in folders(group) {
        remove_below(&folder)?;
    }
    let begun = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // The kernel frees a group a moment after its last process.
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy && begun.elapsed() < Duration::from_secs(2) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(Error::io(group)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_are_frozen_are_let_go_on_at_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("kubepods/pod/container");
        fs::create_dir_all(&inner).unwrap();
        for at in [inner.as_path(), dir.path().join("kubepods").as_path()] {
            fs::write(at.join("freezer.state"), "FROZEN").unwrap();
        }
        thaw(dir.path());
        assert_eq!(fs::read_to_string(inner.join("freezer.state")).unwrap(), "THAWED");
        assert_eq!(
            fs::read_to_string(dir.path().join("kubepods/freezer.state")).unwrap(),
            "THAWED"
        );
        assert!(!dir.path().join("kubepods/pod/freezer.state").exists());
    }
}
