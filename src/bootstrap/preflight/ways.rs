//! The ways between hosts that a cluster needs, and what is said about those that are closed. Pure; [`crate::ways`] goes them.

use super::{Finding, error, is_installed};
use crate::{
    paths,
    site::{Seat, Site},
};
use host::proto::Knocked;
use std::collections::BTreeMap;

/// etcd's ports: for its clients, and for its peers.
const ETCD: [u16; 2] = [2379, 2380];
/// The node agent's port.
const AGENT: u16 = 10250;
/// So many hosts are named in a finding.
const NAMED: usize = 5;

/// That one host must reach a port of another. Hosts are indices of [`Site::seats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Who must reach it.
    pub from: usize,
    /// Whom.
    pub to: usize,
    /// Where.
    pub port: u16,
    /// Whether nobody listens there yet, so that the host itself has to for the moment.
    pub free: bool,
}

/// All ways that can be tried: those from or to a host that is not installed. Nodes go to masters and registries only, so there are
/// as many as hosts, times the few of those.
pub fn wanted(site: &Site) -> Vec<Way> {
    let mut ways = Vec::new();
    for (to, goal) in site.seats.iter().enumerate() {
        for (from, start) in site.seats.iter().enumerate().filter(|(from, _)| *from != to) {
            if is_installed(site, start) && is_installed(site, goal) {
                continue;
            }
            let tried = ports(site, start, goal).into_iter().filter_map(|port| {
                let free = free(site, goal, port)?;
                Some(Way { from, to, port, free })
            });
            ways.extend(tried);
        }
    }
    ways
}

/// The ports of `to` that `from` needs.
fn ports(site: &Site, from: &Seat, to: &Seat) -> Vec<u16> {
    let mut ports = Vec::new();
    if to.master {
        ports.push(paths::API_PORT);
    }
    if to.registry && !site.registry.external {
        ports.push(site.registry.port);
    }
    if from.master && to.master {
        ports.extend(ETCD);
    }
    if from.master {
        ports.push(AGENT);
    }
    ports
}

/// Whether nobody has the port; nothing if it cannot be tried: somebody has it who should not, or nobody has it who should.
fn free(site: &Site, seat: &Seat, port: u16) -> Option<bool> {
    let mut listeners = seat.facts.listeners.iter().filter(|listener| listener.port == port);
    if !is_installed(site, seat) {
        return listeners.next().is_none().then_some(true);
    }
    let own = seat.ip.to_string();
    listeners
        .any(|listener| [own.as_str(), "0.0.0.0", "::"].contains(&listener.address.as_str()))
        .then_some(false)
}

/// What is said about the ways that are closed: one finding for all hosts that fail alike at one host.
pub(super) fn look(site: &Site, tried: &[(Way, Knocked)], findings: &mut Vec<Finding>) {
    let mut by_port: BTreeMap<(usize, &Knocked, u16), Vec<usize>> = BTreeMap::new();
    for (way, knocked) in tried.iter().filter(|(_, knocked)| *knocked != Knocked::Reached) {
        by_port.entry((way.to, knocked, way.port)).or_default().push(way.from);
    }
    let mut alike: BTreeMap<(usize, &Knocked, Vec<usize>), Vec<String>> = BTreeMap::new();
    for ((to, how, port), mut from) in by_port {
        from.sort_unstable();
        alike.entry((to, how, from)).or_default().push(port.to_string());
    }
    for ((to, how, from), ports) in alike {
        let (seat, ports, who) = (&site.seats[to], ports.join(", "), names(site, &from));
        let cause = format!("{who} cannot reach TCP {ports} of it: {}", words(how));
        let remedy = format!(
            "let the cluster's hosts reach TCP {ports} of {} in the packet filters of both (nft list ruleset) and of what lies between",
            seat.ip
        );
        findings.push(error(seat, "firewall", cause, remedy));
    }
}

fn words(how: &Knocked) -> String {
    match how {
        Knocked::Reached => String::new(),
        Knocked::Refused => "the connection is refused though it listens there".to_owned(),
        Knocked::Silent => "no answer comes back".to_owned(),
        Knocked::Other => "something else answers in its place".to_owned(),
        Knocked::Failed(why) => why.clone(),
    }
}

