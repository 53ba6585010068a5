//! Ports in use, and what other clusters left behind.

use super::{Finding, error};
use crate::{
    paths,
    site::{Seat, Site},
};

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
    if facts
        .installed
        .iter()
        .any(|installed| installed.cluster == site.scope.cluster)
    {
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
    let wanted = ports(site, seat.master, seat.registry);
    for listener in facts
        .listeners
        .iter()
        .filter(|listener| wanted.contains(&listener.port))
    {
        let who = match (listener.process.as_str(), listener.unit.as_str()) {
            ("", "") => "someone".to_owned(),
            (process, "") => process.to_owned(),
            (process, unit) => format!("{process} ({unit})"),
        };
        findings.push(error(
            seat,
            "ports",
            format!("port {} is in use by {who} on {}", listener.port, listener.address),
            "stop it, or move it to another port",
        ));
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
