//! UDP flows that the kernel goes on sending to where nobody is.
//!
//! Connection tracking remembers where a flow was redirected to, and while a client goes on sending, the rules are not asked
//! again: a client that keeps its port (a resolver, a syslog sender) would talk to a pod that is gone for ever. TCP needs
//! none of this, its clients see that the connection is dead. After each change of endpoints all UDP flows to services are
//! looked at, and those that do not lead to an endpoint which still serves are deleted; their next packet is a new flow.
//!
//! Traffic policies and readiness do not matter here: they are for new flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{NETFILTER, SocketAddrNetlink},
    recv, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::model::{HostPort, Protocol, ServicePort};

/// How long one answer of the kernel is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel fills at most this much in one go.
const BUFFER: usize = 64 * 1024;

// linux/netlink.h
const HEADER: usize = 16;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const KIND_MASK: u16 = 0x3fff;
// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: the subsystem is the upper byte of a message's type.
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
const FAMILY_HEADER: usize = 4;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION: u16 = 3;
const IPPROTO_UDP: u8 = 17;
const AF_INET: u8 = 2;

/// Who may answer UDP flows to services and host ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpTargets {
    addresses: BTreeMap<(Ipv4Addr, u16), BTreeSet<Ipv4Addr>>,
    /// By port on each of this node's own addresses.
    node_ports: BTreeMap<u16, BTreeSet<Ipv4Addr>>,
}

/// One tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    /// Where its client sends to.
    destination: (Ipv4Addr, u16),
    /// Who answers.
    answers: Ipv4Addr,
}

impl UdpTargets {
    /// Of all services and host ports; those of other protocols do not count.
    pub fn new(services: &[ServicePort], host_ports: &[HostPort]) -> Self {
        let mut targets = Self::default();
        for service in services.iter().filter(|it| it.protocol == Protocol::Udp) {
            let own = [service.cluster_ip];
            let outer = service.external_ips.union(&service.balancer_ips);
            for address in own.iter().chain(outer) {
                let key = (*address, service.port);
                targets.addresses.entry(key).or_insert_with(|| service.serving.clone());
            }
            if let Some(port) = service.node_port {
                targets
                    .node_ports
                    .entry(port)
                    .or_insert_with(|| service.serving.clone());
            }
        }
        for port in host_ports.iter().filter(|it| it.protocol == Protocol::Udp) {
            let pod = || BTreeSet::from([port.endpoint.address]);
            match port.address {
                Some(address) => drop(targets.addresses.entry((address, port.port)).or_insert_with(pod)),
                None => drop(targets.node_ports.entry(port.port).or_insert_with(pod)),
            }
        }
        targets
    }

    /// Whether the next packet of a flow must find its way anew. `is_local`: whether an address is this node's.
    fn is_stale(&self, flow: &Flow, is_local: impl FnOnce(Ipv4Addr) -> bool) -> bool {
        if flow.protocol != IPPROTO_UDP {
            return false;
        }
        let (address, port) = flow.destination;
        if let Some(serving) = self.addresses.get(&flow.destination) {
            return !serving.contains(&flow.answers);
        }
        let Some(serving) = self.node_ports.get(&port) else {
            return false;
        };
        // Whoever is asked on the same port elsewhere answers for itself; a flow that was redirected came to this node.
        !serving.contains(&flow.answers) && (flow.answers != address || is_local(address))
    }
}

/// Deletes the flows that lead nowhere; how many they were. Blocks, for a moment if there are many flows.
///
/// # Errors
/// When the kernel cannot be asked, or refuses.
pub fn delete_stale(targets: &UdpTargets) -> io::Result<usize> {
    if *targets == UdpTargets::default() {
        return Ok(0);
    }
    let netlink = Netlink::open()?;
    let mut stale = vec![];
    netlink.request(GET, DUMP, &[], |message| {
        if let Some(flow) = flow(message)
            && targets.is_stale(&flow, is_local)
        {
            stale.push(deletion(message));
        }
    })?;
    let mut deleted = 0;
    for which in &stale {
        match netlink.request(DELETE, ACK, which, |_| {}) {
            Ok(()) => deleted += 1,
            // It has ended by itself, or another flow has its place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// Whether an address is one of this network namespace: only those can be bound to.
fn is_local(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// A socket to netfilter.
struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(NETFILTER),
        )?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self(socket))
    }

    /// Sends a request and gives what comes back to `take`, message by message without their headers, until the kernel
    /// says that it is done.
    fn request(&self, kind: u16, flags: u16, payload: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.0, &message(kind, flags, payload), SendFlags::empty(), &kernel)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            for (kind, payload) in messages(&buffer[..length]) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => return acknowledged(payload),
                    _ => take(payload),
                }
            }
        }
    }
}

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = HEADER + FAMILY_HEADER + payload.len();
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    // Sequence and sender: one request at a time is under way.
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[AF_INET, 0, 0, 0]);
    out.extend_from_slice(payload);
    out
}

