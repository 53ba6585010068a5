//! What a node's routes must be, computed from all nodes. Pure: no kernel, no API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use k8s_openapi::api::core::v1::Node;

use crate::Cidr;

/// What matters of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its `InternalIP`.
    pub address: Ipv4Addr,
    /// The network of its pods.
    pub pods: Cidr,
}

/// What matters of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The index of the link that has the node's address.
    pub index: u32,
    /// Its largest packet, in bytes.
    pub mtu: u32,
    /// The networks on that link: who lies in them is reached without a router.
    pub networks: Vec<Cidr>,
    /// Whether packets to anywhere find a route.
    pub has_default_route: bool,
}

/// A route that must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// Through a neighbour on the uplink.
    Gateway {
        /// Where to.
        destination: Cidr,
        /// The neighbour.
        gateway: Ipv4Addr,
    },
    /// Through the tunnel, to the peer that owns the gateway's address inside it.
    Tunnel {
        /// Where to.
        destination: Cidr,
        /// The peer's address inside the tunnel.
        gateway: Ipv4Addr,
    },
    /// Onto the uplink without gateway: enough for addresses that are rewritten before a packet leaves.
    Link {
        /// Where to.
        destination: Cidr,
        /// The source address of packets that take this route.
        source: Ipv4Addr,
    },
}

impl Route {
    /// Where the route leads to.
    pub fn destination(&self) -> Cidr {
        match self {
            Self::Gateway { destination, .. } | Self::Tunnel { destination, .. } | Self::Link { destination, .. } => {
                *destination
            }
        }
    }
}

/// The routes and tunnels of a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// All routes of ours.
    pub routes: BTreeSet<Route>,
    /// Peers behind a router, by their address inside the tunnel, with their address outside of it.
    pub tunnels: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// What could not be planned, for the log.
    pub problems: Vec<String>,
}

/// Bytes that the tunnel's headers take from a packet.
const TUNNEL_HEADERS: u32 = 50;

impl Plan {
    /// The largest packet of pods in bytes. Behind a router it must leave room for the tunnel's headers.
    pub fn pod_mtu(&self, uplink: &Uplink) -> u32 {
        if self.tunnels.is_empty() {
            uplink.mtu
        } else {
            uplink.mtu.saturating_sub(TUNNEL_HEADERS)
        }
    }
}

/// What matters of `node`, or why it cannot take part.
///
/// # Errors
/// With the reason, when it has no IPv4 address or pod network (yet).
pub fn peer(node: &Node) -> Result<Peer, String> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let address = addresses
        .filter(|address| address.type_ == "InternalIP")
        .find_map(|address| address.address.parse().ok())
        .ok_or_else(|| format!("node {name} has no IPv4 InternalIP"))?;
    let spec = node.spec.iter();
    let ranges = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter()));
    let pods = ranges
        .into_iter()
        .find_map(|range| range.parse().ok())
        .ok_or_else(|| format!("node {name} has no IPv4 podCIDR"))?;
    Ok(Peer { name, address, pods })
}

/// The plan of node `me` among `peers` (which may contain itself).
pub fn plan(me: &Peer, peers: &[Peer], uplink: &Uplink, services: Option<Cidr>) -> Plan {
    let mut plan = Plan::default();
    let mut owners: BTreeMap<Cidr, &str> = BTreeMap::from([(me.pods, me.name.as_str())]);
    for peer in peers.iter().filter(|peer| peer.name != me.name) {
        if let Some(owner) = owners.insert(peer.pods, &peer.name) {
            plan.problems.push(format!(
                "node {} has the podCIDR {} of node {owner}; left out",
                peer.name, peer.pods
            ));
            owners.insert(peer.pods, owner);
            continue;
        }
        if peer.address == me.address {
            plan.problems.push(format!(
                "node {} has this node's address {}; left out",
                peer.name, peer.address
            ));
            continue;
        }
        if uplink.networks.iter().any(|network| network.contains(peer.address)) {
            plan.routes.insert(Route::Gateway {
                destination: peer.pods,
                gateway: peer.address,
            });
        } else {
            let gateway = tunnel_address(peer);
            plan.routes.insert(Route::Tunnel {
                destination: peer.pods,
                gateway,
            });
            plan.tunnels.insert(gateway, peer.address);
        }
    }
    if let Some(destination) = services.filter(|_| !uplink.has_default_route) {
        plan.routes.insert(Route::Link {
            destination,
            source: me.address,
        });
    }
    plan
}

