//! One line of progress: what is being done for one thing (a host, an archive), and how many of its bytes are through.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// See the head of this file. Dropping it leaves the line as it is.
pub struct Task {
    label: String,
    bar: Option<ProgressBar>,
    /// Present where lines are printed instead of bars: when the program started.
    plain: Option<Instant>,
    bytes: AtomicU64,
}

impl Task {
    pub(crate) fn new(label: String, bars: Option<&MultiProgress>, plain: Option<Instant>) -> Self {
        let bar = bars.map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(spinner());
            bar.set_prefix(label.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            label,
            bar,
            plain,
            bytes: AtomicU64::new(0),
        }
    }

    /// What is being done now.
    pub fn phase(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.say(text),
        }
    }

    /// How many bytes are to be moved now, none of them yet.
    pub fn total(&self, bytes: u64) {
        self.bytes.store(0, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_style(if bytes > 0 { bytes_bar() } else { spinner() });
            bar.set_length(bytes);
            bar.set_position(0);
        }
    }

    /// That so many more bytes are through.
    pub fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// It is done.
    pub fn done(&self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_style(ended());
                bar.finish_with_message(format!("{} {text}", console::style("✔").green().for_stderr()));
            }
            None => self.say(text),
        }
    }

    /// It failed; the error itself is printed elsewhere.
    pub fn fail(&self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_style(ended());
                bar.finish_with_message(format!("{} {text}", console::style("✘").red().for_stderr()));
            }
            None => self.say(text),
        }
    }

    fn say(&self, text: &str) {
        if let Some(start) = self.plain {
            eprintln!("{:>6.1}s  {:<16} {text}", start.elapsed().as_secs_f32(), self.label);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn spinner() -> ProgressStyle {
    style("{spinner} {prefix:16.bold} {msg}")
}

fn ended() -> ProgressStyle {
    style("  {prefix:16.bold} {msg}")
}

fn bytes_bar() -> ProgressStyle {
    style("{spinner} {prefix:16.bold} {msg} {bar:24.cyan/dim} {bytes}/{total_bytes} {binary_bytes_per_sec}")
}
