//! Keeps what happens for the report, and writes that report when the command has ended.

use crate::{page, story::Story};
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
}

impl Recording {
    /// For a report at `path`.
    ///
    /// # Errors
    /// When it could not be written there: better said now than in an hour.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
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
        let mut story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        story.take(self.start.elapsed(), &event);
    }
}
