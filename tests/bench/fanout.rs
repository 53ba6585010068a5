//! Blobs to many hosts over slow links: what more hosts cost in time, and in bytes that leave the operator's machine.

use anyhow::{Context, Result, ensure};
use lab::{Host, Lab};
use serde_json::Value;

/// The rate of this machine's link, as `--bandwidth` has it, and of each host's, as tc has it.
const LINK: (&str, &str) = ("100Mbit", "100mbit");

/// What an apply did to bring blobs to hosts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Brought {
    /// Milliseconds from the first beginning to the last end.
    ms: u64,
    /// Bytes that arrived on hosts.
    bytes: u64,
    /// Bytes that left this machine.
    sent: u64,
}

/// Sums up the time lines of the phases that bring blobs.
fn brought(events: &str) -> Brought {
    let (mut first, mut last) = (u64::MAX, 0);
    let mut brought = Brought::default();
    for event in events
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let phase = event["phase"].as_str().unwrap_or_default();
        if event["event"] != "timing" || !["blobs", "images"].contains(&phase) {
            continue;
        }
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        first = first.min(number("beganMs"));
        last = last.max(number("beganMs") + number("ms"));
        brought.bytes += number("bytes");
        brought.sent += number("bytes") - number("fromPeers");
    }
    brought.ms = last.saturating_sub(first);
    brought
}

impl super::Bench {
    /// Applies to one host and to all of them, over limited links, with and without hosts that fetch from each other.
    pub(crate) fn fanout(&self, lab: &Lab) -> Result<()> {
        println!("\n## Blobs over links of {}", LINK.0);
        for host in &lab.hosts {
            lab.network.limit(host, Some(LINK.1))?;
        }
        let one = self.bring(lab, &lab.hosts[..1], &[])?;
        ensure!(one.ms > 0 && one.sent > 0, "an apply brought no blobs to a bare host");
        for (how, flags) in [("from each other", &[][..]), ("direct", &["--direct"])] {
            let all = self.bring(lab, &lab.hosts, flags)?;
            println!(
                "{:<34} {:>7.2} s   {:>5.2} × the time, {:>5.2} × the bytes of one host's ({:.1} of {:.1} MB left this machine)",
                format!("{} hosts, {how}", lab.hosts.len()),
                all.ms as f64 / 1e3,
                all.ms as f64 / one.ms as f64,
                all.sent as f64 / one.sent as f64,
                super::mb(all.sent),
                super::mb(all.bytes)
            );
        }
        Ok(())
    }

    fn bring(&self, lab: &Lab, hosts: &[Host], flags: &[&str]) -> Result<Brought> {
        self.clusterfile(lab, hosts)?;
        let mut command = self.installer();
        command
            .args(["--bandwidth", LINK.0, "--known-hosts"])
            .arg(lab.known_hosts())
            .args(["apply", "--yes", "-o", "json", "-f"])
            .arg(self.path("Clusterfile"))
            .args(flags);
        let out = lab::output(&mut command)?.ok().context("apply")?;
        self.reset(lab)?;
        Ok(brought(&out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_from_the_first_beginning_to_the_last_end_and_what_came_from_hosts_was_not_sent() {
        let events = r#"{"event":"timing","phase":"blobs","host":"a","beganMs":10,"ms":100,"bytes":50,"fromPeers":0}
            no json
            {"event":"timing","phase":"blobs","host":"b","beganMs":5,"ms":100,"bytes":50,"fromPeers":40}
            {"event":"phaseDone","phase":"blobs","host":"b","ms":100,"bytes":50,"fromPeers":40}
            {"event":"timing","phase":"verify","beganMs":0,"ms":900,"bytes":0,"fromPeers":0}
            {"event":"timing","phase":"images","host":"a","beganMs":110,"ms":30,"bytes":7,"fromPeers":0}"#;
        let expected = Brought {
            ms: 135,
            bytes: 107,
            sent: 67,
        };
        assert_eq!(brought(events), expected);
        assert_eq!(brought(""), Brought::default());
    }
}
