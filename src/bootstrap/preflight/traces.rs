//! Ports in use, and what other clusters left behind.

use super::{Finding, error, is_installed};
use crate::{
    paths,
    site::{Seat, Site},
};
use std::collections::{BTreeMap, BTreeSet};

/// Ports that must be free on a host that is not ours yet.
pub fn ports(site: &Site, master: bool, registry: bool) -> Vec<u16> {
    let mut ports = vec![6444, 10250, 10248, 10256];
    if master {
        ports.extend([paths::API_PORT, 2379, 2380, 2381, 10257, 10259]);
    }
    if registry {
        ports.push(site.registry.port);
    }
    ports
}

pub(super) fn look(site: &Site, seat: &Seat, findings: &mut Vec<Finding>) {
    let facts = &seat.facts;
    for other in facts
        .installed
        .iter()
        .filter(|installed| installed.cluster != site.scope.cluster)
    {
        findings.push(error(
            seat,
            "leftovers",
            format!(
                "the host belongs to the cluster {:?} ({})",
                other.cluster, other.data_root
            ),
            format!(
                "reset it with that cluster's Clusterfile: installer reset --nodes {}",
                seat.ip
            ),
        ));
    }
    if is_installed(site, seat) {
        foreign_authority(site, seat, findings);
        return;
    }
    if !facts.leftovers.is_empty() && facts.installed.is_empty() {
        findings.push(error(
            seat,
            "leftovers",
            format!("traces of another Kubernetes: {}", facts.leftovers.join(", ")),
            "remove it (kubeadm reset, or that tool's own way) and what it left",
        ));
    }
    listeners(site, seat, findings);
}

/// Ports that somebody has: one finding for each program, however many ports it has on however many addresses.
fn listeners(site: &Site, seat: &Seat, findings: &mut Vec<Finding>) {
    let wanted = ports(site, seat.master, seat.registry);
    let mut held: BTreeMap<String, (BTreeSet<u16>, BTreeSet<&str>)> = BTreeMap::new();
    for listener in seat.facts.listeners.iter().filter(|held| wanted.contains(&held.port)) {
        let who = match (listener.process.as_str(), listener.unit.as_str()) {
            ("", "") => "someone".to_owned(),
            (process, "") => process.to_owned(),
            (process, unit) => format!("{process} ({unit})"),
        };
        let (ports, addresses) = held.entry(who).or_default();
        ports.insert(listener.port);
        addresses.insert(&listener.address);
    }
    for (who, (ports, addresses)) in held {
        let verb = if ports.len() == 1 { "port" } else { "ports" };
        let (ports, addresses): (Vec<_>, Vec<_>) = (
            ports.iter().map(u16::to_string).collect(),
            addresses.into_iter().collect(),
        );
        let cause = format!("{who} uses {verb} {} on {}", ports.join(", "), addresses.join(" and "));
        findings.push(error(seat, "ports", cause, "stop it, or move it to another port"));
    }
}

/// A host that joined while the first master was installed anew trusts an authority that is no more.
fn foreign_authority(site: &Site, seat: &Seat, findings: &mut Vec<Finding>) {
    let first = &site.seats[site.first_master()];
    let differs = match (&first.seen.ca, &seat.seen.ca) {
        (Some(first), Some(own)) => first.trim() != own.trim(),
        (None, Some(_)) => seat.seen.joined,
        _ => false,
    };
    if differs {
        findings.push(error(
            seat,
            "foreign-ca",
            format!(
                "it joined a cluster with another authority than that of the master {}",
                first.ip
            ),
            format!("reset it first: installer reset --nodes {}", seat.ip),
        ));
    }
}
