//! Everything that is printed. Results go to stdout, everything else to stderr; with `-o json` stdout is one event per line.
//!
//! No other file of this program writes to a stream, so that bars and lines never tear each other apart.

use crate::{log::said, progress::Task, table::Table};
use bootstrap::event::Event;
use clusterfile::Secret;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// Gives the text that is drawn now.
type Draw = Arc<dyn Fn() -> String + Send + Sync>;

/// The terminal, or whatever stands in for it. Cheap to clone.
#[derive(Clone)]
pub struct Output {
    format: Format,
    quiet: bool,
    /// Present when stderr is a terminal and bars are wanted.
    bars: Option<MultiProgress>,
    start: Instant,
    /// What is drawn of hosts.
    live: Arc<Mutex<Option<(ProgressBar, Draw)>>>,
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
            live: Arc::default(),
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

    /// An event on a line of stdout, with the time at which it is told; nothing in text mode.
    pub fn event(&self, event: &Event) {
        self.json(&stamped(event));
    }

    /// A table on stdout; nothing in JSON mode.
    pub fn table(&self, table: &Table) {
        self.result(table.to_string().trim_end());
    }

    /// What is going on: a line on stderr, silenced by `--quiet` and JSON.
    pub fn note(&self, text: impl AsRef<str>) {
        said(text.as_ref());
        if !self.quiet && !self.is_json() {
            self.line(text.as_ref());
        }
    }

    /// What is going on with a host: a line with the time since the start, silenced as a note is.
    pub fn host_line(&self, host: &str, text: &str) {
        if !self.quiet && !self.is_json() {
            let seconds = self.start.elapsed().as_secs_f32();
            self.line(&format!("{seconds:>6.1}s  {host:<16} {text}"));
        }
    }

    /// Something the user should know though it stops nothing; silenced by `--quiet`.
    pub fn warn(&self, text: impl AsRef<str>) {
        said(text.as_ref());
        if self.is_json() {
            self.event(&Event::Warning {
                host: None,
                message: text.as_ref().to_owned(),
            });
        } else if !self.quiet {
            self.line(&format!(
                "{} {}",
                console::style("warning:").yellow().bold().for_stderr(),
                text.as_ref()
            ));
        }
    }

    /// Why it failed.
    pub fn error(&self, text: &str) {
        said(text);
        self.line(&format!(
            "{} {text}",
            console::style("error:").red().bold().for_stderr()
        ));
    }

    /// A line of progress with a label (a host, a file): a bar on a terminal, plain lines elsewhere.
    pub fn task(&self, label: impl Into<String>) -> Task {
        let plain = !self.quiet && !self.is_json() && self.bars.is_none();
        Task::new(label.into(), self.bars.as_ref(), plain.then_some(self.start))
    }

    /// Draws what `lines` says for a terminal of so many columns and rows, again and again until [`Output::finish`]. Nothing where
    /// nothing can be drawn, or where it is drawn already.
    pub fn live(&self, lines: impl Fn(usize, usize) -> String + Send + Sync + 'static) {
        let Some(bars) = &self.bars else { return };
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.is_some() {
            return;
        }
        let draw: Draw = Arc::new(move || {
            let (rows, columns) = console::Term::stderr().size();
            // A line that fills the last column would wrap, and the last row is the cursor's.
            lines(
                usize::from(columns).saturating_sub(1),
                usize::from(rows).saturating_sub(1),
            )
        });
        let drawn = Arc::clone(&draw);
        let write = move |_: &ProgressState, target: &mut dyn std::fmt::Write| {
            let _ = target.write_str(&drawn());
        };
        let style = ProgressStyle::with_template("{lines}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = bars.add(ProgressBar::new_spinner());
        bar.set_style(style.with_key("lines", write));
        bar.enable_steady_tick(Duration::from_millis(100));
        *live = Some((bar, draw));
    }

    /// Clears bars that were left; the last of what was drawn of hosts stays.
    pub fn finish(&self) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((bar, draw)) = live {
            bar.finish_and_clear();
            self.line(&draw());
        }
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

/// An event as programs read it: with the time at which it is told.
fn stamped(event: &Event) -> impl Serialize {
    #[derive(Serialize)]
    struct Stamped<'e> {
        time: String,
        #[serde(flatten)]
        event: &'e Event,
    }
    Stamped {
        time: format!("{:.3}", jiff::Timestamp::now()),
        event,
    }
}

/// A closed pipe (`| head`) is no reason to fail.
fn write_line(mut stream: impl Write, text: &str) {
    let _ = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.write_all(b"\n"))
        .and_then(|()| stream.flush());
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod events_tests;
