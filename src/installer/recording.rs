//! Keeps what happens for the report, and writes that report when the command has ended.

use crate::{log::Log, page, story::Story};
use anyhow::Context as _;
use bootstrap::event::{Event, Observer};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// The `--report` flag of commands that change hosts.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ReportArg {
    /// Write what was done, when and how fast, to a page for browsers, whether it went well or not
    #[arg(long, value_name = "FILE.html", value_hint = clap::ValueHint::FilePath)]
    pub report: Option<PathBuf>,
}

/// See the head of this file.
pub struct Recording {
    path: PathBuf,
    began: jiff::Zoned,
    start: Instant,
    story: Mutex<Story>,
    log: Log,
}

impl Recording {
    /// For a report at `path`, without the secrets that are kept out of the log too.
    ///
    /// # Errors
    /// When it could not be written there: better said now than in an hour.
    pub fn new(path: &Path, log: Log) -> anyhow::Result<Self> {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| {
                let path = path.display();
                format!("cannot write the report {path}: choose a file in a folder that is there and yours")
            })?;
        Ok(Self {
            path: path.to_path_buf(),
            began: jiff::Zoned::now(),
            start: Instant::now(),
            story: Mutex::default(),
            log,
        })
    }

    /// Writes the report, whole or not at all, and tells where it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> anyhow::Result<&Path> {
        let began = self.began.strftime("%Y-%m-%d %H:%M:%S %Z").to_string();
        let page = page::page(&self.story.lock().unwrap_or_else(PoisonError::into_inner), &began);
        let partial = self.path.with_extension(format!("part{}", std::process::id()));
        std::fs::write(&partial, page)
            .and_then(|()| std::fs::rename(&partial, &self.path))
            .with_context(|| format!("cannot write the report {}", self.path.display()))?;
        Ok(&self.path)
    }
}

impl Observer for Recording {
    fn event(&self, event: Event) {
        let event = clean(event, |text| self.log.clean(text));
        let mut story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        story.take(self.start.elapsed(), &event);
    }
}

/// Takes secrets out of what others wrote.
fn clean(event: Event, clean: impl Fn(&str) -> String) -> Event {
    match event {
        Event::Output {
            host,
            what,
            stream,
            line,
        } => Event::Output {
            host,
            what,
            stream,
            line: clean(&line),
        },
        Event::PhaseFailed { phase, host, message } => Event::PhaseFailed {
            phase,
            host,
            message: clean(&message),
        },
        Event::Note { host, message } => Event::Note {
            host,
            message: clean(&message),
        },
        Event::Warning { host, message } => Event::Warning {
            host,
            message: clean(&message),
        },
        Event::Error { message, causes } => Event::Error {
            message: clean(&message),
            causes: causes.iter().map(|cause| clean(cause)).collect(),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_no_secrets_that_hooks_and_errors_print() {
        let dir = tempfile::tempdir().unwrap();
        let recording = Recording::new(&dir.path().join("r.html"), Log::default()).unwrap();
        let text = || "token=Pl4nted and so on".to_owned();
        for event in [
            Event::Output {
                host: None,
                what: "hook".into(),
                stream: host::proto::Stream::Stderr,
                line: text(),
            },
            Event::PhaseStarted {
                phase: "agent",
                title: "starting",
                host: None,
            },
            Event::PhaseFailed {
                phase: "agent",
                host: None,
                message: text(),
            },
            Event::Note {
                host: None,
                message: text(),
            },
            Event::Warning {
                host: None,
                message: text(),
            },
            Event::Error {
                message: text(),
                causes: vec![text()],
            },
        ] {
            recording.event(event);
        }
        let page = std::fs::read_to_string(recording.write().unwrap()).unwrap();
        assert!(!page.contains("Pl4nted"));
        assert!(page.matches("token=(redacted) and so on").count() >= 6);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing lies beside it"
        );
    }
}
