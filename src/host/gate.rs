//! The one gate through which a host is changed.
//!
//! Each [`Effect`] is first *decided*: compared with the host as it is, giving a [`Change`] and, if there is something to do, a
//! [`Todo`]. A preview stops there. Applying goes on: it journals what was ([`crate::journal`]) and then does it. So a plan says
//! exactly what an apply would do, and nothing is changed that undo does not know of. [`crate::unpack`] and blobs write only below
//! `<dataRoot>/<cluster>`, which is recorded as ours as a whole.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    Error, Result,
    effect::{Action, Change, Effect, Unit},
    fsops::{self, Root, There},
    journal::{self, Entry, Journal},
    proto::Scope,
    snapshot,
    system::System,
};

pub(crate) mod applied;
mod fence;
mod files;
mod kernel;
mod pki;
mod rootfs;
mod runs;
mod unit;

pub use files::{hosts_begin, hosts_end};
pub(crate) use runs::OF_INSTALLATION;

/// A host, the installation on it, and the right to change it.
pub struct Gate {
    pub(crate) root: Root,
    pub(crate) scope: Scope,
    pub(crate) system: Arc<dyn System>,
    /// Set when the client is gone: nothing new is begun.
    pub(crate) closing: Arc<AtomicBool>,
    /// Whether it may change anything.
    writes: bool,
    /// Absent: looking only, or nothing of ours was here before and nothing was changed yet.
    journal: Option<Journal>,
    /// What was before the run that is under way, if it may have to be undone alone.
    run: Option<Journal>,
    /// What the run that is under way has applied; absent: there is no run.
    applied: Option<applied::Records>,
}

/// What has to be done to make an effect true.
pub(crate) enum Todo {
    File {
        path: String,
        bytes: zeroize::Zeroizing<Vec<u8>>,
        mode: u32,
        owner: Option<(u32, u32)>,
    },
    Dir(crate::effect::Dir),
    Link {
        path: String,
        target: String,
    },
    Absent {
        path: String,
    },
    Sysctl {
        key: String,
        value: String,
    },
    Module {
        name: String,
    },
    SwapOff,
    Fence(crate::effect::Fence),
    NoFence,
    Unit {
        unit: Unit,
        plan: unit::UnitPlan,
    },
    Rootfs(crate::effect::Rootfs),
    Layout(oci::Index),
    /// Keys and certificates are made only when they are really wanted.
    Issue(pki::Issue),
    /// What it needs is not there (yet): a plan may say so, an apply may not go on.
    Refuse(Error),
}

/// A decision: what would change, and the work, if any.
pub(crate) type Decision = (Change, Option<Todo>);

pub(crate) fn unchanged(what: impl Into<String>) -> Decision {
    (
        Change {
            what: what.into(),
            action: Action::None,
            detail: String::new(),
            diff: None,
        },
        None,
    )
}

pub(crate) fn change(what: impl Into<String>, action: Action, detail: impl Into<String>) -> Change {
    Change {
        what: what.into(),
        action,
        detail: detail.into(),
        diff: None,
    }
}

/// Whether `name` can be a cluster's: a DNS label (RFC 1123), so that it cannot be a path.
fn check_scope(scope: &Scope, root: &Root) -> Result<()> {
    let name = &scope.cluster;
    let label = name.len() <= 63
        && !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !label {
        return Err(Error::invalid(format!(
            "'{name}' is not a cluster name (lower-case letters, digits and '-')"
        )));
    }
    root.path(&scope.data_root).map(drop)
}

impl Gate {
    /// A gate that only looks.
    ///
    /// # Errors
    /// When the scope is not acceptable.
    pub fn look(root: Root, scope: Scope, system: Arc<dyn System>) -> Result<Self> {
        check_scope(&scope, &root)?;
        Ok(Self {
            root,
            scope,
            system,
            closing: Arc::default(),
            writes: false,
            journal: None,
            run: None,
            applied: None,
        })
    }

    /// A gate that changes. The caller holds the host's lock. Where nothing of ours is, nothing is made before the first change: then the
    /// host's state is kept as snapshot, and the journal begins.
    ///
    /// # Errors
    /// When the scope is not acceptable, the journal cannot be opened or is damaged, or an undo was begun and must be finished first.
    pub fn open(root: Root, scope: Scope, system: Arc<dyn System>) -> Result<Self> {
        let mut gate = Self::look(root, scope, system)?;
        gate.writes = true;
        let dir = journal::dir(&gate.root, &gate.scope)?;
        if journal::read(&dir)?.is_some_and(|log| !log.entries.is_empty()) {
            gate.begin(false)?;
        }
        Ok(gate)
    }

