use super::*;
use proptest::{collection::vec, prelude::*};

const LIMITS: Limits = Limits {
    downloads: 4,
    seeds: 4,
    direct: 4,
    uploads: 8,
};

fn digest(blob: usize) -> Digest {
    Digest::of(&blob.to_le_bytes())
}

/// Hosts that lack all of these blobs.
fn spread(hosts: usize, peers: bool, sizes: &[u64]) -> Spread {
    let mut spread = Spread::new(hosts, peers, LIMITS);
    for host in 0..hosts {
        for (blob, size) in sizes.iter().enumerate() {
            spread.want(host, &digest(blob), *size);
        }
    }
    spread
}

/// A network as a fluid: every link is shared equally by what goes over it.
struct Fluid {
    spread: Spread,
    sizes: HashMap<Digest, f64>,
    flights: Vec<(usize, Digest, Source)>,
    there: HashMap<(usize, Digest), f64>,
    /// Bytes a second: of this machine, and of each host in either direction.
    uplink: f64,
    link: f64,
    sent: f64,
    /// Whose end is waited for, if not all hosts'.
    until: Option<usize>,
}

impl Fluid {
    fn new(hosts: usize, peers: bool, sizes: &[u64], uplink: f64, link: f64) -> Self {
        let of = |(blob, size): (usize, &u64)| (digest(blob), *size as f64);
        Self {
            spread: spread(hosts, peers, sizes),
            sizes: sizes.iter().enumerate().map(of).collect(),
            flights: Vec::new(),
            there: HashMap::new(),
            uplink,
            link,
            sent: 0.0,
            until: None,
        }
    }

    fn step(&mut self, seconds: f64) {
        let flights = self.flights.clone();
        let out = |of: Source| flights.iter().filter(|(_, _, from)| *from == of).count() as f64;
        let into = |of: usize| flights.iter().filter(|(host, _, _)| *host == of).count() as f64;
        for (host, digest, from) in &flights {
            let (size, rate) = match from {
                Source::Operator => (self.sizes[digest], self.uplink / out(*from)),
                Source::Host(source) => {
                    let whole = self.there.get(&(*source, digest.clone()));
                    (whole.copied().unwrap_or(0.0), self.link / out(*from))
                }
            };
            let rate = rate.min(self.link / into(*host));
            let at = self.there.entry((*host, digest.clone())).or_insert(0.0);
            let more = (rate * seconds).min((size - *at).max(0.0));
            *at += more;
            if *from == Source::Operator {
                self.sent += more;
            }
            if *at >= self.sizes[digest] {
                self.spread.done(*host, digest);
                self.flights.retain(|(h, d, _)| (h, d) != (host, digest));
            }
        }
    }

    /// Seconds until all have all, and bytes that left this machine.
    fn run(mut self) -> (f64, f64) {
        let (hosts, step) = (self.spread.hosts.len(), 0.01);
        for steps in 0..1_000_000_u32 {
            for host in 0..hosts {
                while let Some(next) = self.spread.next(host) {
                    self.flights.push((host, next.digest, next.from));
                }
            }
            let enough = self.until.is_some_and(|host| self.spread.is_served(host));
            if self.flights.is_empty() || enough {
                assert!(enough || (0..hosts).all(|host| self.spread.is_served(host)));
                return (f64::from(steps) * step, self.sent);
            }
            self.step(step);
        }
        panic!("it does not end");
    }
}

#[test]
fn many_hosts_take_hardly_longer_than_one_and_each_blob_leaves_this_machine_once() {
    // One large layer, as images often have; many alike; and something of both.
    let images = [
        vec![100_000_000],
        vec![10_000_000; 12],
        vec![80_000_000, 20_000_000, 9_000_000, 4_000_000, 500_000, 20_000, 3_000],
    ];
    // Where this machine's link is the bottleneck, where it is as good as theirs, and where it is better.
    for (uplink, link) in [(12.5e6, 125e6), (12.5e6, 12.5e6), (125e6, 12.5e6)] {
        for sizes in &images {
            let bytes: u64 = sizes.iter().sum();
            let (one, sent) = Fluid::new(1, true, sizes, uplink, link).run();
            assert!((sent - bytes as f64).abs() < 1.0);
            for hosts in [2, 5, 30] {
                let (all, sent) = Fluid::new(hosts, true, sizes, uplink, link).run();
                assert!(all <= 1.5 * one, "{hosts} hosts {all} s, one {one} s, {sizes:?}");
                assert!(
                    (sent - bytes as f64).abs() < 1.0,
                    "{hosts} hosts: {sent} of {bytes} bytes"
                );
            }
            let (_, sent) = Fluid::new(5, false, sizes, uplink, link).run();
            assert!((sent - 5.0 * bytes as f64).abs() < 1.0, "direct: {sent}");
        }
    }
}