/// A node's address inside the tunnel: the first of its pod network, which no pod gets.
pub fn tunnel_address(peer: &Peer) -> Ipv4Addr {
    peer.pods.address()
}

/// A node's hardware address inside the tunnel. It follows from the node's address, so nodes need not tell each other.
pub fn tunnel_hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_peer(name: &str, address: &str, pods: &str) -> Peer {
        Peer {
            name: name.to_owned(),
            address: address.parse().unwrap(),
            pods: pods.parse().unwrap(),
        }
    }

    fn uplink(has_default_route: bool) -> Uplink {
        Uplink {
            index: 2,
            mtu: 1500,
            networks: vec!["10.0.0.0/24".parse().unwrap()],
            has_default_route,
        }
    }

    #[test]
    fn neighbours_are_reached_directly_and_others_through_the_tunnel() {
        let me = a_peer("a", "10.0.0.1", "100.64.0.0/24");
        let peers = [
            me.clone(),
            a_peer("b", "10.0.0.2", "100.64.1.0/24"),
            a_peer("c", "10.9.0.3", "100.64.2.0/24"),
        ];
        let plan = plan(&me, &peers, &uplink(true), Some("10.96.0.0/16".parse().unwrap()));
        assert_eq!(
            plan.routes,
            BTreeSet::from([
                Route::Gateway {
                    destination: "100.64.1.0/24".parse().unwrap(),
                    gateway: "10.0.0.2".parse().unwrap()
                },
                Route::Tunnel {
                    destination: "100.64.2.0/24".parse().unwrap(),
                    gateway: "100.64.2.0".parse().unwrap()
                },
            ])
        );
        assert_eq!(
            plan.tunnels,
            BTreeMap::from([("100.64.2.0".parse().unwrap(), "10.9.0.3".parse().unwrap())])
        );
        assert_eq!(plan.pod_mtu(&uplink(true)), 1450);
        assert!(plan.problems.is_empty());
    }

    #[test]
    fn without_a_default_route_services_get_one() {
        let me = a_peer("a", "10.0.0.1", "100.64.0.0/24");
        let services: Cidr = "10.96.0.0/16".parse().unwrap();
        let plan = plan(&me, &[], &uplink(false), Some(services));
        assert_eq!(
            plan.routes,
            BTreeSet::from([Route::Link {
                destination: services,
                source: me.address
            }])
        );
        assert_eq!(plan.pod_mtu(&uplink(false)), 1500);
    }

    #[test]
    fn a_node_that_claims_anothers_network_is_left_out_and_named() {
        let me = a_peer("a", "10.0.0.1", "100.64.0.0/24");
        let peers = [
            a_peer("thief", "10.0.0.2", "100.64.0.0/24"),
            a_peer("b", "10.0.0.3", "100.64.1.0/24"),
            a_peer("c", "10.0.0.4", "100.64.1.0/24"),
            a_peer("double", "10.0.0.1", "100.64.3.0/24"),
        ];
        let plan = plan(&me, &peers, &uplink(true), None);
        assert_eq!(plan.routes.len(), 1);
        assert_eq!(plan.problems.len(), 3, "{:?}", plan.problems);
        assert!(plan.problems[0].contains("thief") && plan.problems[1].contains("node c"));
    }

    #[test]
    fn nodes_take_part_once_they_have_address_and_pod_network() {
        let node = |value| serde_json::from_value::<Node>(value).unwrap();
        let whole = node(serde_json::json!({
            "metadata": {"name": "a"}, "spec": {"podCIDR": "100.64.0.0/24", "podCIDRs": ["100.64.0.0/24"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
            ]},
        }));
        assert_eq!(peer(&whole), Ok(a_peer("a", "10.0.0.1", "100.64.0.0/24")));
        let early = node(serde_json::json!({
            "metadata": {"name": "b"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        }));
        assert_eq!(peer(&early), Err("node b has no IPv4 podCIDR".to_owned()));
        assert!(
            peer(&node(serde_json::json!({"metadata": {"name": "c"}})))
                .unwrap_err()
                .contains("InternalIP")
        );
    }
}
