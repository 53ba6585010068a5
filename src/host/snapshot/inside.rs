//! What lies in the folders that a cluster's programs write to, where these were there before.
//!
//! Files appear in them without the journal: the agent's client certificate with its key, etcd's data, logs of pods. A folder that was not
//! there before goes as a whole; in one that was, everything goes that was not in it, at every depth.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
};

use super::{Snapshot, fingerprint, origin::is_within};
use crate::{fsops::Root, journal::Entry};

/// Folders that nobody but a cluster's programs writes to.
const FOLDERS: &[&str] = &[
    "/etc/cni/net.d",
    "/etc/installer",
    "/etc/kubernetes",
    "/run/installer",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];

/// Entries in one folder that are looked at. One with more is told apart by the names at its top only.
const MAX_ENTRIES: usize = 500_000;

/// Path → fingerprint of all that lies below a folder.
pub(crate) type Inside = BTreeMap<String, String>;

/// Looks into each of [`FOLDERS`] that is there.
pub(super) fn look(root: &Root) -> BTreeMap<String, Inside> {
    FOLDERS
        .iter()
        .filter_map(|folder| Some(((*folder).to_owned(), below(root, folder)?)))
        .collect()
}

/// What lies below a folder, without what is mounted there; `None` if it is no folder, or holds too much.
pub(crate) fn below(root: &Root, folder: &str) -> Option<Inside> {
    let at = root.path(folder).ok()?;
    let meta = at.symlink_metadata().ok().filter(fs::Metadata::is_dir)?;
    let mut out = Inside::new();
    let mut open = vec![(at, folder.to_owned())];
    while let Some((at, path)) = open.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            let Ok(found) = entry.path().symlink_metadata() else {
                continue;
            };
            let path = format!("{path}/{}", entry.file_name().to_string_lossy());
            if found.is_dir() && found.dev() == meta.dev() {
                open.push((entry.path(), path.clone()));
            }
            out.insert(path, fingerprint(&entry.path(), &found));
            if out.len() > MAX_ENTRIES {
                return None;
            }
        }
    }
    Some(out)
}

impl Snapshot {
    /// What lay in a folder before, or in the one that holds it; `None`: it was not looked at.
    fn inside_of(&self, folder: &str) -> Option<&Inside> {
        let holds = |(path, inside)| is_within(folder, path).then_some(inside);
        self.inside
            .iter()
            .map(|(path, inside)| (path.as_str(), inside))
            .find_map(holds)
    }

    /// What an undo has to take out of folders that became ours and were there before: paths that were not.
    pub(crate) fn strangers(&self, root: &Root, entries: &[Entry]) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        for entry in entries {
            let Entry::Dir {
                path, names: Some(_), ..
            } = entry
            else {
                continue;
            };
            let (Some(before), Some(now)) = (self.inside_of(path), below(root, path)) else {
                continue;
            };
            out.extend(now.into_keys().filter(|path| !before.contains_key(path)));
        }
        // What lies in a folder that goes, goes with it.
        let is_top = |path: &&String| !path.rsplit_once('/').is_some_and(|(parent, _)| out.contains(parent));
        out.iter().filter(is_top).cloned().collect()
    }
}
