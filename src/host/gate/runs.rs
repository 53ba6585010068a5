//! Runs: what one apply changes, between its two marks in the journal.
//!
//! ```text
//! <dataRoot>/<cluster>/journal/run/     what was before the run that is under way, if it may have to be undone alone
//! <dataRoot>/<cluster>/applied.json     what the last run that ended well left ([`super::applied`])
//! ```
//!
//! The journal of a run is one like that of the installation, but about the state at the run's beginning. It is written before each
//! change too, so a run can be undone after a crash, and by another connection than the one that began it.

use std::path::PathBuf;

use super::{Gate, applied::Records, record_leaf};
use crate::{
    Error, Result, fsops,
    journal::{self, Entry, Journal, Log},
    proto::{FaultKind, RunEnd, RunMark},
};

/// How a run's journal names what the journal of the installation has saved: relative to its own `saved`.
pub(crate) const OF_INSTALLATION: &str = "../../saved/";

impl Gate {
    /// Where the journal of a run lies.
    pub(crate) fn run_dir(&self) -> Result<PathBuf> {
        Ok(journal::dir(&self.root, &self.scope)?.join("run"))
    }

    /// Marks the beginning of a run; whether nothing of ours was on the host before.
    pub(crate) fn begin_run(&mut self, mark: RunMark, revertible: bool) -> Result<bool> {
        let log = journal::read(&journal::dir(&self.root, &self.scope)?)?.unwrap_or_default();
        if log.undoing() {
            return Err(Error::invalid(
                "a reset was begun on this host and not finished: finish it first (installer reset)",
            ));
        }
        let home = self.scope.dir();
        let fresh = log.entries.iter().all(|entry| match entry {
            // The answer to a first asking may have been lost.
            Entry::Begin { .. } | Entry::Run { .. } => true,
            Entry::NoDir { path, .. } => *path == home || home.starts_with(&format!("{path}/")),
            Entry::Dir { path, .. } => *path == home,
            _ => false,
        });
        let dir = self.run_dir()?;
        self.run = None;
        fsops::remove_tree(&dir)?;
        if revertible && !fresh {
            self.run = Some(Journal::open(&dir)?.0);
        }
        self.journal()?.record([Entry::Run {
            n: log.runs(),
            mark: mark.clone(),
        }])?;
        self.applied = Some(Records::begin(mark, &self.home()?)?);
        Ok(fresh)
    }

    /// Goes on with a run that was begun on a connection that is lost.
    pub(super) fn resume_run(&mut self, log: &Log) -> Result<()> {
        if log.run_notes().last().is_none_or(|run| run.ended.is_some()) {
            return Ok(());
        }
        let dir = self.run_dir()?;
        if dir.join("log").exists() {
            self.run = Some(Journal::open(&dir)?.0);
        }
        self.applied = Records::resume(&self.home()?)?;
        Ok(())
    }

    /// Marks the end of the run.
    pub(crate) fn end_run(&mut self, how: RunEnd) -> Result<()> {
        let Some(applied) = self.applied.take() else {
            let log = journal::read(&journal::dir(&self.root, &self.scope)?)?.unwrap_or_default();
            return match log.run_notes().last() {
                // Asked again, because the first answer was lost.
                Some(run) if run.ended == Some(how) => Ok(()),
                _ => Err(Error::invalid("no run was begun on this host")),
            };
        };
        self.run = None;
        let home = self.home()?;
        match how {
            RunEnd::Done => applied.write(&home)?,
            RunEnd::PartDone => applied.write_over(&home)?,
            RunEnd::Failed => return self.mark_end(how),
            RunEnd::Undone => return Err(Error::invalid("only undoing a run makes it undone")),
        }
        fsops::remove_tree(&self.run_dir()?)?;
        self.mark_end(how)
    }

    /// Notes how the last run ended.
    pub(crate) fn mark_end(&mut self, how: RunEnd) -> Result<()> {
        Records::forget(&self.home()?)?;
        let log = journal::read(&journal::dir(&self.root, &self.scope)?)?.unwrap_or_default();
        let Some(n) = log.runs().checked_sub(1) else {
            return Err(Error::new(FaultKind::NotFound, "no run was ever begun on this host"));
        };
        self.journal()?.record([Entry::Ended {
            n,
            at_ms: jiff::Timestamp::now().as_millisecond(),
            how,
        }])
    }

    /// Lets go of the run, whose journal stays on disk.
    pub(crate) fn leave_run(&mut self) {
        (self.run, self.applied) = (None, None);
    }

    /// Records what only the undoing of a run has to know, because undoing everything removes it as a whole.
    pub(crate) fn note_of_run(&mut self, path: &str) -> Result<()> {
        let at = self.root.path(path)?;
        let there = fsops::look(&at)?;
        match &mut self.run {
            Some(run) => record_leaf(run, path, &at, &there),
            None => Ok(()),
        }
    }
}
