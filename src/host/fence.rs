//! The rules of the fence: what may leave a host while a run proves that nothing has to. Pure text; [`crate::gate`] puts it up.
//!
//! ```text
//! output, forward:  loopback, the cluster's addresses, the host's own link        → pass
//!                   replies: what others have begun, now or before the fence      → pass
//!                   all else: counted, noted by destination, and rejected
//! ```
//!
//! Whose a connection from before the fence is nobody tells a connection tracking that has just begun. So it is read from the
//! kernel's sockets: where somebody listens on the local port, the other side has begun it.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use crate::{Error, Result, effect::Fence, facts::parse::hex_address};

/// Name of the table, of family `inet`.
pub(crate) const TABLE: &str = "installer-airgap";
/// Destinations that are told apart; of further ones only the packets are counted.
const DESTINATIONS: usize = 1024;
/// Connections from before the fence of each kind; further ones are judged by connection tracking alone.
const CONNECTIONS: usize = 512;

/// A TCP connection that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Connection {
    remote: IpAddr,
    local_port: u16,
    remote_port: u16,
    /// Whether the other side has begun it.
    theirs: bool,
}

/// The connections in `/proc/net/tcp` and `/proc/net/tcp6`.
pub(crate) fn connections(texts: &[&str]) -> Vec<Connection> {
    struct Socket {
        port: u16,
        remote: IpAddr,
        remote_port: u16,
        listens: bool,
    }
    let place = |word: &str| {
        let (address, port) = word.split_once(':')?;
        let address: IpAddr = hex_address(address)?.parse().ok()?;
        Some((address.to_canonical(), u16::from_str_radix(port, 16).ok()?))
    };
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ((_, port), (remote, remote_port)) = (place(words.get(1)?)?, place(words.get(2)?)?);
        let listens = *words.get(3)? == "0A";
        Some(Socket {
            port,
            remote,
            remote_port,
            listens,
        })
    };
    let sockets: Vec<Socket> = texts
        .iter()
        .flat_map(|text| text.lines().skip(1))
        .filter_map(parse)
        .collect();
    let served: BTreeSet<u16> = sockets.iter().filter(|s| s.listens).map(|s| s.port).collect();
    let open = sockets.iter().filter(|s| !s.listens && !s.remote.is_loopback());
    let all: BTreeSet<Connection> = open
        .map(|s| Connection {
            remote: s.remote,
            local_port: s.port,
            remote_port: s.remote_port,
            theirs: served.contains(&s.port),
        })
        .collect();
    all.into_iter().collect()
}

/// Whether a fence can be written into rules.
pub(crate) fn check(fence: &Fence) -> Result<()> {
    let block = |text: &str| {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        address.parse::<Ipv4Addr>().is_ok() && length.parse::<u8>().is_ok_and(|length| length <= 32)
    };
    if let Some(wrong) = fence.allowed.iter().find(|text| !block(text)) {
        return Err(Error::invalid(format!("'{wrong}' is no block of IPv4 addresses")));
    }
    let plain =
        |token: &str| !token.is_empty() && token.len() <= 64 && token.bytes().all(|b| b.is_ascii_alphanumeric());
    if fence.allowed.is_empty() || !plain(&fence.token) {
        return Err(Error::invalid(
            "a fence needs addresses that may be reached, and a name of letters and digits",
        ));
    }
    Ok(())
}

/// A version of IP, and how nftables calls it and its addresses.
struct Version {
    ip: &'static str,
    address: &'static str,
    number: u8,
}

const VERSIONS: &[Version] = &[
    Version {
        ip: "ip",
        address: "ipv4_addr",
        number: 4,
    },
    Version {
        ip: "ip6",
        address: "ipv6_addr",
        number: 6,
    },
];

