//! The kernel's side: links, addresses, routes and the tunnel, through rtnetlink.
//!
//! Routes of ours carry a protocol number of their own, so that exactly ours are found again, also by another process.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::AddressAttribute,
        link::{LinkAttribute, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

use super::plan::{Plan, Route, Uplink, tunnel_hardware_address};
use crate::Cidr;

/// The protocol number of our routes (`ip route show proto 73`): one that no other program has registered.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(73);
/// The tunnel's link.
pub const TUNNEL: &str = "installer-vxlan";
/// The tunnel's network identifier.
const TUNNEL_ID: u32 = 7310;
/// The tunnel's UDP port (RFC 7348).
const TUNNEL_PORT: u16 = 4789;

/// Why the kernel was not brought to what it must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("no netlink socket: {0}")]
    Socket(std::io::Error),
    /// The kernel refused a request.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked for.
        what: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The node's address is not on this host.
    #[error("the node's InternalIP {0} is on no link of this host")]
    NotHere(Ipv4Addr),
}

fn refused(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    move |source| Error::Refused { what, source }
}

/// A connection to the kernel's routing.
#[derive(Clone)]
pub struct Kernel {
    handle: Handle,
}

/// A route as the kernel has it, in what matters to us.
#[derive(Debug, PartialEq, Eq)]
struct Present {
    destination: Cidr,
    gateway: Option<Ipv4Addr>,
    link: Option<u32>,
    source: Option<Ipv4Addr>,
}

impl Kernel {
    /// Connects.
    pub fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The link that has `address`, and what else a plan must know.
    pub async fn uplink(&self, address: Ipv4Addr) -> Result<Uplink, Error> {
        let mut found = BTreeMap::<u32, Vec<(Ipv4Addr, u8)>>::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(refused("listing addresses"))? {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(local)) => Some(*local),
                _ => None,
            });
            if let Some(local) = local {
                found
                    .entry(message.header.index)
                    .or_default()
                    .push((local, message.header.prefix_len));
            }
        }
        let (index, addresses) = found
            .into_iter()
            .find(|(_, addresses)| addresses.iter().any(|(local, _)| *local == address))
            .ok_or(Error::NotHere(address))?;
        let networks = addresses
            .into_iter()
            .map(|(local, prefix)| Cidr::containing(local, prefix))
            .collect();
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links.try_next().await.map_err(refused("reading the uplink"))?;
        let mtu = link
            .iter()
            .flat_map(|link| &link.attributes)
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
        let routes = self.routes().await?;
        let has_default_route = routes.iter().any(|route| {
            route.header.destination_prefix_length == 0
                && route.header.kind == RouteType::Unicast
                && route.header.table == RouteHeader::RT_TABLE_MAIN
        });
        Ok(Uplink {
            index,
            mtu: mtu.unwrap_or(1500),
            networks,
            has_default_route,
        })
    }

    /// Brings routes and tunnel to what `plan` says, for the node with `address` whose pods are `pods`.
    pub async fn apply(&self, plan: &Plan, uplink: &Uplink, address: Ipv4Addr, pods: Cidr) -> Result<(), Error> {
        let tunnel = if plan.tunnels.is_empty() {
            None
        } else {
            let index = self.tunnel(plan, uplink, address, pods).await?;
            self.tunnel_peers(index, &plan.tunnels).await?;
            Some(index)
        };
        self.apply_routes(&plan.routes, uplink.index, tunnel).await?;
        if tunnel.is_none() {
            self.remove_tunnel().await?;
        }
        Ok(())
    }

    /// Removes every route of ours and the tunnel. Tells how many routes there were.
    pub async fn remove_all(&self) -> Result<usize, Error> {
        let mut removed = 0;
        for route in self
            .routes()
            .await?
            .into_iter()
            .filter(|route| route.header.protocol == PROTOCOL)
        {
            self.handle
                .route()
                .del(route)
                .execute()
                .await
                .map_err(refused("removing a route"))?;
            removed += 1;
        }
        self.remove_tunnel().await?;
        Ok(removed)
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, Error> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        self.handle
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(refused("listing routes"))
    }

    async fn apply_routes(&self, wanted: &BTreeSet<Route>, uplink: u32, tunnel: Option<u32>) -> Result<(), Error> {
        let mut present: Vec<(Present, RouteMessage)> = self
            .routes()
            .await?
            .into_iter()
            .filter(|route| route.header.protocol == PROTOCOL)
            .filter_map(|route| Some((present(&route)?, route)))
            .collect();
        for route in wanted {
            let (message, as_present) = message(route, uplink, tunnel);
            let same_destination = present
                .iter()
                .position(|(present, _)| present.destination == as_present.destination);
            if let Some(position) = same_destination {
                let (found, _) = present.swap_remove(position);
                if found == as_present {
                    continue;
                }
            }
            let request = self.handle.route().add(message);
            // Replacing is for routes of ours only: one that somebody else made is left alone and reported.
            let request = if same_destination.is_some() {
                request.replace()
            } else {
                request
            };
            request
                .execute()
                .await
                .map_err(refused(format!("the route to {}", route.destination())))?;
            tracing::info!(?route, "route set");
        }
        for (gone, message) in present {
            self.handle
                .route()
                .del(message)
                .execute()
                .await
                .map_err(refused("removing a route"))?;
            tracing::info!(destination = %gone.destination, "route removed");
        }
        Ok(())
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        // ENODEV is how the kernel says no.
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
            {
                Ok(None)
            }
            Err(error) => Err(refused("reading the tunnel's link")(error)),
        }
    }

    async fn remove_tunnel(&self) -> Result<(), Error> {
        if let Some(link) = self.link(TUNNEL).await? {
            let removal = self.handle.link().del(link.header.index).execute();
            removal.await.map_err(refused("removing the tunnel"))?;
            tracing::info!("tunnel removed");
        }
        Ok(())
    }

    /// Makes the tunnel's link, or finds it as it must be; tells its index.
    async fn tunnel(&self, plan: &Plan, uplink: &Uplink, address: Ipv4Addr, pods: Cidr) -> Result<u32, Error> {
        let hardware = tunnel_hardware_address(address);
        if let Some(link) = self.link(TUNNEL).await? {
            let same =
                |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(found) if *found == hardware);
            if link.attributes.iter().any(same) {
                return Ok(link.header.index);
            }
            self.remove_tunnel().await?;
        }
        let message = LinkVxlan::new(TUNNEL, TUNNEL_ID)
            .dev(uplink.index)
            .local(address)
            .port(TUNNEL_PORT)
            .learning(false)
            .mtu(plan.pod_mtu(uplink))
            .address(hardware.to_vec())
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(refused("making the tunnel"))?;
        let link = self.link(TUNNEL).await?;
        let index = link.map(|link| link.header.index).unwrap_or_default();
        let own = IpAddr::V4(pods.address());
        self.handle
            .address()
            .add(index, own, 32)
            .execute()
            .await
            .map_err(refused("the tunnel's address"))?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(up)
            .execute()
            .await
            .map_err(refused("setting the tunnel up"))?;
        tracing::info!(name = TUNNEL, "tunnel made");
        Ok(index)
    }

    /// Tells the tunnel where each peer is: its hardware address inside, and its address outside.
    async fn tunnel_peers(&self, index: u32, peers: &BTreeMap<Ipv4Addr, Ipv4Addr>) -> Result<(), Error> {
        let gone = self
            .neighbours(index, AddressFamily::Inet)
            .await?
            .into_iter()
            .filter(|entry| {
                entry.header.state == NeighbourState::Permanent
                    && !inside(entry).is_some_and(|it| peers.contains_key(&it))
            });
        let known: BTreeSet<[u8; 6]> = peers
            .values()
            .map(|outside| tunnel_hardware_address(*outside))
            .collect();
        let forwarding = self.neighbours(index, AddressFamily::Bridge).await?.into_iter();
        let forwarding = forwarding.filter(|entry| !known.iter().any(|known| hardware(entry) == Some(known)));
        for entry in gone.chain(forwarding) {
            let removal = self.handle.neighbours().del(entry).execute();
            removal.await.map_err(refused("removing a peer of the tunnel"))?;
        }
        for (inside, outside) in peers {
            let hardware = tunnel_hardware_address(*outside);
            let neighbour = self
                .handle
                .neighbours()
                .add(index, IpAddr::V4(*inside))
                .link_layer_address(&hardware);
            neighbour
                .replace()
                .execute()
                .await
                .map_err(refused("a neighbour in the tunnel"))?;
            let peer = self
                .handle
                .neighbours()
                .add_bridge(index, &hardware)
                .destination(IpAddr::V4(*outside))
                .flags(NeighbourFlags::Own);
            peer.replace()
                .execute()
                .await
                .map_err(refused("a peer of the tunnel"))?;
        }
        Ok(())
    }

    async fn neighbours(&self, index: u32, family: AddressFamily) -> Result<Vec<NeighbourMessage>, Error> {
        let request = self.handle.neighbours().get().set_address_family(family);
        let all: Vec<NeighbourMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(refused("listing neighbours"))?;
        Ok(all.into_iter().filter(|entry| entry.header.ifindex == index).collect())
    }
}

