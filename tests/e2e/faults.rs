//! The fault matrix: apply, join, upgrade and reset are stopped between every record of a host's journal and the change that follows it
//! (in a reset: between its steps), in four ways, and run again. Every case ends in a cluster that passes every probe and has nothing
//! left to do, or in hosts on which nothing is left.
//!
//! The points are counted in a run that is not stopped. A sample of them runs with every other test, all of them by `make test-faults`;
//! `FAULT_SHARD=2/8` takes the second of eight parts.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Site, eventually};
use lab::{Snapshot, diff};
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

/// As in `src/host/fault.rs`.
const ARMED: &str = "installer-fault";
const PASSED: &str = "installer-fault.passed";
/// What the installer's log says when a connection was lost (`src/bootstrap/way.rs`).
const NOTICED: &str = "connecting again";
const HOSTS: [&str; 2] = ["m1", "n1"];
/// How long a program that lost something may take to say so.
const NOTICE: Duration = Duration::from_secs(240);

/// What is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Apply,
    Join,
    Upgrade,
    Reset,
}

/// How it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// `kill -9` of the installer.
    Installer,
    /// `kill -9` of `clusterd host`.
    Daemon,
    /// The host loses its power.
    Power,
    /// The host's cable is cut.
    Link,
}

const STOPS: [Stop; 4] = [Stop::Installer, Stop::Daemon, Stop::Power, Stop::Link];

/// What the operator does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Again,
    Reset,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    work: Work,
    host: &'static str,
    point: u64,
    stop: Stop,
    then: Then,
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            work,
            host,
            point,
            stop,
            then,
        } = self;
        write!(out, "{work:?} stopped at {host}:{point} by {stop:?}, then {then:?}")
    }
}

struct Matrix {
    site: Site,
    before: BTreeMap<&'static str, Snapshot>,
}

impl Matrix {
    fn open() -> Result<Self> {
        let site = Site::up(&HOSTS)?;
        let take = |host: &'static str| Ok((host, site.lab.snapshot(site.host(host))?));
        let before = HOSTS.into_iter().map(take).collect::<Result<_>>()?;
        Ok(Self { site, before })
    }

    /// A file of the host's `/run`, as this machine sees it.
    fn run_file(&self, host: &str, name: &str) -> Result<PathBuf> {
        let pid = self
            .site
            .lab
            .init_pid(self.site.host(host))
            .context("the host does not run")?;
        Ok(PathBuf::from(format!("/proc/{pid}/root/run/{name}")))
    }

    fn arm(&self, host: &str, point: u64) -> Result<()> {
        let _ = fs::remove_file(self.run_file(host, PASSED)?);
        Ok(fs::write(self.run_file(host, ARMED)?, point.to_string())?)
    }

    fn disarm(&self) -> Result<()> {
        for host in HOSTS {
            let _ = fs::remove_file(self.run_file(host, ARMED)?);
            let _ = fs::remove_file(self.run_file(host, PASSED)?);
        }
        Ok(())
    }

