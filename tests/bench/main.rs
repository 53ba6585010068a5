//! `bench`: what the product costs, beside what a user would otherwise pick, in one run on one machine.
//!
//! It prints ratios and asserts nothing. It needs the release programs and the default image (`make bench` builds them).
//! `bench registry` compares only the registries, `bench images` only what is done with images, `bench push` only what brings an image to
//! one host, `bench fanout` only one host and many, `bench plan` only planning, `bench memory` only what the API server and etcd hold while a
//! Deployment is scaled up and down for an hour (`BENCH_MINUTES=60`), which all the others together do not take. The lab's name and the start of its addresses may be chosen:
//! `BENCH_LAB=name:10.87.0`; and so may the rate of slow links in Mbit/s: `BENCH_LINK=50`.

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, Lab, Options};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

mod fanout;
mod images;
mod load;
mod memory;
mod plan;
mod push;
mod registry;

const IMAGE: &str = "local/native:dev";
const FANOUT: usize = fanout::HOSTS[fanout::HOSTS.len() - 1];

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("bench: {error:#}");
            1.into()
        }
    }
}

/// The command that copies a file to a host.
type Copying = fn(&Lab, &Path, &Host) -> Command;

struct Bench {
    bin: PathBuf,
    store: PathBuf,
    dir: tempfile::TempDir,
    /// The rate of slow links in megabits a second.
    link: u64,
}

fn run() -> Result<()> {
    let bin = std::env::current_exe()?
        .parent()
        .context("a program lies in a folder")?
        .to_owned();
    let store = std::env::var_os("INSTALLER_STORE")
        .map_or_else(|| PathBuf::from("target/store"), PathBuf::from)
        .canonicalize()?;
    let bench = Bench {
        bin,
        store,
        dir: tempfile::tempdir_in("target")?,
        link: match std::env::var("BENCH_LINK") {
            Ok(rate) => rate.parse().context("BENCH_LINK is a number of Mbit/s")?,
            Err(_) => fanout::LINK,
        },
    };
    match std::env::args().nth(1).as_deref() {
        Some("registry") => return bench.registry(),
        Some("images") => return bench.images(),
        Some("push") => return bench.hosts(1, Bench::push),
        Some("fanout") => return bench.hosts(FANOUT, Bench::fanout),
        Some("memory") => return memory::run(&bench.bin, bench.dir.path()),
        Some("plan") => return plan::compare(&bench.store),
        Some(plan::CHILD) => return plan::one(&bench.store, &std::env::args().nth(2).unwrap_or_default()),
        Some(other) => bail!(
            "there is no benchmark {other}; there are registry, images, push, fanout, plan and memory, and all but memory without a word"
        ),
        None => {}
    }
    bench.sizes()?;
    plan::compare(&bench.store)?;
    bench.images()?;
    bench.registry()?;
    bench.hosts(1, Bench::push)?;
    bench.hosts(3, Bench::cluster)?;
    bench.hosts(FANOUT, Bench::fanout)
}