#[test]
fn hosts_that_get_more_afterwards_are_served_as_if_they_were_alone_and_the_others_hardly_later() {
    for sizes in [vec![10_000_000; 12], vec![80_000_000, 20_000_000, 9_000_000, 500_000]] {
        for (uplink, link) in [(12.5e6, 125e6), (12.5e6, 12.5e6), (125e6, 12.5e6)] {
            let (one, _) = Fluid::new(1, true, &sizes, uplink, link).run();
            let mut fluid = Fluid::new(30, true, &sizes, uplink, link);
            fluid.spread.first(17);
            fluid.until = Some(17);
            let (first, _) = fluid.run();
            assert!(first <= 1.02 * one, "the first {first} s, one alone {one} s, {sizes:?}");
            let mut fluid = Fluid::new(30, true, &sizes, uplink, link);
            fluid.spread.first(17);
            let (all, sent) = fluid.run();
            assert!(all <= 1.5 * one, "all {all} s, one {one} s, {sizes:?}");
            assert!((sent - sizes.iter().sum::<u64>() as f64).abs() < 1.0);
        }
    }
}

#[test]
fn who_has_a_blob_already_gives_it_to_those_who_join() {
    let mut spread = Spread::new(3, true, LIMITS);
    spread.has(2, &digest(0));
    spread.want(0, &digest(0), 10);
    spread.want(1, &digest(0), 10);
    let next = spread.next(0).unwrap();
    assert_eq!((next.from, next.again), (Source::Host(2), false));
    // One at a time from each: the second follows the first.
    assert_eq!(spread.next(1).unwrap().from, Source::Host(0));
    assert_eq!(spread.next(1), None);
    // What was had and is gone is wanted like anything else.
    spread.want(2, &digest(0), 10);
    spread.failed(0, &digest(0), Blame::Source);
    let next = spread.next(0).unwrap();
    assert_eq!(
        (next.from, next.again),
        (Source::Operator, true),
        "nobody asks those behind it"
    );
}

#[test]
fn a_host_that_others_fail_is_sent_to_directly() {
    let mut spread = spread(4, true, &[10]);
    assert_eq!(spread.next(0).unwrap().from, Source::Operator);
    assert_eq!(spread.next(1).unwrap().from, Source::Host(0));
    spread.moved(1, &digest(0));
    assert_eq!(spread.next(2).unwrap().from, Source::Host(1));
    assert_eq!(spread.next(3).unwrap().from, Source::Host(2));
    for (source, alone) in [(2, false), (1, false), (1, true)] {
        assert!(!spread.is_alone(3), "{source}");
        // What had come before it broke off is no complaint.
        if (source, alone) == (1, false) {
            spread.moved(3, &digest(0));
        }
        spread.failed(3, &digest(0), Blame::Source);
        if source == 2 {
            spread.leave(2);
        }
        if !alone {
            assert_eq!(spread.next(3).unwrap().from, Source::Host(1));
        }
    }
    assert!(spread.is_alone(3));
    assert_eq!(spread.next(3).unwrap().from, Source::Operator);
}

/// How a network of hosts may be.
#[derive(Debug, Clone)]
struct World {
    hosts: usize,
    sizes: Vec<u64>,
    /// Who has what from the beginning.
    had: Vec<(usize, usize)>,
    /// Who cannot fetch from whom.
    walls: Vec<(usize, usize)>,
    /// Who gives something else than the blobs.
    liars: Vec<usize>,
    /// Which transfer ends next, and how.
    events: Vec<(usize, u8)>,
    peers: bool,
    /// Who gets more afterwards.
    first: Option<usize>,
}

fn world(walls: usize, liars: usize) -> impl Strategy<Value = World> {
    (1_usize..9, vec(1_u64..1000, 0..12), any::<bool>()).prop_flat_map(move |(hosts, sizes, peers)| {
        let pair = (0..hosts, 0..hosts);
        (
            proptest::option::of(0..hosts),
            vec((0..hosts, 0..sizes.len().max(1)), 0..6),
            vec(pair, 0..=walls),
            vec(0..hosts, 0..=liars),
            vec((any::<usize>(), any::<u8>()), 1..200),
        )
            .prop_map(move |(first, had, walls, liars, events)| World {
                first,
                hosts,
                sizes: sizes.clone(),
                had,
                walls,
                liars,
                events,
                peers,
            })
    })
}

