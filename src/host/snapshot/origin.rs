//! Whose a difference from before the first change is: ours, that of pods, or that of others who work on the host.
//!
//! Only ours is to be undone. The host lives on while a cluster is on it: its owner installs programs, pods keep their data on it, and a
//! reset that calls these its own failure says nothing about what it left. Where it cannot be told, it is ours.

use std::collections::{BTreeMap, BTreeSet};

use super::{RUNTIME_DIRS, Snapshot};
use crate::{
    journal::Entry,
    proto::{Leftover, Origin},
};

/// Route protocols that other programs use (`rtnetlink(7)`, iproute2's `rt_protos`); any other number on a new route is ours.
pub(crate) const FOREIGN_PROTOCOLS: &[u8] = &[
    0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 42, 186, 187, 188, 189, 192,
];

/// Folders whose name is ours.
const NAMED: [&str; 3] = ["/etc/installer", "/run/installer", "/opt/installer"];

/// What is known of an installation that is undone.
pub(crate) struct Known<'k> {
    /// How the journal knows a path.
    paths: BTreeMap<&'k str, Touched>,
    /// Folders that only the installation and its programs write to.
    folders: BTreeSet<&'k str>,
    pods: &'k BTreeSet<String>,
}

/// What the installation did at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Touched {
    /// Made a file or link where nothing was.
    Made,
    /// Made a folder for what lies in it, which goes when it is empty.
    MadeFolder,
    /// Changed what was there.
    Changed,
}

/// Whether `path` is `folder` or lies below it.
pub(crate) fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl<'k> Known<'k> {
    /// What the journal's `entries`, the snapshot of `before` and the paths that `pods` made tell.
    pub(crate) fn new(entries: &'k [Entry], before: &Snapshot, pods: &'k BTreeSet<String>) -> Self {
        let mut paths = BTreeMap::new();
        let mut folders: BTreeSet<&str> = NAMED.into();
        folders.extend(RUNTIME_DIRS.iter().filter(|dir| !before.runtime.contains(**dir)));
        for entry in entries {
            let (path, touched) = match entry {
                Entry::Absent { path } => (path, Touched::Made),
                Entry::NoDir { path, owned: false } => (path, Touched::MadeFolder),
                Entry::NoDir { path, owned: true }
                | Entry::Dir {
                    path, names: Some(_), ..
                } => {
                    folders.insert(path);
                    continue;
                }
                Entry::Dir { path, .. }
                | Entry::File { path, .. }
                | Entry::Link { path, .. }
                | Entry::Tree { path, .. } => (path, Touched::Changed),
                _ => continue,
            };
            // The first entry is what the host was like.
            paths.entry(path.as_str()).or_insert(touched);
        }
        Self { paths, folders, pods }
    }

    /// Whose the difference is. `is_folder` says whether a path is a folder now.
    pub(crate) fn origin(&self, left: &Leftover, is_folder: impl Fn(&str) -> bool) -> Origin {
        let name = left.name.as_str();
        let ours = match left.kind.as_str() {
            "file" => self.is_our_file(name, &left.how, is_folder),
            // The host's own links, routes and tables come and go with its network.
            "link" => left.how == "added" && name.starts_with("installer-"),
            "table" => left.how == "added" && name.contains(" installer-"),
            "route" => left.how == "added" && is_our_route(name),
            "mount" => self.is_in_our_folder(name) || name.starts_with("/run/netns/cni-"),
            // Looked for by names of ours.
            _ => true,
        };
        match ours {
            true => Origin::Ours,
            false if left.kind == "file" && left.how == "added" && self.is_of_pods(name) => Origin::Pods,
            false => Origin::Others,
        }
    }

    /// What a pod made, what lies in it, and the folders that were made on the way to it.
    fn is_of_pods(&self, path: &str) -> bool {
        self.pods
            .iter()
            .any(|made| is_within(path, made) || is_within(made, path))
    }

    fn is_our_file(&self, path: &str, how: &str, is_folder: impl Fn(&str) -> bool) -> bool {
        let file = path.rsplit('/').next().unwrap_or_default();
        let named = path.starts_with("/run/netns/cni-")
            || file.ends_with(".installer~")
            || (is_within(path, "/etc/systemd") && file.starts_with("installer-"));
        named
            || self.is_in_our_folder(path)
            || match self.paths.get(path) {
                // A folder in the place of what we made is somebody else's.
                Some(Touched::Made) => how != "added" || !is_folder(path),
                // It goes when it is empty: what is in it is of others.
                Some(Touched::MadeFolder) => false,
                Some(Touched::Changed) => true,
                None => false,
            }
    }

    fn is_in_our_folder(&self, path: &str) -> bool {
        self.folders.iter().any(|folder| is_within(path, folder))
    }
}

