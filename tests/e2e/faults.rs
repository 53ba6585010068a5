//! The fault matrix: apply, join, upgrade and reset are stopped between every record of a host's journal and the change that follows it
//! (in a reset: between its steps), in four ways, and run again. Whatever was stopped ends in a cluster that passes every probe and has
//! nothing left to do, or in hosts on which nothing is left.
//!
//! The points are those that a run passes that is not stopped. A sample of them runs with every other test, all by `make test-faults`:
//!
//! * *Again*: for each work, host and way to stop, the work is stopped at every point of the host, and each time run again from where that
//!   left it, until it comes to its end. What comes out then is looked at.
//! * *Reset*: for each work but a reset, each host and each point, the work is stopped there, by another way than at the point before, and
//!   what is half done is reset.
//!
//! `FAULT_SHARD=2/8` takes the second of eight parts, `FAULT_ONLY=Link` what has that in its name.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Site, eventually};
use lab::{Snapshot, diff};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
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

/// A point of a host, as `src/host/fault.rs` names it.
type Point = String;

#[derive(Debug, Clone)]
struct Case {
    work: Work,
    host: &'static str,
    point: Point,
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
        write!(
            out,
            "{work:?} stopped on {host} at {point:?} by {stop:?}, then {then:?}"
        )
    }
}

/// One work stopped at all points of a host in one way.
#[derive(Debug, Clone)]
struct Chain {
    work: Work,
    host: &'static str,
    points: BTreeSet<Point>,
    stop: Stop,
}

impl fmt::Display for Chain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            work,
            host,
            points,
            stop,
        } = self;
        let count = points.len();
        write!(
            out,
            "{work:?} stopped on {host} at each of {count} points by {stop:?}, and again each time"
        )
    }
}

