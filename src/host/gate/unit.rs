//! Deciding about and changing systemd units.
//!
//! ```text
//! file differs ─▶ write, daemon-reload      enable differs ─▶ enable / disable
//! run=Started: inactive ─▶ start      active and a trigger is younger than its start ─▶ restart (or reload)
//! then wait: active ─▶ done      failed, or restarting on and on ─▶ error with the unit's last journal lines
//! ```

use std::{
    os::unix::fs::MetadataExt as _,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{Decision, Gate, Todo, change, unchanged};
use crate::{
    Error, Result,
    effect::{Action, Run, Unit},
    journal::Entry,
    proto::{FaultKind, UnitStatus},
    system::{Shown, must, unit_log, unit_status},
};

/// What has to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitPlan {
    write: bool,
    reload_manager: bool,
    enable: Option<bool>,
    /// `start`, `restart`, `reload` or `stop`.
    verb: Option<&'static str>,
}

impl UnitPlan {
    fn steps(&self) -> Vec<&'static str> {
        let enable = self.enable.map(|on| if on { "enable" } else { "disable" });
        self.write
            .then_some("write")
            .into_iter()
            .chain(enable)
            .chain(self.verb)
            .collect()
    }
}

/// The pure part: `differs`: the file is not as wished; `younger`: a trigger changed after the unit's start.
fn plan(unit: &Unit, now: &UnitStatus, stale: bool, differs: bool, younger: bool) -> UnitPlan {
    let enabled = matches!(now.enabled.as_str(), "enabled" | "enabled-runtime");
    let running = matches!(now.active.as_str(), "active" | "activating" | "reloading");
    let fired = differs || younger || (stale && unit.content.is_some());
    let verb = match unit.run {
        Run::Leave => None,
        Run::Restarted => Some("restart"),
        Run::Started if !running => Some("start"),
        // A unit whose own file changed cannot be brought up to date by a reload.
        Run::Started if fired && unit.reload && !differs && !stale => Some("reload"),
        Run::Started if fired => Some("restart"),
        Run::Started => None,
        Run::Stopped if running => Some("stop"),
        Run::Stopped => None,
    };
    UnitPlan {
        write: differs,
        reload_manager: differs || stale,
        enable: unit.enable.filter(|&wish| wish != enabled),
        verb,
    }
}

impl Gate {
    pub(super) fn decide_unit(&self, unit: &Unit) -> Result<Decision> {
        let what = format!("unit {}", unit.name);
        check_name(&unit.name)?;
        let Shown {
            unit: now,
            stale,
            changed_us,
        } = unit_status(self.system.as_ref(), &unit.name, 0)?;
        if now.load == "masked" {
            return Err(Error::invalid(format!(
                "{what} is masked; unmask it first (systemctl unmask {})",
                unit.name
            )));
        }
        let path = unit_path(&unit.name);
        let (file, differs) = match &unit.content {
            None if now.load == "not-found" && unit.run != Run::Stopped => {
                return Err(Error::new(
                    FaultKind::NotFound,
                    format!("{what} does not exist on this host"),
                ));
            }
            None => (None, false),
            Some(content) => {
                let (change, todo) = self.decide_bytes(&path, content.as_bytes(), 0o644, None, false)?;
                (Some(change), todo.is_some())
            }
        };
        let plan = plan(
            unit,
            &now,
            stale,
            differs,
            self.younger(unit, if unit.reload { changed_us } else { now.active_since_us })?,
        );
        if plan.steps().is_empty() {
            return Ok(unchanged(what));
        }
        let action = if now.load == "not-found" {
            Action::Create
        } else {
            Action::Modify
        };
        let mut change = change(what, action, plan.steps().join(", "));
        change.diff = file.and_then(|file| file.diff);
        Ok((
            change,
            Some(Todo::Unit {
                unit: unit.clone(),
                plan,
            }),
        ))
    }

