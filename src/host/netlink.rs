//! Links, addresses, routes and nftables tables of this network namespace, by netlink (RFC 3549, `rtnetlink(7)`, `nfnetlink`).
//!
//! Only what facts and undo need: dumps, and removal of what was dumped. Asked of the kernel directly, because a bare host may
//! have neither `ip` nor `nft`, and at the end of an undo ours are gone too.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::facts::{Address, Route};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const NFT: u16 = 10 << 8;
const NFT_GETTABLE: u16 = NFT | 1;
const NFT_DELTABLE: u16 = NFT | 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const MAIN_TABLE: u32 = 254;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Largest packet, in bytes.
    pub(crate) mtu: u32,
}

/// A route as the kernel tells it, and the message that names it.
#[derive(Clone, Debug)]
pub(crate) struct KernelRoute {
    pub(crate) route: Route,
    raw: Vec<u8>,
}

/// A table of nftables: family (`ip`, `ip6`, `inet`, …) and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: u8,
    pub(crate) name: String,
}

impl Table {
    /// As `nft list tables` writes it.
    pub(crate) fn label(&self) -> String {
        let family = match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "unknown",
        };
        format!("{family} {}", self.name)
    }
}

/// NETLINK_ROUTE is protocol 0, which is also the default.
const ROUTE: Option<Protocol> = None;
const NETFILTER: Option<Protocol> = Some(netlink::NETFILTER);

fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, 0))?;
    // The kernel answers at once or not at all; never hang on it.
    rustix::net::sockopt::set_socket_timeout(
        &fd,
        rustix::net::sockopt::Timeout::Recv,
        Some(std::time::Duration::from_secs(5)),
    )?;
    Ok(fd)
}

fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(16 + body.len() + 3);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(seq.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend(body);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Attributes after a fixed header of `skip` bytes.
fn attributes(body: &[u8], skip: usize) -> HashMap<u16, &[u8]> {
    let mut found = HashMap::new();
    let mut rest = body.get(skip..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        // The two top bits are flags.
        found.insert(kind & 0x3fff, value);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Splits what the kernel sent into (kind, body).
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut out = Vec::new();
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(body) = bytes.get(16..length) else { break };
        out.push((kind, body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

fn kernel_error(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) | None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
    }
}

fn dump(protocol: Option<Protocol>, kind: u16, header: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let fd = open(protocol)?;
    rustix::net::send(&fd, &message(kind, REQUEST | DUMP, 1, header), SendFlags::empty())?;
    let mut buffer = vec![0; 256 << 10];
    let mut out = Vec::new();
    loop {
        let (_, length) = rustix::net::recv(&fd, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(buffer.get(..length).unwrap_or_default()) {
            match kind {
                MSG_DONE => return Ok(out),
                MSG_ERROR => kernel_error(body)?,
                _ => out.push(body.to_vec()),
            }
        }
        if length == 0 {
            return Ok(out);
        }
    }
}

/// Sends messages the last of which (or a failed one before) is acknowledged.
fn command(protocol: Option<Protocol>, bytes: &[u8]) -> io::Result<()> {
    let fd = open(protocol)?;
    rustix::net::send(&fd, bytes, SendFlags::empty())?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let (_, length) = rustix::net::recv(&fd, &mut buffer[..], RecvFlags::empty())?;
        if let Some((_, body)) = messages(buffer.get(..length).unwrap_or_default())
            .into_iter()
            .find(|(kind, _)| *kind == MSG_ERROR)
        {
            return kernel_error(body);
        }
        if length == 0 {
            return Ok(());
        }
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// All links.
pub(crate) fn links() -> io::Result<Vec<Link>> {
    let parse = |body: Vec<u8>| {
        let name = text(attributes(&body, 16).get(&3)?);
        Some(Link {
            index: u32_at(&body, 4)?,
            name,
            mtu: attributes(&body, 16)
                .get(&4)
                .and_then(|value| u32_at(value, 0))
                .unwrap_or_default(),
        })
    };
    Ok(dump(ROUTE, RTM_GETLINK, &[0; 16])?
        .into_iter()
        .filter_map(parse)
        .collect())
}

/// Removes a link; gone already is fine.
pub(crate) fn delete_link(link: &Link) -> io::Result<()> {
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&link.index.to_ne_bytes());
    tolerate_gone(command(ROUTE, &message(RTM_DELLINK, REQUEST | ACK, 1, &body)))
}

fn tolerate_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        // ENOENT, ENODEV, ESRCH
        Err(e) if matches!(e.raw_os_error(), Some(2 | 19 | 3)) => Ok(()),
        other => other,
    }
}

/// All addresses but loopback's.
pub(crate) fn addresses(links: &[Link]) -> io::Result<Vec<Address>> {
    let parse = |body: Vec<u8>| {
        let attributes = attributes(&body, 8);
        let address = ip(attributes.get(&2).or_else(|| attributes.get(&1))?)?;
        let link = links.iter().find(|link| Some(link.index) == u32_at(&body, 4))?;
        (!address.is_loopback()).then(|| Address {
            interface: link.name.clone(),
            mtu: link.mtu,
            ip: address.to_string(),
            prefix: body[1],
        })
    };
    Ok(dump(ROUTE, RTM_GETADDR, &[0; 8])?
        .into_iter()
        .filter_map(parse)
        .collect())
}

fn link_name(links: &[Link], index: u32) -> Option<String> {
    links.iter().find(|l| l.index == index).map(|l| l.name.clone())
}

/// Unicast routes of the main table, both families, but those the kernel makes for IPv6 by itself.
pub(crate) fn routes(links: &[Link]) -> io::Result<Vec<KernelRoute>> {
    let mut out = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut header = [0; 12];
        header[0] = family;
        out.extend(
            dump(ROUTE, RTM_GETROUTE, &header)?
                .into_iter()
                .filter_map(|raw| parse_route(raw, links)),
        );
    }
    Ok(out)
}

fn parse_route(raw: Vec<u8>, links: &[Link]) -> Option<KernelRoute> {
    let (family, prefix, table, protocol, kind) =
        (*raw.first()?, *raw.get(1)?, *raw.get(4)?, *raw.get(5)?, *raw.get(7)?);
    let attributes = attributes(&raw, 12);
    let table = attributes
        .get(&15)
        .and_then(|v| u32_at(v, 0))
        .unwrap_or(u32::from(table));
    // Unicast, blackhole, unreachable, prohibit: all a router would set.
    if table != MAIN_TABLE || !matches!(kind, 1 | 6 | 7 | 8) || (family == AF_INET6 && protocol == 2) {
        return None;
    }
    let destination = match attributes.get(&1).and_then(|v| ip(v)) {
        Some(address) => format!("{address}/{prefix}"),
        None => "default".to_owned(),
    };
    let route = Route {
        destination,
        gateway: attributes.get(&5).and_then(|v| ip(v)).map(|a| a.to_string()),
        interface: attributes
            .get(&4)
            .and_then(|v| u32_at(v, 0))
            .and_then(|index| link_name(links, index)),
        protocol,
    };
    Some(KernelRoute { route, raw })
}

/// Removes a route; gone already is fine.
pub(crate) fn delete_route(route: &KernelRoute) -> io::Result<()> {
    tolerate_gone(command(ROUTE, &message(RTM_DELROUTE, REQUEST | ACK, 1, &route.raw)))
}

/// All tables of nftables; none where the kernel has no nftables.
pub(crate) fn tables() -> io::Result<Vec<Table>> {
    let bodies = match dump(NETFILTER, NFT_GETTABLE, &[0; 4]) {
        // No such subsystem.
        Err(e) if matches!(e.raw_os_error(), Some(22 | 93 | 95)) => return Ok(Vec::new()),
        other => other?,
    };
    let parse = |body: Vec<u8>| {
        Some(Table {
            family: *body.first()?,
            name: text(attributes(&body, 4).get(&1)?),
        })
    };
    Ok(bodies.into_iter().filter_map(parse).collect())
}

/// Removes a table with all that is in it; gone already is fine.
pub(crate) fn delete_table(table: &Table) -> io::Result<()> {
    tolerate_gone(command(NETFILTER, &delete_table_batch(table)))
}

fn delete_table_batch(table: &Table) -> Vec<u8> {
    let batch = [0, 0, 0, 10];
    let mut body = vec![table.family, 0, 0, 0];
    let mut name = table.name.clone().into_bytes();
    name.push(0);
    body.extend(attribute(1, &name));
    let mut bytes = message(BATCH_BEGIN, REQUEST, 1, &batch);
    bytes.extend(message(NFT_DELTABLE, REQUEST | ACK, 2, &body));
    bytes.extend(message(BATCH_END, REQUEST, 3, &batch));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_read_back() {
        let mut body = vec![0u8; 16];
        body[4..8].copy_from_slice(&7u32.to_ne_bytes());
        body.extend(attribute(3, b"eth0\0"));
        body.extend(attribute(4 | 0x8000, &9u32.to_ne_bytes()));
        let mut bytes = message(16, 0, 1, &body);
        bytes.extend(message(MSG_DONE, 0, 1, &[0; 4]));
        let found = messages(&bytes);
        assert_eq!(found.len(), 2);
        let attributes = attributes(found[0].1, 16);
        assert_eq!(
            (text(attributes[&3]), u32_at(attributes[&4], 0)),
            ("eth0".to_owned(), Some(9))
        );
    }

    #[test]
    fn truncated_messages_are_not_followed_beyond_their_end() {
        let whole = message(16, 0, 1, &attribute(3, b"name"));
        for cut in 0..whole.len() {
            for (_, body) in messages(&whole[..cut]) {
                attributes(body, 0);
            }
        }
    }

    #[test]
    fn a_route_is_told_as_people_write_it() {
        let links = [Link {
            index: 2,
            name: "eth0".into(),
            mtu: 1500,
        }];
        let mut raw = vec![AF_INET, 24, 0, 0, 254, 99, 0, 1, 0, 0, 0, 0];
        raw.extend(attribute(1, &[10, 1, 2, 0]));
        raw.extend(attribute(5, &[10, 0, 0, 1]));
        raw.extend(attribute(4, &2u32.to_ne_bytes()));
        let route = parse_route(raw.clone(), &links).unwrap().route;
        assert_eq!(
            (
                route.destination.as_str(),
                route.gateway.as_deref(),
                route.interface.as_deref(),
                route.protocol
            ),
            ("10.1.2.0/24", Some("10.0.0.1"), Some("eth0"), 99)
        );
        raw[4] = 255;
        assert!(parse_route(raw, &links).is_none(), "the local table is the kernel's");
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let links = links().unwrap();
        assert!(links.iter().any(|l| l.name == "lo"));
        addresses(&links).unwrap();
        routes(&links).unwrap();
    }

    /// Runs `check` on a thread that has moved into a network namespace prepared by a shell script.
    fn in_namespace(script: &str, check: fn()) {
        use std::io::BufRead as _;
        let mut child = std::process::Command::new("unshare")
            .args(["-n", "sh", "-ec", &format!("{script}\necho ready; exec cat")])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "needs root, ip and nft");
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        let result = std::thread::spawn(move || {
            use std::os::fd::AsFd as _;
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            check();
        })
        .join();
        drop(child.stdin.take());
        child.wait().unwrap();
        result.unwrap();
    }

    #[test]
    fn tables_routes_and_links_of_a_real_kernel_are_removed() {
        let script = "ip link add installer-vxlan type veth peer name other\nip addr add 10.9.0.1/24 dev installer-vxlan\nip link set installer-vxlan up\nip link set other up\n\
                      ip route add 100.64.1.0/24 via 10.9.0.2 proto 157\nnft add table ip installer-proxy\n\
                      nft add chain ip installer-proxy x '{ type nat hook prerouting priority -100; }'\nnft add table ip6 theirs";
        in_namespace(script, || {
            let labels = || tables().unwrap().iter().map(Table::label).collect::<Vec<_>>();
            assert_eq!(labels(), ["ip installer-proxy", "ip6 theirs"]);
            let ours = tables().unwrap().remove(0);
            delete_table(&ours).unwrap();
            delete_table(&ours).expect("gone already is fine");
            assert_eq!(labels(), ["ip6 theirs"]);

            let ours = |route: &KernelRoute| route.route.protocol == 157;
            let found = routes(&links().unwrap()).unwrap().into_iter().find(ours).unwrap();
            delete_route(&found).unwrap();
            delete_route(&found).expect("gone already is fine");
            assert!(!routes(&links().unwrap()).unwrap().iter().any(ours));

            let link = links()
                .unwrap()
                .into_iter()
                .find(|l| l.name == "installer-vxlan")
                .unwrap();
            delete_link(&link).unwrap();
            delete_link(&link).expect("gone already is fine");
            assert!(!links().unwrap().contains(&link));
        });
    }
}