    /// Opens the journal. A `fresh` one begins with what the host looks like.
    fn begin(&mut self, fresh: bool) -> Result<()> {
        let home = self.scope.dir();
        let dir = journal::dir(&self.root, &self.scope)?;
        // Looked at before the journal's own folder exists, or they would count as having been there.
        let mut before = if fresh {
            Some(snapshot::take(&self.root, self.system.as_ref()).without_ours())
        } else {
            None
        };
        let missing = missing_parents(&self.root, &home)?;
        let home_before = self.home_before(&home)?;
        if let (Some(before), Some(_)) = (&mut before, &home_before) {
            let inside = snapshot::inside::below(&self.root, &home);
            before.inside.extend(inside.map(|inside| (home.clone(), inside)));
        }
        for path in missing.iter().chain([&home]) {
            make_dir(&self.root.path(path)?, 0o755)?;
        }
        let (mut journal, log) = Journal::open(&dir)?;
        if log.undoing() {
            // Only undo may go on; it opens the journal itself.
            self.journal = Some(journal);
            return Ok(());
        }
        if let Some(before) = before {
            let json = serde_json::to_vec(&before).map_err(|e| Error::invalid(e.to_string()))?;
            fsops::write_atomic(&journal.saved_path("before.json"), &json, 0o600, None)?;
            let mut entries = vec![Entry::Begin {
                scope: self.scope.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }];
            entries.extend(missing.into_iter().map(|path| Entry::NoDir { path, owned: false }));
            entries.push(home_before.unwrap_or(Entry::NoDir {
                path: home,
                owned: true,
            }));
            journal.record(entries)?;
        }
        self.journal = Some(journal);
        self.resume_run(&log)
    }

    /// The home as it was there before the first change, if it was: with the names in it, because the rest is ours.
    ///
    /// A crash between making the home and the journal's first record leaves it with nothing but an empty journal in it, or with nothing.
    fn home_before(&self, home: &str) -> Result<Option<Entry>> {
        let at = self.root.path(home)?;
        if matches!(fsops::look(&at)?, There::Nothing) {
            return Ok(None);
        }
        // It may be a link to where there is room.
        let meta = fs::metadata(&at).map_err(Error::io(&at))?;
        let mut names = names_in(&at)?;
        names.retain(|name| name != "journal");
        let above = at.parent().and_then(|parent| fs::metadata(parent).ok());
        let is_mount = above.is_some_and(|above| above.dev() != meta.dev());
        if names.is_empty() && !is_mount {
            return Ok(None);
        }
        Ok(Some(Entry::Dir {
            path: home.to_owned(),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            names: Some(names),
        }))
    }

