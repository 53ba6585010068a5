//! Undoing an installation: what runs is stopped, then the journal is played backwards, then the rest is compared with the
//! snapshot, then the journal itself goes.
//!
//! Every step can be repeated, so an undo that was interrupted begins again from the start. A step that fails is told and the others
//! go on; then the journal stays, so that the undo can be repeated when the cause is gone.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::{
    Error, Result, fault,
    fsops::{self, There},
    gate::{Gate, OF_INSTALLATION, names_in},
    journal::{self, Entry, Old},
    proto::Undone,
    snapshot::{self, Known, RUNC_STATE, RUNTIME_DIRS, Snapshot},
    system::{System, must},
};

pub(crate) mod cgroups;
mod run;
mod running;

pub(crate) use run::undo_run;

/// What became of the steps.
#[derive(Default)]
pub(crate) struct Report {
    done: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    fn note(&mut self, what: String, result: Result<()>) {
        match result {
            Ok(()) => self.done.push(what),
            Err(e) => self.failed.push(e.to_string()),
        }
    }

    fn note_quiet(&mut self, result: Result<()>) {
        if let Err(e) = result {
            self.failed.push(e.to_string());
        }
    }
}

/// Runs a tool that may find nothing to do.
fn tool(system: &dyn System, argv: &[&str]) -> Result<()> {
    match must(system, argv) {
        Err(e)
            if ["not loaded", "does not exist", "not found", "No such file"]
                .iter()
                .any(|gone| e.to_string().contains(gone)) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Undoes everything.
pub(crate) fn undo(gate: &mut Gate) -> Result<Undone> {
    let dir = journal::dir(&gate.root, &gate.scope)?;
    gate.journal()?.record([Entry::Undo])?;
    let entries = journal::read(&dir)?.unwrap_or_default().entries;
    let before = snapshot::before(&dir)?.unwrap_or_default();
    let mut report = Report::default();
    let pods = snapshot::keep_made_by_pods(&gate.root, &dir).unwrap_or_else(|error| {
        // Then what they made counts as somebody else's.
        tracing::warn!("what pods made is not known: {error}");
        BTreeSet::new()
    });
    if gate.root.is_real() {
        running::units(gate, &entries, &mut report);
        // Pods are only ours to end if it was us who started the programs that run them.
        if entries.iter().any(|entry| matches!(entry, Entry::Unit { .. })) || before.units.is_empty() {
            running::processes(gate, &mut report);
        }
        let unmounted = running::unmount(gate, &before, &mut report);
        report.note_quiet(unmounted);
        let network = running::network(&before, &mut report);
        report.note_quiet(network);
    }
    // Files come back before the units that read them.
    let home = gate.scope.dir();
    let player = Player {
        gate,
        saved: dir.join("saved"),
        home: &home,
    };
    for entry in entries.iter().rev() {
        fault::point(|| vec!["undo".to_owned(), entry.key()]);
        let result = player.revert(entry);
        if !entry.is_mark() && !matches!(entry, Entry::Unit { .. }) {
            report.note(format!("undid: {}", entry.describe()), result);
        } else {
            report.note_quiet(result);
        }
    }
    player.strangers(&before, &entries, &mut report);
    player.runtime_dirs(&before, &mut report);
    player.shim_sockets(&before, &mut report);
    player.restore_units(&entries, &mut report);
    let now = snapshot::take(&gate.root, gate.system.as_ref());
    let mut left = snapshot::compare(&before, &now, &home);
    snapshot::attribute(&gate.root, &Known::new(&entries, &before, &pods), &mut left);
    left.extend(snapshot::untold_of_pods(&gate.root, &pods, &left));
    fault::point(|| vec!["undone".to_owned()]);
    if report.failed.is_empty() {
        drop(gate.take_journal());
        farewell(gate, &entries, &mut report);
    }
    Ok(Undone {
        done: report.done,
        failed: report.failed,
        left,
    })
}

/// Removes the home, the folders above it that we made, and clusterd itself if no other installation needs it.
fn farewell(gate: &Gate, entries: &[Entry], report: &mut Report) {
    let home = gate.scope.dir();
    let remove = |path: &str| -> Result<()> { fsops::remove_tree(&gate.root.path(path)?) };
    report.note_quiet(remove(&format!("{home}/journal")));
    if entries
        .iter()
        .any(|e| matches!(e, Entry::NoDir { path, owned: true } if *path == home))
    {
        report.note(format!("removed {home}"), remove(&home));
    }
    for entry in entries.iter().rev() {
        if let Entry::NoDir { path, owned: false } = entry
            && home.starts_with(&format!("{path}/"))
            && let Ok(at) = gate.root.path(path)
        {
            let _ = fs::remove_dir(at);
        }
    }
    let Ok(clusterd) = gate.root.path(crate::CLUSTERD) else {
        return;
    };
    let folder = clusterd.parent().unwrap_or(Path::new("/"));
    // Another installation has its journal there; whatever else is there needs nothing of ours.
    let is_installation = |name: &String| folder.join(name).join("journal/log").exists();
    let alone = names_in(folder).is_ok_and(|names| !names.iter().any(is_installation));
    if alone {
        // Itself last: a host without it counts as bare.
        for file in crate::CLUSTERD_FILES.iter().rev() {
            report.note_quiet(gate.root.path(file).and_then(|at| fsops::sweep(&at)));
        }
        let _ = fs::remove_dir(folder);
    }
}

/// Plays entries backwards.
struct Player<'a> {
    gate: &'a Gate,
    saved: std::path::PathBuf,
    home: &'a str,
}

impl Player<'_> {
    fn revert(&self, entry: &Entry) -> Result<()> {
        let at = |path: &str| self.gate.root.path(path);
        match entry {
            Entry::Absent { path } => {
                fsops::sweep(&fsops::temporary(&at(path)?))?;
                match fsops::look(&at(path)?)? {
                    // Something else took the place of what we made: it is not ours.
                    There::Dir(_) => Ok(()),
                    _ => fsops::sweep(&at(path)?),
                }
            }
            Entry::File { path, mode, owner, old } => self.restore_file(&at(path)?, *mode, *owner, old),
            Entry::Link { path, target } => {
                clear(&at(path)?)?;
                fsops::link_atomic(Path::new(target), &at(path)?)
            }
            Entry::NoDir { path, .. } if *path == self.home => self.empty_home(),
            // Folders above the home still hold the journal.
            Entry::NoDir { path, owned: false } if self.home.starts_with(&format!("{path}/")) => Ok(()),
            Entry::NoDir { path, owned: true } => fsops::remove_tree(&at(path)?),
            Entry::NoDir { path, owned: false } => remove_if_empty(&at(path)?),
            Entry::Dir {
                path,
                mode,
                owner,
                names,
            } => {
                let mut at = at(path)?;
                if path == self.home {
                    // It may be a link to where there is room.
                    at = fs::canonicalize(&at).unwrap_or(at);
                }
                if !matches!(fsops::look(&at)?, There::Dir(_)) {
                    fs::create_dir_all(&at).map_err(Error::io(&at))?;
                }
                if let Some(names) = names {
                    // The journal goes last.
                    let stays = |name: &String| names.contains(name) || path == self.home && name == "journal";
                    for name in names_in(&at)?.iter().filter(|name| !stays(name)) {
                        fsops::remove_tree(&at.join(name))?;
                    }
                }
                fsops::chown(&at, owner.0, owner.1)?;
                fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).map_err(Error::io(&at))
            }
            Entry::Tree { path, saved } => {
                let lent = saved.starts_with(OF_INSTALLATION);
                let saved = self.saved.join(saved);
                // Not moved yet when the host went down, or moved back already.
                if matches!(fsops::look(&saved)?, There::Nothing) {
                    return Ok(());
                }
                fsops::remove_tree(&at(path)?)?;
                // What held it may have been taken away as well, and comes back later, as a whole.
                let parent = at(path)?.parent().unwrap_or(Path::new("/")).to_owned();
                fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
                if lent {
                    // Undoing everything will need it too.
                    return fsops::copy_tree(&saved, &at(path)?);
                }
                fsops::move_tree(&saved, &at(path)?)
            }
            Entry::Sysctl { key, value } => {
                let relative = if key.contains('/') {
                    key.clone()
                } else {
                    key.replace('.', "/")
                };
                let path = at(&format!("/proc/sys/{relative}"))?;
                match fs::write(&path, value) {
                    // Its interface or module is gone, and it with them.
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path)(e)),
                    _ => Ok(()),
                }
            }
            Entry::Module { name } => {
                // In use by others by now: then it stays, as it would had they loaded it.
                let _ = self.gate.system.run(&["modprobe", "-r", "--", name]);
                Ok(())
            }
            Entry::Swap { areas } => self.swap_on(areas),
            Entry::Table { .. } => self.gate.remove_fence(),
            // Units are restored when all files are; marks are nothing.
            Entry::Unit { .. } | Entry::Begin { .. } | Entry::Undo | Entry::Run { .. } | Entry::Ended { .. } => Ok(()),
        }
    }

    fn restore_file(&self, at: &Path, mode: u32, owner: (u32, u32), old: &Old) -> Result<()> {
        clear(at)?;
        match old {
            Old::Here(content) => fsops::write_atomic(at, content.bytes(), mode, Some(owner)),
            Old::Saved(name) => fsops::copy_atomic(&self.saved.join(name), at, mode, Some(owner)),
        }
    }

    fn swap_on(&self, areas: &[(String, i32)]) -> Result<()> {
        let active = fsops::text(self.gate.root.path("/proc/swaps")?);
        for (area, priority) in areas {
            if active.lines().any(|line| line.split_whitespace().next() == Some(area)) {
                continue;
            }
            // Negative priorities are the kernel's own numbering and cannot be asked for.
            let priority = priority.to_string();
            let argv: &[&str] = if priority.starts_with('-') {
                &["swapon", area]
            } else {
                &["swapon", "-p", &priority, area]
            };
            must(self.gate.system.as_ref(), argv)?;
        }
        Ok(())
    }

    /// Everything but the journal, which goes last.
    fn empty_home(&self) -> Result<()> {
        let home = self.gate.root.path(self.home)?;
        for name in names_in(&home)?.iter().filter(|name| *name != "journal") {
            fsops::remove_tree(&home.join(name))?;
        }
        Ok(())
    }

    /// What our programs put into folders that were there before and became ours.
    fn strangers(&self, before: &Snapshot, entries: &[Entry], report: &mut Report) {
        let journal = format!("{}/journal", self.home);
        for path in before.strangers(&self.gate.root, entries) {
            if path != journal {
                let removed = self.gate.root.path(&path).and_then(|at| fsops::remove_tree(&at));
                report.note(format!("removed {path}"), removed);
            }
        }
    }

    /// Folders that our programs made by themselves.
    fn runtime_dirs(&self, before: &Snapshot, report: &mut Report) {
        for dir in RUNTIME_DIRS.iter().filter(|dir| !before.runtime.contains(**dir)) {
            let Ok(at) = self.gate.root.path(dir) else { continue };
            if !matches!(fsops::look(&at), Ok(There::Nothing)) {
                report.note(format!("removed {dir}"), fsops::remove_tree(&at));
            }
        }
        // Somebody else's containerd may keep its containers there as well by now, so it goes only when it is empty.
        if before.files.contains_key(RUNC_STATE) {
            return;
        }
        let Ok(at) = self.gate.root.path(RUNC_STATE) else {
            return;
        };
        if names_in(&at).is_ok_and(|names| names.is_empty()) && matches!(fsops::look(&at), Ok(There::Dir(_))) {
            let removed = fs::remove_dir(&at).map_err(Error::io(&at));
            report.note(format!("removed {RUNC_STATE}"), removed);
        }
    }

    /// Sockets that our containers' shims have left among those of somebody else's containerd: nobody listens on them any more.
    fn shim_sockets(&self, before: &Snapshot, report: &mut Report) {
        let sockets = snapshot::shim_sockets(&self.gate.root).into_iter();
        for socket in sockets.filter(|socket| !before.runtime.contains(socket)) {
            let Ok(at) = self.gate.root.path(&socket) else { continue };
            let refused = std::os::unix::net::UnixStream::connect(&at)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
            if refused {
                report.note(format!("removed {socket}"), fsops::sweep(&at));
            }
        }
    }

    /// Units that were there before run, or not, as they did.
    fn restore_units(&self, entries: &[Entry], report: &mut Report) {
        let system = self.gate.system.as_ref();
        let units: Vec<_> = entries.iter().filter(|e| matches!(e, Entry::Unit { .. })).collect();
        if units.is_empty() {
            return;
        }
        report.note_quiet(tool(system, &["systemctl", "daemon-reload"]));
        for entry in units {
            let Entry::Unit {
                name,
                ours: false,
                enabled,
                active,
            } = entry
            else {
                continue;
            };
            if enabled.starts_with("enabled") {
                report.note(
                    format!("enabled {name}"),
                    tool(system, &["systemctl", "enable", "--", name]),
                );
            }
            if *active {
                // Its files are the old ones again.
                report.note(
                    format!("restarted {name}"),
                    tool(system, &["systemctl", "restart", "--", name]),
                );
            }
        }
    }
}

/// Makes room for something that was here before.
fn clear(at: &Path) -> Result<()> {
    fsops::sweep(&fsops::temporary(at))?;
    if let There::Dir(_) = fsops::look(at)? {
        fsops::remove_tree(at)?;
    }
    let parent = at.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(Error::io(parent))
}

fn remove_if_empty(at: &Path) -> Result<()> {
    match fs::remove_dir(at) {
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        // A file took its place: not ours.
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Ok(()),
        Err(e) => Err(Error::io(at)(e)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
