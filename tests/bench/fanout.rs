//! Bringing `clusterd` and an image to many hosts over slow links: what more hosts cost in time, and in bytes that leave the operator's machine.
//!
//! Only what brings is measured: an apply is ended when the last blob is there, so that thirty nodes need not run on this machine.

use anyhow::{Context, Result, bail};
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

/// How long a reset is tried after an apply was ended in the middle.
const FREE: Duration = Duration::from_secs(120);

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

/// Follows the events of an apply until all blobs are there.
struct Watch {
    /// Phases of hosts that have still to end.
    left: usize,
    began: Option<Instant>,
    brought: Brought,
}

impl Watch {
    /// Of so many hosts each gets its blobs, and one the images.
    fn new(hosts: usize) -> Self {
        Self {
            left: hosts + 1,
            began: None,
            brought: Brought::default(),
        }
    }

    /// Whether that was the last one.
    fn take(&mut self, event: &Value, now: Instant) -> bool {
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        let bringing = matches!(event["phase"].as_str(), Some("blobs" | "images"));
        match event["event"].as_str() {
            Some("program") => {
                self.brought.program = self.brought.program.max(Duration::from_millis(number("ms")));
                self.brought.programs += number("bytes");
                self.brought.from_peers += number("fromPeers");
            }
            Some("phaseStarted") if bringing => {
                self.began.get_or_insert(now);
            }
            Some("phaseDone") if bringing => {
                self.left = self.left.saturating_sub(1);
                self.brought.bytes += number("bytes");
                self.brought.from_peers += number("fromPeers");
                self.brought.blobs = now - self.began.unwrap_or(now);
                return self.left == 0;
            }
            _ => {}
        }
        false
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

    /// Applies to bare hosts until all blobs are there, and resets.
    pub(crate) fn bring(&self, lab: &Lab, hosts: &[Host], flags: &[&str]) -> Result<Brought> {
        self.clusterfile(lab, hosts)?;
        let mut command = self.installer();
        command
            .arg("--known-hosts")
            .arg(lab.known_hosts())
            .args(["apply", "--yes", "-o", "json", "-f"])
            .arg(self.path("Clusterfile"))
            .args(flags);
        let (sent, busy, began) = (lab.network.sent()?, jiffies()?, Instant::now());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut watch = Watch::new(hosts.len());
        let mut said = Vec::new();
        let mut whole = false;
        for line in stdout.lines() {
            let line = line?;
            if let Ok(event) = serde_json::from_str::<Value>(&line)
                && watch.take(&event, Instant::now())
            {
                whole = true;
                break;
            }
            said.push(line);
        }
        let (wall, now) = (began.elapsed(), jiffies()?);
        let left = lab.network.sent()? - sent;
        // What goes on on the hosts is none of this.
        child.kill()?;
        child.wait()?;
        if !whole {
            let last = said.iter().rev().take(5).rev().cloned().collect::<Vec<_>>().join("\n");
            bail!("an apply ended before all blobs were there:\n{last}");
        }
        self.reset_when_free(lab)?;
        Ok(Brought {
            wall,
            left,
            busy: (now.0 - busy.0) as f64 / (now.1 - busy.1).max(1) as f64,
            ..watch.brought
        })
    }

    /// A host that is busy needs a moment to notice that its installer is gone.
    fn reset_when_free(&self, lab: &Lab) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.reset(lab) {
                Err(error) if began.elapsed() > FREE => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
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
    fn time_is_counted_from_the_first_beginning_to_the_last_end_and_nothing_after_it_counts() {
        let began = Instant::now();
        let mut watch = Watch::new(2);
        for (ms, event, last) in [
            (
                0,
                r#"{"event":"program","host":"a","bytes":9,"fromPeers":0,"ms":700}"#,
                false,
            ),
            (
                0,
                r#"{"event":"program","host":"b","bytes":9,"fromPeers":9,"ms":900}"#,
                false,
            ),
            (10, r#"{"event":"phaseStarted","phase":"blobs","host":"a"}"#, false),
            (20, r#"{"event":"phaseStarted","phase":"images","host":"a"}"#, false),
            (
                30,
                r#"{"event":"phaseDone","phase":"blobs","host":"b","ms":9,"bytes":50,"fromPeers":40}"#,
                false,
            ),
            (
                40,
                r#"{"event":"phaseDone","phase":"rootfs","host":"b","ms":9,"bytes":5,"fromPeers":5}"#,
                false,
            ),
            (
                50,
                r#"{"event":"phaseDone","phase":"images","host":"a","ms":9,"bytes":7,"fromPeers":0}"#,
                false,
            ),
            (
                110,
                r#"{"event":"phaseDone","phase":"blobs","host":"a","ms":9,"bytes":50,"fromPeers":0}"#,
                true,
            ),
        ] {
            let event = serde_json::from_str(event).unwrap();
            assert_eq!(watch.take(&event, began + Duration::from_millis(ms)), last, "{event}");
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
