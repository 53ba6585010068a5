//! What happened in a run, kept for its report: sums and spans, not every event. Pure: [`Story::take`] is told events and times.

use bootstrap::{
    event::Event,
    plan::Plan,
    preflight::{Finding, Severity},
    reset::HostReset,
    verify::Check,
};
use std::{collections::BTreeMap, time::Duration};

/// Lines of hooks and applications that are kept, the last ones.
const OUTPUT: usize = 500;
/// Warnings, and likewise notes, that are kept, the first ones.
const LINES: usize = 1000;

/// See the head of this file.
#[derive(Default)]
pub struct Story {
    /// Name of the command.
    pub command: String,
    /// Name of the cluster.
    pub cluster: String,
    /// The image the Clusterfile names.
    pub image: String,
    /// Version of this program.
    pub version: &'static str,
    /// What was going to be done, in short.
    pub plan: Option<Planned>,
    /// What preflight found.
    pub findings: Vec<Finding>,
    /// Every phase of every host, in the order of their beginning.
    pub spans: Vec<Span>,
    /// Bytes by host.
    pub traffic: BTreeMap<String, Traffic>,
    /// What was looked at.
    pub checks: Vec<Check>,
    /// What was undone.
    pub resets: Vec<HostReset>,
    /// Who was warned of what.
    pub warnings: Vec<Said>,
    /// What else was worth a line.
    pub notes: Vec<Said>,
    /// What hooks and applications wrote.
    pub output: std::collections::VecDeque<Said>,
    /// Message and causes of the failure.
    pub error: Option<(String, Vec<String>)>,
    /// The exit code and how long all took.
    pub ended: Option<(u8, Duration)>,
}

/// A plan in short.
pub struct Planned {
    /// Digest of the image.
    pub digest: String,
    /// Every host.
    pub hosts: Vec<PlannedHost>,
}

/// What was planned for a host.
pub struct PlannedHost {
    /// Its address.
    pub ip: String,
    /// Its name.
    pub name: String,
    /// `master` or `node`.
    pub role: &'static str,
    /// Whether it joins.
    pub joins: bool,
    /// Bytes to be sent.
    pub bytes: u64,
}

/// A phase on a host.
pub struct Span {
    /// Name of the phase.
    pub phase: &'static str,
    /// What it does.
    pub title: &'static str,
    /// The host; absent: the cluster.
    pub host: Option<String>,
    /// When it began, after the start.
    pub from: Duration,
    /// How it ended.
    pub end: Option<(Duration, How)>,
}

/// How a phase ended.
#[derive(Debug, PartialEq, Eq)]
pub enum How {
    /// Well.
    Done {
        /// Things changed.
        changes: usize,
        /// Bytes sent.
        bytes: u64,
    },
    /// Why not well.
    Failed(String),
}

/// Bytes sent to a host.
#[derive(Default)]
pub struct Traffic {
    /// How many.
    pub bytes: u64,
    /// When some came; each begins with those that were expected.
    pub busy: Vec<(Duration, Duration)>,
    /// The most in one second.
    pub peak: u64,
    second: u64,
    within: u64,
}

impl Traffic {
    fn add(&mut self, now: Duration, bytes: u64) {
        self.bytes += bytes;
        if now.as_secs() != self.second {
            (self.second, self.within) = (now.as_secs(), 0);
        }
        self.within += bytes;
        self.peak = self.peak.max(self.within);
        match self.busy.last_mut() {
            Some((_, to)) => *to = now,
            None => self.busy.push((now, now)),
        }
    }

    /// How long bytes were on their way.
    pub fn busy(&self) -> Duration {
        self.busy.iter().map(|(from, to)| to.saturating_sub(*from)).sum()
    }

    /// Bytes in a second, over the time in which some were on their way.
    pub fn rate(&self) -> Option<u64> {
        let seconds = self.busy().as_secs_f64();
        (seconds > 0.0).then_some((self.bytes as f64 / seconds) as u64)
    }
}