/// The kernel's verdict: an error number, negative; 0 is an acknowledgement.
fn acknowledged(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The messages in what was received: their types and what follows their headers.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The attributes of a message or of an attribute: their types, contents, and all of them with their headers.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & KIND_MASK;
        let (content, padded) = (bytes.get(4..length)?, length.next_multiple_of(4).min(bytes.len()));
        let (whole, rest) = bytes.split_at(padded);
        bytes = rest;
        Some((kind, content, whole))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, ..)| *kind == wanted)
        .map(|(_, content, _)| content)
}

fn flow(message: &[u8]) -> Option<Flow> {
    let address = |tuple: &[u8], which| {
        let bytes: [u8; 4] = *attribute(attribute(tuple, TUPLE_IP)?, which)?.first_chunk()?;
        Some(Ipv4Addr::from(bytes))
    };
    let all = message.get(FAMILY_HEADER..)?;
    let (original, reply) = (attribute(all, TUPLE_ORIGINAL)?, attribute(all, TUPLE_REPLY)?);
    let protocol = attribute(original, TUPLE_PROTOCOL)?;
    let port = attribute(protocol, PROTOCOL_DESTINATION).and_then(|bytes| bytes.first_chunk());
    Some(Flow {
        protocol: *attribute(protocol, PROTOCOL_NUMBER)?.first()?,
        destination: (
            address(original, IP_DESTINATION)?,
            port.map_or(0, |bytes| u16::from_be_bytes(*bytes)),
        ),
        answers: address(reply, IP_SOURCE)?,
    })
}

/// What names exactly this flow to the kernel. Its number keeps a newer flow of the same ends safe.
fn deletion(message: &[u8]) -> Vec<u8> {
    attributes(message.get(FAMILY_HEADER..).unwrap_or_default())
        .filter(|(kind, ..)| matches!(*kind, TUPLE_ORIGINAL | ZONE | ID))
        .flat_map(|(.., whole)| whole.iter().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::model::Endpoint;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn dns() -> ServicePort {
        ServicePort {
            id: "ns/dns/udp/53".into(),
            protocol: Protocol::Udp,
            cluster_ip: ip("10.96.0.10"),
            port: 53,
            node_port: Some(30053),
            external_ips: [ip("1.2.3.4")].into(),
            balancer_ips: [ip("5.6.7.8")].into(),
            source_ranges: BTreeSet::new(),
            affinity: None,
            internal_local: false,
            external_local: true,
            all: BTreeSet::new(),
            local: BTreeSet::new(),
            serving: [ip("100.64.0.2")].into(),
        }
    }

    #[test]
    fn flows_are_stale_that_lead_to_nobody_who_serves() {
        let host_port = |port, address: Option<&str>| HostPort {
            id: String::new(),
            protocol: Protocol::Udp,
            address: address.map(ip),
            port,
            endpoint: Endpoint {
                address: ip("100.64.0.9"),
                port: 53,
            },
        };
        let tcp = ServicePort {
            protocol: Protocol::Tcp,
            cluster_ip: ip("10.96.0.11"),
            ..dns()
        };
        let host_ports = [host_port(9000, None), host_port(9001, Some("10.7.0.1"))];
        let targets = UdpTargets::new(&[dns(), tcp], &host_ports);
        for (to, port, answers, stale) in [
            ("10.96.0.10", 53, "100.64.0.2", false),
            ("10.96.0.10", 53, "100.64.0.3", true),
            // Sent before there was a rule: nobody was asked instead.
            ("10.96.0.10", 53, "10.96.0.10", true),
            ("1.2.3.4", 53, "100.64.0.3", true),
            ("5.6.7.8", 53, "100.64.0.3", true),
            ("10.96.0.10", 54, "100.64.0.3", false),
            ("10.96.0.11", 53, "100.64.0.3", false),
            ("10.7.0.1", 30053, "100.64.0.2", false),
            ("10.7.0.1", 30053, "100.64.0.3", true),
            ("10.7.0.1", 30053, "10.7.0.1", true),
            ("8.8.8.8", 30053, "8.8.8.8", false),
            ("10.7.0.1", 9000, "100.64.0.9", false),
            ("10.7.0.1", 9000, "100.64.0.8", true),
            ("10.7.0.1", 9001, "100.64.0.8", true),
            ("10.7.0.2", 9001, "100.64.0.8", false),
        ] {
            let flow = Flow {
                protocol: IPPROTO_UDP,
                destination: (ip(to), port),
                answers: ip(answers),
            };
            let is_local = |address| address == ip("10.7.0.1");
            assert_eq!(targets.is_stale(&flow, is_local), stale, "{flow:?}");
            assert!(!targets.is_stale(&Flow { protocol: 6, ..flow }, is_local), "{flow:?}");
        }
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        let whole = message(GET, DUMP, &[8, 0, 1, 0, 1, 2, 3, 4]);
        assert_eq!(messages(&whole).count(), 1);
        for end in 0..whole.len() {
            assert_eq!(messages(&whole[..end]).count(), 0, "{end}");
        }
        assert_eq!(attributes(&whole[HEADER + FAMILY_HEADER..]).count(), 1);
        assert_eq!(attributes(&[2, 0, 1, 0]).count(), 0, "shorter than its header");
        assert_eq!(flow(&whole[HEADER..]), None);
    }
}