fn timed(command: &mut Command) -> Result<Duration> {
    let shown = format!("{command:?}");
    let start = Instant::now();
    lab::output(command)?.ok().context(shown)?;
    Ok(start.elapsed())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Bytes that do not compress.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// `ours` against `rival`, both seconds for the same work: above 1 we are faster.
fn versus(what: &str, ours: Duration, name: &str, rival: Duration) {
    let ratio = rival.as_secs_f64() / ours.as_secs_f64();
    println!(
        "{what:<34} {:>7.2} s   {name} {:>7.2} s   {ratio:>5.2} × its rate",
        ours.as_secs_f64(),
        rival.as_secs_f64()
    );
}

impl Bench {
    fn installer(&self) -> Command {
        let mut command = Command::new(self.bin.join("installer"));
        command.arg("--store").arg(&self.store);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Does something with a lab of so many hosts.
    fn hosts(&self, count: usize, work: fn(&Self, &Lab) -> Result<()>) -> Result<()> {
        let chosen = std::env::var("BENCH_LAB").unwrap_or_else(|_| "bench:10.87.0".to_owned());
        let (name, prefix) = chosen.split_once(':').context("BENCH_LAB is NAME:PREFIX")?;
        let names = ["m1".to_owned()].into_iter().chain((1..count).map(|n| format!("n{n}")));
        let lab = Lab::up(&Options {
            name: name.into(),
            prefix: prefix.into(),
            hosts: names.collect(),
            state: "target/lab".into(),
        })?;
        let result = work(self, &lab);
        lab.down()?;
        result
    }

    fn sizes(&self) -> Result<()> {
        println!("## Sizes");
        for name in ["installer", "clusterd"] {
            println!("{name:<34} {:>7.1} MB", mb(fs::metadata(self.bin.join(name))?.len()));
        }
        timed(self.installer().args(["save", IMAGE, "-o"]).arg(self.path("image.tar")))?;
        println!(
            "{:<34} {:>7.1} MB",
            "cluster image, compressed",
            mb(fs::metadata(self.path("image.tar"))?.len())
        );
        Ok(())
    }

    fn images(&self) -> Result<()> {
        println!("\n## An image of 2 GB in 8 layers");
        let dir = self.dir.path().canonicalize()?;
        images::Images {
            installer: &self.bin.join("installer"),
            dir: &dir,
        }
        .compare()
    }

    fn registry(&self) -> Result<()> {
        println!("\n## Registry: an image of {:.1} MB", mb(registry::BYTES));
        let found = registry::compare(&self.bin.join("clusterd"), self.dir.path())?;
        for row in &found.rows {
            let Some(((_, ours), rivals)) = row.runs.split_first() else {
                continue;
            };
            let what = format!("{} by {} client(s)", row.what, row.clients);
            print!("{what:<34} {:>7.0} MB/s {:>6.1} MB peak", ours.rate, ours.peak);
            for (name, rival) in rivals {
                let ratio = ours.rate / rival.rate;
                print!(
                    "   {name} {:>7.0} MB/s {:>6.1} MB   {ratio:>5.2} ×",
                    rival.rate, rival.peak
                );
            }
            println!();
        }
        versus("pull by skopeo", found.skopeo.0, "docker-registry", found.skopeo.1);
        Ok(())
    }

    fn cluster(&self, lab: &Lab) -> Result<()> {
        let payload = self.path("image.tar");
        let bytes = fs::metadata(&payload)?.len();
        println!("\n## Transfer of {:.1} MB", mb(bytes));
        let three = self.copy(lab, &payload, &lab.hosts, push::scp)?;
        self.clusterfile(lab, &lab.hosts)?;
        let start = Instant::now();
        let all = self.apply(lab)?;
        let cold = start.elapsed();
        compare("push to three hosts", &all, three, "scp", bytes * 3);

        println!("\n## Cold apply on three hosts: {:.1} s", cold.as_secs_f64());
        for (phase, spent) in &all.phases {
            println!(
                "{phase:<34} {:>7.2} s (longest host)   {:>8.1} MB",
                spent.longest.as_secs_f64(),
                mb(spent.bytes)
            );
        }
        let start = Instant::now();
        self.apply(lab)?;
        println!(
            "{:<34} {:>7.2} s",
            "apply with nothing to do",
            start.elapsed().as_secs_f64()
        );
        self.memory(lab)?;
        self.leave_and_join(lab)?;
        self.reset(lab)
    }

    /// The last host leaves a cluster that works, and comes back.
    fn leave_and_join(&self, lab: &Lab) -> Result<()> {
        println!("\n## One node");
        let node = lab.hosts.last().context("no host")?.ip.to_string();
        for (what, verb, consent) in [
            ("leaves, drained and undone", "reset", Some("--yes")),
            ("joins, every probe passed", "join", None),
        ] {
            let took = timed(self.on(lab, verb).args(["--nodes", &node]).args(consent))?;
            println!("{what:<34} {:>7.2} s", took.as_secs_f64());
        }
        Ok(())
    }

    /// A command of the installer about the benchmark's cluster.
    fn on(&self, lab: &Lab, verb: &str) -> Command {
        let mut command = self.installer();
        command.arg("--known-hosts").arg(lab.known_hosts());
        command.arg(verb).arg("-f").arg(self.path("Clusterfile"));
        command
    }

    fn copy(&self, lab: &Lab, payload: &Path, hosts: &[Host], how: Copying) -> Result<Duration> {
        let start = Instant::now();
        let mut children = Vec::new();
        for host in hosts {
            children.push(how(lab, payload, host).stdin(Stdio::null()).spawn()?);
        }
        for mut child in children {
            ensure!(child.wait()?.success(), "a copy failed");
        }
        let took = start.elapsed();
        for host in hosts {
            lab.exec(host, &["rm", "-f", "/var/lib/payload", "/var/lib/image.tar"])?
                .ok()?;
        }
        Ok(took)
    }

    fn clusterfile(&self, lab: &Lab, hosts: &[Host]) -> Result<()> {
        let ips = |hosts: &[Host]| hosts.iter().map(|h| h.ip.to_string()).collect::<Vec<_>>().join(", ");
        let key = lab.key();
        let mut text = format!(
            "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: bench}}\nspec:\n  image: {IMAGE}\n  ssh: {{user: root, pk: {}}}\n  hosts:\n  - {{ips: [{}], roles: [master]}}\n",
            key.display(),
            ips(&hosts[..1])
        );
        if hosts.len() > 1 {
            text.push_str(&format!("  - {{ips: [{}], roles: [node]}}\n", ips(&hosts[1..])));
        }
        Ok(fs::write(self.path("Clusterfile"), text)?)
    }

    fn apply(&self, lab: &Lab) -> Result<Applied> {
        let mut command = self.on(lab, "apply");
        let out = lab::output(command.args(["--yes", "-o", "json"]))?.ok()?;
        let mut applied = Applied::default();
        for event in out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if event["event"] == "phaseDone" {
                let spent = applied
                    .phases
                    .entry(event["phase"].as_str().unwrap_or_default().to_owned())
                    .or_default();
                spent.longest = spent
                    .longest
                    .max(Duration::from_millis(event["ms"].as_u64().unwrap_or(0)));
                spent.bytes += event["bytes"].as_u64().unwrap_or(0);
            }
        }
        Ok(applied)
    }

    fn reset(&self, lab: &Lab) -> Result<()> {
        let took = timed(self.on(lab, "reset").arg("--yes"))?;
        println!("{:<34} {:>7.2} s", "reset", took.as_secs_f64());
        Ok(())
    }

    fn memory(&self, lab: &Lab) -> Result<()> {
        println!("\n## Resident memory");
        for host in &lab.hosts[..2] {
            let listing = lab.exec(host, &["ps", "-eo", "rss=,args=", "--sort=-rss"])?.ok()?;
            let mut sums: BTreeMap<String, (u64, usize)> = BTreeMap::new();
            for line in listing.lines() {
                let mut words = line.split_whitespace();
                let rss: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                let program = words.next().and_then(|p| p.rsplit('/').next()).unwrap_or_default();
                let name = match program {
                    "clusterd" => format!("clusterd {}", words.next().unwrap_or_default()),
                    "etcd" | "containerd" | "containerd-shim-runc-v2" => program.to_owned(),
                    _ => continue,
                };
                let sum = sums.entry(name).or_default();
                *sum = (sum.0 + rss, sum.1 + 1);
            }
            for (name, (kib, count)) in sums {
                println!(
                    "{:<4} {name:<29} {:>7.1} MB   {count} process(es)",
                    host.name,
                    kib as f64 * 1024.0 / 1e6
                );
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Applied {
    phases: BTreeMap<String, Spent>,
}

#[derive(Default)]
struct Spent {
    longest: Duration,
    bytes: u64,
}

/// Compares rates, because apply sends fewer bytes than the whole image to hosts that serve no images.
fn compare(what: &str, applied: &Applied, rival: Duration, name: &str, rival_bytes: u64) {
    let sent: u64 = ["blobs", "images"]
        .iter()
        .filter_map(|p| applied.phases.get(*p))
        .map(|s| s.bytes)
        .sum();
    let took: Duration = ["blobs", "images"]
        .iter()
        .filter_map(|p| applied.phases.get(*p))
        .map(|s| s.longest)
        .sum();
    let ours = mb(sent) / took.as_secs_f64();
    let theirs = mb(rival_bytes) / rival.as_secs_f64();
    println!(
        "{what:<34} {ours:>7.1} MB/s   {name} {theirs:>7.1} MB/s   {:>5.2} ×",
        ours / theirs
    );
}