/// A line about a host.
pub struct Said {
    /// When, after the start.
    pub at: Duration,
    /// The host; absent: the cluster.
    pub host: Option<String>,
    /// What.
    pub text: String,
}

impl Story {
    /// Notes what happened, so long after the start.
    pub fn take(&mut self, now: Duration, event: &Event) {
        let said = |host: &Option<String>, text: &str| Said {
            at: now,
            host: host.clone(),
            text: text.to_owned(),
        };
        match event {
            Event::Started {
                command,
                cluster,
                image,
                version,
            } => {
                (self.command, self.cluster) = (command.clone(), cluster.clone());
                (self.image, self.version) = (image.clone(), version);
            }
            Event::Finding { finding } => self.findings.push(finding.clone()),
            Event::Plan { plan } => self.plan = Some(Planned::of(plan)),
            Event::PhaseStarted { phase, title, host } => self.spans.push(Span {
                phase,
                title,
                host: host.clone(),
                from: now,
                end: None,
            }),
            Event::PhaseDone {
                phase,
                host,
                changes,
                bytes,
                ..
            } => self.end(now, phase, host, || How::Done {
                changes: *changes,
                bytes: *bytes,
            }),
            Event::PhaseFailed { phase, host, message } => self.end(now, phase, host, || How::Failed(message.clone())),
            Event::BytesExpected { host, bytes } if *bytes > 0 => {
                self.traffic.entry(host.clone()).or_default().busy.push((now, now));
            }
            Event::BytesSent { host, bytes } => self.traffic.entry(host.clone()).or_default().add(now, *bytes),
            Event::HostDone { host, .. } => self.host_done(now, host),
            Event::Output { host, what, line, .. } => {
                if self.output.len() == OUTPUT {
                    self.output.pop_front();
                }
                self.output.push_back(said(host, &format!("{what}: {line}")));
            }
            Event::Check(check) => self.checks.push(check.clone()),
            Event::Reset { result } => self.resets.push(result.clone()),
            Event::Note { host, message } if self.notes.len() < LINES => self.notes.push(said(host, message)),
            Event::Warning { host, message } if self.warnings.len() < LINES => self.warnings.push(said(host, message)),
            Event::Error { message, causes } => self.error = Some((message.clone(), causes.clone())),
            Event::Ended { exit, took } => self.ended = Some((*exit, *took)),
            Event::Removed { removed } if self.notes.len() < LINES => {
                self.notes.push(said(
                    &None,
                    &format!("the node {} was taken out of the cluster", removed.node),
                ));
            }
            Event::AirGap { proof } if self.warnings.len() < LINES => {
                let said = said(&None, &proof.to_string());
                match proof.holds() {
                    true => self.notes.push(said),
                    false => self.warnings.push(said),
                }
            }
            Event::Moved { moved } if self.warnings.len() < LINES => self.warnings.push(said(&moved.host, &moved.what)),
            Event::BytesExpected { .. }
            | Event::Removed { .. }
            | Event::Moved { .. }
            | Event::AirGap { .. }
            | Event::Note { .. }
            | Event::Warning { .. }
            | Event::Checked { .. }
            | Event::Timing { .. }
            | Event::Program { .. }
            | Event::Done { .. } => {}
        }
    }

    fn end(&mut self, now: Duration, phase: &str, host: &Option<String>, how: impl FnOnce() -> How) {
        let going = |span: &&mut Span| span.end.is_none() && span.phase == phase && span.host == *host;
        if let Some(span) = self.spans.iter_mut().rev().find(going) {
            span.end = Some((now, how()));
        }
    }

    /// What still went on there has ended with it.
    fn host_done(&mut self, now: Duration, host: &str) {
        let open = |span: &&mut Span| span.end.is_none() && span.host.as_deref() == Some(host);
        for span in self.spans.iter_mut().filter(open) {
            span.end = Some((now, How::Done { changes: 0, bytes: 0 }));
        }
    }

