//! Which chains and elements the services need. Pure.
//!
//! ```text
//! prerouting, output ─▶ dispatch ─▶ service/ID ─────────────┬─▶ all/ID ───▶ DNAT, or endpoint/ID/… with affinity
//!                                └▶ external/ID ────────────┼─▶ local/ID
//!                                └▶ firewall/ID ─▶ external/ID
//! input, forward, output ─▶ unserved: what was not redirected and has no endpoint is refused or dropped
//! postrouting: packets with the mark, and pods that reach themselves, get this node's address
//! ```

use std::collections::BTreeSet;

use super::{
    model::{Endpoint, HostPort, ServicePort},
    table::{Content, Group},
};
use crate::Cidr;

/// The content of the table for these services and host ports; `cluster` is the network of all pods.
pub fn content(services: &[ServicePort], host_ports: &[HostPort], cluster: Cidr) -> Content {
    let mut content = Content::default();
    for service in services {
        content.add_service(service, cluster);
    }
    for port in host_ports {
        content.add_host_port(port, cluster);
    }
    content
}

impl Content {
    fn add_service(&mut self, service: &ServicePort, cluster: Cidr) {
        let id = &service.id;
        let inner = if service.internal_local {
            &service.local
        } else {
            &service.all
        };
        self.set(Group::ClusterIps, service.cluster_ip.to_string());
        if !inner.is_empty() {
            let target = if service.internal_local { "local" } else { "all" };
            self.chains.insert(
                format!("service/{id}"),
                vec![
                    format!("ip saddr != {cluster} jump mark-packet"),
                    format!("goto {target}/{id}"),
                ],
            );
            self.map(
                Group::Services,
                address_key(service, &service.cluster_ip),
                format!("goto service/{id}"),
            );
        }
        let is_external =
            service.node_port.is_some() || !service.external_ips.is_empty() || !service.balancer_ips.is_empty();
        if is_external {
            self.add_external(service, cluster);
        }
        if !service.all.is_empty() && (is_external || !service.internal_local) {
            self.balance("all", service, &service.all);
        }
        let needs_local = service.internal_local || (is_external && service.external_local);
        if !service.local.is_empty() && needs_local {
            self.balance("local", service, &service.local);
        }
        self.add_hairpin(&service.local, cluster);
    }

    fn add_external(&mut self, service: &ServicePort, cluster: Cidr) {
        let id = &service.id;
        // Reaching the addresses is right even where the policy forbids to serve them: pods and the node itself may.
        let redirect = !service.all.is_empty();
        if redirect {
            self.chains
                .insert(format!("external/{id}"), external_rules(service, cluster));
        }
        // Dropping tells a balancer to try another node; refusing tells a client that nobody is there.
        let unserved = match (
            service.all.is_empty(),
            service.external_local && service.local.is_empty(),
        ) {
            (true, _) => Some("goto refuse"),
            (false, true) => Some("drop"),
            (false, false) => None,
        };
        let firewall = !service.source_ranges.is_empty();
        if firewall && redirect && !service.balancer_ips.is_empty() {
            let ranges: Vec<String> = service.source_ranges.iter().map(Cidr::to_string).collect();
            let allowed = format!("ip saddr {{ {} }} goto external/{id}", ranges.join(", "));
            self.chains
                .insert(format!("firewall/{id}"), vec![allowed, "drop".to_owned()]);
        }
        for address in service.external_ips.union(&service.balancer_ips) {
            let key = address_key(service, address);
            if redirect {
                let guarded = firewall && service.balancer_ips.contains(address);
                let chain = if guarded { "firewall" } else { "external" };
                self.map(Group::Services, key.clone(), format!("goto {chain}/{id}"));
            }
            if let Some(verdict) = unserved {
                self.map(Group::UnservedIps, key, verdict.to_owned());
            }
        }
        if let Some(port) = service.node_port {
            let key = format!("{} . {port}", service.protocol);
            if redirect {
                self.map(Group::NodePorts, key.clone(), format!("goto external/{id}"));
            }
            if let Some(verdict) = unserved {
                self.map(Group::UnservedPorts, key, verdict.to_owned());
            }
        }
    }

