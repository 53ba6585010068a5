//! Blobs to many hosts: carries out what [`crate::spread`] says.
//!
//! Each host's own task begins what is next for it, and looks again whenever anything changes anywhere. A host serves from the moment
//! the first other one shall fetch from it, with a token made for it alone, until the last host has all its blobs, or we are gone.

use crate::{
    Result,
    board::Board,
    event::Event,
    plan,
    run::Run,
    site::Site,
    spread::{Assignment, Blame, Limits, Source, Spread},
    transfer,
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use host::{
    ClientError,
    proto::{Blob, FaultKind, Missing, Peer, Token},
};
use oci::Digest;
use rand::RngCore as _;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};
use zeroize::Zeroizing;

/// Blobs on their way to one host at the same time: enough that small ones do not wait for each other's answers.
const IN_FLIGHT: usize = 4;
/// Blobs on their way to all hosts together where each is sent to directly: this machine's disk and network are shared.
const IN_FLIGHT_TOTAL: usize = 64;

/// See the head of this file.
pub struct Swarm {
    board: Board<Spread>,
    /// Where each host serves, once one shall fetch from it.
    serving: Vec<tokio::sync::Mutex<Option<Peer>>>,
    /// How often blobs will still be brought to a host.
    rounds: AtomicUsize,
}

/// A host's place in the swarm while it gets blobs. One that does not get all of them leaves.
struct Place<'a> {
    swarm: &'a Swarm,
    index: usize,
    served: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.served {
            self.swarm.board.change(|state| state.leave(self.index));
        }
    }
}

/// How far a blob has come on a host, so that each byte is told once.
struct Meter {
    blob: Blob,
    have: u64,
    high: AtomicU64,
}

impl Meter {
    /// How many bytes more there are than ever before.
    fn reach(&self, at: u64) -> u64 {
        at.saturating_sub(self.high.fetch_max(at, Ordering::Relaxed))
    }
}

/// One host's blobs on their way.
struct Round<'a> {
    run: &'a Run,
    index: usize,
    meters: HashMap<Digest, Meter>,
    /// Bytes that came from other hosts.
    from_peers: AtomicU64,
}

impl Swarm {
    /// The hosts of `site`, of which each lacks what is `missing`. With `direct`, none fetches from another.
    pub fn new(site: &Site, missing: &[Vec<Missing>], direct: bool) -> Self {
        let hosts = site.seats.len();
        let limits = Limits {
            downloads: IN_FLIGHT,
            seeds: IN_FLIGHT,
            direct: IN_FLIGHT.min((IN_FLIGHT_TOTAL / hosts.max(1)).max(1)),
            uploads: 2 * IN_FLIGHT,
        };
        let mut state = Spread::new(hosts, !direct, limits);
        for (index, (seat, missing)) in site.seats.iter().zip(missing).enumerate() {
            // The images come after the rootfs.
            if seat.registry {
                state.first(index);
            }
            for blob in plan::wanted_blobs(site, seat) {
                if !missing.iter().any(|missing| missing.blob == blob) {
                    state.has(index, &blob.digest);
                }
            }
        }
        let registries = site.seats.iter().filter(|seat| seat.registry).count();
        Self {
            board: Board::new(state),
            serving: (0..hosts).map(|_| tokio::sync::Mutex::default()).collect(),
            rounds: AtomicUsize::new(hosts + registries),
        }
    }

