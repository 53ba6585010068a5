//! Room for the inotify instances of many hosts: they share this machine's kernel, and with it one user's limit (inotify(7)).

use anyhow::{Context, Result};
use std::{fs, path::Path};

const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";
/// Instances of one host: systemd and its daemons, the container runtime, the node agent, pods.
const OF_A_HOST: usize = 16;
/// What the limit was before, in the lab's folder.
const BEFORE: &str = "inotify-before";

/// Raises the limit if so many hosts need more; what it was is kept in `dir`.
///
/// # Errors
/// When it cannot be read or set.
pub fn raise(dir: &Path, hosts: usize) -> Result<()> {
    let text = fs::read_to_string(LIMIT).context(LIMIT)?;
    let now: usize = text.trim().parse().context(LIMIT)?;
    let needed = hosts * OF_A_HOST;
    if now >= needed {
        return Ok(());
    }
    fs::write(dir.join(BEFORE), &text)?;
    fs::write(LIMIT, needed.to_string()).with_context(|| format!("raising {LIMIT}"))
}

/// Sets the limit back to what it was.
///
/// # Errors
/// When it cannot be set.
pub fn restore(dir: &Path) -> Result<()> {
    match fs::read_to_string(dir.join(BEFORE)) {
        Ok(before) => fs::write(LIMIT, before).context(LIMIT),
        Err(_) => Ok(()),
    }
}
