//! Names and identities of hosts: what must differ between them, and what a node cannot be called.

use super::{Finding, error, is_installed, warning};
use crate::site::{Seat, Site};
use std::collections::BTreeMap;

/// What must differ between hosts, and what no node can be called.
pub(super) fn look(site: &Site, findings: &mut Vec<Finding>) {
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
    // That several hosts have a name that none may have needs not be told besides.
    let fit = |check: &str, seat: &Seat| check != "names" || unfit_name(&seat.name, &site.registry.domain).is_none();
    for (check, what, property, remedy) in properties {
        let mut owners: BTreeMap<&str, Vec<&Seat>> = BTreeMap::new();
        for seat in site
            .seats
            .iter()
            .filter(|seat| !property(seat).is_empty() && fit(check, seat))
        {
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
        if let Some((cause, remedy)) = unfit_name(&seat.name, &site.registry.domain) {
            // A node that has its name already can only be told.
            let finding = match is_installed(site, seat) {
                true => warning,
                false => error,
            };
            findings.push(finding(seat, "names", cause, remedy));
        }
    }
}

/// The longest name: it is the value of the node's label `kubernetes.io/hostname`, too.
const LONGEST_NAME: usize = 63;
/// Names by which every machine calls itself in its `/etc/hosts`, whatever domain stands behind them.
const OWN_NAMES: [&str; 6] = [
    "localhost",
    "localhost4",
    "localhost6",
    "ip6-localhost",
    "ip6-loopback",
    "loopback",
];

/// Why a host's name cannot be a node's, and what to do.
fn unfit_name(name: &str, registry: &str) -> Option<(String, String)> {
    const SET: &str = "hostnamectl set-hostname NAME";
    let bare = name.split('.').next().unwrap_or_default();
    if OWN_NAMES.contains(&bare) || name.ends_with(".localhost") {
        return Some((
            format!("its host name {name:?} is what every machine calls itself: the others could not reach it by that"),
            format!("give it a name of its own: {SET}"),
        ));
    }
    if name.len() > LONGEST_NAME {
        return Some((
            format!(
                "its host name {name:?} has {} characters, a node's may have {LONGEST_NAME}",
                name.len()
            ),
            format!("give it a shorter one, perhaps without its domain: {SET}"),
        ));
    }
    if !clusterfile::names::is_dns_subdomain(name) {
        return Some((
            format!("its host name {name:?} cannot be a node's name"),
            format!("use lowercase letters, digits, - and . only, and begin and end with a letter or digit: {SET}"),
        ));
    }
    if name == registry {
        return Some((
            format!("its host name {name:?} is that of the private registry, which is to be found at other addresses"),
            format!("give it another one: {SET}; or the registry: spec.registry.localRegistry.domain"),
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::unfit_name;

    #[test]
    fn every_unfit_name_is_told_why() {
        let long = "n".repeat(64);
        let dotted = format!("{}.example.org", "n".repeat(52));
        for (name, cause, remedy) in [
            ("localhost", "what every machine calls itself", "a name of its own"),
            (
                "localhost.localdomain",
                "what every machine calls itself",
                "a name of its own",
            ),
            ("db.localhost", "what every machine calls itself", "a name of its own"),
            ("ip6-loopback", "what every machine calls itself", "a name of its own"),
            (&long, "has 64 characters, a node's may have 63", "a shorter one"),
            (&dotted, "has 64 characters, a node's may have 63", "without its domain"),
            (
                "under_score",
                "cannot be a node's name",
                "lowercase letters, digits, - and .",
            ),
            ("-n1", "cannot be a node's name", "begin and end with"),
            ("", "cannot be a node's name", "lowercase letters"),
            ("sea.hub", "that of the private registry", "localRegistry.domain"),
        ] {
            let (found, help) = unfit_name(name, "sea.hub").unwrap_or_default();
            assert!(
                found.contains(cause) && help.contains(remedy),
                "{name}: {found}; {help}"
            );
        }
        for name in ["n1", "n1.example.org", "localhoster", "7", &"n".repeat(63)] {
            assert_eq!(unfit_name(name, "sea.hub"), None);
        }
    }
}