    /// Brings a host what it lacks; how many bytes of it came from other hosts.
    ///
    /// # Errors
    /// When the host refuses a blob, cannot be written to, or is lost for good. That other hosts do not give is none.
    pub(crate) async fn bring(&self, run: &Run, index: usize, missing: Vec<Missing>) -> Result<u64> {
        let mut place = Place {
            swarm: self,
            index,
            served: false,
        };
        self.board.change(|state| {
            for missing in &missing {
                state.want(index, &missing.blob.digest, missing.blob.size);
            }
        });
        let meter = |missing: Missing| {
            let meter = Meter {
                high: AtomicU64::new(missing.have),
                have: missing.have,
                blob: missing.blob,
            };
            (meter.blob.digest.clone(), meter)
        };
        let round = Round {
            run,
            index,
            meters: missing.into_iter().map(meter).collect(),
            from_peers: AtomicU64::new(0),
        };
        self.all(&round).await?;
        place.served = true;
        drop(place);
        if self.rounds.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end(run).await;
        }
        Ok(round.from_peers.into_inner())
    }

    async fn all(&self, round: &Round<'_>) -> Result<()> {
        let mut changed = self.board.changes();
        let mut flights: FuturesUnordered<BoxFuture<'_, Result<()>>> = FuturesUnordered::new();
        loop {
            changed.borrow_and_update();
            while let Some(next) = self.board.try_change(|state| state.next(round.index)) {
                flights.push(self.fly(round, next).boxed());
            }
            if self.board.state().is_served(round.index) {
                return Ok(());
            }
            tokio::select! {
                Some(ended) = flights.next() => ended?,
                _ = changed.changed() => {}
            }
        }
    }

    async fn fly(&self, round: &Round<'_>, next: Assignment) -> Result<()> {
        let Some(meter) = round.meters.get(&next.digest) else {
            return Ok(());
        };
        match next.from {
            Source::Operator => self.send(round, meter, next.again).await,
            Source::Host(source) => self.fetch(round, meter, source).await,
        }
    }

    async fn send(&self, round: &Round<'_>, meter: &Meter, again: bool) -> Result<()> {
        let session = &round.run.sessions[round.index];
        let digest = &meter.blob.digest;
        let known = Missing {
            blob: meter.blob.clone(),
            have: meter.have,
        };
        let missing = match again {
            false => Some(known),
            true => {
                let asked = session.client.missing_blobs(vec![meter.blob.clone()]).await;
                asked.map_err(session.failed("asking which blobs it lacks"))?.pop()
            }
        };
        if let Some(missing) = missing {
            let path = round.run.blobs.path(digest);
            let at = AtomicU64::new(missing.have);
            let told = |bytes| {
                let at = at.fetch_add(bytes, Ordering::Relaxed) + bytes;
                round.tell(meter.reach(at), Source::Operator);
            };
            transfer::deliver(session, &path, missing, told).await?;
        }
        self.board.change(|state| state.done(round.index, digest));
        Ok(())
    }

    fn moved(&self, index: usize, digest: &Digest) {
        // Nobody waits for that, so nobody is woken.
        self.board.state().moved(index, digest);
    }

    async fn fetch(&self, round: &Round<'_>, meter: &Meter, source: usize) -> Result<()> {
        let (run, index, digest) = (round.run, round.index, &meter.blob.digest);
        let peer = match self.peer(run, source).await {
            Ok(peer) => peer,
            Err(error) => {
                self.refused(round, meter, source, Blame::Source, &error);
                return Ok(());
            }
        };
        let mut first = None;
        let told = |at| {
            round.tell(meter.reach(at), Source::Host(source));
            if at > *first.get_or_insert(at) {
                self.moved(index, digest);
            }
        };
        let session = &run.sessions[index];
        let fetched = session.client.fetch_blob(meter.blob.clone(), peer.clone(), told).await;
        let (blame, error) = match fetched {
            Ok(()) => {
                self.board.change(|state| state.done(index, digest));
                return Ok(());
            }
            Err(ClientError::Fault(fault)) => match fault.kind {
                FaultKind::Corrupt => (Blame::Content, ClientError::Fault(fault)),
                FaultKind::Failed | FaultKind::Timeout | FaultKind::NotFound => {
                    (Blame::Source, ClientError::Fault(fault))
                }
                _ => {
                    let doing = format!("fetching blob {}", digest.short());
                    return Err(session.failed(doing)(ClientError::Fault(fault)));
                }
            },
            Err(error @ ClientError::Lost(_)) => (Blame::Nobody, error),
            Err(error) => return Err(session.failed(format!("fetching blob {}", digest.short()))(error)),
        };
        self.forget(source, &peer).await;
        self.refused(round, meter, source, blame, &error);
        Ok(())
    }

    fn refused(&self, round: &Round<'_>, meter: &Meter, source: usize, blame: Blame, error: &dyn std::fmt::Display) {
        let (run, index, digest) = (round.run, round.index, &meter.blob.digest);
        let (host, source) = (run.host_name(index), run.host_name(source));
        tracing::info!(%host, %source, %error, blob = digest.short(), "a blob did not come from another host");
        let (was, is) = self.board.change(|state| {
            let was = state.is_alone(index);
            state.failed(index, digest, blame);
            (was, state.is_alone(index))
        });
        if is && !was {
            let message =
                format!("blobs are sent from this machine, since other hosts did not give them; {source}: {error}");
            run.note(Some(index), message);
        }
    }

    /// Where a host serves; it begins to if it does not yet.
    async fn peer(&self, run: &Run, source: usize) -> Result<Peer> {
        let mut serving = self.serving[source].lock().await;
        if let Some(peer) = serving.as_ref() {
            return Ok(peer.clone());
        }
        let session = &run.sessions[source];
        let token = Token::new(random_text());
        let at = session.client.serve(IpAddr::V4(session.ip), token.clone()).await;
        let at = at.map_err(session.failed("serving blobs to other hosts"))?;
        Ok(serving.insert(Peer { at, token }).clone())
    }

    /// Asks the host anew before the next one fetches from it: it may have been started again meanwhile.
    async fn forget(&self, source: usize, peer: &Peer) {
        let mut serving = self.serving[source].lock().await;
        if serving.as_ref().is_some_and(|now| now.at == peer.at) {
            *serving = None;
        }
    }

    /// No host serves any more.
    async fn end(&self, run: &Run) {
        let ends = self.serving.iter().zip(&run.sessions).map(|(serving, session)| {
            async move {
                if serving.lock().await.take().is_some()
                    && let Err(error) = session.client.end_serve().await
                {
                    // It ends with the connection at the latest.
                    tracing::info!(host = %session.ip, %error, "the host was not told to serve no more blobs");
                }
            }
            .boxed()
        });
        crate::fan::all(ends.collect()).await;
    }
}

impl Round<'_> {
    fn tell(&self, bytes: u64, from: Source) {
        if bytes == 0 {
            return;
        }
        if from != Source::Operator {
            self.from_peers.fetch_add(bytes, Ordering::Relaxed);
        }
        self.run.observer.event(Event::BytesSent {
            host: self.run.host_name(self.index),
            bytes,
        });
    }
}

/// 256 random bits.
pub(crate) fn random_text() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(&mut *bytes);
    Zeroizing::new(hex::encode(*bytes))
}
