//! Shows what goes on with hosts: one line each on a terminal, plain lines elsewhere, one event a line with `-o json`.

use crate::{output::Output, progress::Task, table};
use bootstrap::event::{Event, Observer};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The line of what belongs to no host.
const CLUSTER: &str = "cluster";

/// See the head of this file.
pub struct Show {
    out: Output,
    lines: Mutex<HashMap<String, Arc<Line>>>,
}

struct Line {
    task: Task,
    /// Titles of what goes on now, the latest last.
    active: Mutex<Vec<(&'static str, &'static str)>>,
}

impl Show {
    /// On this output.
    pub fn new(out: Output) -> Self {
        Self {
            out,
            lines: Mutex::default(),
        }
    }

    fn line(&self, host: Option<&str>) -> Arc<Line> {
        let host = host.unwrap_or(CLUSTER);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.entry(host.to_owned()).or_insert_with(|| {
            Arc::new(Line {
                task: self.out.task(host),
                active: Mutex::default(),
            })
        });
        Arc::clone(line)
    }

    fn text(&self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, title, host } => self.line(host.as_deref()).started(phase, title, &self.out),
            Event::PhaseDone {
                phase,
                host,
                changes,
                bytes,
                took,
            } => {
                let line = self.line(host.as_deref());
                // What changed nothing and took no time is not worth a line.
                let idle = *changes == 0 && *bytes == 0 && took.as_millis() < 500;
                line.ended(phase, !idle, |title| {
                    let mut text = format!("{title}: {}", table::time(*took));
                    if *bytes > 0 {
                        text.push_str(&format!(", {}", table::size(*bytes)));
                    }
                    if *changes > 0 {
                        text.push_str(&format!(", {changes} changes"));
                    }
                    text
                });
            }
            Event::PhaseFailed { phase, host, .. } => {
                let line = self.line(host.as_deref());
                line.ended(phase, true, |title| format!("{title}: FAILED"));
                line.task.fail("failed");
            }
            Event::BytesExpected { host, bytes } => self.line(Some(host)).task.total(*bytes),
            Event::BytesSent { host, bytes } => self.line(Some(host)).task.advance(*bytes),
            Event::HostDone { host, message } => self.line(Some(host)).task.done(message),
            Event::Output { host, what, line, .. } => {
                self.out
                    .note(format!("{} {what}: {line}", host.as_deref().unwrap_or(CLUSTER)));
            }
            Event::Note { host, message } => self.line(host.as_deref()).task.note(message),
            Event::Warning { host, message } => self.out.warn(match host {
                Some(host) => format!("{host}: {message}"),
                None => message.clone(),
            }),
        }
    }
}

impl Line {
    fn active(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, &'static str)>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self, phase: &'static str, title: &'static str, out: &Output) {
        self.active().push((phase, title));
        if out.has_bars() {
            self.task.phase(title);
        }
    }

    /// Where there are bars the line goes back to what still goes on; plain lines tell what ended.
    fn ended(&self, phase: &str, telling: bool, tell: impl FnOnce(&str) -> String) {
        let mut active = self.active();
        let title = active
            .iter()
            .find(|(name, _)| *name == phase)
            .map_or("", |(_, title)| *title);
        let text = tell(title);
        active.retain(|(name, _)| *name != phase);
        let text = telling.then_some(text);
        let next = active.last().map_or("waiting", |(_, title)| *title);
        self.task.ended(text.as_deref(), next);
    }
}

impl Observer for Show {
    fn event(&self, event: Event) {
        if self.out.is_json() {
            // Bytes are told in sum when a phase ends; one event for each piece would drown all others.
            if !matches!(event, Event::BytesSent { .. }) {
                self.out.json(&event);
            }
        } else {
            self.text(&event);
        }
    }
}
