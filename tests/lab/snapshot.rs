//! What a host consists of, written down so that two moments can be compared: to prove that reset leaves nothing.

use crate::{Host, Lab, run};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    process::Command,
};

/// Folders whose content the operating system changes by itself.
const VOLATILE: &[&str] = &[
    "/proc",
    "/sys",
    "/dev",
    "/tmp",
    "/run/systemd",
    "/run/udev",
    "/run/user",
    "/run/log",
    "/run/utmp",
    "/run/sshd",
    "/run/sshd.pid",
    "/run/lock",
    "/run/dbus",
    "/run/sudo",
    "/run/credentials",
    "/var/lib/systemd",
    "/var/lib/sudo",
    "/var/log/wtmp",
    "/var/log/btmp",
    "/var/log/lastlog",
    "/var/log/journal",
    "/var/log/private",
    "/var/cache/private",
    "/var/lib/private",
    "/etc/.updated",
    "/var/.updated",
    "/run/motd.dynamic",
    "/run/faillock",
];

/// Every thing that was found, by kind and name, with what identifies its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `<kind> <name>` → state, where kind is file, unit, user, link, address, route, rule, nft, mount, cgroup or sysctl.
    pub items: BTreeMap<String, String>,
}

impl Snapshot {
    pub(crate) fn take(lab: &Lab, host: &Host) -> Result<Self> {
        let pid = lab
            .init_pid(host)
            .with_context(|| format!("host {} does not run", host.name))?;
        let mut snapshot = Self::default();
        let root = format!("/proc/{pid}/root");
        snapshot.files(Path::new(&root), "")?;
        snapshot.lines(
            "unit",
            &lab.exec(
                host,
                &[
                    "systemctl",
                    "list-unit-files",
                    "--no-legend",
                    "--no-pager",
                    "--type=service,socket,timer,slice,target",
                ],
            )?
            .ok()?,
        );
        for slice in lab
            .exec(
                host,
                &[
                    "systemctl",
                    "list-units",
                    "--all",
                    "--no-legend",
                    "--no-pager",
                    "--plain",
                    "--type=service,slice,scope",
                ],
            )?
            .ok()?
            .lines()
        {
            let name = slice.split_whitespace().next().unwrap_or_default();
            if !volatile_unit(name) {
                snapshot.add("active-unit", name, "");
            }
        }
        for (kind, words) in [
            ("link", "-o link"),
            ("address", "-o addr"),
            ("route", "-o route show table all"),
            ("rule", "-o rule"),
        ] {
            snapshot.network(pid, kind, Command::new("ip").args(words.split(' ')))?;
        }
        snapshot.network(pid, "nft", Command::new("nft").args(["-s", "list", "ruleset"]))?;
        for mount in fs::read_to_string(format!("/proc/{pid}/mountinfo"))?.lines() {
            let fields: Vec<_> = mount.split(' ').collect();
            if let (Some(at), false) = (fields.get(4), fields.get(4).is_some_and(|at| is_volatile(at))) {
                snapshot.add("mount", at, "");
            }
        }
        for group in lab
            .exec(host, &["find", "/sys/fs/cgroup", "-type", "d"])?
            .stdout
            .lines()
        {
            // Groups of services that Debian's own units make and drop are named by those units above.
            if !group.contains("/system.slice") && !group.contains("/user.slice") && !group.contains("/init.scope") {
                snapshot.add("cgroup", group, "");
            }
        }
        for key in [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/rp_filter",
            "net/ipv4/conf/all/forwarding",
            "net/ipv6/conf/all/forwarding",
            "vm/overcommit_memory",
            "kernel/panic",
            "kernel/panic_on_oops",
        ] {
            let value = lab.exec(host, &["cat", &format!("/proc/sys/{key}")])?.stdout;
            snapshot.add("sysctl", key, value.trim());
        }
        Ok(snapshot)
    }

    fn add(&mut self, kind: &str, name: &str, state: &str) {
        self.items.insert(format!("{kind} {name}"), state.to_owned());
    }

    fn lines(&mut self, kind: &str, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            if !volatile_unit(name) {
                self.add(kind, name, &words.collect::<Vec<_>>().join(" "));
            }
        }
    }

    /// Runs one of the machine's own tools in the host's network namespace only: the host itself may not have it.
    fn network(&mut self, pid: u32, kind: &str, tool: &mut Command) -> Result<()> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &pid.to_string(), "--net", "--"])
            .arg(tool.get_program())
            .args(tool.get_args());
        for line in run::output(&mut command)?.ok()?.lines() {
            let line = strip_counters(line);
            if !line.is_empty() {
                self.add(kind, &line, "");
            }
        }
        Ok(())
    }

    fn files(&mut self, root: &Path, dir: &str) -> Result<()> {
        let at = root.join(dir.trim_start_matches('/'));
        let Ok(entries) = fs::read_dir(&at) else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
            if is_volatile(&path) {
                continue;
            }
            let Ok(meta) = entry.path().symlink_metadata() else {
                continue;
            };
            self.add("file", &path, &describe(&entry.path(), &meta)?);
            if meta.is_dir() {
                self.files(root, &path)?;
            }
        }
        Ok(())
    }
}