    fn passed(&self, host: &str) -> u64 {
        let text = self
            .run_file(host, PASSED)
            .and_then(|path| Ok(fs::read_to_string(path)?));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Makes the hosts what they are before the work begins, and writes the wish that it is to fulfil.
    fn prepare(&self, work: Work) -> Result<()> {
        let wish =
            |nodes: &[&str], image: &str| self.site.write_clusterfile(&["m1"], nodes, &format!("image: {image}"));
        match work {
            Work::Apply => wish(&["n1"], NATIVE),
            Work::Join => {
                wish(&[], NATIVE)?;
                self.site.apply()?;
                wish(&["n1"], NATIVE)
            }
            Work::Upgrade => {
                wish(&["n1"], NATIVE)?;
                self.site.apply()?;
                wish(&["n1"], LARGER)
            }
            Work::Reset => {
                wish(&["n1"], NATIVE)?;
                self.site.apply().map(drop)
            }
        }
    }

    fn start(&self, work: Work) -> Result<Child> {
        let verb = if work == Work::Reset { "reset" } else { "apply" };
        let log = fs::File::create(self.site.file("stopped.log"))?;
        let mut command = self.site.installer_command()?;
        command
            .args([verb, "-f", "Clusterfile", "--yes"])
            .env("RUST_LOG", "bootstrap=info")
            .stdin(Stdio::null());
        Ok(command.stdout(log.try_clone()?).stderr(log).spawn()?)
    }

    /// How many points the work passes on each host when nothing stops it.
    fn count(&self, work: Work) -> Result<BTreeMap<&'static str, u64>> {
        self.prepare(work)?;
        for host in HOSTS {
            self.arm(host, 0)?;
        }
        let status = self.start(work)?.wait()?;
        ensure!(status.success(), "{work:?} without a fault: {}", self.log());
        let counts = HOSTS.into_iter().map(|host| (host, self.passed(host))).collect();
        self.disarm()?;
        self.end()?;
        Ok(counts)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.file("stopped.log")).unwrap_or_default()
    }

    fn case(&self, case: Case) -> Result<()> {
        self.prepare(case.work)?;
        self.arm(case.host, case.point)?;
        let mut child = self.start(case.work)?;
        let start = Instant::now();
        while self.passed(case.host) < case.point {
            if let Some(status) = child.try_wait()? {
                bail!("the point was not reached ({status}): {}", self.log());
            }
            ensure!(start.elapsed() < NOTICE, "the point was not reached: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop(case, &mut child)?;
        if case.then == Then::Again && case.work != Work::Reset {
            let said = self.site.installer_ok(&["apply", "-f", "Clusterfile", "--yes"])?;
            ensure!(
                said.contains("every probe passed") || said.contains("nothing to do"),
                "{said}"
            );
            self.site.installer_ok(&["check", "-f", "Clusterfile"])?;
            let said = self.site.installer_ok(&["apply", "-f", "Clusterfile", "--yes"])?;
            ensure!(said.contains("nothing to do"), "something is left to do: {said}");
        }
        self.end()
    }

    /// Stops the work, and waits until nobody does anything any more.
    fn stop(&self, case: Case, child: &mut Child) -> Result<()> {
        let (lab, host) = (&self.site.lab, self.site.host(case.host));
        match case.stop {
            Stop::Installer => child.kill()?,
            Stop::Daemon => drop(self.site.on(case.host, "pkill -9 -f '[c]lusterd host'")?),
            Stop::Power => {
                lab.kill(host)?;
                lab.start(host)?;
                eventually("the host to be up again", || {
                    std::net::TcpStream::connect((self.site.ip(case.host).as_str(), 22))
                        .map(drop)
                        .map_err(Into::into)
                })?;
            }
            Stop::Link => lab.network.cable(host, false)?,
        }
        self.disarm()?;
        let start = Instant::now();
        if case.stop == Stop::Link {
            // Mended when the loss was noticed: what follows is to come back, or to be told.
            while child.try_wait()?.is_none() && !self.log().contains(NOTICED) && start.elapsed() < NOTICE {
                std::thread::sleep(Duration::from_millis(50));
            }
            lab.network.cable(host, true)?;
        }
        while child.try_wait()?.is_none() {
            if start.elapsed() > NOTICE {
                child.kill()?;
                child.wait()?;
                bail!("the installer did not notice: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Resets, and sees that nothing is left.
    fn end(&self) -> Result<()> {
        self.site.installer_ok(&["reset", "-f", "Clusterfile", "--yes"])?;
        for (host, before) in &self.before {
            let left = diff(before, &self.site.lab.snapshot(self.site.host(host))?);
            ensure!(left.is_empty(), "reset left on {host}: {left:#?}");
        }
        Ok(())
    }

    /// Runs the cases; all of them, whatever fails.
    fn run(&self, cases: &[Case]) -> Result<()> {
        let mut failed = Vec::new();
        for (number, case) in cases.iter().enumerate() {
            let start = Instant::now();
            let result = self.case(*case);
            println!("{}/{} {case}: {} s", number + 1, cases.len(), start.elapsed().as_secs());
            if let Err(error) = result {
                println!("FAILED: {case}: {error:#}");
                failed.push(case.to_string());
                self.restore()?;
            }
        }
        println!("{} of {} cases ended well", cases.len() - failed.len(), cases.len());
        ensure!(
            failed.is_empty(),
            "{} of {} cases failed:\n{}",
            failed.len(),
            cases.len(),
            failed.join("\n")
        );
        Ok(())
    }

    /// After a failure: hosts as the next case needs them.
    fn restore(&self) -> Result<()> {
        for host in HOSTS {
            self.site.lab.network.cable(self.site.host(host), true)?;
        }
        self.disarm()?;
        self.end().context("cannot go on")
    }
}

const NATIVE: &str = "local/native:dev";
const LARGER: &str = "local/e2e:dev";

fn points(counts: &BTreeMap<&'static str, u64>) -> impl Iterator<Item = (&'static str, u64)> {
    counts
        .iter()
        .flat_map(|(host, count)| (1..=*count).map(move |point| (*host, point)))
}

#[test]
fn what_is_stopped_anywhere_ends_well_a_sample() -> Result<()> {
    let matrix = Matrix::open()?;
    let counts = matrix.count(Work::Apply)?;
    println!("points of an apply: {counts:?}");
    ensure!(counts.values().all(|count| *count > 20), "too few points: {counts:?}");
    let at = |host: &'static str, part: u64, of: u64| (counts[host] * part / of).max(1);
    let apply = |host, point, stop, then| Case {
        work: Work::Apply,
        host,
        point,
        stop,
        then,
    };
    matrix.run(&[
        apply("m1", 1, Stop::Installer, Then::Reset),
        apply("m1", at("m1", 1, 3), Stop::Power, Then::Again),
        apply("m1", at("m1", 2, 3), Stop::Daemon, Then::Again),
        apply("n1", at("n1", 1, 2), Stop::Link, Then::Again),
        apply("n1", counts["n1"], Stop::Installer, Then::Reset),
        Case {
            work: Work::Join,
            host: "n1",
            point: at("n1", 2, 3),
            stop: Stop::Daemon,
            then: Then::Again,
        },
        Case {
            work: Work::Upgrade,
            host: "m1",
            point: 1,
            stop: Stop::Installer,
            then: Then::Again,
        },
        Case {
            work: Work::Reset,
            host: "m1",
            point: at("m1", 1, 2),
            stop: Stop::Power,
            then: Then::Reset,
        },
        Case {
            work: Work::Reset,
            host: "n1",
            point: at("n1", 1, 3),
            stop: Stop::Installer,
            then: Then::Reset,
        },
    ])
}

#[test]
#[ignore = "takes hours: make test-faults"]
fn what_is_stopped_anywhere_ends_well() -> Result<()> {
    let matrix = Matrix::open()?;
    let mut cases = Vec::new();
    for work in [Work::Apply, Work::Join, Work::Upgrade, Work::Reset] {
        let counts = matrix.count(work)?;
        println!("points of {work:?}: {counts:?}");
        for (host, point) in points(&counts) {
            for stop in STOPS {
                let thens: &[Then] = if work == Work::Reset {
                    &[Then::Reset]
                } else {
                    &[Then::Again, Then::Reset]
                };
                cases.extend(thens.iter().map(|then| Case {
                    work,
                    host,
                    point,
                    stop,
                    then: *then,
                }));
            }
        }
    }
    let (mine, shards) = shard()?;
    let cases: Vec<Case> = cases.into_iter().skip(mine - 1).step_by(shards).collect();
    matrix.run(&cases)
}

/// Which part of how many.
fn shard() -> Result<(usize, usize)> {
    let Ok(text) = std::env::var("FAULT_SHARD") else {
        return Ok((1, 1));
    };
    let parts = text
        .split_once('/')
        .and_then(|(mine, all)| Some((mine.parse().ok()?, all.parse().ok()?)));
    match parts {
        Some((mine, all)) if (1..=all).contains(&mine) => Ok((mine, all)),
        _ => bail!("FAULT_SHARD is {text:?}; it is a part of all parts, such as 2/8"),
    }
}
