//! Deciding about files, folders, links and the managed block of `/etc/hosts`.

use std::os::unix::fs::MetadataExt as _;
use zeroize::Zeroizing;

use super::{Decision, Gate, Todo, change, unchanged};
use crate::{
    Error, Result,
    effect::{Action, Change, Dir, File, HostsEntry},
    fsops::{self, There},
};

/// Files beyond this are blobs, not configuration.
const MAX_FILE: u64 = 64 << 20;
/// Diffs beyond this are noise.
const MAX_DIFF: usize = 16 << 10;

impl Gate {
    pub(super) fn decide_file(&self, file: &File) -> Result<Decision> {
        self.decide_bytes(&file.path, file.content.bytes(), file.mode, file.owner, file.secret)
    }

    /// Whether a file has this content, mode and owner.
    pub(super) fn decide_bytes(
        &self,
        path: &str,
        bytes: &[u8],
        mode: u32,
        owner: Option<(u32, u32)>,
        secret: bool,
    ) -> Result<Decision> {
        let at = self.root.path(path)?;
        let todo = Todo::File {
            path: path.to_owned(),
            bytes: Zeroizing::new(bytes.to_vec()),
            mode,
            owner,
        };
        let (action, mut details, old) = match fsops::look(&at)? {
            There::Nothing => (Action::Create, Vec::new(), None),
            There::Link(target) => (
                Action::Modify,
                vec![format!("was a link to {}", target.display())],
                None,
            ),
            There::Dir(_) | There::Special => {
                return Err(Error::invalid(format!("{path} is there and is no ordinary file")));
            }
            There::File(meta) => {
                let mut details = Vec::new();
                if meta.mode() & 0o7777 != mode & 0o7777 {
                    details.push(format!("mode {:o} → {:o}", meta.mode() & 0o7777, mode & 0o7777));
                }
                if let Some((uid, gid)) = owner.filter(|&o| o != (meta.uid(), meta.gid())) {
                    details.push(format!("owner {}:{} → {uid}:{gid}", meta.uid(), meta.gid()));
                }
                let old = if meta.len() > MAX_FILE {
                    None
                } else {
                    fsops::read_small(&at, MAX_FILE)?
                };
                if details.is_empty() && old.as_deref() == Some(bytes) {
                    return Ok(unchanged(path));
                }
                (Action::Modify, details, old)
            }
        };
        let diff = if secret {
            None
        } else {
            diff(old.as_deref().unwrap_or_default(), bytes)
        };
        if old.as_deref().is_some_and(|old| old != bytes) {
            details.push("content".to_owned());
        }
        if secret {
            details.push("secret".to_owned());
        } else if diff.is_none() && old.as_deref() != Some(bytes) && !bytes.is_empty() {
            // What is not shown is named, so that two previews that read alike are alike.
            let name = |bytes: &[u8]| oci::Digest::of(bytes).short().to_owned();
            let before = old
                .as_deref()
                .map(|old| format!("{} → ", name(old)))
                .unwrap_or_default();
            details.push(format!("{before}{}", name(bytes)));
        }
        Ok((
            Change {
                what: path.to_owned(),
                action,
                detail: details.join(", "),
                diff,
            },
            Some(todo),
        ))
    }

    pub(super) fn decide_dir(&self, dir: &Dir) -> Result<Decision> {
        let at = self.root.path(&dir.path)?;
        match fsops::look(&at)? {
            There::Nothing => Ok((
                change(&dir.path, Action::Create, "folder"),
                Some(Todo::Dir(dir.clone())),
            )),
            There::Dir(meta) if dir.owned => {
                let mode = meta.mode() & 0o7777;
                if mode == dir.mode & 0o7777 {
                    // Taking over changes nothing that can be seen, but undo must know.
                    return Ok((
                        change(&dir.path, Action::None, ""),
                        self.may_change().then(|| Todo::Dir(dir.clone())),
                    ));
                }
                let detail = format!("mode {mode:o} → {:o}", dir.mode & 0o7777);
                Ok((change(&dir.path, Action::Modify, detail), Some(Todo::Dir(dir.clone()))))
            }
            There::Dir(_) => Ok(unchanged(&dir.path)),
            // A link to a folder does, as long as it is not to be ours.
            There::Link(_) if at.is_dir() && !dir.owned => Ok(unchanged(&dir.path)),
            _ => Err(Error::invalid(format!("{} is there and is no folder", dir.path))),
        }
    }

    fn may_change(&self) -> bool {
        self.writes
    }

