//! Shows what goes on with hosts: drawn on a terminal, plain lines elsewhere, one event a line with `-o json`.

use crate::{
    output::Output,
    plain::Plain,
    view::{CLUSTER, View},
};
use bootstrap::event::{Event, Observer};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bytes are told to programs in sums, once in this time for each host.
const PACE: Duration = Duration::from_secs(1);

/// See the head of this file.
pub struct Show {
    out: Output,
    start: Instant,
    plain: Mutex<Plain>,
    pace: Mutex<Pace>,
    view: Arc<Mutex<View>>,
}

impl Show {
    /// On this output.
    pub fn new(out: Output) -> Self {
        Self {
            out,
            start: Instant::now(),
            plain: Mutex::default(),
            pace: Mutex::default(),
            view: Arc::default(),
        }
    }

    fn json(&self, event: Event) {
        let events = lock(&self.pace).take(self.start.elapsed(), event);
        for event in &events {
            self.out.event(event);
        }
    }

    fn draw(&self, event: &Event) {
        match event {
            Event::Output { host, what, line, .. } => {
                let host = host.as_deref().unwrap_or(CLUSTER);
                self.out.note(format!("{host} {what}: {line}"));
            }
            event => lock(&self.view).take(self.start.elapsed(), event),
        }
        if matches!(event, Event::PhaseStarted { .. }) {
            let (view, start) = (Arc::clone(&self.view), self.start);
            self.out
                .live(move |width, height| lock(&view).lines(start.elapsed(), width, height).join("\n"));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer for Show {
    fn event(&self, event: Event) {
        if self.out.is_json() {
            return self.json(event);
        }
        if let Event::Warning { host, message } = &event {
            self.out.warn(match host {
                Some(host) => format!("{host}: {message}"),
                None => message.clone(),
            });
        } else if self.out.has_bars() {
            self.draw(&event);
        } else if let Some((host, text)) = lock(&self.plain).take(&event) {
            self.out.host_line(&host, &text);
        }
    }
}

/// Sums up the bytes sent to each host, so that they do not drown all other events. Pure.
#[derive(Default)]
struct Pace {
    /// By host: bytes not told yet, and when some were told last.
    hosts: HashMap<String, (u64, Duration)>,
}

impl Pace {
    /// What is told when `event` happens.
    fn take(&mut self, now: Duration, event: Event) -> Vec<Event> {
        let rest =
            |(host, (bytes, _)): (String, (u64, Duration))| (bytes > 0).then_some(Event::BytesSent { host, bytes });
        match event {
            Event::BytesSent { host, bytes } => {
                let (untold, last) = self.hosts.entry(host.clone()).or_insert((0, now));
                *untold += bytes;
                if now < *last + PACE {
                    return Vec::new();
                }
                *last = now;
                let bytes = std::mem::take(untold);
                vec![Event::BytesSent { host, bytes }]
            }
            Event::PhaseDone {
                host: Some(ref host), ..
            }
            | Event::PhaseFailed {
                host: Some(ref host), ..
            } => {
                let untold = self.hosts.remove_entry(host).and_then(rest);
                untold.into_iter().chain([event]).collect()
            }
            event @ Event::Ended { .. } => self.hosts.drain().filter_map(rest).chain([event]).collect(),
            event => vec![event],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_sums_and_none_is_lost() {
        let mut pace = Pace::default();
        let mut told = 0;
        let mut lines = 0;
        let mut count = |events: Vec<Event>| {
            for event in events {
                if let Event::BytesSent { bytes, .. } = event {
                    told += bytes;
                    lines += 1;
                }
            }
        };
        for piece in 0..1000 {
            let event = Event::BytesSent {
                host: format!("n{}", piece % 2),
                bytes: 7,
            };
            count(pace.take(Duration::from_millis(piece * 5), event));
        }
        let done = Event::PhaseDone {
            phase: "blobs",
            host: Some("n0".into()),
            changes: 0,
            bytes: 0,
            from_peers: 0,
            took: PACE,
        };
        count(pace.take(PACE, done));
        let ended = Event::Ended { exit: 1, took: PACE };
        count(pace.take(PACE, ended));
        assert_eq!(told, 7000);
        assert!(lines <= 12, "{lines} lines in five seconds");
    }
}