/// A route by its label, which ends with its protocol.
fn is_our_route(label: &str) -> bool {
    let protocol = label.rsplit(' ').next().and_then(|number| number.parse::<u8>().ok());
    protocol.is_none_or(|protocol| !FOREIGN_PROTOCOLS.contains(&protocol))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Old;

    fn known_entries() -> Vec<Entry> {
        let absent = |path: &str| Entry::Absent { path: path.into() };
        vec![
            absent("/usr/local/bin/kubectl"),
            absent("/usr/local/bin/helm"),
            Entry::NoDir {
                path: "/usr/local/sbin".into(),
                owned: false,
            },
            Entry::File {
                path: "/etc/resolv.conf.d/x".into(),
                mode: 0o644,
                owner: (0, 0),
                old: Old::Here("x".into()),
            },
            Entry::Dir {
                path: "/var/lib/etcd".into(),
                mode: 0o700,
                owner: (0, 0),
                names: Some(Vec::new()),
            },
            Entry::Dir {
                path: "/opt".into(),
                mode: 0o755,
                owner: (0, 0),
                names: None,
            },
        ]
    }

    #[test]
    fn what_we_made_is_told_apart_from_what_pods_and_others_made() {
        let entries = known_entries();
        let mut before = Snapshot::default();
        before.runtime.insert("/var/lib/etcd".into());
        before.runtime.insert("/run/containerd".into());
        let pods = BTreeSet::from(["/srv/data/shop".to_owned(), "/var/lib/shop".to_owned()]);
        let known = Known::new(&entries, &before, &pods);
        for (kind, name, how, origin) in [
            // Programs and settings of the host's owner.
            ("file", "/usr/local/bin/installer", "added", Origin::Others),
            ("file", "/usr/local/bin/theirs", "added", Origin::Others),
            ("file", "/usr/local/sbin", "added", Origin::Others),
            ("file", "/etc/passwd", "changed", Origin::Others),
            ("file", "/etc/cron.d/old", "removed", Origin::Others),
            // A folder of theirs where a link of ours was.
            ("file", "/usr/local/bin/helm", "added", Origin::Others),
            ("file", "/run/containerd/theirs", "added", Origin::Others),
            // Ours by the journal.
            ("file", "/usr/local/bin/kubectl", "added", Origin::Ours),
            ("file", "/etc/resolv.conf.d/x", "changed", Origin::Ours),
            ("file", "/etc/resolv.conf.d/x", "removed", Origin::Ours),
            ("file", "/opt", "changed", Origin::Ours),
            ("file", "/var/lib/etcd/member", "added", Origin::Ours),
            // Ours by their place or name.
            ("file", "/var/lib/kubelet", "added", Origin::Ours),
            ("file", "/etc/installer/x", "added", Origin::Ours),
            ("file", "/etc/.hosts.installer~", "added", Origin::Ours),
            (
                "file",
                "/etc/systemd/system/x.wants/installer-agent.service",
                "added",
                Origin::Ours,
            ),
            ("file", "/run/netns/cni-1", "added", Origin::Ours),
            // What pods made, what is in it, and the folder above it that was made on the way.
            ("file", "/srv/data/shop", "added", Origin::Pods),
            ("file", "/srv", "added", Origin::Pods),
            ("file", "/var/lib/shop", "added", Origin::Pods),
            ("file", "/var/lib/shop/db/1", "added", Origin::Pods),
            ("file", "/var/lib/shopping", "added", Origin::Others),
            ("link", "installer-vxlan", "added", Origin::Ours),
            ("link", "docker0", "added", Origin::Others),
            ("link", "eth1", "removed", Origin::Others),
            ("route", "10.1.0.0/16 dev eth0 proto 99", "added", Origin::Ours),
            ("route", "10.1.0.0/16 dev eth0 proto 3", "added", Origin::Others),
            ("route", "10.1.0.0/16 dev eth0 proto 99", "removed", Origin::Others),
            ("table", "ip installer-proxy", "added", Origin::Ours),
            ("table", "ip nat", "added", Origin::Others),
            ("mount", "/var/lib/kubelet/pods/x", "added", Origin::Ours),
            ("mount", "/mnt/usb", "added", Origin::Others),
            ("unit", "kubepods.slice", "added", Origin::Ours),
            ("cgroup", "/sys/fs/cgroup/kubepods", "added", Origin::Ours),
        ] {
            let left = Leftover {
                kind: kind.into(),
                name: name.into(),
                how: how.into(),
                origin: Origin::Ours,
            };
            let is_folder = |path: &str| path == "/usr/local/bin/helm";
            assert_eq!(known.origin(&left, is_folder), origin, "{kind} {name} {how}");
        }
    }
}
