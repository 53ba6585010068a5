//! Tries the ways between hosts before anything is installed: each listens for a moment on what will be its ports, and the others knock.

use crate::{
    Result, cluster,
    fan::all_good,
    preflight::{Way, wanted_ways},
    session::Session,
    site::Site,
};
use futures::FutureExt as _;
use host::{
    Ears,
    proto::{Door, KnockAt, Knocked, Listen, MAX_DOORS},
};
use std::{collections::BTreeMap, net::SocketAddrV4};

/// How long a host may keep silent before a packet filter is to blame: a lost packet is sent again after one second.
const SILENCE_MS: u64 = 2_000;
/// How long hosts listen if nobody ends it.
const LISTENING_MS: u64 = 60_000;

/// Tries all ways that [`wanted_ways`] names. A port that somebody took meanwhile is left out.
///
/// # Errors
/// When a host cannot be talked to.
pub async fn try_all(site: &Site, sessions: &[Session]) -> Result<Vec<(Way, Knocked)>> {
    let ways = wanted_ways(site);
    if ways.is_empty() {
        return Ok(Vec::new());
    }
    let secret = cluster::api::new_token();
    // With the address, so that a host that is reached in place of another is noticed.
    let token = |to: usize| format!("{} {}", secret.as_str(), site.seats[to].ip);
    let mut ports: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
    for way in ways.iter().filter(|way| way.free) {
        let ports = ports.entry(way.to).or_default();
        if !ports.contains(&way.port) {
            ports.push(way.port);
        }
    }
    let listen = ports.into_iter().map(|(to, ports)| {
        let wish = Listen {
            address: site.seats[to].ip,
            ports,
            token: token(to),
            timeout_ms: LISTENING_MS,
        };
        async move { listen(&sessions[to], wish).await.map(|ears| (to, ears)) }.boxed()
    });
    let ears: BTreeMap<usize, Ears> = all_good(listen.collect()).await?.into_iter().collect();
    let hears = |way: &Way| !way.free || ears.get(&way.to).is_some_and(|ears| ears.ports.contains(&way.port));
    let mut from: BTreeMap<usize, Vec<Way>> = BTreeMap::new();
    for way in ways.into_iter().filter(hears) {
        from.entry(way.from).or_default().push(way);
    }
    let mut knocking = Vec::new();
    for (from, ways) in from {
        let door = |way: &Way| Door {
            at: SocketAddrV4::new(site.seats[way.to].ip, way.port),
            token: way.free.then(|| token(way.to)),
        };
        for ways in ways.chunks(MAX_DOORS) {
            let doors = ways.iter().map(door).collect();
            let ways = ways.to_vec();
            knocking.push(async move { Ok(ways.into_iter().zip(knock(&sessions[from], doors).await?)) }.boxed());
        }
    }
    let tried = all_good(knocking).await;
    let deaf = stop(ears).await;
    Ok(tried?
        .into_iter()
        .flatten()
        .filter(|(way, _)| !(way.free && deaf.contains(&way.to)))
        .collect())
}

async fn listen(session: &Session, wish: Listen) -> Result<Ears> {
    let listening = session.client.listen(wish).await;
    listening.map_err(session.failed("listening on the cluster's ports"))
}

async fn knock(session: &Session, doors: Vec<Door>) -> Result<Vec<Knocked>> {
    let wish = KnockAt {
        doors,
        timeout_ms: SILENCE_MS,
    };
    let results = session.client.knock(wish).await;
    results.map_err(session.failed("reaching the other hosts"))
}

/// Frees all ports. Hosts that had stopped listening because the connection to them was lost: nothing is known about the ways to them.
async fn stop(ears: BTreeMap<usize, Ears>) -> Vec<usize> {
    let stop = ears.into_iter().map(|(host, ears)| {
        async move {
            let end = ears.end().await;
            end.err().map(|error| {
                tracing::warn!(%error, host, "the ways to a host could not be tried");
                host
            })
        }
        .boxed()
    });
    crate::fan::all(stop.collect()).await.into_iter().flatten().collect()
}
