//! The proof that a cluster needs nothing from elsewhere: while an apply runs, every host counts and refuses the packets that would
//! leave the cluster's addresses ([`host::effect::Fence`]). Here is what may be reached, and how the counters are read.
//!
//! The fence stands from the unpacking of the rootfs on, which brings the program that puts it up, until the last phase has ended.

use crate::{Error, Result, cluster, event::Event, fan, run::Run, session::Session, site::Site};
use futures::FutureExt as _;
use host::{
    Effect,
    effect::{FENCE_TABLE, Fence},
    proto::Exec,
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

/// How long reading the counters may take, in milliseconds.
const READING_MS: u64 = 20_000;

/// What a host found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// Name of the host.
    pub host: String,
    /// Packets that were refused; absent: nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Where they should have gone. Of very many destinations not all are here.
    pub tried: Vec<Tried>,
    /// Why nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// Packets to one address that were refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    /// Where they should have gone.
    pub to: String,
    /// How many.
    pub packets: u64,
    /// `tcp/443`; without ports `icmp`.
    pub ports: Vec<String>,
    /// Addresses of pods, or of machines that the host routes for; empty: the host itself.
    pub from: Vec<String>,
    /// Numbers of the users whose sockets these were.
    pub users: Vec<String>,
    /// Control groups of those sockets, two levels deep: `system.slice/chrony.service`.
    pub units: Vec<String>,
}

impl Proof {
    /// Whether it is known that nothing has left.
    pub fn holds(&self) -> bool {
        self.packets == Some(0)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.packets, &self.unknown) {
            (Some(0), _) => write!(f, "{}: no packet left the cluster's addresses", self.host),
            (Some(packets), _) => {
                write!(
                    f,
                    "{}: {} to elsewhere refused",
                    self.host,
                    oci::counted(packets, "packet")
                )?;
                self.tried.iter().try_for_each(|tried| write!(f, "\n    {tried}"))
            }
            (None, why) => write!(
                f,
                "{}: whether a packet left the cluster's addresses is not known: {}",
                self.host,
                why.as_deref().unwrap_or("nothing was counted")
            ),
        }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {}",
            self.to,
            self.ports.join(", "),
            oci::counted(self.packets, "packet")
        )?;
        if !self.from.is_empty() {
            write!(f, " from {}", self.from.join(", "))?;
        }
        if !self.users.is_empty() {
            write!(f, " of user {}", self.users.join(", "))?;
        }
        if !self.units.is_empty() {
            write!(f, " in {}", self.units.join(", "))?;
        }
        Ok(())
    }
}

/// What every host of the site may reach. The token names this run.
pub fn fence(site: &Site) -> Fence {
    let hosts = site.seats.iter().map(|seat| seat.ip.to_string());
    let blocks = [site.networks.pod_cidr, site.networks.service_cidr];
    let secret = cluster::api::new_token();
    Fence {
        token: secret.chars().filter(char::is_ascii_alphanumeric).collect(),
        allowed: hosts.chain(blocks.iter().map(ToString::to_string)).collect(),
    }
}

/// Reads what every host has counted, takes the fences down, and tells all.
pub(crate) async fn end(run: &Run) -> Vec<Proof> {
    let Some(fence) = &run.site.fence else {
        return Vec::new();
    };
    let work = run.sessions.iter().enumerate().map(|(index, session)| {
        async move {
            let host = run.host_name(index);
            let read = read(session, fence).await;
            if let Err(error) = take_down(session).await {
                run.observer.event(Event::Warning {
                    host: Some(host.clone()),
                    message: format!("{error}; the next apply or reset removes it"),
                });
            }
            let proof = match read {
                Ok((packets, tried)) => Proof {
                    host,
                    packets: Some(packets),
                    tried,
                    unknown: None,
                },
                Err(error) => Proof {
                    host,
                    packets: None,
                    tried: Vec::new(),
                    unknown: Some(error.to_string()),
                },
            };
            run.observer.event(Event::AirGap { proof: proof.clone() });
            proof
        }
        .boxed()
    });
    fan::all(work.collect()).await
}

