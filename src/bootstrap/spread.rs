//! Who gets which blob from whom, so that each leaves this machine about once. Pure: it is told what happens and says what is next.
//!
//! ```text
//! this machine ──▶ host ──▶ host ──▶ …       a chain for each blob, others at the same time in another order
//! ```
//!
//! Hosts give on what is still arriving, and each gives a blob to one other at a time: so every link carries a blob once in each
//! direction, and the last host has it about when the first has. Hosts for which this machine has more afterwards get theirs from it
//! first, so that its own link is never idle. A host that gives nothing is not asked twice by the same one, one
//! that two others complain of is asked by nobody, and a host that two others failed is sent to directly: where hosts cannot reach
//! each other at all, everything soon goes as if there were none of this.

use oci::Digest;
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
};

/// How many other hosts may fail a host before it is sent to directly, and how many may complain of a host before nobody asks it.
const TRIALS: usize = 2;
/// How many transfers may break off in the middle before a host is sent to directly.
const BREAKS: usize = 16;

/// What may go on at the same time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Blobs on their way to one host.
    pub(crate) downloads: usize,
    /// Blobs on their way from this machine that hosts give on.
    pub(crate) seeds: usize,
    /// Blobs on their way from this machine to a host that gets nothing from others.
    pub(crate) direct: usize,
    /// Blobs on their way from one host to others.
    pub(crate) uploads: usize,
}

/// Where a blob comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// This machine.
    Operator,
    /// The host of this index.
    Host(usize),
}

/// Why a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The host it came from did not give it.
    Source,
    /// The host it came from gave something else.
    Content,
    /// Nobody is known to be at fault.
    Nobody,
}

/// What a host shall do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// Which blob.
    pub(crate) digest: Digest,
    /// Where it comes from.
    pub(crate) from: Source,
    /// Whether this was tried before.
    pub(crate) again: bool,
}

#[derive(Debug)]
struct Flight {
    from: Source,
    moved: bool,
    size: u64,
}

#[derive(Debug, Default)]
struct Host {
    /// Largest first, so that the last one is not what all wait for.
    wants: BTreeSet<(Reverse<u64>, Digest)>,
    flights: HashMap<Digest, Flight>,
    tried: HashSet<Digest>,
    /// Who failed it.
    bad: HashSet<usize>,
    /// Whom it failed.
    complaints: HashSet<usize>,
    breaks: usize,
    uploads: usize,
    /// Whether somebody got something from it.
    gives: bool,
    alone: bool,
    gone: bool,
    /// This machine has more for it afterwards.
    first: bool,
}

impl Host {
    fn is_source(&self) -> bool {
        !self.gone && (self.gives || self.complaints.len() < TRIALS)
    }