    /// How the run ended, in a word.
    pub fn result(&self) -> Outcome {
        match (&self.ended, &self.error) {
            (_, Some(_)) => Outcome::Failed,
            (Some((0, _)), None) => Outcome::Done,
            (Some((3, _)), None) => Outcome::Refused,
            (Some(_), None) => Outcome::Failed,
            (None, None) => Outcome::Unfinished,
        }
    }

    /// How long everything took.
    pub fn total(&self) -> Duration {
        let last = self
            .spans
            .iter()
            .map(|span| span.end.as_ref().map_or(span.from, |(to, _)| *to));
        self.ended
            .map(|(_, took)| took)
            .into_iter()
            .chain(last)
            .max()
            .unwrap_or_default()
    }

    /// Findings that stop everything.
    pub fn errors(&self) -> usize {
        let stop = |finding: &&Finding| finding.severity == Severity::Error;
        self.findings.iter().filter(stop).count()
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is as wished.
    Done,
    /// Preflight refused, and nothing was changed.
    Refused,
    /// Something failed.
    Failed,
    /// Nobody knows.
    Unfinished,
}

impl Planned {
    fn of(plan: &Plan) -> Self {
        let hosts = plan.hosts.iter().map(|host| PlannedHost {
            ip: host.host.clone(),
            name: host.name.clone(),
            role: host.role,
            joins: host.joins,
            bytes: host.bytes,
        });
        Self {
            digest: plan.digest.to_string(),
            hosts: hosts.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_phase_ends_on_its_own_host_only_and_a_repeated_one_ends_the_latest() {
        let mut story = Story::default();
        let started = |host: &str| Event::PhaseStarted {
            phase: "blobs",
            title: "sending",
            host: Some(host.into()),
        };
        let failed = |host: &str| Event::PhaseFailed {
            phase: "blobs",
            host: Some(host.into()),
            message: "cable".into(),
        };
        story.take(ms(0), &started("a"));
        story.take(ms(10), &started("b"));
        story.take(ms(20), &failed("b"));
        assert!(story.spans[0].end.is_none());
        assert_eq!(story.spans[1].end, Some((ms(20), How::Failed("cable".into()))));
        let message = "done".to_owned();
        story.take(
            ms(30),
            &Event::HostDone {
                host: "a".into(),
                message,
            },
        );
        assert!(matches!(story.spans[0].end, Some((at, How::Done { .. })) if at == ms(30)));
        assert_eq!(story.total(), ms(30));
    }

    #[test]
    fn rates_count_only_the_time_in_which_bytes_were_on_their_way() {
        let mut story = Story::default();
        let expected = |bytes| Event::BytesExpected {
            host: "a".into(),
            bytes,
        };
        let sent = |bytes| Event::BytesSent {
            host: "a".into(),
            bytes,
        };
        story.take(ms(0), &expected(100));
        story.take(ms(1000), &sent(100));
        story.take(ms(5000), &expected(0));
        story.take(ms(60_000), &expected(300));
        story.take(ms(60_500), &sent(200));
        story.take(ms(61_000), &sent(100));
        let traffic = &story.traffic["a"];
        assert_eq!(
            (traffic.bytes, traffic.busy(), traffic.rate()),
            (400, ms(2000), Some(200))
        );
        assert_eq!(traffic.peak, 200);
    }

    #[test]
    fn what_is_kept_of_output_is_bounded() {
        let mut story = Story::default();
        for number in 0..2 * OUTPUT {
            let line = number.to_string();
            story.take(
                ms(0),
                &Event::Output {
                    host: None,
                    what: "hook".into(),
                    stream: host::proto::Stream::Stdout,
                    line,
                },
            );
        }
        assert_eq!(story.output.len(), OUTPUT);
        assert_eq!(story.output[OUTPUT - 1].text, format!("hook: {}", 2 * OUTPUT - 1));
    }
}
