//! Bringing `clusterd` and an image to many hosts over slow links: what more hosts cost in time, and in bytes that leave the operator's machine.
//!
//! All hosts share this machine's processors and memory. Where it is a virtual machine that gives free memory back (free page reporting), the
//! first use of each page costs it some microseconds, and thirty hosts fill gigabytes: memory that was used a moment ago makes them faster.
//!
//! Only what brings is measured: it is staged, so that thirty nodes need not run on this machine.

use anyhow::{Context, Result, ensure};
use lab::{Host, Lab};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

/// The rate of every link, this machine's too, in megabits a second, unless the user says another.
pub(crate) const LINK: u64 = 100;
/// With how many hosts; the last is how many the lab needs.
pub(crate) const HOSTS: [usize; 3] = [1, 5, 30];

/// What an apply did to bring `clusterd` and blobs to hosts.
#[derive(Debug, Default, Clone)]
pub(crate) struct Brought {
    /// How long `clusterd` took until the last host had it.
    program: Duration,
    /// How long the blobs took, from the first beginning to the last end.
    pub(crate) blobs: Duration,
    /// From the start of the program to the last blob.
    wall: Duration,
    /// Bytes of all blobs that arrived on hosts.
    pub(crate) bytes: u64,
    /// Bytes of `clusterd` on all hosts.
    programs: u64,
    /// Bytes of both that came from other hosts, as the events say.
    from_peers: u64,
    /// Bytes that left this machine, as its network counts them.
    left: u64,
    /// How much of this machine's processors was in use.
    busy: f64,
}

impl Brought {
    fn took(&self) -> Duration {
        self.program + self.blobs
    }

    /// Bytes of blobs and `clusterd` of one host that has all of them.
    fn whole(&self) -> u64 {
        self.bytes + self.programs
    }
}

/// Follows the events of a stage.
#[derive(Default)]
struct Watch {
    began: Option<Instant>,
    brought: Brought,
}

impl Watch {
    fn take(&mut self, event: &Value, now: Instant) {
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        match event["event"].as_str() {
            Some("program") => {
                self.brought.program = self.brought.program.max(Duration::from_millis(number("ms")));
                self.brought.programs += number("bytes");
                self.brought.from_peers += number("fromPeers");
            }
            Some("phaseStarted") => {
                self.began.get_or_insert(now);
            }
            Some("phaseDone") => {
                self.brought.bytes += number("bytes");
                self.brought.from_peers += number("fromPeers");
                self.brought.blobs = now - self.began.unwrap_or(now);
            }
            _ => {}
        }
    }
}

/// Jiffies that all processors were busy, and all there were.
fn jiffies() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let numbers: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    let all: u64 = numbers.iter().take(8).sum();
    Ok((all - idle, all))
}

impl super::Bench {
    /// Brings all to one host and to more of them, over limited links.
    pub(crate) fn fanout(&self, lab: &Lab) -> Result<()> {
        println!("\n## clusterd and blobs over links of {} Mbit/s", self.link);
        self.limit(lab, Some(self.link))?;
        let one = self.bring(lab, &lab.hosts[..HOSTS[0]], &[])?;
        show("1 host", &one, &one);
        for count in &HOSTS[1..] {
            let all = self.bring(lab, &lab.hosts[..*count], &[])?;
            show(&format!("{count} hosts"), &all, &one);
        }
        let direct = HOSTS[1];
        let all = self.bring(lab, &lab.hosts[..direct], &["--direct"])?;
        show(&format!("{direct} hosts, --direct"), &all, &one);
        self.limit(lab, None)
    }

    /// Limits the links of all hosts and this machine's own, in megabits a second.
    pub(crate) fn limit(&self, lab: &Lab, rate: Option<u64>) -> Result<()> {
        let rate = rate.map(|rate| format!("{rate}mbit"));
        let rate = rate.as_deref();
        lab.network.limit_uplink(rate)?;
        lab.hosts.iter().try_for_each(|host| lab.network.limit(host, rate))
    }

    /// Stages on bare hosts, and resets.
    pub(crate) fn bring(&self, lab: &Lab, hosts: &[Host], flags: &[&str]) -> Result<Brought> {
        self.clusterfile(lab, hosts)?;
        let mut command = self.on(lab, "stage");
        command.args(["-o", "json"]).args(flags);
        let (sent, busy, began) = (lab.network.sent()?, jiffies()?, Instant::now());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut watch = Watch::default();
        let mut last = String::new();
        for line in stdout.lines() {
            last = line?;
            watch.take(&serde_json::from_str(&last)?, Instant::now());
        }
        let (wall, now) = (began.elapsed(), jiffies()?);
        let left = lab.network.sent()? - sent;
        let ended = child.wait()?;
        ensure!(ended.success(), "a stage ended with {ended}: {last}");
        self.reset(lab)?;
        Ok(Brought {
            wall,
            left,
            busy: (now.0 - busy.0) as f64 / (now.1 - busy.1).max(1) as f64,
            ..watch.brought
        })
    }
}

fn show(what: &str, all: &Brought, one: &Brought) {
    let seconds = |time: Duration| time.as_secs_f64();
    println!(
        "{what:<22} {:>7.2} s (clusterd {:.2}, blobs {:.2})   {:>5.2} × one host's   from start {:.1} s ({:.2} ×), CPU {:.0} %",
        seconds(all.took()),
        seconds(all.program),
        seconds(all.blobs),
        seconds(all.took()) / seconds(one.took()),
        seconds(all.wall),
        seconds(all.wall) / seconds(one.wall),
        all.busy * 100.0,
    );
    println!(
        "{:<22} {:>7.1} MB left this machine, {:.2} × image and clusterd ({:.1} MB); {:.1} of {:.1} MB came from hosts",
        "",
        super::mb(all.left),
        all.left as f64 / one.whole() as f64,
        super::mb(one.whole()),
        super::mb(all.from_peers),
        super::mb(all.whole()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_from_the_first_beginning_to_the_last_end() {
        let began = Instant::now();
        let mut watch = Watch::default();
        for (ms, event) in [
            (0, r#"{"event":"program","host":"a","bytes":9,"fromPeers":0,"ms":700}"#),
            (0, r#"{"event":"program","host":"b","bytes":9,"fromPeers":9,"ms":900}"#),
            (10, r#"{"event":"phaseStarted","phase":"blobs","host":"a"}"#),
            (20, r#"{"event":"phaseStarted","phase":"images","host":"a"}"#),
            (
                30,
                r#"{"event":"phaseDone","phase":"blobs","host":"b","ms":9,"bytes":50,"fromPeers":40}"#,
            ),
            (
                50,
                r#"{"event":"phaseDone","phase":"images","host":"a","ms":9,"bytes":7,"fromPeers":0}"#,
            ),
            (
                110,
                r#"{"event":"phaseDone","phase":"blobs","host":"a","ms":9,"bytes":50,"fromPeers":0}"#,
            ),
            (120, r#"{"event":"done","changes":3,"ms":120}"#),
        ] {
            watch.take(&serde_json::from_str(event).unwrap(), began + Duration::from_millis(ms));
        }
        let Brought {
            program,
            blobs,
            bytes,
            programs,
            from_peers,
            ..
        } = watch.brought;
        assert_eq!((program.as_millis(), blobs.as_millis()), (900, 100));
        assert_eq!((bytes, programs, from_peers), (107, 18, 49));
    }
}
