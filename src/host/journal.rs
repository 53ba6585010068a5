//! The journal of a host: what was there before each change, synced to disk before the change is made.
//!
//! ```text
//! <dataRoot>/<cluster>/journal/log        one record per line: checksum, blank, JSON
//! <dataRoot>/<cluster>/journal/saved/N    old content that is too large for a line, or whole folders
//! ```
//!
//! Only the *first* state of a thing is recorded: undo plays the records backwards, and the first one is what the host was like.
//! A record says what was, never what will be, so a crash between record and change does no harm. A last line that is torn
//! or fails its checksum was never followed by a change and is cut off; a bad line before it means the disk is damaged.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Content, Error, Result, fault, fsops,
    proto::{RunEnd, RunMark, RunNote, Scope},
};

/// Content up to this size is kept in the record itself.
const INLINE: u64 = 8 << 10;

/// How something was before we first touched it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "was", rename_all = "camelCase")]
pub enum Entry {
    /// The first record: whose journal it is. The snapshot lies in `saved/before.json`.
    Begin {
        /// Which installation.
        scope: Scope,
        /// Version that wrote it.
        version: String,
    },
    /// Nothing was at this path; afterwards a file or link of ours is.
    Absent {
        /// Where.
        path: String,
    },
    /// There was no folder; ours goes when it is empty, or with all its content if `owned`.
    NoDir {
        /// Where.
        path: String,
        /// Whether its content is ours.
        owned: bool,
    },
    /// There was a folder with this mode and owner; with `owned`, names that were not in it are ours.
    Dir {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Owner and group.
        owner: (u32, u32),
        /// Names in it, if it became ours.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        names: Option<Vec<String>>,
    },
    /// There was a file.
    File {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Owner and group.
        owner: (u32, u32),
        /// What was in it.
        old: Old,
    },
    /// There was a symbolic link.
    Link {
        /// Where.
        path: String,
        /// What it said.
        target: String,
    },
    /// There was a folder which is moved as a whole to `saved/<name>`.
    Tree {
        /// Where.
        path: String,
        /// Name below `saved`.
        saved: String,
    },
    /// A kernel parameter had this value.
    Sysctl {
        /// With dots.
        key: String,
        /// Its value.
        value: String,
    },
    /// A kernel module was not loaded.
    Module {
        /// Its name.
        name: String,
    },
    /// Swap areas were in use.
    Swap {
        /// Device or file, and priority.
        areas: Vec<(String, i32)>,
    },
    /// There was no nftables table of ours of family `inet`.
    Table {
        /// Its name.
        name: String,
    },
    /// A unit's state.
    Unit {
        /// Its name.
        name: String,
        /// Whether its file is ours, so that it ceases to exist.
        ours: bool,
        /// `enabled`, `disabled`, `masked`, … or empty.
        enabled: String,
        /// Whether it was active.
        active: bool,
    },
    /// An undo has begun; it has to be finished before anything else.
    Undo,
    /// A mark, nothing that was: a run began.
    Run {
        /// Its number, from 0.
        n: u64,
        /// Who, when, what.
        #[serde(flatten)]
        mark: RunMark,
    },
    /// A mark: the run with this number ended.
    Ended {
        /// Which run.
        n: u64,
        /// When, in milliseconds since 1970.
        at_ms: i64,
        /// How.
        how: RunEnd,
    },
}

/// Old content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Old {
    /// In the record.
    Here(Content),
    /// In this file below `saved`.
    Saved(String),
}

impl Entry {
    /// What it is about; only the first entry with a key counts.
    pub fn key(&self) -> String {
        match self {
            Self::Begin { .. } => "begin".to_owned(),
            // A folder made on the way to a file may become ours as a whole later.
            Self::NoDir { path, owned: true } => format!("owned {path}"),
            // A folder may take the place of a link or file of ours that is recorded as such.
            Self::NoDir { path, owned: false } => format!("dir {path}"),
            // And what was there before it became ours may still be moved away as a whole.
            Self::Dir {
                path, names: Some(_), ..
            } => format!("names {path}"),
            // So may one that was only used.
            Self::Dir { path, .. } => format!("mode {path}"),
            Self::Absent { path } | Self::File { path, .. } | Self::Link { path, .. } | Self::Tree { path, .. } => {
                format!("path {path}")
            }
            Self::Sysctl { key, .. } => format!("sysctl {key}"),
            Self::Module { name } => format!("module {name}"),
            Self::Swap { .. } => "swap".to_owned(),
            Self::Table { name } => format!("table {name}"),
            Self::Unit { name, .. } => format!("unit {name}"),
            Self::Undo => "undo".to_owned(),
            Self::Run { n, .. } => format!("run {n}"),
            // A run that ended badly may be undone later.
            Self::Ended { n, how, .. } => format!("ended {n} {how:?}"),
        }
    }

