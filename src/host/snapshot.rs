//! What the host looked like before the first change, and what differs now.
//!
//! A snapshot holds what our installation, or the programs it runs, could touch: names and fingerprints, never content. Comparing tells what an
//! undo has left. Where other programs write all the time (`/run`, `/var`) only new names count. Whose a difference is: [`origin`].

pub(crate) mod inside;
pub(crate) mod origin;
mod pods;

pub(crate) use origin::Known;
pub(crate) use pods::{keep_made_by_pods, made_by_pods, untold_of_pods};

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    fsops::{self, Root},
    gate::Gate,
    journal, netlink,
    proto::{Leftover, Origin},
    system::System,
    undo::cgroups,
};

/// Folders looked at: path, depth, and whether changed and removed entries count too.
const TREES: &[(&str, usize, bool)] = &[
    ("/etc", 12, true),
    ("/usr/local", 6, true),
    ("/opt", 2, true),
    ("/", 1, false),
    ("/var/lib", 1, false),
    ("/var/log", 1, false),
    ("/run", 1, false),
    ("/run/netns", 1, false),
    ("/run/containerd", 1, false),
];

/// Written by others all the time.
const VOLATILE: &[&str] = &[
    "/etc/.pwd.lock",
    "/etc/adjtime",
    "/etc/ld.so.cache",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/run/installer.lock",
    "/var/lib/installer",
];

/// Folders that the programs of a cluster make by themselves: removed on undo if they were not there before.
pub(crate) const RUNTIME_DIRS: &[&str] = &[
    "/etc/cni",
    "/etc/installer",
    "/etc/kubernetes",
    "/opt/cni",
    "/opt/containerd",
    "/run/containerd",
    // Where somebody else's containerd was there before.
    "/run/containerd/runc/k8s.io",
    "/run/installer",
    "/run/runc",
    "/run/xtables.lock",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];

/// Where containerd's shims let runc keep its containers, a folder for each containerd namespace: all containerds of a host share it.
pub(crate) const RUNC_STATE: &str = "/run/containerd/runc";

/// Larger files are told apart by size and time.
const MAX_HASHED: u64 = 1 << 20;

/// State of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Path → fingerprint.
    pub(crate) files: BTreeMap<String, String>,
    /// Loaded units that could be ours.
    pub(crate) units: BTreeSet<String>,
    pub(crate) links: BTreeSet<String>,
    pub(crate) routes: BTreeSet<String>,
    pub(crate) tables: BTreeSet<String>,
    pub(crate) mounts: BTreeSet<String>,
    pub(crate) cgroups: BTreeSet<String>,
    /// Those of [`RUNTIME_DIRS`] that exist, and sockets of shims.
    pub(crate) runtime: BTreeSet<String>,
    /// What lies in folders that a cluster's programs write to, by folder. Absent where an older version looked.
    #[serde(default)]
    pub(crate) inside: BTreeMap<String, inside::Inside>,
}

/// Folder of the sockets of all containerd shims, whosever they are: its name is fixed in the shims.
pub(crate) const SHIM_SOCKETS: &str = "/run/containerd/s";

/// The sockets of containerd's shims.
pub(crate) fn shim_sockets(root: &Root) -> Vec<String> {
    let names = root.path(SHIM_SOCKETS).and_then(|at| crate::gate::names_in(&at));
    let names = names.unwrap_or_default().into_iter();
    names.map(|name| format!("{SHIM_SOCKETS}/{name}")).collect()
}

/// Looks at the host. What cannot be seen is not in the snapshot, now and later alike.
pub(crate) fn take(root: &Root, system: &dyn System) -> Snapshot {
    let mut out = Snapshot::default();
    for (tree, depth, exact) in TREES {
        walk(root, tree, *depth, *exact, &mut out.files);
    }
    let exists = |path: &&&str| root.path(path).is_ok_and(|at| at.symlink_metadata().is_ok());
    out.runtime = RUNTIME_DIRS
        .iter()
        .filter(exists)
        .map(|path| (*path).to_owned())
        .chain(shim_sockets(root))
        .collect();
    out.inside = inside::look(root);
    if !root.is_real() {
        return out;
    }
    out.units = units(system).into_iter().collect();
    let links = netlink::links().unwrap_or_default();
    out.routes = netlink::routes(&links)
        .unwrap_or_default()
        .iter()
        .map(|r| route_label(&r.route))
        .collect();
    out.links = links.into_iter().map(|l| l.name).collect();
    out.tables = netlink::tables()
        .unwrap_or_default()
        .iter()
        .map(netlink::Table::label)
        .collect();
    out.mounts = fsops::mounts()
        .unwrap_or_default()
        .into_iter()
        .map(|m| m.display().to_string())
        .collect();
    out.cgroups = cgroups::ours()
        .into_iter()
        .map(|path| path.display().to_string())
        .collect();
    out
}