/// An installer at work. It ends with this: one that a failed case left behind would go on with the hosts of the next.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended cannot be killed: that is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
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
        // A cut cable is noticed soon.
        fs::write(
            site.file("ssh-config"),
            "Host *\n  ConnectTimeout 2\n  ServerAliveInterval 1\n  ServerAliveCountMax 2\n",
        )?;
        Ok(Self { site, before })
    }

    /// A file of the host's `/run/lock`, of which no snapshot takes notice, as this machine sees it.
    fn run_file(&self, host: &str, name: &str) -> Result<PathBuf> {
        let pid = self
            .site
            .lab
            .init_pid(self.site.host(host))
            .context("the host does not run")?;
        Ok(PathBuf::from(format!("/proc/{pid}/root/run/lock/{name}")))
    }

    /// What comes to one of the points stops there; what is at another goes on.
    fn arm<'a>(&self, host: &str, points: impl IntoIterator<Item = &'a Point>) -> Result<()> {
        let text: String = points.into_iter().map(|point| format!("{point}\n")).collect();
        // At once: whoever reads it sees what was there, or all of this.
        let (next, armed) = (
            self.run_file(host, "installer-fault.next")?,
            self.run_file(host, ARMED)?,
        );
        fs::write(&next, text)?;
        Ok(fs::rename(next, armed)?)
    }

    fn disarm(&self) -> Result<()> {
        for host in HOSTS {
            let _ = fs::remove_file(self.run_file(host, ARMED)?);
            let _ = fs::remove_file(self.run_file(host, PASSED)?);
        }
        Ok(())
    }

    /// Lines of what was passed; those with a `!` were stopped at.
    fn passed(&self, host: &str) -> Vec<String> {
        let text = self
            .run_file(host, PASSED)
            .and_then(|path| Ok(fs::read_to_string(path)?));
        text.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// At which of the points it stands.
    fn stands(&self, host: &str, points: &BTreeSet<Point>) -> BTreeSet<Point> {
        let passed = self.passed(host);
        let stood = passed.iter().filter_map(|line| line.strip_prefix('!'));
        stood
            .filter(|point| points.contains(*point))
            .map(str::to_owned)
            .collect()
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

    fn start(&self, work: Work) -> Result<Running> {
        let verb = if work == Work::Reset { "reset" } else { "apply" };
        let log = fs::File::create(self.site.file("stopped.log"))?;
        let mut command = self.site.installer_command()?;
        command
            .args([verb, "-f", "Clusterfile", "--yes", "--ssh-config", "ssh-config"])
            .env("RUST_LOG", "bootstrap=info")
            .stdin(Stdio::null());
        Ok(Running(command.stdout(log.try_clone()?).stderr(log).spawn()?))
    }

    /// The points that the work passes on each host when nothing stops it, in this order.
    fn count(&self, work: Work) -> Result<BTreeMap<&'static str, Vec<Point>>> {
        self.prepare(work)?;
        self.disarm()?;
        for host in HOSTS {
            self.arm(host, [])?;
        }
        let status = self.start(work)?.0.wait()?;
        ensure!(status.success(), "{work:?} without a fault: {}", self.log());
        let points = HOSTS.into_iter().map(|host| (host, self.passed(host))).collect();
        self.disarm()?;
        self.end()?;
        Ok(points)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.file("stopped.log")).unwrap_or_default()
    }

    fn case(&self, case: &Case) -> Result<()> {
        self.prepare(case.work)?;
        let points = BTreeSet::from([case.point.clone()]);
        self.arm(case.host, &points)?;
        let mut running = self.start(case.work)?;
        let child = &mut running.0;
        match self.stopped(case.host, &points, child)? {
            Stopped::At(_) => {}
            Stopped::Ended(status) => bail!("the point was not reached ({status}): {}", self.log()),
        }
        if case.then == Then::Reset {
            // What the installer would do when it notices is not wanted.
            child.kill()?;
        }
        self.stop(case.host, case.stop, child, &BTreeSet::new())?;
        if case.then == Then::Reset {
            child.wait()?;
        } else {
            self.wait(child)?;
            self.look(case.work)?;
        }
        self.end()
    }

    /// Stops the work at every point, and runs it again from there; how often it was begun on hosts as they were before.
    fn chain(&self, chain: &Chain) -> Result<usize> {
        let mut left = chain.points.clone();
        let mut rounds = 0;
        while !left.is_empty() {
            let before = left.len();
            self.prepare(chain.work)?;
            self.round(chain, &mut left)?;
            self.disarm()?;
            self.look(chain.work)?;
            self.end()?;
            rounds += 1;
            ensure!(left.len() < before, "never come to: {left:?}");
        }
        Ok(rounds)
    }

    /// One work from its beginning to its end.
    fn round(&self, chain: &Chain, left: &mut BTreeSet<Point>) -> Result<()> {
        self.arm(chain.host, &*left)?;
        let mut fruitless = 0;
        loop {
            let mut running = self.start(chain.work)?;
            let child = &mut running.0;
            let mut stops = 0;
            let status = loop {
                match self.stopped(chain.host, left, child)? {
                    Stopped::Ended(status) => break status,
                    Stopped::At(points) => {
                        left.retain(|point| !points.contains(point));
                        self.stop(chain.host, chain.stop, child, left)?;
                        stops += 1;
                    }
                }
            };
            if status.success() {
                return Ok(());
            }
            // One that was not stopped has no reason to fail, but the first may find what the last stop left half awake.
            fruitless = if stops == 0 { fruitless + 1 } else { 0 };
            ensure!(fruitless < 2, "it failed without being stopped: {}", self.log());
        }
    }

    /// The work is done, and nothing else is to do.
    fn look(&self, work: Work) -> Result<()> {
        if work == Work::Reset {
            return Ok(());
        }
        let said = self.site.installer_ok(&["apply", "-f", "Clusterfile", "--yes"])?;
        ensure!(
            said.contains("every probe passed") || said.contains("nothing to do"),
            "{said}"
        );
        self.site.installer_ok(&["check", "-f", "Clusterfile"])?;
        let said = self.site.installer_ok(&["apply", "-f", "Clusterfile", "--yes"])?;
        ensure!(said.contains("nothing to do"), "something is left to do: {said}");
        Ok(())
    }

    /// Waits until it stands at one of the points, or has ended.
    fn stopped(&self, host: &str, points: &BTreeSet<Point>, child: &mut Child) -> Result<Stopped> {
        let start = Instant::now();
        loop {
            let at = self.stands(host, points);
            if !at.is_empty() {
                return Ok(Stopped::At(at));
            }
            if let Some(status) = child.try_wait()? {
                return Ok(Stopped::Ended(status));
            }
            if start.elapsed() > NOTICE {
                child.kill()?;
                child.wait()?;
                bail!("nothing happens any more: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait(&self, child: &mut Child) -> Result<()> {
        match self.stopped(HOSTS[0], &BTreeSet::new(), child)? {
            Stopped::Ended(_) => Ok(()),
            Stopped::At(points) => bail!("stopped at {points:?}, where nothing stops"),
        }
    }

    /// Stops the work; from then on, the points that are `left` stop it again.
    fn stop(&self, name: &str, stop: Stop, child: &mut Child, left: &BTreeSet<Point>) -> Result<()> {
        let (lab, host) = (&self.site.lab, self.site.host(name));
        match stop {
            Stop::Installer => {
                child.kill()?;
                child.wait()?;
            }
            Stop::Daemon => drop(self.site.on(name, "pkill -9 -f '[c]lusterd host'")?),
            Stop::Power => {
                lab.kill(host)?;
                lab.start(host)?;
                eventually("the host to be up again", || {
                    std::net::TcpStream::connect((self.site.ip(name).as_str(), 22))
                        .map(drop)
                        .map_err(Into::into)
                })?;
            }
            Stop::Link => lab.network.cable(host, false)?,
        }
        let noticed = self.log().matches(NOTICED).count();
        self.arm(name, left)?;
        let start = Instant::now();
        if stop == Stop::Link {
            // Mended when the loss was noticed: what follows is to come back, or to be told.
            while child.try_wait()?.is_none() && self.log().matches(NOTICED).count() == noticed {
                ensure!(
                    start.elapsed() < NOTICE,
                    "the cut cable was not noticed: {}",
                    self.log()
                );
                std::thread::sleep(Duration::from_millis(50));
            }
            lab.network.cable(host, true)?;
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

    /// Does everything, whatever fails.
    fn run(&self, tasks: &[Task]) -> Result<()> {
        let mut failed = Vec::new();
        for (number, task) in tasks.iter().enumerate() {
            let start = Instant::now();
            let result = match task {
                Task::Case(case) => self.case(case).map(|()| 1),
                Task::Chain(chain) => self.chain(chain),
            };
            let seconds = start.elapsed().as_secs();
            match result {
                Ok(rounds) => println!("{}/{} {task}: {rounds} round(s), {seconds} s", number + 1, tasks.len()),
                Err(error) => {
                    println!("{}/{} {task}: {seconds} s\nFAILED: {error:#}", number + 1, tasks.len());
                    failed.push(task);
                    self.restore()?;
                }
            }
        }
        let all: usize = tasks.iter().map(Task::points).sum();
        let bad: usize = failed.iter().map(|task| task.points()).sum();
        println!("{} of {all} stops ended well", all - bad);
        let failed: Vec<String> = failed.iter().map(ToString::to_string).collect();
        ensure!(
            failed.is_empty(),
            "{} of {} failed:\n{}",
            failed.len(),
            tasks.len(),
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

/// What may be done on its own.
enum Task {
    Case(Case),
    Chain(Chain),
}

impl Task {
    /// How often something is stopped.
    fn points(&self) -> usize {
        match self {
            Self::Case(_) => 1,
            Self::Chain(chain) => chain.points.len(),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Case(case) => case.fmt(out),
            Self::Chain(chain) => chain.fmt(out),
        }
    }
}

/// What a work that is waited for comes to.
enum Stopped {
    At(BTreeSet<Point>),
    Ended(ExitStatus),
}

/// The case of a host's point so far on its way.
fn sampled(
    points: &BTreeMap<&'static str, Vec<Point>>,
    work: Work,
    host: &'static str,
    (part, of): (usize, usize),
    stop: Stop,
    then: Then,
) -> Task {
    let points = &points[host];
    let point = points[(points.len() - 1) * part / of].clone();
    Task::Case(Case {
        work,
        host,
        point,
        stop,
        then,
    })
}

#[test]
fn what_is_stopped_anywhere_ends_well_a_sample() -> Result<()> {
    let matrix = Matrix::open()?;
    let points = matrix.count(Work::Apply)?;
    let counts: Vec<usize> = points.values().map(Vec::len).collect();
    println!("points of an apply: {counts:?}");
    ensure!(counts.iter().all(|count| *count > 20), "too few points: {counts:?}");
    let mut tasks = vec![
        sampled(&points, Work::Apply, "m1", (0, 1), Stop::Installer, Then::Reset),
        sampled(&points, Work::Apply, "m1", (1, 3), Stop::Power, Then::Again),
        sampled(&points, Work::Apply, "m1", (2, 3), Stop::Daemon, Then::Again),
        sampled(&points, Work::Apply, "n1", (1, 2), Stop::Link, Then::Again),
        sampled(&points, Work::Apply, "n1", (1, 1), Stop::Installer, Then::Reset),
        sampled(&points, Work::Join, "n1", (2, 3), Stop::Daemon, Then::Again),
    ];
    let points = matrix.count(Work::Reset)?;
    tasks.extend([
        sampled(&points, Work::Reset, "m1", (1, 2), Stop::Power, Then::Reset),
        sampled(&points, Work::Reset, "n1", (1, 3), Stop::Installer, Then::Reset),
    ]);
    let points = matrix.count(Work::Upgrade)?;
    ensure!(!points["m1"].is_empty(), "an upgrade changes nothing");
    tasks.push(sampled(
        &points,
        Work::Upgrade,
        "m1",
        (0, 1),
        Stop::Installer,
        Then::Again,
    ));
    matrix.run(&tasks)
}

#[test]
#[ignore = "takes an hour or two: make test-faults"]
fn what_is_stopped_anywhere_ends_well() -> Result<()> {
    let matrix = Matrix::open()?;
    let only = std::env::var("FAULT_ONLY").unwrap_or_default();
    let mut tasks = Vec::new();
    let mut works = vec![Work::Apply, Work::Join, Work::Upgrade, Work::Reset];
    if let Some(one) = works.iter().find(|work| only.starts_with(&format!("{work:?}"))) {
        works = vec![*one];
    }
    for work in works {
        let points = matrix.count(work)?;
        for (host, points) in points {
            println!("{work:?} has {} points on {host}", points.len());
            tasks.extend(STOPS.map(|stop| {
                Task::Chain(Chain {
                    work,
                    host,
                    points: points.iter().cloned().collect(),
                    stop,
                })
            }));
            if work != Work::Reset {
                tasks.extend(points.into_iter().zip(STOPS.into_iter().cycle()).map(|(point, stop)| {
                    Task::Case(Case {
                        work,
                        host,
                        point,
                        stop,
                        then: Then::Reset,
                    })
                }));
            }
        }
    }
    tasks.retain(|task| task.points() > 0 && task.to_string().contains(&only));
    let (mine, shards) = shard()?;
    let tasks: Vec<Task> = tasks.into_iter().skip(mine - 1).step_by(shards).collect();
    matrix.run(&tasks)
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