fn describe(path: &Path, meta: &fs::Metadata) -> Result<String> {
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        format!("-> {}", fs::read_link(path)?.display())
    } else if kind.is_file() {
        format!("{} bytes {}", meta.len(), content_hash(path)?)
    } else if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        "special".to_owned()
    };
    Ok(format!(
        "{:o} {}:{} {content}",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid()
    ))
}

fn content_hash(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = match file.read(&mut buffer) {
            // A namespace that somebody keeps under a name is a file in all but its content.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return Ok("without content".to_owned()),
            read => read?,
        };
        if n == 0 {
            return Ok(hex::encode(&hasher.finalize()[..12]));
        }
        hasher.update(&buffer[..n]);
    }
}

fn is_volatile(path: &str) -> bool {
    let below = |v: &str| path == v || path.strip_prefix(v).is_some_and(|rest| rest.starts_with('/'));
    // PrivateTmp= of Debian's own services makes a new folder at every start.
    path.starts_with("/var/tmp/systemd-private-") || VOLATILE.iter().any(|v| below(v))
}

/// Sessions and clean-up runs come and go with every login.
fn volatile_unit(name: &str) -> bool {
    name.starts_with("session-")
        || name.starts_with("user")
        || name.contains("tmpfiles")
        || name.starts_with("sudo")
        || name.starts_with("ssh@")
        || name.starts_with("systemd-")
}

/// Drops what changes by itself: interface numbers of peers, life times, queue lengths.
fn strip_counters(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    for counter in ["valid_lft", "preferred_lft", "qlen", "link-netnsid", "pref"] {
        while let Some(i) = words.iter().position(|w| *w == counter) {
            words.drain(i..(i + 2).min(words.len()));
        }
    }
    // `2: eth0@if7:` counts up over a host's life.
    if words
        .first()
        .is_some_and(|w| w.trim_end_matches(':').bytes().all(|b| b.is_ascii_digit()))
        && words.len() > 1
        && !words[1].is_empty()
        && line.contains(": ")
        && !line.contains("lookup")
    {
        words.remove(0);
    }
    let join = words.join(" ");
    match join.split_once("@if") {
        Some((name, rest)) => format!("{name}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit())),
        None => join,
    }
}

/// What differs, one line an item: `+` appeared, `-` vanished, `~` changed.
pub fn diff(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, state) in &after.items {
        match before.items.get(name) {
            None => lines.push(format!("+ {name} {state}")),
            Some(old) if old != state => lines.push(format!("~ {name}: {old} => {state}")),
            Some(_) => {}
        }
    }
    lines.extend(
        before
            .items
            .keys()
            .filter(|n| !after.items.contains_key(*n))
            .map(|n| format!("- {n}")),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(items: &[(&str, &str)]) -> Snapshot {
        Snapshot {
            items: items.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn diff_names_what_appeared_vanished_and_changed() {
        let before = snapshot(&[("file /a", "1"), ("file /b", "1")]);
        let after = snapshot(&[("file /b", "2"), ("unit x", "")]);
        assert_eq!(diff(&before, &after), ["~ file /b: 1 => 2", "+ unit x ", "- file /a"]);
        assert!(diff(&before, &before).is_empty());
    }

    #[test]
    fn counters_do_not_count_as_differences() {
        for (line, expected) in [
            ("2: eth0@if7: <UP> mtu 1500 qlen 1000", "eth0: <UP> mtu 1500"),
            ("10.0.0.0/24 dev eth0 proto kernel", "10.0.0.0/24 dev eth0 proto kernel"),
            (
                "2: eth0 inet 10.0.0.2/24 valid_lft forever preferred_lft forever",
                "eth0 inet 10.0.0.2/24",
            ),
        ] {
            assert_eq!(strip_counters(line), expected);
        }
    }

    #[test]
    fn only_whole_path_components_are_volatile() {
        assert!(is_volatile("/run/lock") && is_volatile("/proc/1"));
        assert!(!is_volatile("/run/locksmith") && !is_volatile("/var/lib"));
    }
}