    /// The chain that chooses one of `endpoints`.
    fn balance(&mut self, chain: &str, service: &ServicePort, endpoints: &BTreeSet<Endpoint>) {
        let (id, protocol) = (&service.id, service.protocol);
        let Some(timeout) = service.affinity else {
            self.chains.insert(
                format!("{chain}/{id}"),
                vec![format!("meta l4proto {protocol} {}", dnat(endpoints))],
            );
            return;
        };
        let ends: Vec<(String, String)> = endpoints
            .iter()
            .map(|end| {
                let tail = format!("{id}/{}/{}", end.address, end.port);
                (format!("endpoint/{tail}"), format!("affinity/{timeout}/{tail}"))
            })
            .collect();
        let mut rules: Vec<String> = ends
            .iter()
            .map(|(end, known)| format!("ip saddr @{known} goto {end}"))
            .collect();
        let choices: Vec<String> = ends
            .iter()
            .enumerate()
            .map(|(i, (end, _))| format!("{i} : goto {end}"))
            .collect();
        rules.push(format!(
            "numgen random mod {} vmap {{ {} }}",
            ends.len(),
            choices.join(", ")
        ));
        for ((end, known), endpoint) in ends.into_iter().zip(endpoints) {
            let redirect = dnat(&BTreeSet::from([*endpoint]));
            self.chains.insert(
                end,
                vec![format!(
                    "update @{known} {{ ip saddr }} meta l4proto {protocol} {redirect}"
                )],
            );
            self.affinity.insert(known, timeout);
        }
        self.chains.insert(format!("{chain}/{id}"), rules);
    }

    fn add_host_port(&mut self, port: &HostPort, cluster: Cidr) {
        let (chain, end) = (format!("host-port/{}", port.id), BTreeSet::from([port.endpoint]));
        let verdict = format!("goto {chain}");
        match port.address {
            Some(address) => {
                self.map(
                    Group::Services,
                    format!("{address} . {} . {}", port.protocol, port.port),
                    verdict,
                );
            }
            None => self.map(Group::NodePorts, format!("{} . {}", port.protocol, port.port), verdict),
        }
        self.chains
            .insert(chain, vec![format!("meta l4proto {} {}", port.protocol, dnat(&end))]);
        self.add_hairpin(&end, cluster);
    }

    fn add_hairpin(&mut self, local: &BTreeSet<Endpoint>, cluster: Cidr) {
        for end in local.iter().filter(|end| cluster.contains(end.address)) {
            self.set(Group::Hairpin, format!("{0} . {0}", end.address));
        }
    }

    fn set(&mut self, group: Group, key: String) {
        self.elements.insert((group, key), None);
    }

    /// The first one keeps a key that two claim: the API server does not let that happen, a race may.
    fn map(&mut self, group: Group, key: String, verdict: String) {
        self.elements.entry((group, key)).or_insert(Some(verdict));
    }
}

fn external_rules(service: &ServicePort, cluster: Cidr) -> Vec<String> {
    let id = &service.id;
    if !service.external_local {
        return vec!["jump mark-packet".to_owned(), format!("goto all/{id}")];
    }
    let mut rules = vec![
        // From inside the cluster the policy does not apply.
        format!("ip saddr {cluster} goto all/{id}"),
        "fib saddr type local jump mark-packet".to_owned(),
        format!("fib saddr type local goto all/{id}"),
    ];
    if !service.local.is_empty() {
        rules.push(format!("goto local/{id}"));
    }
    rules
}

fn address_key(service: &ServicePort, address: &std::net::Ipv4Addr) -> String {
    format!("{address} . {} . {}", service.protocol, service.port)
}

fn dnat(endpoints: &BTreeSet<Endpoint>) -> String {
    let mut ends = endpoints.iter();
    if let (Some(only), None) = (ends.next(), ends.next()) {
        return format!("dnat to {}:{}", only.address, only.port);
    }
    let choices: Vec<String> = endpoints
        .iter()
        .enumerate()
        .map(|(i, end)| format!("{i} : {} . {}", end.address, end.port))
        .collect();
    format!(
        "dnat ip to numgen random mod {} map {{ {} }}",
        endpoints.len(),
        choices.join(", ")
    )
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