    /// Whether an undo was begun and must be finished before anything else.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn undoing(&self) -> Result<bool> {
        Ok(journal::read(&journal::dir(&self.root, &self.scope)?)?.is_some_and(|log| log.undoing()))
    }

    /// The journal, which begins with this if there was none.
    pub(crate) fn journal(&mut self) -> Result<&mut Journal> {
        if self.journal.is_none() && self.writes {
            // Opening has found none.
            self.begin(true)?;
        }
        self.journal
            .as_mut()
            .ok_or_else(|| Error::invalid("this connection is opened for looking only"))
    }

    /// Takes the journal away for good: nothing can be changed any more.
    pub(crate) fn take_journal(&mut self) -> Option<Journal> {
        self.writes = false;
        self.journal.take()
    }

    /// What applying would change.
    ///
    /// # Errors
    /// When the host cannot be looked at, or the effect makes no sense.
    pub fn preview(&self, effect: &Effect) -> Result<Change> {
        self.decide(effect).map(|(change, _)| change)
    }

    /// Makes the effect true.
    ///
    /// # Errors
    /// When it cannot be made so. What was already done of it is in the journal.
    pub fn apply(&mut self, effect: &Effect) -> Result<Change> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Error::failed("the client is gone"));
        }
        let (change, todo) = self.decide(effect)?;
        if let Some(todo) = todo {
            self.execute(todo)?;
        }
        self.remember(effect)?;
        Ok(change)
    }

    fn decide(&self, effect: &Effect) -> Result<Decision> {
        match effect {
            Effect::File(file) => self.decide_file(file),
            Effect::Dir(dir) => self.decide_dir(dir),
            Effect::Link { path, target } => self.decide_link(path, target),
            Effect::Absent { path } => self.decide_absent(path),
            Effect::Hosts { entries } => self.decide_hosts(entries),
            Effect::Sysctl { key, value } => self.decide_sysctl(key, value),
            Effect::Module { name } => self.decide_module(name),
            Effect::SwapOff => self.decide_swap(),
            Effect::Unit(unit) => self.decide_unit(unit),
            Effect::Rootfs(rootfs) => self.decide_rootfs(rootfs),
            Effect::Layout { index } => self.decide_layout(index),
            Effect::Ca(ca) => self.decide_ca(ca),
            Effect::Key { path } => self.decide_key(path),
            Effect::Cert(cert) => self.decide_cert(cert),
            Effect::ServiceAccountKey { key, public } => self.decide_service_account(key, public),
            Effect::Kubeconfig(config) => self.decide_kubeconfig(config),
            Effect::Fence(fence) => self.decide_fence(fence),
            Effect::NoFence => self.decide_no_fence(),
        }
    }

    fn execute(&mut self, todo: Todo) -> Result<()> {
        match todo {
            Todo::File {
                path,
                bytes,
                mode,
                owner,
            } => self.put_file(&path, &bytes, mode, owner),
            Todo::Dir(dir) => self.put_dir(&dir),
            Todo::Link { path, target } => self.put_link(&path, &target),
            Todo::Absent { path } => self.take_away(&path),
            Todo::Sysctl { key, value } => self.set_sysctl(&key, &value),
            Todo::Module { name } => self.load_module(&name),
            Todo::SwapOff => self.swap_off(),
            Todo::Fence(fence) => self.put_fence(&fence),
            Todo::NoFence => self.remove_fence(),
            Todo::Unit { unit, plan } => self.run_unit(&unit, &plan),
            Todo::Rootfs(rootfs) => self.unpack(&rootfs),
            Todo::Layout(index) => self.put_layout(&index),
            Todo::Issue(issue) => self.issue(issue),
            Todo::Refuse(error) => Err(error),
        }
    }

    // The four primitives below are the only code that touches files outside <dataRoot>/<cluster>.

    /// Journals, then writes a file.
    pub(crate) fn put_file(&mut self, path: &str, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
        let at = self.root.path(path)?;
        let there = fsops::look(&at)?;
        let owner = owner.or(match &there {
            There::File(meta) => Some((meta.uid(), meta.gid())),
            _ => None,
        });
        self.record_leaf(path, &at, &there)?;
        fsops::write_atomic(&at, bytes, mode, owner)
    }

    /// Journals, then puts a symbolic link.
    pub(crate) fn put_link(&mut self, path: &str, target: &str) -> Result<()> {
        let at = self.root.path(path)?;
        let there = fsops::look(&at)?;
        self.record_leaf(path, &at, &there)?;
        fsops::link_atomic(Path::new(target), &at)
    }

    /// Journals, then makes a folder, or makes it ours.
    pub(crate) fn put_dir(&mut self, dir: &crate::effect::Dir) -> Result<()> {
        let at = self.root.path(&dir.path)?;
        match fsops::look(&at)? {
            There::Nothing => {
                self.make_parents(&dir.path)?;
                self.note([Entry::NoDir {
                    path: dir.path.clone(),
                    owned: dir.owned,
                }])?;
                make_dir(&at, dir.mode)?;
            }
            There::Dir(meta) => self.note_dir(dir, &at, &meta)?,
            _ => return Err(Error::invalid(format!("{} is there and is no folder", dir.path))),
        }
        if dir.owned {
            fs::set_permissions(&at, fs::Permissions::from_mode(dir.mode & 0o7777)).map_err(Error::io(&at))?;
        }
        Ok(())
    }

    /// Journals, then removes what is at the path.
    pub(crate) fn take_away(&mut self, path: &str) -> Result<()> {
        let at = self.root.path(path)?;
        let there = fsops::look(&at)?;
        if let There::Dir(_) = there {
            return self.take_tree_away(path, &at);
        }
        self.record_leaf(path, &at, &there)?;
        fsops::sweep(&at)
    }

    /// Records what is at a path where a file or link is about to be.
    fn record_leaf(&mut self, path: &str, at: &Path, there: &There) -> Result<()> {
        self.make_parents(path)?;
        self.journal()?;
        for journal in self.journals() {
            record_leaf(journal, path, at, there)?;
        }
        Ok(())
    }

    /// Records in every journal that is open.
    pub(crate) fn note<const N: usize>(&mut self, entries: [Entry; N]) -> Result<()> {
        self.note_all(&entries)
    }

    fn note_all(&mut self, entries: &[Entry]) -> Result<()> {
        self.journal()?;
        for journal in self.journals() {
            journal.record(entries.iter().cloned())?;
        }
        Ok(())
    }

    /// The journal of the installation, and that of the run if it is to be undone alone.
    fn journals(&mut self) -> impl Iterator<Item = &mut Journal> {
        self.journal.iter_mut().chain(&mut self.run)
    }

    /// Records a folder that is there and becomes ours, or is only used.
    fn note_dir(&mut self, dir: &crate::effect::Dir, at: &Path, meta: &fs::Metadata) -> Result<()> {
        let there = |names| Entry::Dir {
            path: dir.path.clone(),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            names,
        };
        let made = || Entry::NoDir {
            path: dir.path.clone(),
            owned: dir.owned,
        };
        let mut names = if dir.owned { Some(names_in(at)?) } else { None };
        let journal = self.journal()?;
        if let Some(names) = &mut names {
            // A folder in it that we have made already was not there before.
            names.retain(|name| !journal.made(&format!("{}/{name}", dir.path)));
        }
        let entry = if journal.made(&dir.path) { made() } else { there(names) };
        journal.record([entry])?;
        if let Some(run) = &mut self.run {
            // What programs put into a folder that was there before the run is theirs, and outlives it.
            let entry = if run.made(&dir.path) { made() } else { there(None) };
            run.record([entry])?;
        }
        Ok(())
    }

    /// Moves a folder away to where it can be brought back from; one that we made goes.
    fn take_tree_away(&mut self, path: &str, at: &Path) -> Result<()> {
        let tree = |saved: String| Entry::Tree {
            path: path.to_owned(),
            saved,
        };
        let since_run = self.run.as_ref().is_some_and(|run| !run.made(path));
        if !self.journal()?.made(path) {
            let journal = self.journal()?;
            let saved = journal.fresh_name();
            let to = journal.saved_path(&saved);
            journal.record([tree(saved.clone())])?;
            if let Some(run) = self.run.as_mut().filter(|_| since_run) {
                run.record([tree(format!("{}{saved}", runs::OF_INSTALLATION))])?;
            }
            return fsops::move_tree(at, &to);
        }
        match self.run.as_mut().filter(|_| since_run) {
            Some(run) => {
                let saved = run.fresh_name();
                let to = run.saved_path(&saved);
                run.record([tree(saved)])?;
                fsops::move_tree(at, &to)
            }
            None => fsops::remove_tree(at),
        }
    }

    /// Makes the folders above a path, each of them recorded first.
    fn make_parents(&mut self, path: &str) -> Result<()> {
        let missing = missing_parents(&self.root, path)?;
        let made = missing.iter().map(|path| Entry::NoDir {
            path: path.clone(),
            owned: false,
        });
        self.note_all(&made.collect::<Vec<_>>())?;
        for path in missing {
            make_dir(&self.root.path(&path)?, 0o755)?;
        }
        Ok(())
    }
}

