//! From whom each host gets `clusterd`, so that it leaves this machine about once. Pure: it is told what happens and says what is next.
//!
//! ```text
//! this machine ──▶ host ──▶ host
//!                    └────▶ host ──▶ …       each gives it to one other at a time, so that with each step twice as many have it
//! ```
//!
//! A host can give only what it has whole, because what gives is `clusterd` itself. Two others that a host did not give it to are enough for
//! nobody to ask it, two that failed a host are enough for it to be sent to directly; and where nobody ever got it from another, the first
//! few failures are enough for all to be sent to directly.

use crate::spread::Source;
use std::collections::HashSet;

/// How many others may fail a host, or complain of one, before it is asked, or asks, no more.
const TRIALS: usize = 2;
/// How many failures without a single success prove that hosts do not reach each other.
const PROOF: usize = 3;

#[derive(Debug, Default)]
struct Place {
    has: bool,
    /// Is giving it to another now.
    gives: bool,
    /// Where it is being got from.
    from: Option<Source>,
    /// Got, but not known to work yet.
    trying: bool,
    /// Who failed it.
    bad: HashSet<usize>,
    /// Whom it failed.
    complaints: HashSet<usize>,
    /// Cannot get it from others.
    alone: bool,
}

/// How an attempt to get it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is there.
    Got,
    /// Whoever it was to come from did not give it, or something else.
    Refused,
    /// The host that lacks it has not what fetching takes.
    Unable,
    /// The host that lacks it is gone: nobody is to blame.
    Lost,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Handout {
    peers: bool,
    hosts: Vec<Place>,
    /// Whether any host got it from another.
    fruitful: bool,
}

impl Handout {
    /// So many hosts. With `peers` false, each is sent to directly.
    pub(crate) fn new(hosts: usize, peers: bool) -> Self {
        Self {
            peers: peers && hosts > 1,
            hosts: (0..hosts).map(|_| Place::default()).collect(),
            fruitful: false,
        }
    }

    /// A host shall be sent to directly.
    pub(crate) fn alone(&mut self, host: usize) {
        self.hosts[host].alone = true;
    }

    /// Where a host that lacks it gets it from now. Nothing: it shall wait for a change. One that does not want to wait any longer (`patient`
    /// false) is sent to directly unless it can get it from another at once.
    pub(crate) fn next(&mut self, host: usize, patient: bool) -> Option<Source> {
        let source = self.choose(host, patient)?;
        self.hosts[host].from = Some(source);
        if let Source::Host(giver) = source {
            self.hosts[giver].gives = true;
        }
        Some(source)
    }

    fn choose(&self, host: usize, patient: bool) -> Option<Source> {
        if !self.peers || self.hosts[host].alone {
            return Some(Source::Operator);
        }
        let may = |giver: &usize| *giver != host && self.may_give(*giver, host);
        let mut givers = (0..self.hosts.len()).filter(may).peekable();
        let any = givers.peek().is_some();
        match givers.find(|giver| self.hosts[*giver].has && !self.hosts[*giver].gives) {
            Some(giver) => Some(Source::Host(giver)),
            None if any && patient => None,
            None => Some(Source::Operator),
        }
    }

    /// Whether one has it, or will, and gives it to the other for all that is known.
    fn may_give(&self, giver: usize, host: usize) -> bool {
        let place = &self.hosts[giver];
        let comes = place.has || place.trying || place.from.is_some();
        comes && place.complaints.len() < TRIALS && !self.hosts[host].bad.contains(&giver)
    }

    /// An attempt to get it ended. One that got it is [settled](Self::settle) when it works.
    pub(crate) fn ended(&mut self, host: usize, how: Ended) {
        let Some(from) = self.hosts[host].from.take() else {
            return;
        };
        self.hosts[host].trying = how == Ended::Got;
        let Source::Host(giver) = from else {
            return;
        };
        self.hosts[giver].gives = false;
        match how {
            Ended::Got => self.fruitful = true,
            Ended::Lost => {}
            Ended::Unable => self.hosts[host].alone = true,
            Ended::Refused => {
                self.hosts[giver].complaints.insert(host);
                let bad = &mut self.hosts[host].bad;
                bad.insert(giver);
                self.hosts[host].alone = bad.len() >= TRIALS;
                let complaints: usize = self.hosts.iter().map(|place| place.complaints.len()).sum();
                self.peers &= self.fruitful || complaints < PROOF;
            }
        }
    }

