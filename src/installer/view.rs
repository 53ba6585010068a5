//! What the terminal shows while hosts are worked on: one line a host, or, where there are many, counts by phase. Pure: events and
//! times go in, lines come out.

use crate::table::{size, time};
use bootstrap::{event::Event, phases::PHASES};
use console::style;
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// How what belongs to no host is called.
pub const CLUSTER: &str = "cluster";
/// More hosts than this are counted, not listed.
const MANY: usize = 20;
/// Failed hosts, and hosts that lag, that are named where hosts are counted.
const NAMED: usize = 5;
/// Rates are those of the last seconds.
const WINDOW: Duration = Duration::from_secs(5);
/// Bytes are noted not more often than this.
const STEP: Duration = Duration::from_millis(200);
const BAR: usize = 20;
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// See the head of this file.
#[derive(Default)]
pub struct View {
    /// Hosts in the order in which they were first heard of.
    order: Vec<String>,
    lines: HashMap<String, Line>,
}

#[derive(Default)]
struct Line {
    /// Phases that go on now with their titles, the latest last.
    active: Vec<(&'static str, &'static str)>,
    end: Option<End>,
    bytes: Bytes,
}

enum End {
    Done(String),
    Failed(String),
}

/// Bytes on their way to one host.
#[derive(Default)]
struct Bytes {
    expected: u64,
    sent: u64,
    /// When how many were through.
    seen: VecDeque<(Duration, u64)>,
}

impl Bytes {
    fn expect(&mut self, now: Duration, bytes: u64) {
        *self = Self {
            expected: bytes,
            ..Self::default()
        };
        self.seen.push_back((now, 0));
    }

    fn add(&mut self, now: Duration, bytes: u64) {
        self.sent += bytes;
        if self.seen.back().is_none_or(|(at, _)| now >= *at + STEP) {
            self.seen.push_back((now, self.sent));
        }
        // The one at the edge stays: the rate is measured from there.
        while self.seen.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.seen.pop_front();
        }
    }

    /// Bytes in a second, now.
    fn rate(&self, now: Duration) -> u64 {
        let Some((at, before)) = self.seen.front() else {
            return 0;
        };
        let seconds = now.saturating_sub(*at).as_secs_f64();
        if seconds < STEP.as_secs_f64() {
            return 0;
        }
        ((self.sent - before) as f64 / seconds) as u64
    }

    fn are_moving(&self) -> bool {
        self.expected > 0 && self.sent < self.expected
    }
}

/// How long the rest will take at this rate; nothing where nothing moves.
fn left(expected: u64, sent: u64, rate: u64) -> Option<Duration> {
    let rest = expected.saturating_sub(sent);
    (rate > 0 && rest > 0).then(|| Duration::from_secs_f64(rest as f64 / rate as f64))
}

impl View {
    /// Notes what happened, so long after the start.
    pub fn take(&mut self, now: Duration, event: &Event) {
        match event {
            Event::PhaseStarted { phase, title, host } => {
                let line = self.line(host.as_deref());
                line.end = None;
                line.active.push((phase, title));
            }
            Event::PhaseDone { phase, host, .. } => self.line(host.as_deref()).ended(phase),
            Event::PhaseFailed { phase, host, .. } => {
                let line = self.line(host.as_deref());
                let title = line.title(phase);
                line.ended(phase);
                line.end = Some(End::Failed(title.to_owned()));
            }
            Event::BytesExpected { host, bytes } => self.line(Some(host)).bytes.expect(now, *bytes),
            Event::BytesSent { host, bytes } => self.line(Some(host)).bytes.add(now, *bytes),
            Event::HostDone { host, message } => {
                let line = self.line(Some(host));
                line.active.clear();
                line.end = Some(End::Done(message.clone()));
            }
            _ => {}
        }
    }

    fn line(&mut self, host: Option<&str>) -> &mut Line {
        let host = host.unwrap_or(CLUSTER);
        if !self.lines.contains_key(host) {
            self.order.push(host.to_owned());
        }
        self.lines.entry(host.to_owned()).or_default()
    }

    /// The lines, none wider than `width`; hosts are counted where there are many, or more than `height` lines.
    pub fn lines(&self, now: Duration, width: usize, height: usize) -> Vec<String> {
        let hosts: Vec<(&str, &Line)> = self.hosts().filter(|(name, _)| *name != CLUSTER).collect();
        let mut lines = if hosts.len() > MANY || hosts.len() + 2 > height {
            counted(&hosts, now)
        } else {
            let label = hosts.iter().map(|(name, _)| console::measure_text_width(name)).max();
            let label = label.unwrap_or(0).clamp(CLUSTER.len(), 28);
            hosts.iter().map(|(name, line)| line.text(name, label, now)).collect()
        };
        if let Some(cluster) = self.lines.get(CLUSTER).filter(|line| !line.is_idle()) {
            let label = hosts.iter().map(|(name, _)| console::measure_text_width(name)).max();
            lines.push(cluster.text(CLUSTER, label.unwrap_or(0).clamp(CLUSTER.len(), 28), now));
        }
        let fit = |line: String| console::truncate_str(&line, width, "…").into_owned();
        lines.into_iter().take(height.max(1)).map(fit).collect()
    }

    fn hosts(&self) -> impl Iterator<Item = (&str, &Line)> {
        self.order
            .iter()
            .filter_map(|name| Some((name.as_str(), self.lines.get(name)?)))
    }
}

