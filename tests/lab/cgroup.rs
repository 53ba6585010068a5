//! Control groups of lab hosts: `lab-<lab>/<host>` in every hierarchy of the machine, so that a lab's processes are always
//! found, whatever became of its records.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";

/// The mount points of all hierarchies: one on a unified machine, one per controller otherwise.
fn hierarchies() -> Result<Vec<PathBuf>> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return Ok(vec![ROOT.into()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(ROOT)? {
        let entry = entry?;
        // Links such as cpu -> cpu,cpuacct are the same hierarchy twice.
        if entry.file_type()?.is_dir() && entry.path().join("cgroup.procs").exists() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Makes the groups of a host and returns their folders.
pub(crate) fn create(lab: &str, host: &str) -> Result<Vec<PathBuf>> {
    hierarchies()?
        .iter()
        .map(|hierarchy| {
            let lab_dir = hierarchy.join(format!("lab-{lab}"));
            let host_dir = lab_dir.join(host);
            for dir in [&lab_dir, &host_dir] {
                fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
                // A new cpuset has neither processors nor memory and accepts no process.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let parent = dir.parent().context("a group has a parent")?.join(file);
                    if let Ok(value) = fs::read_to_string(&parent) {
                        fs::write(dir.join(file), value.trim())?;
                    }
                }
            }
            Ok(host_dir)
        })
        .collect()
}

/// All folders below and including `dir`, children before parents.
fn descend(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            descend(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}

fn groups(lab: &str, host: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.join(format!("lab-{lab}"));
        if let Some(host) = host {
            dir.push(host);
        }
        if dir.exists() {
            descend(&dir, &mut found);
        }
    }
    Ok(found)
}

fn pids(groups: &[PathBuf]) -> Vec<u32> {
    let read = |g: &PathBuf| fs::read_to_string(g.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<u32> = groups
        .iter()
        .flat_map(|g| read(g).lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn kill(lab: &str, host: Option<&str>) -> Result<()> {
    let start = Instant::now();
    loop {
        let groups = groups(lab, host)?;
        // runc freezes what it begins; where control groups are of version 1, that cannot even be killed.
        for group in groups.iter().filter(|group| group.join("freezer.state").exists()) {
            let _ = fs::write(group.join("freezer.state"), "THAWED");
        }
        let alive: Vec<String> = pids(&groups).iter().filter(|p| **p != 0).map(u32::to_string).collect();
        if alive.is_empty() {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(20) {
            bail!("processes of lab {lab:?} do not end: {}", alive.join(" "));
        }
        // A process may be gone by now; the next look tells.
        Command::new("kill")
            .arg("-9")
            .args(&alive)
            .output()
            .context("cannot start kill")?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends every process of the lab.
pub(crate) fn kill_all(lab: &str) -> Result<()> {
    kill(lab, None)
}

/// Ends every process of the host.
pub(crate) fn kill_host(lab: &str, host: &str) -> Result<()> {
    kill(lab, Some(host))
}

/// Removes the groups of the lab, whose processes have ended.
pub(crate) fn remove_all(lab: &str) -> Result<()> {
    remove_groups(lab, None)
}

/// Removes the groups of the host, whose processes have ended.
pub(crate) fn remove(lab: &str, host: &str) -> Result<()> {
    remove_groups(lab, Some(host))
}

fn remove_groups(lab: &str, host: Option<&str>) -> Result<()> {
    let start = Instant::now();
    loop {
        let failed = groups(lab, host)?
            .into_iter()
            .find_map(|g| fs::remove_dir(&g).err().map(|e| (g, e)));
        match failed {
            None => return Ok(()),
            // A group whose last process is still being reaped is busy for a moment.
            Some(_) if start.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(10)),
            Some((group, error)) => return Err(error).with_context(|| format!("cannot remove {}", group.display())),
        }
    }
}

/// The process id, in the machine's namespace, of the host's first process.
pub(crate) fn init_of(lab: &str, host: &str) -> Option<u32> {
    let is_init = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap_or("")
                .trim()
                .to_owned()
        };
        // Before it has become init it is still the shell that prepares the host.
        let ids: Vec<&str> = status
            .lines()
            .find_map(|l| l.strip_prefix("NSpid:"))
            .unwrap_or("")
            .split_whitespace()
            .collect();
        ids.len() == 2 && ids[1] == "1" && line("Name:") == "systemd"
    };
    pids(&groups(lab, Some(host)).ok()?).into_iter().find(is_init)
}