    /// Whether a trigger (or the unit's own file) changed after the unit's last start (or reload).
    fn younger(&self, unit: &Unit, since_us: u64) -> Result<bool> {
        if since_us == 0 {
            return Ok(false);
        }
        let own = unit.content.as_ref().map(|_| unit_path(&unit.name));
        for path in unit.triggers.iter().chain(&own) {
            let Ok(meta) = std::fs::symlink_metadata(self.root.path(path)?) else {
                continue;
            };
            let changed_us = u64::try_from(meta.mtime()).unwrap_or(0) * 1_000_000
                + u64::try_from(meta.mtime_nsec()).unwrap_or(0) / 1000;
            if changed_us > since_us {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn run_unit(&mut self, unit: &Unit, plan: &UnitPlan) -> Result<()> {
        let system = std::sync::Arc::clone(&self.system);
        let Shown { unit: now, .. } = unit_status(system.as_ref(), &unit.name, 0)?;
        let entry = Entry::Unit {
            name: unit.name.clone(),
            ours: unit.content.is_some() && now.load == "not-found",
            enabled: now.enabled.clone(),
            active: now.active == "active",
        };
        self.note([entry])?;
        if let Some(content) = unit.content.as_ref().filter(|_| plan.write) {
            self.put_file(&unit_path(&unit.name), content.as_bytes(), 0o644, None)?;
        }
        if plan.reload_manager {
            must(system.as_ref(), &["systemctl", "daemon-reload"])?;
        }
        if let Some(on) = plan.enable {
            must(
                system.as_ref(),
                &["systemctl", if on { "enable" } else { "disable" }, "--", &unit.name],
            )?;
        }
        let Some(verb) = plan.verb else { return Ok(()) };
        if verb == "start" && now.active == "failed" {
            // A unit that failed often is refused a start until its count is cleared.
            must(system.as_ref(), &["systemctl", "reset-failed", "--", &unit.name])?;
        }
        // The wait is ours, so that a unit that fails at once is reported at once.
        must(system.as_ref(), &["systemctl", "--no-block", verb, "--", &unit.name])?;
        self.await_unit(unit, verb, &now)
    }

    fn await_unit(&self, unit: &Unit, verb: &str, before: &UnitStatus) -> Result<()> {
        let limit = Duration::from_secs(u64::from(unit.timeout));
        let begun = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            let Shown { unit: now, .. } = unit_status(self.system.as_ref(), &unit.name, 0)?;
            let settled = match verb {
                "stop" => matches!(now.active.as_str(), "inactive" | "failed"),
                "reload" => now.active == "active",
                // The old instance still counts as active until systemd begins to stop it.
                _ => {
                    now.active == "active"
                        && (before.active != "active" || now.active_since_us != before.active_since_us)
                }
            };
            if settled {
                return Ok(());
            }
            let broken = verb != "stop" && (now.active == "failed" || now.sub == "auto-restart");
            if broken || begun.elapsed() > limit {
                let log = unit_log(self.system.as_ref(), &unit.name, 15);
                let why = if broken {
                    "failed".to_owned()
                } else {
                    format!("is not ready after {} s", unit.timeout)
                };
                let kind = if broken { FaultKind::Failed } else { FaultKind::Timeout };
                let state = format!("{}/{}", now.active, now.sub);
                return Err(Error::new(
                    kind,
                    format!(
                        "unit {} {why} ({state}). Its last lines:\n{}",
                        unit.name,
                        log.join("\n")
                    ),
                ));
            }
            if self.closing.load(Ordering::Relaxed) {
                return Err(Error::failed("the client is gone"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

pub(crate) fn unit_path(name: &str) -> String {
    format!("/etc/systemd/system/{name}")
}

fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.@\\".contains(&b);
    let suffix = [".service", ".socket", ".timer", ".mount", ".slice", ".target", ".path"]
        .iter()
        .any(|s| name.ends_with(s));
    if suffix && name.bytes().all(plain) && !name.starts_with('-') {
        return Ok(());
    }
    Err(Error::invalid(format!("'{name}' is no unit name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(active: &str, enabled: &str) -> UnitStatus {
        UnitStatus {
            load: "loaded".into(),
            active: active.into(),
            enabled: enabled.into(),
            ..UnitStatus::default()
        }
    }

    #[test]
    fn a_unit_is_started_restarted_or_left_alone() {
        let started = Unit::service("a.service", "x", vec![]);
        let stopped = Unit {
            run: Run::Stopped,
            enable: Some(false),
            ..started.clone()
        };
        let reloads = Unit {
            reload: true,
            ..started.clone()
        };
        // unit, active, enabled, stale, differs, younger → steps
        type Row<'a> = (&'a Unit, &'a str, &'a str, bool, bool, bool, &'a [&'a str]);
        let table: &[Row<'_>] = &[
            (&started, "active", "enabled", false, false, false, &[]),
            (
                &started,
                "inactive",
                "",
                false,
                true,
                false,
                &["write", "enable", "start"],
            ),
            (&started, "inactive", "enabled", false, false, false, &["start"]),
            (&started, "failed", "enabled", false, false, true, &["start"]),
            (&started, "active", "enabled", false, true, false, &["write", "restart"]),
            (&started, "active", "enabled", false, false, true, &["restart"]),
            (&started, "active", "enabled", true, false, false, &["restart"]),
            (&started, "active", "disabled", false, false, false, &["enable"]),
            (&reloads, "active", "enabled", false, false, true, &["reload"]),
            (&reloads, "active", "enabled", false, true, true, &["write", "restart"]),
            (&stopped, "active", "enabled", false, false, false, &["disable", "stop"]),
            (&stopped, "inactive", "disabled", false, false, false, &[]),
        ];
        for (unit, active, enabled, stale, differs, younger, steps) in table {
            let plan = plan(unit, &now(active, enabled), *stale, *differs, *younger);
            assert_eq!(
                plan.steps(),
                *steps,
                "{active} {enabled} stale={stale} differs={differs} younger={younger}"
            );
        }
    }

    #[test]
    fn unit_names_cannot_be_options_or_paths() {
        for (name, ok) in [
            ("a.service", true),
            ("a@b.service", true),
            ("-x.service", false),
            ("../a.service", false),
            ("a", false),
        ] {
            assert_eq!(check_name(name).is_ok(), ok, "{name}");
        }
    }
}
