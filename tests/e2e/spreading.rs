//! What hosts lack leaves the operator's machine about once, however many they are, and directly where they cannot reach each other.
//!
//! An apply is ended as soon as all is there, so that so many nodes need not run on one machine.

use anyhow::{Context, Result, ensure};
use e2e::{Site, eventually};
use lab::diff;
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

const HOSTS: [&str; 5] = ["m1", "n1", "n2", "n3", "n4"];

/// What an apply told of where things came from.
#[derive(Debug, Default)]
struct Told {
    /// Of each host, whether `clusterd` came from another one.
    programs: Vec<bool>,
    /// Size of `clusterd`.
    program: u64,
    /// Bytes of blobs that arrived on hosts.
    blobs: u64,
    /// How many of these came from other hosts.
    from_peers: u64,
    /// Bytes that left this machine, as its network counts them.
    left: u64,
}

/// Applies until every host has its blobs, and the first one its images.
fn bring(site: &Site, hosts: usize, flags: &[&str]) -> Result<Told> {
    let before = site.lab.network.sent()?;
    let mut apply = site.installer_command()?;
    let mut child = apply
        .args(["apply", "-f", "Clusterfile", "--yes", "-o", "json"])
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let out = child.stdout.take().context("a pipe")?;
    let (mut told, mut waiting, mut last) = (Told::default(), hosts + 1, String::new());
    for line in BufReader::new(out).lines() {
        last = line?;
        let event: Value = serde_json::from_str(&last)?;
        let number = |name: &str| event[name].as_u64().with_context(|| format!("{name} of {last}"));
        match (event["event"].as_str(), event["phase"].as_str()) {
            (Some("program"), _) => {
                told.program = number("bytes")?;
                told.programs.push(number("fromPeers")? == told.program);
            }
            (Some("phaseDone"), Some("blobs" | "images")) => {
                told.blobs += number("bytes")?;
                told.from_peers += number("fromPeers")?;
                waiting -= 1;
            }
            _ => {}
        }
        if waiting == 0 {
            break;
        }
    }
    told.left = site.lab.network.sent()? - before;
    child.kill()?;
    child.wait()?;
    ensure!(waiting == 0, "the apply ended early: {last}");
    Ok(told)
}

/// A busy host needs a moment to notice that its installer is gone.
fn reset(site: &Site) -> Result<()> {
    eventually("a reset", || {
        site.installer_ok(&["reset", "-f", "Clusterfile", "--yes"]).map(drop)
    })
}

#[test]
fn what_many_hosts_lack_is_sent_once_or_directly_where_they_cannot_reach_each_other() -> Result<()> {
    let site = Site::up(&HOSTS)?;
    // The first login makes what every login makes; it is not the installer's.
    site.lab
        .hosts
        .iter()
        .try_for_each(|h| site.on(&h.name, "true").map(drop))?;
    let last = HOSTS[HOSTS.len() - 1];
    let before = site.lab.snapshot(site.host(last))?;

    site.write_clusterfile(&HOSTS[..1], &HOSTS[1..], "")?;
    let told = bring(&site, HOSTS.len(), &[])?;
    let from_here = told.programs.iter().filter(|from_peer| !**from_peer).count();
    ensure!(told.programs.len() == HOSTS.len() && from_here == 1, "{told:?}");
    // The first host gets all there is, and nothing that any other gets is not among it.
    let once = told.program + (told.blobs - told.from_peers);
    ensure!(
        told.from_peers > told.blobs / 2 && told.left > once && (told.left as f64) < once as f64 * 1.1,
        "the events and this machine's network say the same: {told:?}"
    );
    reset(&site)?;
    let leftovers = diff(&before, &site.lab.snapshot(site.host(last))?);
    ensure!(leftovers.is_empty(), "reset of {last} left {leftovers:#?}");

    let few = &HOSTS[..3];
    few.iter()
        .try_for_each(|host| site.lab.network.isolate(site.host(host)))?;
    site.write_clusterfile(&few[..1], &few[1..], "")?;
    let told = bring(&site, few.len(), &["--ignore-preflight", "firewall"])?;
    ensure!(
        told.programs.len() == few.len() && told.programs.iter().all(|from_peer| !from_peer) && told.from_peers == 0,
        "{told:?}"
    );
    ensure!(told.left > told.blobs + told.program * few.len() as u64, "{told:?}");
    reset(&site)
}
