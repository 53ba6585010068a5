//! Whether hosts can become what they shall be: every finding of every host at once, each with cause and remedy. Pure.

use crate::site::{Seat, Site};
use host::facts::CgroupMode;
use serde::Serialize;
use std::collections::BTreeMap;

mod network;
mod resources;
mod surroundings;
mod traces;
mod ways;

pub use ways::{Way, wanted as wanted_ways};

/// Something about a host that matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The host's address.
    pub host: String,
    /// The host's name.
    pub name: String,
    /// The check's name, for `--ignore-preflight`.
    pub check: &'static str,
    /// Whether it stops us.
    pub severity: Severity,
    /// What is the matter.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

/// Weight of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is changed while it is so.
    Error,
    /// Told, and gone on with.
    Warning,
}

/// Names of all checks.
pub const CHECKS: &[&str] = &[
    "arch",
    "systemd",
    "cgroups",
    "memory",
    "disk",
    "kernel",
    "ports",
    "clock",
    "names",
    "machine-id",
    "address",
    "cidr",
    "leftovers",
    "swap",
    "foreign-ca",
    "fsync",
    "entropy",
    "time-zone",
    "mtu",
    "dns",
    "firewall",
];

/// What was looked at besides the site.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// This machine's clock when the facts were taken, milliseconds since 1970.
    pub now_ms: i64,
    /// Bytes each host is going to get.
    pub sending: BTreeMap<std::net::Ipv4Addr, u64>,
    /// The ways between hosts that were tried.
    pub ways: Vec<(Way, host::proto::Knocked)>,
}

/// Looks at everything. Findings of `ignored` checks become warnings.
pub fn look(site: &Site, looked: &Looked, ignored: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for seat in &site.seats {
        platform(site, seat, &mut findings);
        let sending = looked.sending.get(&seat.ip).copied().unwrap_or(0);
        resources::look(site, seat, sending, &mut findings);
        resources::clock(seat, looked.now_ms, &mut findings);
        traces::look(site, seat, &mut findings);
        network::look(site, seat, &mut findings);
        surroundings::look(site, seat, &mut findings);
    }
    unique(site, &mut findings);
    surroundings::compare(site, &mut findings);
    ways::look(site, &looked.ways, &mut findings);
    for finding in &mut findings {
        if ignored.iter().any(|name| name == finding.check || name == "all") {
            finding.severity = Severity::Warning;
        }
    }
    findings.sort();
    findings.dedup();
    findings
}

/// That a host cannot be talked to. Nothing passes over it.
pub(crate) fn lost(ip: std::net::Ipv4Addr, error: &crate::Error) -> Finding {
    Finding {
        host: ip.to_string(),
        name: ip.to_string(),
        check: "reach",
        severity: Severity::Error,
        cause: error.to_string(),
        remedy: "see to it that the host runs and lets this machine in by SSH, or take it out of the Clusterfile"
            .to_owned(),
    }
}

/// Whether anything stops us.
pub fn refuses(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

fn error(seat: &Seat, check: &'static str, cause: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        host: seat.ip.to_string(),
        name: seat.name.clone(),
        check,
        severity: Severity::Error,
        cause: cause.into(),
        remedy: remedy.into(),
    }
}

fn warning(seat: &Seat, check: &'static str, cause: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        severity: Severity::Warning,
        ..error(seat, check, cause, remedy)
    }
}

fn platform(site: &Site, seat: &Seat, findings: &mut Vec<Finding>) {
    let facts = &seat.facts;
    if facts.arch != site.image.arch {
        findings.push(error(
            seat,
            "arch",
            format!(
                "the host is {}, the cluster image is for {}",
                facts.arch, site.image.arch
            ),
            "use a cluster image built for this architecture",
        ));
    }
    if facts.systemd.version == 0 {
        findings.push(error(
            seat,
            "systemd",
            "systemd does not run",
            "boot the host with systemd as its first process",
        ));
    }
    if facts.cgroup.mode == CgroupMode::None {
        findings.push(error(
            seat,
            "cgroups",
            "no control groups are mounted",
            "mount /sys/fs/cgroup (systemd does so at boot)",
        ));
    } else {
        let lacking: Vec<&str> = ["cpu", "memory", "pids"]
            .into_iter()
            .filter(|c| !facts.cgroup.controllers.iter().any(|have| have == c))
            .collect();
        if !lacking.is_empty() {
            findings.push(error(
                seat,
                "cgroups",
                format!("control groups lack {}", lacking.join(", ")),
                "enable them on the kernel command line, e.g. cgroup_enable=memory",
            ));
        }
    }
    let kernel: Vec<&str> = ["overlay", "nf_tables", "veth"]
        .into_iter()
        .filter(|name| facts.features.get(*name) == Some(&false))
        .collect();
    if !kernel.is_empty() {
        findings.push(error(
            seat,
            "kernel",
            format!("the kernel {} lacks {}", facts.kernel, kernel.join(", ")),
            "install a kernel or its module package that has them",
        ));
    }
}

/// What must differ between hosts.
fn unique(site: &Site, findings: &mut Vec<Finding>) {
    type Property = (&'static str, &'static str, fn(&Seat) -> &str, &'static str);
    let properties: [Property; 3] = [
        (
            "names",
            "host name",
            |seat| &seat.name,
            "give each host a name of its own: hostnamectl set-hostname NAME",
        ),
        (
            "machine-id",
            "machine id",
            |seat| &seat.facts.machine_id,
            "cloned machines share it; make a new one: rm /etc/machine-id && systemd-machine-id-setup",
        ),
        (
            "address",
            "boot id",
            |seat| &seat.facts.boot_id,
            "two addresses of the Clusterfile lead to the same machine; list each host once",
        ),
    ];
    for (check, what, property, remedy) in properties {
        let mut owners: BTreeMap<&str, Vec<&Seat>> = BTreeMap::new();
        for seat in site.seats.iter().filter(|seat| !property(seat).is_empty()) {
            owners.entry(property(seat)).or_default().push(seat);
        }
        for (value, seats) in owners.into_iter().filter(|(_, seats)| seats.len() > 1) {
            // Hosts of one machine share its boot id; only if the machine id is the same too is it the same host.
            if check == "address"
                && seats
                    .windows(2)
                    .any(|two| two[0].facts.machine_id != two[1].facts.machine_id)
            {
                continue;
            }
            let all: Vec<String> = seats.iter().map(|seat| seat.ip.to_string()).collect();
            findings.push(error(
                seats[0],
                check,
                format!("{what} {value} is that of {}", all.join(" and ")),
                remedy,
            ));
        }
    }
    for seat in &site.seats {
        if !clusterfile::names::is_dns_subdomain(&seat.name) {
            findings.push(error(
                seat,
                "names",
                format!("its host name {:?} cannot be a node's name", seat.name),
                "use lowercase letters, digits, - and . only: hostnamectl set-hostname NAME",
            ));
        }
    }
}

#[cfg(test)]
mod tests;
