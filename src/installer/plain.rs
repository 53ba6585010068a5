//! What is told of hosts where nothing can be drawn: a line when something ended that took time or changed something. Pure.

use crate::{
    table::{size, time},
    view::CLUSTER,
};
use bootstrap::event::Event;
use std::collections::HashMap;

/// What took less, and changed nothing, is not worth a line: milliseconds.
const IDLE: u128 = 500;

/// Remembers the titles of phases that go on.
#[derive(Default)]
pub struct Plain {
    titles: HashMap<(Option<String>, &'static str), &'static str>,
}

impl Plain {
    /// The host and the line, if this is worth one.
    pub fn take(&mut self, event: &Event) -> Option<(String, String)> {
        let name = |host: &Option<String>| host.clone().unwrap_or_else(|| CLUSTER.to_owned());
        match event {
            Event::PhaseStarted { phase, title, host } => {
                self.titles.insert((host.clone(), phase), title);
                None
            }
            Event::PhaseDone {
                phase,
                host,
                changes,
                bytes,
                from_peers,
                took,
            } => {
                let title = self.title(host, phase);
                if *changes == 0 && *bytes == 0 && took.as_millis() < IDLE {
                    return None;
                }
                let mut text = format!("{title}: {}", time(*took));
                if *bytes > 0 {
                    text.push_str(&format!(", {}", size(*bytes)));
                    let rate = *bytes as f64 / took.as_secs_f64().max(0.001);
                    text.push_str(&format!(", {}/s", size(rate as u64)));
                }
                if *from_peers > 0 {
                    text.push_str(&format!(", {} of it from other hosts", size(*from_peers)));
                }
                if *changes > 0 {
                    text.push_str(&format!(", {}", oci::counted(*changes, "change")));
                }
                Some((name(host), text))
            }
            Event::PhaseFailed { phase, host, .. } => {
                let title = self.title(host, phase);
                Some((name(host), format!("{title}: FAILED")))
            }
            Event::HostDone { host, message } => Some((host.clone(), message.clone())),
            Event::Note { host, message } => Some((name(host), message.clone())),
            Event::Output { host, what, line, .. } => Some((name(host), format!("{what}: {line}"))),
            _ => None,
        }
    }

    fn title(&mut self, host: &Option<String>, phase: &'static str) -> &'static str {
        self.titles.remove(&(host.clone(), phase)).unwrap_or(phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn done(host: Option<&str>, changes: usize, bytes: u64, ms: u64) -> Event {
        Event::PhaseDone {
            phase: "blobs",
            host: host.map(str::to_owned),
            changes,
            bytes,
            from_peers: 0,
            took: Duration::from_millis(ms),
        }
    }

    #[test]
    fn what_ended_is_told_with_what_it_did_and_trifles_are_not() {
        let mut plain = Plain::default();
        let began = Event::PhaseStarted {
            phase: "blobs",
            title: "sending the rootfs",
            host: Some("m1".into()),
        };
        assert_eq!(plain.take(&began), None);
        for (event, expected) in [
            (
                done(Some("m1"), 3, 20_000_000, 2000),
                Some(("m1", "sending the rootfs: 2.00 s, 20.0 MB, 10.0 MB/s, 3 changes")),
            ),
            (done(Some("n1"), 0, 0, 20), None),
            (done(None, 0, 0, 700), Some(("cluster", "blobs: 0.70 s"))),
            (done(None, 1, 0, 1), Some(("cluster", "blobs: 0.00 s, 1 change"))),
        ] {
            let expected = expected.map(|(host, text)| (host.to_owned(), text.to_owned()));
            assert_eq!(plain.take(&event), expected);
        }
        let failed = Event::PhaseFailed {
            phase: "blobs",
            host: Some("m1".into()),
            message: "cable".into(),
        };
        assert_eq!(plain.take(&failed).unwrap().1, "blobs: FAILED");
    }
}