    fn seeds(&self) -> usize {
        let seeds = self.flights.values().filter(|flight| flight.from == Source::Operator);
        if self.alone { 0 } else { seeds.count() }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Spread {
    limits: Limits,
    hosts: Vec<Host>,
    /// Who has a blob, or is getting it.
    holders: HashMap<Digest, BTreeSet<usize>>,
}

impl Spread {
    /// So many hosts. With `peers` false, or one host only, each is sent to directly.
    pub(crate) fn new(hosts: usize, peers: bool, limits: Limits) -> Self {
        let host = |_| Host {
            alone: !peers || hosts < 2,
            ..Host::default()
        };
        Self {
            limits,
            hosts: (0..hosts).map(host).collect(),
            holders: HashMap::new(),
        }
    }

    /// This machine has more for a host afterwards: what it lacks and nobody has goes to it first.
    pub(crate) fn first(&mut self, host: usize) {
        self.hosts[host].first = true;
    }

    /// A host has a blob already.
    pub(crate) fn has(&mut self, host: usize, digest: &Digest) {
        self.holders.entry(digest.clone()).or_default().insert(host);
    }

    /// A host lacks a blob.
    pub(crate) fn want(&mut self, host: usize, digest: &Digest, size: u64) {
        self.lose(host, digest);
        self.hosts[host].wants.insert((Reverse(size), digest.clone()));
    }

    fn lose(&mut self, host: usize, digest: &Digest) {
        if let Some(holders) = self.holders.get_mut(digest) {
            holders.remove(&host);
        }
    }

    /// Whether a host has nothing to wait for.
    pub(crate) fn is_served(&self, host: usize) -> bool {
        self.hosts[host].wants.is_empty() && self.hosts[host].flights.is_empty()
    }

    /// Whether a host is sent to directly.
    pub(crate) fn is_alone(&self, host: usize) -> bool {
        self.hosts[host].alone
    }

    /// What a host shall begin now, if anything.
    pub(crate) fn next(&mut self, host: usize) -> Option<Assignment> {
        let (digest, size, from) = self.choose(host)?;
        if let Source::Host(source) = from {
            self.hosts[source].uploads += 1;
        }
        let this = &mut self.hosts[host];
        this.wants.remove(&(Reverse(size), digest.clone()));
        let flight = Flight {
            from,
            moved: false,
            size,
        };
        this.flights.insert(digest.clone(), flight);
        let again = !this.tried.insert(digest.clone());
        self.has(host, &digest);
        Some(Assignment { digest, from, again })
    }

    fn choose(&self, host: usize) -> Option<(Digest, u64, Source)> {
        let this = &self.hosts[host];
        let most = if this.alone {
            self.limits.direct
        } else {
            self.limits.downloads
        };
        if this.gone || this.flights.len() >= most {
            return None;
        }
        let may_seed = this.alone || self.may_seed(host);
        for (Reverse(size), digest) in &this.wants {
            let sources = if this.alone {
                Vec::new()
            } else {
                self.sources(host, digest)
            };
            let free = sources.iter().filter(|source| self.is_free(**source, digest));
            let best = free.min_by_key(|source| (self.depth(**source, digest), self.hosts[**source].uploads, **source));
            if let Some(source) = best {
                return Some((digest.clone(), *size, Source::Host(*source)));
            }
            if sources.is_empty() && may_seed && (this.alone || self.is_fit(host, digest, *size)) {
                return Some((digest.clone(), *size, Source::Operator));
            }
        }
        None
    }

    /// Whether this machine has room for one more blob to a host that gives it on. Each host gets its share of them.
    fn may_seed(&self, host: usize) -> bool {
        let now: usize = self.hosts.iter().map(Host::seeds).sum();
        let waits = |host: &Host| !(host.wants.is_empty() && host.flights.is_empty());
        let before = self.hosts[host].first;
        let sharing = |host: &&Host| !host.alone && !host.gone && waits(host) && (host.first || !before);
        let share = self
            .limits
            .seeds
            .div_ceil(self.hosts.iter().filter(sharing).count().max(1));
        now < self.limits.seeds && self.hosts[host].seeds() < share
    }

    /// Whether what is sent to this host can be had by others, or none of them waits for it; and none of them shall have it first.
    fn is_fit(&self, host: usize, digest: &Digest, size: u64) -> bool {
        let want = (Reverse(size), digest.clone());
        let this = &self.hosts[host];
        let fitter = |(index, other): (usize, &Host)| {
            let fit = index != host && !other.alone && other.is_source() && other.wants.contains(&want);
            fit && (!this.is_source() || other.first && !this.first)
        };
        !self.hosts.iter().enumerate().any(fitter)
    }

    /// Whom a host may fetch a blob from, now or later.
    fn sources(&self, host: usize, digest: &Digest) -> Vec<usize> {
        let holders = self.holders.get(digest).into_iter().flatten().copied();
        let may = |source: &usize| {
            *source != host
                && self.hosts[*source].is_source()
                && !self.hosts[host].bad.contains(source)
                && !self.chain(*source, digest).any(|above| above == host)
        };
        holders.filter(may).collect()
    }

    /// Where a host that is getting a blob gets it from, where that one gets it from, and so on.
    fn chain<'a>(&'a self, host: usize, digest: &'a Digest) -> impl Iterator<Item = usize> + 'a {
        let above = move |host: &usize| match self.hosts[*host].flights.get(digest)?.from {
            Source::Host(source) => Some(source),
            Source::Operator => None,
        };
        // No chain is longer than there are hosts.
        std::iter::successors(above(&host), above).take(self.hosts.len())
    }

    fn depth(&self, host: usize, digest: &Digest) -> usize {
        self.chain(host, digest).count()
    }

    fn is_free(&self, source: usize, digest: &Digest) -> bool {
        let from = Source::Host(source);
        let mut flights = self.hosts.iter().filter_map(|host| host.flights.get(digest));
        self.hosts[source].uploads < self.limits.uploads && !flights.any(|flight| flight.from == from)
    }

    /// Bytes of a blob have arrived on a host.
    pub(crate) fn moved(&mut self, host: usize, digest: &Digest) {
        let flight = self.hosts[host].flights.get_mut(digest);
        let Some(flight) = flight.filter(|flight| !flight.moved) else {
            return;
        };
        flight.moved = true;
        if let Source::Host(source) = flight.from {
            self.hosts[source].gives = true;
        }
    }

    fn land(&mut self, host: usize, digest: &Digest) -> Option<Flight> {
        let flight = self.hosts[host].flights.remove(digest)?;
        if let Source::Host(source) = flight.from {
            self.hosts[source].uploads -= 1;
        }
        Some(flight)
    }

    /// A host has got a blob whole.
    pub(crate) fn done(&mut self, host: usize, digest: &Digest) {
        self.moved(host, digest);
        self.land(host, digest);
    }

    /// A transfer failed; the host wants the blob as before.
    pub(crate) fn failed(&mut self, host: usize, digest: &Digest, blame: Blame) {
        let Some(flight) = self.land(host, digest) else {
            return;
        };
        self.want(host, digest, flight.size);
        let this = &mut self.hosts[host];
        this.breaks += 1;
        let fruitless = blame == Blame::Source && !flight.moved || blame == Blame::Content;
        if let Source::Host(source) = flight.from
            && fruitless
        {
            this.bad.insert(source);
            self.hosts[source].complaints.insert(host);
        }
        let this = &mut self.hosts[host];
        this.alone |= this.bad.len() >= TRIALS || this.breaks >= BREAKS;
    }

    /// A host takes no more part: it gets nothing and gives nothing.
    pub(crate) fn leave(&mut self, host: usize) {
        let flying: Vec<Digest> = self.hosts[host].flights.keys().cloned().collect();
        for digest in flying {
            self.land(host, &digest);
            self.lose(host, &digest);
        }
        self.hosts[host].wants.clear();
        self.hosts[host].gone = true;
    }
}

#[cfg(test)]
mod tests;