async fn take_down(session: &Session) -> Result<()> {
    let removed = session.client.apply(vec![Effect::NoFence]).await;
    removed
        .map(drop)
        .map_err(session.failed("removing the packet filter of the proof"))
}

async fn read(session: &Session, fence: &Fence) -> Result<(u64, Vec<Tried>)> {
    let argv = ["nft", "-j", "list", "table", "inet", FENCE_TABLE];
    let exec = Exec {
        argv: argv.map(str::to_owned).to_vec(),
        timeout_ms: READING_MS,
        ..Exec::default()
    };
    let ran = session.client.exec(exec).await;
    let ran = ran.map_err(session.failed("reading the counters of the proof"))?;
    if ran.code != Some(0) {
        return Err(Error::on(
            session.ip,
            "its packet filter is not there: it was not put up, or the host was booted",
        ));
    }
    counted(&ran.stdout, fence, session.ip).ok_or_else(|| {
        Error::on(
            session.ip,
            "its packet filter is not the one of this run, or cannot be read",
        )
    })
}

/// What sets say about one destination.
#[derive(Default)]
struct Noted {
    packets: u64,
    protocols: BTreeSet<String>,
    /// Ports, sources, users, units.
    notes: [BTreeSet<String>; 4],
}

/// The packets that `nft -j list table` tells of on the host `own`; nothing if this is not what was put up.
fn counted(listing: &str, fence: &Fence, own: Ipv4Addr) -> Option<(u64, Vec<Tried>)> {
    let listing: Value = serde_json::from_str(listing).ok()?;
    let items = listing.get("nftables")?.as_array()?;
    let counter = format!("left_{}", fence.token);
    let packets = items
        .iter()
        .filter_map(|item| item.get("counter"))
        .find(|item| item.get("name").and_then(Value::as_str) == Some(&counter))?
        .get("packets")?
        .as_u64()?;
    let own = own.to_string();
    let mut all: BTreeMap<String, Noted> = BTreeMap::new();
    for set in items.iter().filter_map(|item| item.get("set")) {
        let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
        let kind = name.trim_end_matches(['4', '6']);
        let elements = set.get("elem").and_then(Value::as_array);
        for (words, packets) in elements.into_iter().flatten().filter_map(element) {
            let Some((to, rest)) = words.split_first().filter(|(_, rest)| !rest.is_empty()) else {
                continue;
            };
            let mut value = rest.join("/");
            if ["to", "port"].contains(&kind) {
                value = named(&value);
            }
            let index = match kind {
                "port" => 0,
                "source" if value != own => 1,
                "user" => 2,
                "unit" => 3,
                "to" => {
                    let tried = all.entry(to.clone()).or_default();
                    tried.packets += packets;
                    tried.protocols.insert(value);
                    continue;
                }
                _ => continue,
            };
            all.entry(to.clone()).or_default().notes[index].insert(value);
        }
    }
    let tried = all.into_iter().map(|(to, noted)| {
        let [ports, from, users, units] = noted.notes.map(|note| note.into_iter().collect::<Vec<_>>());
        let without = noted.protocols.into_iter().filter(|protocol| {
            let with = format!("{protocol}/");
            !ports.iter().any(|port| port.starts_with(&with))
        });
        Tried {
            to,
            packets: noted.packets,
            ports: without.chain(ports.clone()).collect(),
            from,
            users,
            units,
        }
    });
    Some((packets, tried.filter(|tried| tried.packets > 0).collect()))
}

/// A protocol, with its port if there is one, by name: where a host has no `/etc/protocols`, nft tells numbers.
fn named(protocol: &str) -> String {
    let (number, port) = match protocol.split_once('/') {
        Some((number, port)) => (number, format!("/{port}")),
        None => (protocol, String::new()),
    };
    let name = match number {
        "1" => "icmp",
        "6" => "tcp",
        "17" => "udp",
        "58" => "ipv6-icmp",
        other => other,
    };
    format!("{name}{port}")
}

