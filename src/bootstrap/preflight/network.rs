//! Address blocks of pods and services against what the host already uses.

use super::{Finding, error, is_installed};
use crate::site::{Seat, Site};
use clusterfile::Cidr;
use std::collections::BTreeSet;

pub(super) fn look(site: &Site, seat: &Seat, findings: &mut Vec<Finding>) {
    let facts = &seat.facts;
    if !facts.addresses.iter().any(|address| address.ip == seat.ip.to_string()) {
        findings.push(error(
            seat,
            "address",
            format!(
                "no interface of the host has the address {}; the cluster's nodes could not reach it",
                seat.ip
            ),
            "write the host's own address into the Clusterfile, not one that is translated to it",
        ));
    }
    // Our own routes and pod interfaces are no conflict.
    if is_installed(site, seat) {
        return;
    }
    for (name, block) in [("pod", site.networks.pod_cidr), ("service", site.networks.service_cidr)] {
        for address in &facts.addresses {
            if address.ip.parse().is_ok_and(|ip| block.contains(ip)) {
                let cause = format!(
                    "the {name} block {block} contains the host's address {} ({})",
                    address.ip, address.interface
                );
                findings.push(error(seat, "cidr", cause, remedy(name)));
            }
        }
        let overlaps = |route: &&str| route.parse::<Cidr>().is_ok_and(|route| route.overlaps(block));
        let routes = facts.routes.iter().map(|route| route.destination.as_str());
        let routes: BTreeSet<&str> = routes.filter(overlaps).collect();
        if !routes.is_empty() {
            let noun = if routes.len() == 1 { "route" } else { "routes" };
            let routes = routes.into_iter().collect::<Vec<_>>().join(", ");
            let cause = format!("the {name} block {block} overlaps the host's {noun} {routes}");
            findings.push(error(seat, "cidr", cause, remedy(name)));
        }
    }
}

fn remedy(name: &str) -> String {
    let variable = if name == "pod" { "PodCIDR" } else { "SvcCIDR" };
    format!("choose another block: spec.env: [\"{variable}=…\"]")
}