    /// Whether a host has it, and it works, is known now; nothing more happens to it.
    pub(crate) fn settle(&mut self, host: usize, has: bool) {
        self.ended(host, Ended::Lost);
        let place = &mut self.hosts[host];
        (place.has, place.trying) = (has, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets all hosts get it, in rounds of equally long transfers: how many rounds that took, and how often this machine sent it. Giving from
    /// one host to another works if `reach` says so.
    fn run(handout: &mut Handout, hosts: usize, reach: impl Fn(usize, usize) -> bool) -> (usize, usize) {
        let (mut rounds, mut sent, mut waiting) = (0, 0, (0..hosts).collect::<Vec<_>>());
        while !waiting.is_empty() {
            let begun: Vec<_> = waiting
                .iter()
                .filter_map(|host| Some((*host, handout.next(*host, true)?)))
                .collect();
            assert!(!begun.is_empty(), "all wait for each other: {handout:?}");
            rounds += 1;
            for (host, source) in begun {
                let good = match source {
                    Source::Operator => true,
                    Source::Host(giver) => reach(giver, host),
                };
                sent += usize::from(source == Source::Operator);
                handout.ended(host, if good { Ended::Got } else { Ended::Refused });
                if good {
                    handout.settle(host, true);
                    waiting.retain(|other| *other != host);
                }
            }
        }
        (rounds, sent)
    }

    #[test]
    fn it_is_sent_once_and_twice_as_many_hosts_have_it_with_each_step() {
        for (hosts, rounds) in [(1, 1), (2, 2), (3, 3), (5, 4), (30, 6), (200, 9)] {
            let mut handout = Handout::new(hosts, true);
            assert_eq!(run(&mut handout, hosts, |_, _| true), (rounds, 1), "{hosts} hosts");
        }
    }

    #[test]
    fn a_host_that_has_it_from_before_spares_this_machine_all() {
        let mut handout = Handout::new(3, true);
        handout.settle(2, true);
        assert_eq!(handout.next(0, true), Some(Source::Host(2)));
        assert_eq!(handout.next(1, true), None, "nobody gives it to two at once");
        handout.ended(0, Ended::Got);
        assert_eq!(handout.next(1, true), Some(Source::Host(2)));
    }

    #[test]
    fn without_peers_all_are_sent_to_at_once() {
        assert_eq!(run(&mut Handout::new(20, false), 20, |_, _| true), (1, 20));
    }

    #[test]
    fn hosts_that_do_not_reach_each_other_are_soon_sent_to_directly() {
        let (rounds, sent) = run(&mut Handout::new(30, true), 30, |_, _| false);
        assert_eq!(sent, 30);
        assert!(rounds <= 6, "{rounds} rounds");
    }

    #[test]
    fn one_that_gives_nothing_is_asked_twice_at_most() {
        let (_, sent) = run(&mut Handout::new(30, true), 30, |giver, _| giver != 0);
        assert!(sent <= 3, "sent {sent} times");
        // And one that can get it from nobody does not keep the others from it.
        let (_, sent) = run(&mut Handout::new(30, true), 30, |_, host| host != 7);
        assert_eq!(sent, 2);
    }

    #[test]
    fn a_failure_leaves_nobody_waiting() {
        let mut handout = Handout::new(3, true);
        assert_eq!(handout.next(0, true), Some(Source::Operator));
        assert_eq!(handout.next(1, true), None);
        // The first one is lost before it was served, and another one takes its place.
        handout.settle(0, false);
        assert_eq!(handout.next(1, true), Some(Source::Operator));
        // What came does not work there: it cannot be given either.
        handout.ended(1, Ended::Got);
        assert_eq!(handout.next(2, true), None);
        handout.settle(1, false);
        assert_eq!(handout.next(2, true), Some(Source::Operator));
    }

    #[test]
    fn who_waited_too_long_is_sent_to() {
        let mut handout = Handout::new(3, true);
        assert_eq!(handout.next(0, true), Some(Source::Operator));
        assert_eq!(handout.next(1, true), None);
        assert_eq!(handout.next(1, false), Some(Source::Operator));
    }

    #[test]
    fn a_host_without_the_tools_is_sent_to_and_nobody_is_blamed() {
        let mut handout = Handout::new(3, true);
        handout.settle(0, true);
        for host in [1, 2] {
            assert_eq!(handout.next(host, true), Some(Source::Host(0)));
            handout.ended(host, Ended::Unable);
            assert_eq!(handout.next(host, true), Some(Source::Operator));
        }
        assert!(handout.hosts[0].complaints.is_empty());
    }
}
