//! The table as data: what changes with services, how it is written for `nft`, and the smallest script from one state to the next.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use super::TABLE;

/// The bit of a packet's mark that says: give it this node's address before it leaves.
pub const MASQUERADE: &str = "0x4000";

/// The sets and maps of the table, which the fixed chains consult.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Cluster addresses: what is still addressed to one after the service chains has nowhere to go.
    ClusterIps,
    /// Pods of this node that serve: one that reaches itself through a service must see another source than itself.
    Hairpin,
    /// Chain by address, protocol and port.
    Services,
    /// Chain by protocol and port, on each of the node's own addresses.
    NodePorts,
    /// What happens to packets for a service's outer addresses when no endpoint can take them.
    UnservedIps,
    /// The same on the node's own addresses.
    UnservedPorts,
}

impl Group {
    /// All of them with the kind and the type of their elements.
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::ClusterIps, "set", "ipv4_addr"),
        (Self::Hairpin, "set", "ipv4_addr . ipv4_addr"),
        (Self::Services, "map", "ipv4_addr . inet_proto . inet_service : verdict"),
        (Self::NodePorts, "map", "inet_proto . inet_service : verdict"),
        (
            Self::UnservedIps,
            "map",
            "ipv4_addr . inet_proto . inet_service : verdict",
        ),
        (Self::UnservedPorts, "map", "inet_proto . inet_service : verdict"),
    ];
}

impl fmt::Display for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::Services => "services",
            Self::NodePorts => "node-ports",
            Self::UnservedIps => "unserved-ips",
            Self::UnservedPorts => "unserved-ports",
        })
    }
}

/// The part of the table that follows the services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Rules by chain.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Sets of clients that stay with an endpoint, with their time-out in seconds. The name carries the time-out, so it never changes.
    pub affinity: BTreeMap<String, u32>,
    /// Elements by group: key, and verdict where the group is a map.
    pub elements: BTreeMap<(Group, String), Option<String>>,
}

/// A script that makes the whole table, whatever was there, in one transaction.
pub fn whole(content: &Content) -> String {
    let mut script = crate::nft::removal(TABLE);
    let sets: String = Group::ALL
        .iter()
        .map(|(group, kind, element)| format!("\t{kind} {group} {{ type {element}; }}\n"))
        .collect();
    // Writing to a string cannot fail, here and below.
    _ = write!(
        script,
        "table ip {TABLE} {{
{sets}
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tjump dispatch
\t}}
\tchain output {{
\t\ttype nat hook output priority -100; policy accept;
\t\tjump dispatch
\t}}
\tchain dispatch {{
\t\tip daddr . meta l4proto . th dport vmap @services
\t\tip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @node-ports
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\toifname \"lo\" return
\t\tct status dnat ip saddr . ip daddr @hairpin masquerade
\t\tmeta mark & {MASQUERADE} == {MASQUERADE} meta mark set meta mark ^ {MASQUERADE} masquerade fully-random
\t}}
\tchain input {{
\t\ttype filter hook input priority filter; policy accept;
\t\tct state new jump unserved
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tct state new jump unserved
\t}}
\tchain unserved-output {{
\t\ttype filter hook output priority filter; policy accept;
\t\tct state new jump unserved
\t}}
\tchain unserved {{
\t\tip daddr @cluster-ips goto refuse
\t\tip daddr . meta l4proto . th dport vmap @unserved-ips
\t\tip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @unserved-ports
\t}}
\tchain refuse {{
\t\tmeta l4proto tcp reject with tcp reset
\t\treject with icmp port-unreachable
\t}}
\tchain mark-packet {{
\t\tmeta mark set meta mark | {MASQUERADE}
\t}}
}}
"
    );
    script.push_str(&change(&Content::default(), content));
    script
}

/// A script that leads from one content to another in one transaction; empty if they are the same.
///
/// The order keeps every reference valid at every step: what is referred to is made first and removed last.
pub fn change(old: &Content, new: &Content) -> String {
    let mut script = String::new();
    for (name, timeout) in new
        .affinity
        .iter()
        .filter(|(name, _)| !old.affinity.contains_key(*name))
    {
        let kind = format!("type ipv4_addr; flags dynamic,timeout; timeout {timeout}s; size 65536;");
        _ = writeln!(script, "add set ip {TABLE} {name} {{ {kind} }}");
    }
    for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
        _ = writeln!(script, "add chain ip {TABLE} {name}");
    }
    let gone = old
        .elements
        .iter()
        .filter(|(key, verdict)| new.elements.get(*key) != Some(verdict));
    for ((group, key), _) in gone {
        _ = writeln!(script, "delete element ip {TABLE} {group} {{ {key} }}");
    }
    for (name, rules) in new
        .chains
        .iter()
        .filter(|(name, rules)| old.chains.get(*name) != Some(rules))
    {
        if old.chains.contains_key(name) {
            _ = writeln!(script, "flush chain ip {TABLE} {name}");
        }
        for rule in rules {
            _ = writeln!(script, "add rule ip {TABLE} {name} {rule}");
        }
    }
    for ((group, key), verdict) in new
        .elements
        .iter()
        .filter(|(key, verdict)| old.elements.get(*key) != Some(verdict))
    {
        let verdict = verdict
            .as_ref()
            .map(|verdict| format!(" : {verdict}"))
            .unwrap_or_default();
        _ = writeln!(script, "add element ip {TABLE} {group} {{ {key}{verdict} }}");
    }
    let removed: Vec<&String> = old
        .chains
        .keys()
        .filter(|name| !new.chains.contains_key(*name))
        .collect();
    for verb in ["flush", "delete"] {
        for name in &removed {
            _ = writeln!(script, "{verb} chain ip {TABLE} {name}");
        }
    }
    for name in old.affinity.keys().filter(|name| !new.affinity.contains_key(*name)) {
        _ = writeln!(script, "delete set ip {TABLE} {name}");
    }
    script
}
