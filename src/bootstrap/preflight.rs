//! Whether hosts can become what they shall be: every finding of every host at once, each with cause and remedy. Pure.

use crate::site::{Seat, Site};
use host::facts::CgroupMode;
use serde::Serialize;
use std::collections::BTreeMap;

mod arrange;
mod identity;
mod network;
mod resources;
mod surroundings;
mod traces;
mod unreached;
mod ways;

pub(crate) use arrange::arrange;
pub(crate) use resources::AGENT_ROOT;
pub(crate) use unreached::unreached;
pub use ways::{Way, wanted as wanted_ways};

/// Something about a host that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

/// Names of all checks, in the order in which findings are told: what decides about the whole host first, and what may only follow
/// from something else after it.
pub const CHECKS: &[&str] = &[
    "leftovers",
    "foreign-ca",
    "address",
    "machine-id",
    "names",
    "arch",
    "systemd",
    "cgroups",
    "kernel",
    "memory",
    "disk",
    "clock",
    "cidr",
    "ports",
    "firewall",
    "dns",
    "fsync",
    "entropy",
    "mtu",
    "swap",
    "time-zone",
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
    identity::look(site, &mut findings);
    surroundings::compare(site, &mut findings);
    ways::look(site, &looked.ways, &mut findings);
    for finding in &mut findings {
        if ignored.iter().any(|name| name == finding.check || name == "all") {
            finding.severity = Severity::Warning;
        }
    }
    arrange(&mut findings);
    findings
}

/// Whether anything stops us.
pub fn refuses(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// Whether the host is part of this cluster already.
fn is_installed(site: &Site, seat: &Seat) -> bool {
    let mut installations = seat.facts.installed.iter();
    installations.any(|installation| installation.cluster == site.scope.cluster)
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

#[cfg(test)]
mod tests;
