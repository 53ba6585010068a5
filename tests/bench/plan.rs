//! Planning for many hosts: what it costs to work out what each shall have, with hosts that are only facts.
//!
//! Timed is what `plan` and `apply` do between the hosts' answers: reading the Clusterfile, putting wish, image and facts together,
//! preflight, and what every phase wants of every host. All of that is kept until the end, as a plan keeps it while hosts are asked.
//! Each number of hosts has a process of its own, whose peak of memory is told.

use anyhow::{Context, Result, ensure};
use bootstrap::{effects::Learned, image, plan, preflight, site::Seen, wish};
use clusterfile::Clusterfile;
use host::{Facts, facts};
use std::{
    fmt::Write as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// The word that makes a process plan for so many hosts and tell what it cost.
pub(crate) const CHILD: &str = "plan-of";
/// How many hosts there are.
const SIZES: [u32; 3] = [1, 30, 1000];
/// What planning for the most hosts may take in a release build.
const GOAL: Duration = Duration::from_secs(1);

/// Plans for each number of hosts, in processes of their own.
pub(crate) fn compare(store: &Path) -> Result<()> {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    println!(
        "\n## Planning, {profile} profile (goal: {} hosts within {} s in release)",
        SIZES[2],
        GOAL.as_secs()
    );
    for hosts in SIZES {
        let mut child = Command::new(std::env::current_exe()?);
        child.arg(CHILD).arg(hosts.to_string()).env("INSTALLER_STORE", store);
        print!("{}", lab::output(&mut child)?.ok()?);
    }
    Ok(())
}

/// The child: plans for `hosts` hosts and prints a line.
pub(crate) fn one(store: &Path, hosts: &str) -> Result<()> {
    let hosts: u32 = hosts.parse().context("how many hosts?")?;
    let opened = image::open(store, super::IMAGE, &::image::host_platform(), None)?;
    let before = peak()?;
    let text = clusterfile(hosts);
    let mut steps = Vec::new();
    let start = Instant::now();
    let wished = step(&mut steps, "read", || {
        Ok(Clusterfile::parse(&text, "Clusterfile", Path::new("/"))?)
    })?;
    let found: Vec<(Facts, Seen)> = wished.cluster.hosts.iter().enumerate().map(found).collect();
    let site = step(&mut steps, "site", || Ok(wish::site(&wished, opened.image, found)?))?;
    let looked = preflight::Looked {
        now_ms: 0,
        sending: Vec::new().into_iter().collect(),
        ways: Vec::new(),
    };
    let findings = step(&mut steps, "preflight", || {
        Ok((preflight::look(&site, &looked, &[]), preflight::wanted_ways(&site)))
    })?;
    let learned = Learned::default();
    let plans = step(&mut steps, "effects", || {
        let each = site.seats.iter().map(|seat| {
            let blobs = plan::wanted_blobs(&site, seat);
            Ok((plan::effects(&site, seat, &learned)?, blobs))
        });
        each.collect::<Result<Vec<_>>>()
    })?;
    let took = start.elapsed();
    let most = plans.iter().map(|(effects, _)| effects.len()).max().unwrap_or(0);
    ensure!(
        plans.len() == site.seats.len() && most > 20,
        "a plan of {most} effects for a host is none"
    );
    let mut parts = String::new();
    for (name, took) in steps {
        write!(parts, "  {name} {:.3} s", took.as_secs_f64())?;
    }
    println!(
        "{:<34} {:>7.3} s   {:>7.1} MB peak ({:.1} MB before)   {} findings, {} ways{parts}",
        format!("{hosts} hosts"),
        took.as_secs_f64(),
        super::mb(peak()?),
        super::mb(before),
        findings.0.len(),
        findings.1.len(),
    );
    Ok(())
}

fn step<T>(
    steps: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    let result = work()?;
    steps.push((name, start.elapsed()));
    Ok(result)
}

fn clusterfile(hosts: u32) -> String {
    let address = |index: u32| std::net::Ipv4Addr::from(0x0a14_0001 + index);
    let mut text = format!(
        "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: bench}}\nspec:\n  image: {}\n  env: [\"PodCIDR=100.64.0.0/12\"]\n  hosts:\n  - {{ips: [{}], roles: [master]}}\n",
        super::IMAGE,
        address(0)
    );
    if hosts > 1 {
        text.push_str(&format!(
            "  - {{ips: [{}-{}], roles: [node], labels: {{disk: ssd}}}}\n",
            address(1),
            address(hosts - 1)
        ));
    }
    text
}

/// A bare host that has all it needs.
fn found((index, host): (usize, &clusterfile::Host)) -> (Facts, Seen) {
    let mut facts = Facts {
        arch: std::env::consts::ARCH
            .replace("x86_64", "amd64")
            .replace("aarch64", "arm64"),
        hostname: format!("host-{index}"),
        machine_id: format!("id-{index}"),
        memory_total: 4 << 30,
        can_lower_oom_score: true,
        ..Facts::default()
    };
    facts.systemd.version = 252;
    facts.cgroup.mode = facts::CgroupMode::V2;
    facts.cgroup.controllers = ["cpu", "memory", "pids"].map(String::from).to_vec();
    facts.addresses.push(facts::Address {
        interface: "eth0".into(),
        ip: host.ip.to_string(),
        prefix: 16,
        mtu: 1500,
    });
    facts.disks.push(facts::Disk {
        path: "/var/lib/installer".into(),
        total: 100 << 30,
        free: 50 << 30,
        ..facts::Disk::default()
    });
    (facts, Seen::default())
}

/// The most memory this process has had, in bytes.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("the kernel tells VmHWM")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