    /// Whether it is only a mark between changes.
    pub fn is_mark(&self) -> bool {
        matches!(
            self,
            Self::Begin { .. } | Self::Undo | Self::Run { .. } | Self::Ended { .. }
        )
    }

    /// For people: what we did there.
    pub fn describe(&self) -> String {
        match self {
            Self::Begin { scope, version } => format!("began cluster {} ({version})", scope.cluster),
            Self::Absent { path } => format!("created {path}"),
            Self::NoDir { path, .. } => format!("created folder {path}"),
            Self::Dir { path, .. } => format!("used folder {path}"),
            Self::File { path, .. } => format!("replaced {path}"),
            Self::Link { path, .. } => format!("replaced link {path}"),
            Self::Tree { path, .. } => format!("moved away folder {path}"),
            Self::Sysctl { key, value } => format!("changed sysctl {key} (was {value})"),
            Self::Module { name } => format!("loaded module {name}"),
            Self::Swap { areas } => format!("switched off {} swap area(s)", areas.len()),
            Self::Table { name } => format!("made table inet {name}"),
            Self::Unit { name, .. } => format!("managed unit {name}"),
            Self::Undo => "began to undo".to_owned(),
            Self::Run { n, mark } => format!("began run {n}: {}", mark.who),
            Self::Ended { n, how, .. } => format!("ended run {n}: {}", how.word()),
        }
    }
}

/// What reading a journal found.
#[derive(Debug, Default)]
pub struct Log {
    /// Entries, oldest first.
    pub entries: Vec<Entry>,
    /// Length of the sound part.
    sound: u64,
    /// Length of a torn last line.
    pub torn: u64,
}

impl Log {
    /// Whether an undo was begun.
    pub fn undoing(&self) -> bool {
        self.entries.contains(&Entry::Undo)
    }

    /// How many runs there were.
    pub fn runs(&self) -> u64 {
        let marks = self.entries.iter().filter(|entry| matches!(entry, Entry::Run { .. }));
        marks.count() as u64
    }

    /// All runs in order, each with how it ended. Journals of versions that kept no marks have none.
    pub fn run_notes(&self) -> Vec<RunNote> {
        let mut notes: Vec<RunNote> = Vec::new();
        for entry in &self.entries {
            match entry {
                Entry::Run { mark, .. } => notes.push(RunNote {
                    mark: mark.clone(),
                    ended: None,
                    ended_ms: None,
                }),
                Entry::Ended { n, at_ms, how } => {
                    if let Some(note) = usize::try_from(*n).ok().and_then(|n| notes.get_mut(n)) {
                        (note.ended, note.ended_ms) = (Some(*how), Some(*at_ms));
                    }
                }
                _ => {}
            }
        }
        notes
    }
}

/// A journal open for writing. The caller holds the host's lock.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    file: File,
    keys: HashSet<String>,
    saved: u64,
}

fn checksum(json: &[u8]) -> String {
    hex::encode(&Sha256::digest(json)[..8])
}

/// The journal's folder for an installation.
pub(crate) fn dir(root: &fsops::Root, scope: &Scope) -> Result<PathBuf> {
    root.path(&format!("{}/journal", scope.dir()))
}

/// Reads the journal in `dir`; `None` if there is none.
///
/// # Errors
/// When it cannot be read, or is damaged elsewhere than in its last line.
pub fn read(dir: &Path) -> Result<Option<Log>> {
    let path = dir.join("log");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path)(e)),
    };
    let mut log = Log::default();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'\n');
        match end.and_then(|end| parse(&rest[..end])) {
            Some(entry) => {
                let length = end.unwrap_or(0) + 1;
                log.entries.push(entry);
                log.sound += length as u64;
                rest = &rest[length..];
            }
            // What follows a torn line was never written by us.
            None if end.is_none_or(|end| end + 1 == rest.len()) => {
                log.torn = rest.len() as u64;
                break;
            }
            None => {
                return Err(Error::corrupt(format!(
                    "the journal {} is damaged in line {}; the disk lost data, so undo cannot be exact",
                    path.display(),
                    log.entries.len() + 1
                )));
            }
        }
    }
    Ok(Some(log))
}

fn parse(line: &[u8]) -> Option<Entry> {
    let (sum, json) = (line.get(..16)?, line.get(17..)?);
    (checksum(json).as_bytes() == sum)
        .then(|| serde_json::from_slice(json).ok())
        .flatten()
}