/// The rules, as `nft -f` reads them; they take the place of a fence that is there. With `units` sockets' control groups are noted, which
/// not every kernel can. The fence has passed [`check`].
pub(crate) fn rules(fence: &Fence, connections: &[Connection], units: bool) -> String {
    let (mut sets, mut notes, mut own, mut known) = (String::new(), String::new(), String::new(), String::new());
    for version in VERSIONS {
        note(version, &mut sets, &mut notes);
        if units {
            let (ip, n) = (version.ip, version.number);
            let _ = writeln!(
                sets,
                "\tset unit{n} {{ typeof {ip} daddr . socket cgroupv2 level 2; flags dynamic; size {DESTINATIONS}; }}"
            );
            let _ = writeln!(own, "\t\tadd @unit{n} {{ {ip} daddr . socket cgroupv2 level 2 }}");
        }
        remember(version, connections, &mut sets, &mut known);
    }
    let (token, allowed) = (&fence.token, fence.allowed.join(", "));
    let chain = |hook: &str, refuse: &str| {
        let known = known.replace("REFUSE", refuse);
        format!(
            "\tchain {hook} {{\n\t\ttype filter hook {hook} priority 10; policy accept;\n\
             \t\toifname \"lo\" accept\n\
             \t\tip daddr @cluster accept\n\
             \t\tip daddr {{ 169.254.0.0/16, 224.0.0.0/24, 255.255.255.255 }} accept\n\
             \t\tip6 daddr {{ ::1, fe80::/10, ff02::/16 }} accept\n\
             {known}\
             \t\tct direction reply accept\n\
             \t\tgoto {refuse}\n\t}}\n"
        )
    };
    // The kernel knows sockets where packets are made, not where they are passed on.
    let (output, forward) = (chain("output", "own"), chain("forward", "leave"));
    format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\
         \tcounter left_{token} {{ }}\n\
         \tset cluster {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {allowed} }}; }}\n\
         {sets}\
         \tchain leave {{\n\t\tcounter name \"left_{token}\"\n{notes}\t\treject with icmpx admin-prohibited\n\t}}\n\
         \tchain own {{\n{own}\t\tgoto leave\n\t}}\n\
         {output}{forward}}}\n"
    )
}

/// What is told apart of the packets that are rejected.
fn note(version: &Version, sets: &mut String, notes: &mut String) {
    let Version { ip, address, number } = version;
    let all = [
        (
            "to",
            "inet_proto",
            "counter; ",
            String::new(),
            "meta l4proto".to_owned(),
        ),
        (
            "port",
            "inet_proto . inet_service",
            "",
            "meta l4proto { tcp, udp } ".to_owned(),
            "meta l4proto . th dport".to_owned(),
        ),
        ("source", address, "", String::new(), format!("{ip} saddr")),
        ("user", "uid", "", String::new(), "meta skuid".to_owned()),
    ];
    for (name, kind, counter, only, value) in all {
        let _ = writeln!(
            sets,
            "\tset {name}{number} {{ type {address} . {kind}; flags dynamic; size {DESTINATIONS}; {counter}}}"
        );
        let _ = writeln!(notes, "\t\t{only}add @{name}{number} {{ {ip} daddr . {value} }}");
    }
}

/// What becomes of the connections from before; `REFUSE` stands for the chain that rejects.
fn remember(version: &Version, connections: &[Connection], sets: &mut String, known: &mut String) {
    let Version { ip, address, number } = version;
    for (name, theirs, verdict) in [("theirs", true, "accept"), ("ours", false, "goto REFUSE")] {
        let elements: Vec<String> = connections
            .iter()
            .filter(|c| c.theirs == theirs && c.remote.is_ipv4() == (*number == 4))
            .take(CONNECTIONS)
            .map(|c| format!("{} . {} . {}", c.remote, c.local_port, c.remote_port))
            .collect();
        if elements.is_empty() {
            continue;
        }
        let _ = writeln!(
            sets,
            "\tset {name}{number} {{ type {address} . inet_service . inet_service; elements = {{ {} }}; }}",
            elements.join(", ")
        );
        let _ = writeln!(
            known,
            "\t\t{ip} daddr . tcp sport . tcp dport @{name}{number} {verdict}"
        );
    }
}

#[cfg(test)]
mod tests;
