//! Undoing one run: what it changed on the host becomes what it was when the run began. What was unpacked and sent for it stays, for
//! the next one.

use super::{Player, Report, tool};
use crate::{
    Error, Result, fsops,
    gate::Gate,
    journal::{self, Entry},
    proto::{FaultKind, RunEnd, Undone},
};

/// Undoes the last revertible run. When something fails its journal stays, and this can be repeated.
pub(crate) fn undo_run(gate: &mut Gate) -> Result<Undone> {
    let dir = gate.run_dir()?;
    gate.leave_run();
    let runs = journal::read(&journal::dir(&gate.root, &gate.scope)?)?.unwrap_or_default();
    let Some(log) = journal::read(&dir)? else {
        // Asked again, because the first answer was lost.
        if runs
            .run_notes()
            .last()
            .is_some_and(|run| run.ended == Some(RunEnd::Undone))
        {
            return Ok(Undone::default());
        }
        return Err(Error::new(
            FaultKind::NotFound,
            "there is no run on this host that can be undone alone",
        ));
    };
    let mut report = Report::default();
    let home = gate.scope.dir();
    stop(gate, &log.entries, &mut report);
    let player = Player {
        gate,
        saved: dir.join("saved"),
        home: &home,
    };
    for entry in log.entries.iter().rev() {
        let result = player.revert(entry);
        match entry {
            Entry::Unit { .. } => report.note_quiet(result),
            _ => report.note(format!("undid: {}", entry.describe()), result),
        }
    }
    player.restore_units(&log.entries, &mut report);
    if report.failed.is_empty() {
        fsops::remove_tree(&dir)?;
        gate.mark_end(RunEnd::Undone)?;
    }
    Ok(Undone {
        done: report.done,
        failed: report.failed,
        left: Vec::new(),
    })
}

/// Units that did not run, or did not start by themselves, when the run began.
fn stop(gate: &Gate, entries: &[Entry], report: &mut Report) {
    let system = gate.system.as_ref();
    for entry in entries.iter().rev() {
        let Entry::Unit {
            name,
            ours,
            enabled,
            active,
        } = entry
        else {
            continue;
        };
        if *ours || !active {
            report.note(
                format!("stopped {name}"),
                tool(system, &["systemctl", "stop", "--", name]),
            );
        }
        if *ours || !enabled.starts_with("enabled") {
            report.note(
                format!("disabled {name}"),
                tool(system, &["systemctl", "disable", "--", name]),
            );
        }
    }
}