/// The parts of a set's element, and what it counted.
fn element(element: &Value) -> Option<(Vec<String>, u64)> {
    let inner = element.get("elem").unwrap_or(element);
    let packets = inner.pointer("/counter/packets").and_then(Value::as_u64);
    let parts = inner.get("val").unwrap_or(inner).get("concat")?.as_array()?;
    let word = |part: &Value| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
    Some((parts.iter().map(word).collect(), packets.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::site;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn of_run(token: &str) -> Fence {
        Fence {
            token: token.into(),
            allowed: Vec::new(),
        }
    }

    /// As nft 1.0.6 writes it.
    const LISTING: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "installer-airgap", "handle": 1}},
        {"counter": {"family": "inet", "name": "left_run1", "table": "installer-airgap", "packets": 7, "bytes": 862}},
        {"set": {"name": "cluster", "type": "ipv4_addr", "elem": [{"prefix": {"addr": "100.64.0.0", "len": 16}}]}},
        {"set": {"name": "to4", "elem": [
            {"elem": {"val": {"concat": ["8.8.8.8", "tcp"]}, "counter": {"packets": 2, "bytes": 120}}},
            {"elem": {"val": {"concat": ["8.8.8.8", "icmp"]}, "counter": {"packets": 1, "bytes": 84}}},
            {"elem": {"val": {"concat": ["9.9.9.9", 17]}, "counter": {"packets": 3, "bytes": 30}}}]}},
        {"set": {"name": "to6", "elem": [
            {"elem": {"val": {"concat": ["2001:db8::1", "tcp"]}, "counter": {"packets": 1, "bytes": 80}}}]}},
        {"set": {"name": "port4", "elem": [{"concat": ["9.9.9.9", 17, 53]}, {"concat": ["8.8.8.8", "tcp", 443]}]}},
        {"set": {"name": "source4", "elem": [{"concat": ["9.9.9.9", "100.64.1.5"]}, {"concat": ["8.8.8.8", "10.0.0.1"]}]}},
        {"set": {"name": "user4", "elem": [{"concat": ["8.8.8.8", 100]}]}},
        {"set": {"name": "unit4", "elem": [{"concat": ["8.8.8.8", "system.slice/chrony.service"]}]}},
        {"set": {"name": "user6"}}]}"#;

    #[test]
    fn who_tried_to_leave_is_read_from_the_counters() {
        let (packets, tried) = counted(LISTING, &of_run("run1"), OWN).unwrap();
        assert_eq!(packets, 7);
        let proof = Proof {
            host: "m1".into(),
            packets: Some(packets),
            tried,
            unknown: None,
        };
        assert_eq!(
            proof.to_string(),
            "m1: 7 packets to elsewhere refused\
             \n    2001:db8::1 (tcp): 1 packet\
             \n    8.8.8.8 (icmp, tcp/443): 3 packets of user 100 in system.slice/chrony.service\
             \n    9.9.9.9 (udp/53): 3 packets from 100.64.1.5"
        );
        assert!(!proof.holds());
    }

    #[test]
    fn what_another_run_counted_proves_nothing() {
        for (listing, token) in [(LISTING, "run2"), ("{}", "run1"), ("{\"nftables\": [", "run1")] {
            assert_eq!(counted(listing, &of_run(token), OWN), None, "{listing}");
        }
    }

    #[test]
    fn a_cluster_may_reach_its_hosts_pods_and_services() {
        let fence = fence(&site());
        assert_eq!(fence.allowed, ["10.0.0.1", "10.0.0.2", "100.64.0.0/16", "10.96.0.0/16"]);
        assert!(fence.token.len() > 10 && fence.token != super::fence(&site()).token);
    }

    #[test]
    fn the_fence_is_put_up_as_soon_as_there_is_a_program_to_do_so_and_else_taken_down() {
        let mut site = site();
        let effects = |site: &Site| {
            let effects = crate::effects::rootfs(site, &site.seats[0], &Default::default()).unwrap();
            effects.into_iter().take(2).collect::<Vec<_>>()
        };
        assert!(matches!(effects(&site)[..], [Effect::Rootfs(_), Effect::NoFence]));
        let wanted = fence(&site);
        site.fence = Some(wanted.clone());
        assert!(matches!(&effects(&site)[..], [Effect::Rootfs(_), Effect::Fence(fence)] if *fence == wanted));
    }
}