fn names(site: &Site, hosts: &[usize]) -> String {
    let named = hosts.iter().take(NAMED).map(|index| {
        let seat = &site.seats[*index];
        format!("{} ({})", seat.name, seat.ip)
    });
    let named = named.collect::<Vec<_>>().join(", ");
    match hosts.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{seat, site};
    use host::facts::{Installed, Listener};

    /// So many masters, so many nodes.
    fn sized(masters: usize, nodes: usize) -> Site {
        let mut site = site();
        let master = (0..masters).map(|n| seat(&format!("10.0.0.{}", n + 1), &format!("m{}", n + 1), true));
        let node = (0..nodes).map(|n| seat(&format!("10.0.1.{}", n + 1), &format!("n{}", n + 1), false));
        site.seats = master.chain(node).collect();
        site
    }

    fn install(site: &mut Site, index: usize) {
        site.seats[index].facts.installed.push(Installed {
            cluster: "demo".into(),
            ..Installed::default()
        });
    }

    fn listener(port: u16, address: &str) -> Listener {
        Listener {
            port,
            address: address.into(),
            ..Listener::default()
        }
    }

    fn told(site: &Site) -> Vec<String> {
        let name = |index: usize| &site.seats[index].name;
        let mut told: Vec<String> = wanted(site)
            .iter()
            .map(|way| {
                let free = if way.free { "" } else { " in use" };
                format!("{}→{} {}{free}", name(way.from), name(way.to), way.port)
            })
            .collect();
        told.sort();
        told
    }

    #[test]
    fn masters_need_each_other_and_all_agents_and_nodes_need_masters() {
        assert_eq!(told(&sized(1, 0)), [""; 0], "one host needs no way");
        assert_eq!(told(&sized(1, 1)), ["m1→n1 10250", "n1→m1 5000", "n1→m1 6443"]);
        assert_eq!(
            told(&sized(2, 0)),
            [
                "m1→m2 10250",
                "m1→m2 2379",
                "m1→m2 2380",
                "m1→m2 5000",
                "m1→m2 6443",
                "m2→m1 10250",
                "m2→m1 2379",
                "m2→m1 2380",
                "m2→m1 5000",
                "m2→m1 6443",
            ]
        );
        let mut external = sized(1, 1);
        external.registry.external = true;
        assert_eq!(told(&external), ["m1→n1 10250", "n1→m1 6443"]);
    }

    #[test]
    fn a_node_asks_masters_only_however_many_nodes_there_are() {
        for nodes in [1, 10, 200] {
            let site = sized(3, nodes);
            let ways = wanted(&site);
            assert!(
                ways.iter()
                    .all(|way| site.seats[way.from].master || site.seats[way.to].master)
            );
            let of_last = ways.iter().filter(|way| way.from == 3 + nodes - 1).count();
            assert_eq!(of_last, 6, "{nodes} nodes");
        }
    }

    #[test]
    fn what_is_installed_is_neither_disturbed_nor_asked_for_what_it_lacks() {
        let mut site = sized(1, 2);
        install(&mut site, 0);
        install(&mut site, 1);
        // The master's API server runs, its registry is reached on 127.0.0.1 only.
        site.seats[0].facts.listeners = vec![listener(6443, "::"), listener(5000, "127.0.0.1")];
        assert_eq!(told(&site), ["m1→n2 10250", "n2→m1 6443 in use"]);
        install(&mut site, 2);
        assert_eq!(told(&site), [""; 0]);
    }

    #[test]
    fn a_port_that_somebody_has_is_another_finding() {
        let mut site = sized(1, 1);
        site.seats[0].facts.listeners = vec![listener(6443, "0.0.0.0")];
        assert_eq!(told(&site), ["m1→n1 10250", "n1→m1 5000"]);
    }

    fn found(site: &Site, how: impl Fn(&Way) -> Knocked) -> Vec<(String, String, String)> {
        let tried: Vec<_> = wanted(site).into_iter().map(|way| (way, how(&way))).collect();
        let mut findings = Vec::new();
        look(site, &tried, &mut findings);
        assert!(findings.iter().all(|f| f.check == "firewall"));
        let parts = findings.into_iter().map(|f| (f.name, f.cause, f.remedy));
        parts.collect()
    }

    #[test]
    fn a_closed_way_is_told_with_both_hosts_port_and_remedy() {
        let site = sized(1, 1);
        assert_eq!(found(&site, |_| Knocked::Reached), []);
        let cases = [
            (Knocked::Silent, "no answer comes back"),
            (Knocked::Refused, "the connection is refused though it listens there"),
            (Knocked::Other, "something else answers in its place"),
            (Knocked::Failed("No route to host".into()), "No route to host"),
        ];
        for (knocked, words) in cases {
            let found = found(&site, |way| match way.port {
                6443 | 5000 => knocked.clone(),
                _ => Knocked::Reached,
            });
            let [(name, cause, remedy)] = found.as_slice() else {
                panic!("{found:?}")
            };
            assert_eq!(name, "m1");
            assert_eq!(
                *cause,
                format!("n1 (10.0.1.1) cannot reach TCP 5000, 6443 of it: {words}")
            );
            assert!(remedy.contains("TCP 5000, 6443 of 10.0.0.1"), "{remedy}");
        }
    }

    #[test]
    fn many_hosts_that_fail_alike_are_one_finding() {
        let found = found(&sized(1, 100), |way| match way.to {
            0 => Knocked::Silent,
            _ => Knocked::Reached,
        });
        assert_eq!(found.len(), 1);
        assert!(found[0].1.starts_with("n1 (10.0.1.1), n2 (10.0.1.2)"), "{found:?}");
        assert!(
            found[0].1.contains("and 95 more cannot reach TCP 5000, 6443"),
            "{found:?}"
        );
    }
}