impl Snapshot {
    /// Takes out what has a name of ours: if it is there before we begin, it is the leftover of an installation whose journal is lost, and an
    /// undo must not leave it either.
    pub(crate) fn without_ours(mut self) -> Self {
        self.units.retain(|name| !name.starts_with("installer-"));
        self.cgroups.retain(|path| !path.contains("/installer"));
        self.links.retain(|name| !name.starts_with("installer-"));
        self.tables.retain(|name| !name.contains(" installer-"));
        for folder in ["/etc/installer", "/run/installer"] {
            self.runtime.remove(folder);
            self.inside.remove(folder);
            self.files
                .retain(|path, _| path != folder && !path.starts_with(&format!("{folder}/")));
        }
        self
    }
}

pub(crate) fn route_label(route: &crate::facts::Route) -> String {
    let part = |name: &str, value: &Option<String>| value.as_ref().map(|v| format!(" {name} {v}")).unwrap_or_default();
    format!(
        "{}{}{} proto {}",
        route.destination,
        part("via", &route.gateway),
        part("dev", &route.interface),
        route.protocol
    )
}

/// Loaded units with names as ours have.
pub(crate) fn units(system: &dyn System) -> Vec<String> {
    let argv = [
        "systemctl",
        "list-units",
        "--all",
        "--plain",
        "--no-legend",
        "--no-pager",
        "installer-*",
        "kubepods*",
        "cri-containerd-*",
    ];
    let text = system.run(&argv).map(|ran| ran.stdout).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn walk(root: &Root, tree: &str, depth: usize, exact: bool, out: &mut BTreeMap<String, String>) {
    let Ok(at) = root.path(tree) else { return };
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{}/{name}", tree.trim_end_matches('/'));
        if VOLATILE.contains(&path.as_str()) {
            continue;
        }
        let Ok(meta) = entry.path().symlink_metadata() else {
            continue;
        };
        if meta.is_dir() && depth > 1 {
            walk(root, &path, depth - 1, exact, out);
        }
        out.insert(
            path,
            if exact {
                fingerprint(&entry.path(), &meta)
            } else {
                String::new()
            },
        );
    }
}

fn fingerprint(path: &Path, meta: &fs::Metadata) -> String {
    let owner = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
    if meta.is_symlink() {
        return format!("→ {}", fs::read_link(path).unwrap_or_default().display());
    }
    if !meta.is_file() {
        return owner;
    }
    let content = match fsops::read_small(path, MAX_HASHED) {
        Ok(Some(bytes)) => hex::encode(&Sha256::digest(bytes)[..12]),
        _ => format!("{} {}", meta.len(), meta.mtime()),
    };
    format!("{owner} {content}")
}

/// The snapshot kept in a journal.
pub(crate) fn before(dir: &Path) -> Result<Option<Snapshot>> {
    let path = dir.join("saved/before.json");
    let Some(bytes) = fsops::read_small(&path, 256 << 20)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::corrupt(format!("{}: {e}", path.display())))
}

/// What differs from before the first change. Without a journal there is nothing to compare with: then the well-known traces are told.
pub(crate) fn verify(gate: &Gate) -> Result<Vec<Leftover>> {
    let now = take(&gate.root, gate.system.as_ref());
    let dir = journal::dir(&gate.root, &gate.scope)?;
    match before(&dir)? {
        Some(before) => {
            let entries = journal::read(&dir)?.unwrap_or_default().entries;
            let pods = made_by_pods(&gate.root, &dir)?;
            let mut left = compare(&before, &now, &gate.scope.dir());
            attribute(&gate.root, &Known::new(&entries, &before, &pods), &mut left);
            Ok(left)
        }
        None => Ok(compare(&Snapshot::default(), &traces(now), &gate.scope.dir())),
    }
}

/// Says of each difference whose it is.
pub(crate) fn attribute(root: &Root, known: &Known<'_>, left: &mut [Leftover]) {
    let is_folder = |path: &str| {
        let at = root.path(path);
        at.is_ok_and(|at| at.symlink_metadata().is_ok_and(|meta| meta.is_dir()))
    };
    for one in left {
        one.origin = known.origin(one, is_folder);
    }
}

