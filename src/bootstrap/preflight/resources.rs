//! Memory, disk, clock, swap.

use super::{Finding, error, warning};
use crate::site::{Seat, Site};

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
    let installed = facts
        .installed
        .iter()
        .any(|installed| installed.cluster == site.scope.cluster);
    let spare = if installed { 0 } else { DISK_SPARE };
    let needed = sending * DISK_FACTOR + spare;
    // Several paths on one file system are one disk.
    if let Some(disk) = facts
        .disks
        .iter()
        .min_by_key(|disk| disk.free)
        .filter(|disk| disk.free < needed)
    {
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
    if !facts.swaps.is_empty() {
        findings.push(warning(
            seat,
            "swap",
            format!("swap is on ({})", facts.swaps.join(", ")),
            "nothing: it will be switched off, and on again by reset",
        ));
    }
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