/// Plays a world to its end; how often each blob left this machine.
fn play(world: &World) -> Vec<usize> {
    let mut spread = Spread::new(world.hosts, world.peers, LIMITS);
    if let Some(first) = world.first {
        spread.first(first);
    }
    let number: HashMap<Digest, usize> = (0..world.sizes.len()).map(|blob| (digest(blob), blob)).collect();
    let had = |host, blob| world.had.contains(&(host, blob));
    for host in 0..world.hosts {
        for (blob, size) in world.sizes.iter().enumerate() {
            match had(host, blob) {
                true => spread.has(host, &digest(blob)),
                false => spread.want(host, &digest(blob), *size),
            }
        }
    }
    let mut whole: HashSet<(usize, usize)> = world.had.iter().copied().collect();
    let mut sent = vec![0; world.sizes.len()];
    let mut flights: Vec<(usize, Digest, Source)> = Vec::new();
    let mut events = world.events.iter().cycle();
    for round in 0..100_000 {
        for host in 0..world.hosts {
            while let Some(next) = spread.next(host) {
                if next.from == Source::Operator {
                    sent[number[&next.digest]] += 1;
                }
                flights.push((host, next.digest, next.from));
            }
        }
        check(&spread, &flights);
        if flights.is_empty() {
            let all = (0..world.hosts).all(|host| spread.is_served(host));
            assert!(all, "nothing goes on, and something is missing: {spread:?}");
            assert!((0..world.hosts).all(|host| (0..world.sizes.len()).all(|blob| whole.contains(&(host, blob)))));
            return sent;
        }
        let (which, how) = events.next().copied().unwrap();
        let (host, digest, from) = flights[which.wrapping_add(round / world.events.len()) % flights.len()].clone();
        let blob = number[&digest];
        let ends = match from {
            Source::Host(source) if world.walls.contains(&(host, source)) => Some(Blame::Source),
            Source::Host(source) if world.liars.contains(&source) => Some(Blame::Content),
            // It has not got it whole itself: this one can only go on.
            Source::Host(source) if !whole.contains(&(source, blob)) => {
                spread.moved(host, &digest);
                // Whoever it came from may have stopped meanwhile.
                let stopped = !flights.iter().any(|(other, d, _)| (*other, d) == (source, &digest));
                match stopped {
                    true => Some(Blame::Source),
                    false => continue,
                }
            }
            Source::Host(_) if how == 0 && !world.walls.is_empty() => Some(Blame::Nobody),
            _ => None,
        };
        flights.retain(|(h, d, _)| (*h, d) != (host, &digest));
        match ends {
            Some(blame) => spread.failed(host, &digest, blame),
            None => {
                whole.insert((host, blob));
                spread.done(host, &digest);
            }
        }
    }
    panic!("it does not end");
}

fn check(spread: &Spread, flights: &[(usize, Digest, Source)]) {
    let seeds = flights
        .iter()
        .filter(|(host, _, from)| *from == Source::Operator && !spread.is_alone(*host));
    assert!(seeds.count() <= LIMITS.seeds);
    for host in 0..spread.hosts.len() {
        assert!(flights.iter().filter(|(to, ..)| *to == host).count() <= LIMITS.downloads);
        let mut given: Vec<_> = flights
            .iter()
            .filter(|(.., from)| *from == Source::Host(host))
            .collect();
        assert!(given.len() <= LIMITS.uploads);
        given.sort_by_key(|(_, digest, _)| digest.clone());
        assert!(
            given.windows(2).all(|pair| pair[0].1 != pair[1].1),
            "a blob goes to one at a time"
        );
    }
    for (host, digest, _) in flights {
        assert!(
            !spread.chain(*host, digest).any(|above| above == *host),
            "nobody feeds itself"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn where_hosts_reach_each_other_no_blob_leaves_this_machine_twice(world in world(0, 0)) {
        let sent = play(&world);
        if world.peers && world.hosts > 1 {
            for (blob, times) in sent.iter().enumerate() {
                let had = world.had.iter().any(|(_, had)| *had == blob);
                prop_assert_eq!(*times, usize::from(!had), "blob {}", blob);
            }
        }
    }

    #[test]
    fn whoever_cannot_reach_whom_and_whoever_lies_everyone_gets_everything(world in world(40, 2)) {
        play(&world);
    }
}