    pub(super) fn decide_link(&self, path: &str, target: &str) -> Result<Decision> {
        let at = self.root.path(path)?;
        let todo = Some(Todo::Link {
            path: path.to_owned(),
            target: target.to_owned(),
        });
        match fsops::look(&at)? {
            There::Nothing => Ok((change(path, Action::Create, format!("→ {target}")), todo)),
            There::Link(old) if old.as_os_str() == target => Ok(unchanged(path)),
            There::Link(old) => Ok((
                change(path, Action::Modify, format!("{} → {target}", old.display())),
                todo,
            )),
            There::File(_) => Ok((change(path, Action::Modify, format!("file → link to {target}")), todo)),
            There::Dir(_) | There::Special => Err(Error::invalid(format!("{path} is there and is no link"))),
        }
    }

    pub(super) fn decide_absent(&self, path: &str) -> Result<Decision> {
        let at = self.root.path(path)?;
        let what = match fsops::look(&at)? {
            There::Nothing => return Ok(unchanged(path)),
            There::Dir(_) => "folder",
            There::Link(_) => "link",
            There::File(_) => "file",
            There::Special => return Err(Error::invalid(format!("{path} is a device, socket or pipe"))),
        };
        Ok((
            change(path, Action::Remove, what),
            Some(Todo::Absent { path: path.to_owned() }),
        ))
    }

    pub(super) fn decide_hosts(&self, entries: &[HostsEntry]) -> Result<Decision> {
        let path = "/etc/hosts";
        for entry in entries {
            let word = |w: &String| !w.is_empty() && !w.contains(|c: char| c.is_whitespace() || c == '#');
            if !word(&entry.ip) || entry.names.is_empty() || !entry.names.iter().all(word) {
                return Err(Error::invalid(format!(
                    "'{} {}' is no line for {path}",
                    entry.ip,
                    entry.names.join(" ")
                )));
            }
        }
        let at = self.root.path(path)?;
        let old = String::from_utf8_lossy(&fsops::read_small(&at, MAX_FILE)?.unwrap_or_default()).into_owned();
        let new = with_block(&old, &self.scope.cluster, entries);
        if new == old {
            return Ok(unchanged(path));
        }
        let mode = std::fs::metadata(&at).map_or(0o644, |m| m.mode() & 0o7777);
        self.decide_bytes(path, new.as_bytes(), mode, None, false)
    }
}

/// The line in front of a cluster's block in `/etc/hosts`.
pub fn hosts_begin(cluster: &str) -> String {
    format!("# begin installer {cluster}")
}

/// The line after it.
pub fn hosts_end(cluster: &str) -> String {
    format!("# end installer {cluster}")
}

/// `/etc/hosts` with our block replaced, added at the end, or taken out.
fn with_block(old: &str, cluster: &str, entries: &[HostsEntry]) -> String {
    let (begin, end) = (hosts_begin(cluster), hosts_end(cluster));
    let mut kept = String::new();
    let mut inside = false;
    for line in old.split_inclusive('\n') {
        let bare = line.trim_end();
        if bare == begin {
            inside = true;
        } else if inside && bare == end {
            inside = false;
        } else if !inside {
            kept.push_str(line);
        }
    }
    if entries.is_empty() {
        return kept;
    }
    if !kept.is_empty() && !kept.ends_with('\n') {
        kept.push('\n');
    }
    kept.push_str(&begin);
    for entry in entries {
        kept.push_str(&format!("\n{} {}", entry.ip, entry.names.join(" ")));
    }
    kept.push_str(&format!("\n{end}\n"));
    kept
}

fn diff(old: &[u8], new: &[u8]) -> Option<String> {
    let (old, new) = (std::str::from_utf8(old).ok()?, std::str::from_utf8(new).ok()?);
    let text = similar::TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(2)
        .to_string();
    (!text.is_empty() && text.len() <= MAX_DIFF).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_managed_block_is_replaced_and_nothing_else_is_touched() {
        let entry = |ip: &str, name: &str| HostsEntry {
            ip: ip.into(),
            names: vec![name.into()],
        };
        let one = "127.0.0.1 localhost\n# begin installer demo\n10.0.0.1 a\n# end installer demo\n";
        let table = [
            ("127.0.0.1 localhost\n", vec![entry("10.0.0.1", "a")], one),
            (one, vec![entry("10.0.0.1", "a")], one),
            (one, vec![], "127.0.0.1 localhost\n"),
            ("127.0.0.1 localhost", vec![entry("10.0.0.1", "a")], one),
            (
                "# begin installer demo\n9.9.9.9 z\n# end installer demo\nafter\n",
                vec![entry("10.0.0.1", "a")],
                "after\n# begin installer demo\n10.0.0.1 a\n# end installer demo\n",
            ),
            (
                "# begin installer other\nx y\n# end installer other\n",
                vec![],
                "# begin installer other\nx y\n# end installer other\n",
            ),
        ];
        for (old, entries, expected) in table {
            assert_eq!(with_block(old, "demo", &entries), expected);
        }
    }
}