/// Only what is ours by its name.
fn traces(mut now: Snapshot) -> Snapshot {
    let ours = |path: &String| path.contains("/installer") || RUNTIME_DIRS.contains(&path.as_str());
    now.files.retain(|path, _| ours(path));
    now.links.retain(|name| name.starts_with("installer-"));
    now.tables.retain(|name| name.contains(" installer-"));
    now.mounts
        .retain(|path| path.contains("/installer") || path.contains("/kubelet/"));
    now.routes.clear();
    now
}

/// The pure comparison; `home` and what lies below or above it is not told, because it goes last of all.
pub(crate) fn compare(before: &Snapshot, now: &Snapshot, home: &str) -> Vec<Leftover> {
    let mut out = Vec::new();
    let mut tell = |kind: &str, name: &str, how: &str| {
        out.push(Leftover {
            kind: kind.to_owned(),
            name: name.to_owned(),
            how: how.to_owned(),
            origin: Origin::Ours,
        });
    };
    let relevant =
        |path: &str| !home.starts_with(&format!("{path}/")) && path != home && !path.starts_with(&format!("{home}/"));
    for (path, print) in now.files.iter().filter(|(path, _)| relevant(path)) {
        match before.files.get(path) {
            None => tell("file", path, "added"),
            // Empty: only its being there counts.
            Some(old) if old != print && !old.is_empty() => tell("file", path, "changed"),
            Some(_) => {}
        }
    }
    for (path, print) in before
        .files
        .iter()
        .filter(|(path, print)| relevant(path) && !print.is_empty())
    {
        if !now.files.contains_key(path) && !print.is_empty() {
            tell("file", path, "removed");
        }
    }
    compare_inside(before, now, home, &mut tell);
    let sets = [
        ("unit", &before.units, &now.units, false),
        ("link", &before.links, &now.links, true),
        ("route", &before.routes, &now.routes, true),
        ("table", &before.tables, &now.tables, true),
        ("mount", &before.mounts, &now.mounts, false),
        ("cgroup", &before.cgroups, &now.cgroups, false),
    ];
    for (kind, before, now, removed) in sets {
        // Login sessions come and go.
        let counts = |name: &&String| {
            kind != "mount" || !name.starts_with("/run/user/") && !name.starts_with("/run/credentials/")
        };
        now.difference(before)
            .filter(counts)
            .for_each(|name| tell(kind, name, "added"));
        if removed {
            before.difference(now).for_each(|name| tell(kind, name, "removed"));
        }
    }
    out
}

/// Compares what lies in folders that were there before; what is compared as a file already is not told twice.
fn compare_inside(before: &Snapshot, now: &Snapshot, home: &str, tell: &mut impl FnMut(&str, &str, &str)) {
    let is_known = |path: &String| before.files.contains_key(path) || now.files.contains_key(path);
    for (folder, old) in before.inside.iter().filter(|(folder, _)| *folder != home) {
        let Some(new) = now.inside.get(folder) else {
            // Else it is compared as a file.
            if before.files.get(folder).is_none_or(String::is_empty) {
                tell("file", folder, "removed");
            }
            continue;
        };
        for (path, print) in new.iter().filter(|(path, _)| !is_known(path)) {
            match old.get(path) {
                None => tell("file", path, "added"),
                Some(old) if old != print => tell("file", path, "changed"),
                Some(_) => {}
            }
        }
        for path in old.keys().filter(|path| !is_known(path) && !new.contains_key(*path)) {
            tell("file", path, "removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(files: &[(&str, &str)], links: &[&str]) -> Snapshot {
        Snapshot {
            files: files.iter().map(|(p, f)| ((*p).to_owned(), (*f).to_owned())).collect(),
            links: links.iter().map(|&l| l.to_owned()).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn differences_are_told_by_kind_and_direction() {
        let before = snapshot(
            &[("/etc/a", "1"), ("/etc/b", "1"), ("/run/x", ""), ("/var/lib", "d")],
            &["lo", "eth0"],
        );
        let now = snapshot(
            &[
                ("/etc/a", "2"),
                ("/etc/c", "1"),
                ("/run/y", ""),
                ("/var/lib", "e"),
                ("/data/demo/x", "1"),
            ],
            &["lo", "eth0", "installer-vxlan"],
        );
        let told: Vec<String> = compare(&before, &now, "/data/demo")
            .into_iter()
            .map(|l| format!("{} {} {}", l.kind, l.name, l.how))
            .collect();
        assert_eq!(
            told,
            [
                "file /etc/a changed",
                "file /etc/c added",
                "file /run/y added",
                "file /var/lib changed",
                "file /etc/b removed",
                "link installer-vxlan added"
            ]
        );
    }
}
