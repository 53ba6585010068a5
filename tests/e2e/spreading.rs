//! What hosts lack leaves the operator's machine about once, however many they are, and directly where they cannot reach each other.
//!
//! It is only staged, so that so many nodes need not run on one machine.

use anyhow::{Context, Result, ensure};
use e2e::Site;
use lab::diff;
use serde_json::Value;

const HOSTS: [&str; 5] = ["m1", "n1", "n2", "n3", "n4"];

/// What was told of where things came from.
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

/// Brings every host what it lacks, and the first one its images.
fn bring(site: &Site, flags: &[&str]) -> Result<Told> {
    let before = site.lab.network.sent()?;
    let mut stage = site.installer_command()?;
    stage.args(["stage", "-f", "Clusterfile", "-o", "json"]).args(flags);
    let out = lab::output(&mut stage)?.ok()?;
    let mut told = Told {
        left: site.lab.network.sent()? - before,
        ..Told::default()
    };
    for line in out.lines() {
        let event: Value = serde_json::from_str(line)?;
        let number = |name: &str| event[name].as_u64().with_context(|| format!("{name} of {line}"));
        match (event["event"].as_str(), event["phase"].as_str()) {
            (Some("program"), _) => {
                told.program = number("bytes")?;
                told.programs.push(number("fromPeers")? == told.program);
            }
            (Some("phaseDone"), Some("blobs" | "images")) => {
                told.blobs += number("bytes")?;
                told.from_peers += number("fromPeers")?;
            }
            (Some("phaseStarted"), phase) => ensure!(matches!(phase, Some("blobs" | "images")), "{line}"),
            _ => {}
        }
    }
    Ok(told)
}

/// What was staged is there, is told, need not be sent any more, and nothing else was done.
fn staged(site: &Site) -> Result<()> {
    let status: Value = serde_json::from_str(&site.installer(&["status", "-o", "json"])?.stdout)?;
    let hosts = status["hosts"].as_array().context("hosts")?;
    ensure!(hosts.len() == HOSTS.len(), "{status}");
    for host in hosts {
        ensure!(host["state"] == "staged", "{host}");
        ensure!(host["units"].as_array().is_none_or(Vec::is_empty), "{host}");
    }
    let plan = site.installer(&["plan", "-o", "json"])?;
    ensure!(plan.code == 2, "a plan: {plan:?}");
    let plan: Value = serde_json::from_str(&plan.stdout)?;
    for host in plan["hosts"].as_array().context("hosts")? {
        ensure!(host["bytes"] == 0 && host["joins"] == true, "{host}");
    }
    let again = site.installer_ok(&["stage"])?;
    ensure!(again.contains("nothing to do"), "{again}");
    Ok(())
}

fn reset(site: &Site) -> Result<()> {
    site.installer_ok(&["reset", "-f", "Clusterfile", "--yes"]).map(drop)
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
    let told = bring(&site, &[])?;
    let from_here = told.programs.iter().filter(|from_peer| !**from_peer).count();
    ensure!(told.programs.len() == HOSTS.len() && from_here == 1, "{told:?}");
    // The first host gets all there is, and nothing that any other gets is not among it. `clusterd` is told as large as it is, and goes compressed.
    let once = told.blobs - told.from_peers;
    ensure!(
        told.from_peers > told.blobs / 2 && told.left > once && (told.left as f64) < (once + told.program) as f64 * 1.1,
        "the events and this machine's network say the same: {told:?}"
    );
    staged(&site)?;
    reset(&site)?;
    let leftovers = diff(&before, &site.lab.snapshot(site.host(last))?);
    ensure!(leftovers.is_empty(), "reset of {last} left {leftovers:#?}");

    let few = &HOSTS[..3];
    few.iter()
        .try_for_each(|host| site.lab.network.isolate(site.host(host)))?;
    site.write_clusterfile(&few[..1], &few[1..], "")?;
    let told = bring(&site, &["--ignore-preflight", "firewall"])?;
    ensure!(
        told.programs.len() == few.len() && told.programs.iter().all(|from_peer| !from_peer) && told.from_peers == 0,
        "{told:?}"
    );
    ensure!(told.left > told.blobs, "{told:?}");
    reset(&site)
}
