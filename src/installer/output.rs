//! Everything that is printed. Results go to stdout, everything else to stderr; with `-o json` stdout is one event per line.
//!
//! No other file of this program writes to a stream, so that bars and lines never tear each other apart.

use crate::{progress::Task, table::Table};
use clusterfile::Secret;
use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// How a command prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// The `-o` flag, to be flattened into the flags of commands that have it.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct FormatArg {
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
}

/// The terminal, or whatever stands in for it. Cheap to clone.
#[derive(Clone)]
pub struct Output {
    format: Format,
    quiet: bool,
    /// Present when stderr is a terminal and bars are wanted.
    bars: Option<MultiProgress>,
    start: Instant,
}

impl Output {
    /// Bars are drawn only where a person can see them move.
    pub fn new(format: Format, quiet: bool, verbose: u8) -> Self {
        let bars = format == Format::Text && !quiet && verbose == 0 && std::io::stderr().is_terminal();
        Self {
            format,
            quiet,
            bars: bars.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(15))),
            start: Instant::now(),
        }
    }

    /// Whether programs read us.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether progress is drawn, not told.
    pub fn has_bars(&self) -> bool {
        self.bars.is_some()
    }

    /// A question on stderr, without a line's end.
    pub fn ask(&self, text: &str) {
        self.around_bars(|| {
            let mut stderr = std::io::stderr().lock();
            let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
        });
    }

    /// A secret that is typed on the terminal and not shown.
    ///
    /// # Errors
    /// When there is no terminal to ask on.
    pub fn ask_secret(&self, text: &str) -> anyhow::Result<Secret> {
        let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !self.is_json();
        anyhow::ensure!(terminal, "there is no terminal to ask for a passphrase on");
        self.ask(text);
        Ok(Secret::new(console::Term::stderr().read_secure_line()?))
    }

    /// What the user asked for: a line on stdout. With `-o json` nothing; use [`Output::json`].
    pub fn result(&self, text: impl AsRef<str>) {
        if !self.is_json() {
            self.around_bars(|| write_line(std::io::stdout().lock(), text.as_ref()));
        }
    }

    /// Raw bytes on stdout, whatever the format: for commands whose result is a file.
    pub fn raw(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    /// One JSON object on a line of stdout; nothing in text mode.
    pub fn json(&self, value: &impl Serialize) {
        if self.is_json()
            && let Ok(line) = serde_json::to_string(value)
        {
            write_line(std::io::stdout().lock(), &line);
        }
    }

    /// A table on stdout; nothing in JSON mode.
    pub fn table(&self, table: &Table) {
        self.result(table.to_string().trim_end());
    }

    /// What is going on: a line on stderr, silenced by `--quiet` and JSON.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.is_json() {
            self.line(text.as_ref());
        }
    }

    /// Something the user should know though it stops nothing.
    pub fn warn(&self, text: impl AsRef<str>) {
        if self.is_json() {
            self.json(&serde_json::json!({"event": "warning", "message": text.as_ref()}));
        } else {
            self.line(&format!(
                "{} {}",
                console::style("warning:").yellow().bold(),
                text.as_ref()
            ));
        }
    }

    /// Why it failed.
    pub fn error(&self, text: &str) {
        self.line(&format!("{} {text}", console::style("error:").red().bold()));
    }

    /// A line of progress with a label (a host, a file): a bar on a terminal, plain lines elsewhere.
    pub fn task(&self, label: impl Into<String>) -> Task {
        let plain = !self.quiet && !self.is_json() && self.bars.is_none();
        Task::new(label.into(), self.bars.as_ref(), plain.then_some(self.start))
    }

    /// Clears bars that were left.
    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    fn line(&self, text: &str) {
        self.around_bars(|| write_line(std::io::stderr().lock(), text));
    }

    fn around_bars(&self, write: impl FnOnce()) {
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

/// A closed pipe (`| head`) is no reason to fail.
fn write_line(mut stream: impl Write, text: &str) {
    let _ = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.write_all(b"\n"))
        .and_then(|()| stream.flush());
}