impl Journal {
    /// Opens the journal in `dir`, making it (0700) when absent; cuts off a torn last line.
    ///
    /// # Errors
    /// When that fails, or the journal is damaged.
    pub fn open(dir: &Path) -> Result<(Self, Log)> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.join("saved"))
            .map_err(Error::io(dir))?;
        let log = read(dir)?.unwrap_or_default();
        let path = dir.join("log");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io(&path))?;
        if log.torn > 0 {
            file.set_len(log.sound).map_err(Error::io(&path))?;
        }
        file.sync_all().map_err(Error::io(&path))?;
        fsops::sync_parent(&path)?;
        let keys = log.entries.iter().map(Entry::key).collect();
        let saved = fs::read_dir(dir.join("saved")).map_err(Error::io(dir))?.count() as u64;
        Ok((
            Self {
                dir: dir.to_owned(),
                file,
                keys,
                saved,
            },
            log,
        ))
    }

    /// Whether the first state of this is recorded already.
    pub fn knows(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Whether a folder at this path is there because of us.
    pub fn made(&self, path: &str) -> bool {
        ["dir", "owned"].iter().any(|key| self.knows(&format!("{key} {path}")))
    }

    /// Records entries whose keys are new, all in one synced write.
    ///
    /// # Errors
    /// When the disk refuses; then the change must not be made.
    pub fn record(&mut self, entries: impl IntoIterator<Item = Entry>) -> Result<()> {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut text = Vec::new();
        for entry in &entries {
            if !self.keys.insert(entry.key()) {
                continue;
            }
            let json = serde_json::to_vec(entry).map_err(|e| Error::invalid(e.to_string()))?;
            text.extend_from_slice(checksum(&json).as_bytes());
            text.push(b' ');
            text.extend_from_slice(&json);
            text.push(b'\n');
        }
        if !text.is_empty() {
            let path = self.dir.join("log");
            self.file.write_all(&text).map_err(Error::io(&path))?;
            self.file.sync_data().map_err(Error::io(&path))?;
        }
        if !entries.is_empty() {
            fault::point(|| entries.iter().map(point_name).collect());
        }
        Ok(())
    }

    /// A name below `saved` that is not in use.
    pub fn fresh_name(&mut self) -> String {
        loop {
            self.saved += 1;
            let name = self.saved.to_string();
            if !self.saved_path(&name).exists() {
                return name;
            }
        }
    }

    /// Where something saved lies.
    pub fn saved_path(&self, name: &str) -> PathBuf {
        self.dir.join("saved").join(name)
    }

    /// Keeps the content of a file, in the record when it is small.
    ///
    /// # Errors
    /// When it cannot be copied durably.
    pub(crate) fn keep(&mut self, path: &Path, size: u64) -> Result<Old> {
        if size <= INLINE {
            let bytes = fsops::read_small(path, INLINE)?.unwrap_or_default();
            return Ok(Old::Here(Content::from(bytes)));
        }
        let name = self.fresh_name();
        fsops::copy_atomic(path, &self.saved_path(&name), 0o600, None)?;
        Ok(Old::Saved(name))
    }
}

/// What tests call the point after an entry's record: one that is run again is no other work.
fn point_name(entry: &Entry) -> String {
    match entry {
        Entry::Run { .. } | Entry::Ended { .. } => "run".to_owned(),
        _ => entry.key(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry::Absent { path: path.to_owned() }
    }

    #[test]
    fn a_torn_last_line_is_cut_off_wherever_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.record([entry("/a"), entry("/b")]).unwrap();
        let sound = fs::read(dir.path().join("log")).unwrap();
        journal.record([entry("/c")]).unwrap();
        let whole = fs::read(dir.path().join("log")).unwrap();
        for cut in sound.len() + 1..whole.len() {
            fs::write(dir.path().join("log"), &whole[..cut]).unwrap();
            let (mut journal, log) = Journal::open(dir.path()).unwrap();
            assert_eq!(log.entries, [entry("/a"), entry("/b")], "cut at {cut}");
            assert_eq!(log.torn as usize, cut - sound.len());
            journal.record([entry("/d")]).unwrap();
            assert_eq!(read(dir.path()).unwrap().unwrap().entries.len(), 3);
        }
    }

    #[test]
    fn damage_in_the_middle_is_an_error_not_a_guess() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.record([entry("/a"), entry("/b")]).unwrap();
        let mut bytes = fs::read(dir.path().join("log")).unwrap();
        bytes[20] ^= 1;
        fs::write(dir.path().join("log"), bytes).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn only_the_first_state_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.record([entry("/a")]).unwrap();
        journal
            .record([Entry::Link {
                path: "/a".into(),
                target: "x".into(),
            }])
            .unwrap();
        drop(journal);
        let (journal, log) = Journal::open(dir.path()).unwrap();
        assert_eq!(log.entries, [entry("/a")]);
        assert!(journal.knows("path /a"));
    }
}