fn inside(entry: &NeighbourMessage) -> Option<Ipv4Addr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

fn hardware(entry: &NeighbourMessage) -> Option<&[u8]> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => Some(address.as_slice()),
        _ => None,
    })
}

fn present(route: &RouteMessage) -> Option<Present> {
    let inet = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(*address),
        _ => None,
    };
    let (mut destination, mut gateway, mut link, mut source) = (Ipv4Addr::UNSPECIFIED, None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = inet(address)?,
            RouteAttribute::Gateway(address) => gateway = inet(address),
            RouteAttribute::PrefSource(address) => source = inet(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let destination = Cidr::containing(destination, route.header.destination_prefix_length);
    Some(Present {
        destination,
        gateway,
        link,
        source,
    })
}

fn message(route: &Route, uplink: u32, tunnel: Option<u32>) -> (RouteMessage, Present) {
    let destination = route.destination();
    let builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .protocol(PROTOCOL)
        .destination_prefix(destination.address(), destination.prefix());
    let (builder, gateway, link, source) = match *route {
        Route::Gateway { gateway, .. } => (builder.gateway(gateway), Some(gateway), uplink, None),
        Route::Tunnel { gateway, .. } => (
            builder.gateway(gateway).onlink(),
            Some(gateway),
            tunnel.unwrap_or(uplink),
            None,
        ),
        Route::Link { source, .. } => (
            builder.pref_source(source).scope(RouteScope::Link),
            None,
            uplink,
            Some(source),
        ),
    };
    (
        builder.output_interface(link).build(),
        Present {
            destination,
            gateway,
            link: Some(link),
            source,
        },
    )
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
