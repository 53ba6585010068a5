//! Memory, disk, clock, swap.

use super::{Finding, error, is_installed, warning};
use crate::site::{Seat, Site};
use host::facts::Disk;

/// Where the agent keeps pods, volumes and logs.
pub(crate) const AGENT_ROOT: &str = "/var/lib/kubelet";
const MIB: u64 = 1 << 20;
/// Less memory than this and a node cannot hold its own system pods.
const MEMORY_NODE: u64 = 512 * MIB;
/// A master also holds the control plane.
const MEMORY_MASTER: u64 = 1024 * MIB;
/// Free space beyond what we send: logs, writable layers, etcd.
const DISK_SPARE: u64 = 1024 * MIB;
/// What sent bytes become on a host: the blob, its unpacked copy, and the same again in the runtime.
const DISK_FACTOR: u64 = 5;
/// Certificates are made five minutes in the past, tokens and leases are compared between hosts.
const CLOCK_ERROR_MS: i64 = 60_000;
const CLOCK_WARNING_MS: i64 = 5_000;

pub(super) fn look(site: &Site, seat: &Seat, sending: u64, findings: &mut Vec<Finding>) {
    let facts = &seat.facts;
    let least = if seat.master { MEMORY_MASTER } else { MEMORY_NODE };
    if facts.memory_total < least {
        let role = if seat.master { "master" } else { "node" };
        findings.push(error(
            seat,
            "memory",
            format!(
                "{} MiB of memory, a {role} needs {} MiB",
                facts.memory_total / MIB,
                least / MIB
            ),
            "give the host more memory",
        ));
    }
    let spare = if is_installed(site, seat) { 0 } else { DISK_SPARE };
    let needed = sending * DISK_FACTOR + spare;
    // Several paths on one file system are one disk.
    let smallest = facts.disks.iter().min_by_key(|disk| disk.free);
    let too_small = smallest.filter(|disk| disk.free < needed);
    if let Some(disk) = too_small {
        findings.push(error(
            seat,
            "disk",
            format!(
                "{} MiB free below {}, {} MiB are needed",
                disk.free / MIB,
                disk.path,
                needed / MIB
            ),
            "make room there, or set spec.dataRoot to a folder on a larger disk",
        ));
    }
    eviction(site, seat, sending, too_small, findings);
    if !facts.swaps.is_empty() {
        findings.push(warning(
            seat,
            "swap",
            format!("swap is on ({})", facts.swaps.join(", ")),
            "nothing: it will be switched off, and on again by reset",
        ));
    }
}

/// The agent's thresholds where neither the image nor the Clusterfile gives any.
const EVICTION: [(&str, &str); 3] = [
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
];

/// Disks on which the agent would evict pods at once: the node has the condition DiskPressure then, and nothing is placed on it.
/// What follows from `too_small`, which is told already, is not told.
fn eviction(site: &Site, seat: &Seat, sending: u64, too_small: Option<&Disk>, findings: &mut Vec<Finding>) {
    let fields = crate::effects::agent::kubelet_fields(site, seat).unwrap_or_default();
    let own = fields.get("evictionHard").and_then(serde_json::Value::as_object);
    let thresholds: Vec<(&str, &str)> = match own {
        // Signals that a configuration leaves out are not watched.
        Some(own) => own
            .iter()
            .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
            .collect(),
        None => EVICTION.to_vec(),
    };
    let disk = |path: &str| seat.facts.disks.iter().find(|disk| disk.path == path);
    let mut short = Vec::new();
    for (signal, threshold) in thresholds {
        let (path, sending) = match signal.split_once('.') {
            Some(("nodefs", _)) => (AGENT_ROOT, 0),
            // containerd's folder lies there, and what is sent stays.
            Some(("imagefs", _)) => (site.scope.data_root.as_str(), sending),
            _ => continue,
        };
        let Some(disk) = disk(path) else { continue };
        let (what, free, total) = match signal.ends_with("inodesFree") {
            true => ("inodes", disk.free_inodes, disk.inodes),
            false => ("bytes", disk.free.saturating_sub(sending), disk.total),
        };
        let Some(limit) = clusterfile::kubeadm::threshold(threshold, total) else {
            continue;
        };
        // Several paths on one file system are one disk.
        let is_told = too_small.is_some_and(|told| (told.total, told.free) == (disk.total, disk.free));
        if total > 0 && free < limit && !(is_told && what == "bytes") {
            let percent = free as f64 * 100.0 / total as f64;
            let sent = if sending > 0 && what == "bytes" {
                " after what is sent"
            } else {
                ""
            };
            short.push(format!(
                "{percent:.0} % of the {what} below {path} are free{sent}, {signal} is {threshold}"
            ));
        }
    }
    if short.is_empty() {
        return;
    }
    let cause = format!("the node agent would evict pods at once: {}", short.join("; "));
    let remedy = "make room there, set spec.dataRoot to a folder on a larger disk, or set evictionHard in a KubeletConfiguration";
    // Where it is installed, an apply may be what mends it.
    let finding = if is_installed(site, seat) { warning } else { error };
    findings.push(finding(seat, "disk", cause, remedy.to_owned()));
}

pub(super) fn clock(seat: &Seat, now_ms: i64, findings: &mut Vec<Finding>) {
    let skew = seat.facts.time_ms - now_ms;
    let cause = format!(
        "its clock is {:.1} s {} this machine's",
        skew.abs() as f64 / 1000.0,
        if skew < 0 { "behind" } else { "ahead of" }
    );
    let remedy = "set the clocks right: all hosts and this machine should follow one time server";
    if skew.abs() > CLOCK_ERROR_MS {
        findings.push(error(seat, "clock", cause, remedy));
    } else if skew.abs() > CLOCK_WARNING_MS {
        findings.push(warning(seat, "clock", cause, remedy));
    }
}