impl Line {
    fn title(&self, phase: &str) -> &'static str {
        self.active
            .iter()
            .find(|(name, _)| *name == phase)
            .map_or("", |(_, title)| title)
    }

    fn ended(&mut self, phase: &str) {
        self.active.retain(|(name, _)| *name != phase);
    }

    fn is_idle(&self) -> bool {
        self.active.is_empty() && self.end.is_none()
    }

    fn text(&self, name: &str, label: usize, now: Duration) -> String {
        let frame = SPINNER[usize::try_from(now.as_millis() / 100).unwrap_or(0) % SPINNER.len()];
        let (mark, text) = match &self.end {
            Some(End::Done(message)) => (style("✔").green().for_stderr(), message.clone()),
            Some(End::Failed(title)) => (style("✘").red().for_stderr(), format!("{title}: failed")),
            None => match self.active.last() {
                Some((_, title)) => (style(frame).cyan().for_stderr(), (*title).to_owned()),
                None => (style("·").dim().for_stderr(), "waiting".to_owned()),
            },
        };
        let name = console::pad_str(name, label, console::Alignment::Left, Some("…"));
        let bytes = match self.end.is_none() && self.bytes.are_moving() {
            true => format!(
                "  {}",
                moved(self.bytes.expected, self.bytes.sent, self.bytes.rate(now))
            ),
            false => String::new(),
        };
        format!("{mark} {}  {text}{bytes}", style(name).bold().for_stderr())
    }

    /// What it is counted as.
    fn state(&self) -> State {
        match (&self.end, self.active.last()) {
            (Some(End::Failed(_)), _) => State::Failed,
            (Some(End::Done(_)), _) => State::Done,
            (None, Some((phase, title))) => State::Phase(order(phase), title),
            (None, None) => State::Waiting,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Phase(usize, &'static str),
    Waiting,
    Done,
    Failed,
}

/// The place of a phase in an apply; those of other commands come last.
fn order(phase: &str) -> usize {
    PHASES
        .iter()
        .position(|other| other.name == phase)
        .unwrap_or(PHASES.len())
}

/// `█████───── 12.0 MB/40.0 MB  1.2 MB/s  24 s left`.
fn moved(expected: u64, sent: u64, rate: u64) -> String {
    let full = usize::try_from(sent.min(expected) as u128 * BAR as u128 / u128::from(expected.max(1))).unwrap_or(BAR);
    let mut text = format!(
        "{}{} {}/{}",
        style("█".repeat(full)).cyan().for_stderr(),
        style("─".repeat(BAR - full)).dim().for_stderr(),
        size(sent),
        size(expected)
    );
    if rate > 0 {
        text.push_str(&format!("  {}/s", size(rate)));
    }
    if let Some(left) = left(expected, sent, rate) {
        text.push_str(&format!("  {} left", rough(left)));
    }
    text
}

/// A time that is only estimated needs no fractions.
fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..100 => format!("{} s", seconds.max(1)),
        _ => time(duration),
    }
}

/// Counts by phase, and by name those that failed or lag.
fn counted(hosts: &[(&str, &Line)], now: Duration) -> Vec<String> {
    let count = |state: State| hosts.iter().filter(|(_, line)| line.state() == state).count();
    let (done, failed, waiting) = (count(State::Done), count(State::Failed), count(State::Waiting));
    let mut head = format!("{}: {done} done", oci::counted(hosts.len(), "host"));
    for (number, what) in [(failed, "failed"), (waiting, "waiting")] {
        if number > 0 {
            head.push_str(&format!(", {number} {what}"));
        }
    }
    let mut lines = vec![style(head).bold().for_stderr().to_string()];
    let mut phases: Vec<State> = hosts.iter().map(|(_, line)| line.state()).collect();
    phases.retain(|state| matches!(state, State::Phase(..)));
    phases.sort_unstable();
    phases.dedup();
    for state in &phases {
        let State::Phase(_, title) = state else { continue };
        let here: Vec<&Line> = hosts
            .iter()
            .map(|(_, line)| *line)
            .filter(|line| line.state() == *state)
            .collect();
        let moving: Vec<&Bytes> = here
            .iter()
            .map(|line| &line.bytes)
            .filter(|bytes| bytes.are_moving())
            .collect();
        let sum = |of: fn(&Bytes) -> u64| moving.iter().map(|bytes| of(bytes)).sum::<u64>();
        let rate = moving.iter().map(|bytes| bytes.rate(now)).sum();
        let bytes = match moving.is_empty() {
            true => String::new(),
            false => format!("  {}", moved(sum(|b| b.expected), sum(|b| b.sent), rate)),
        };
        lines.push(format!("{:>6}  {title}{bytes}", here.len()));
    }
    let failed = hosts.iter().filter_map(|(name, line)| match &line.end {
        Some(End::Failed(title)) => Some(format!("     {}  {name}: {title}", style("✘").red().for_stderr())),
        _ => None,
    });
    lines.extend(failed.take(NAMED));
    lines.extend(lagging(hosts, &phases));
    lines
}

/// Those in the earliest phase, when they are few and most others are further.
fn lagging(hosts: &[(&str, &Line)], phases: &[State]) -> Option<String> {
    let first = phases.first()?;
    let last: Vec<String> = hosts
        .iter()
        .filter(|(_, line)| line.state() == *first)
        .map(|(name, line)| match line.bytes.are_moving() {
            true => format!("{name} ({} %)", line.bytes.sent * 100 / line.bytes.expected.max(1)),
            false => (*name).to_owned(),
        })
        .collect();
    let waiting = |(_, line): &&(&str, &Line)| line.state() == State::Waiting;
    let further = hosts.len() - last.len() - hosts.iter().filter(waiting).count();
    (last.len() <= NAMED && further > last.len()).then(|| format!("        behind: {}", last.join(", ")))
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