/// Records what is at a path unless its first state is known.
fn record_leaf(journal: &mut Journal, path: &str, at: &Path, there: &There) -> Result<()> {
    if journal.knows(&format!("path {path}")) {
        return Ok(());
    }
    let path = path.to_owned();
    let entry = match there {
        There::Nothing => Entry::Absent { path },
        There::Link(target) => Entry::Link {
            path,
            target: target.to_string_lossy().into_owned(),
        },
        There::File(meta) => {
            let old = journal.keep(at, meta.len())?;
            Entry::File {
                path,
                mode: meta.mode() & 0o7777,
                owner: (meta.uid(), meta.gid()),
                old,
            }
        }
        There::Dir(_) | There::Special => {
            return Err(Error::invalid(format!("{path} is there and is no ordinary file")));
        }
    };
    journal.record([entry])
}

/// Folders above `path` that are not there, outermost first.
fn missing_parents(root: &Root, path: &str) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let mut rest = path;
    while let Some((parent, _)) = rest.rsplit_once('/') {
        if parent.is_empty() {
            break;
        }
        let at = root.path(parent)?;
        // A link to a folder (as /var/run is) serves as one.
        match fs::metadata(&at) {
            Ok(meta) if meta.is_dir() => break,
            Ok(_) => return Err(Error::invalid(format!("{parent} is there and is no folder"))),
            Err(_) => missing.push(parent.to_owned()),
        }
        rest = parent;
    }
    missing.reverse();
    Ok(missing)
}

fn make_dir(at: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode & 0o7777).create(at) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(Error::io(at)(e)),
    }
    fs::set_permissions(at, fs::Permissions::from_mode(mode & 0o7777)).map_err(Error::io(at))?;
    fsops::sync_parent(at)
}

pub(crate) fn names_in(at: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(at).map_err(Error::io(at))? {
        names.push(entry.map_err(Error::io(at))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

impl Gate {
    /// Below `<dataRoot>/<cluster>`.
    pub(crate) fn home(&self) -> Result<PathBuf> {
        self.root.path(&self.scope.dir())
    }

    /// The host's image layout.
    pub(crate) fn layout(&self) -> Result<oci::Layout> {
        Ok(oci::Layout::open(self.home()?))
    }
}
