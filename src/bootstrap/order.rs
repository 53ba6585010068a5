//! Where each phase happens on a site, and what each of these places waits for. Pure, so that it can be shown that every order ends.

use crate::{
    hooks,
    phases::{Need, On, Phase, is_beforehand, named},
    rolling::Rolling,
    site::{Seat, Site},
};

/// A phase on a host, by its index in the site, or for the cluster (`None`).
pub(crate) type Place = (&'static str, Option<usize>);

/// The hosts of a run, and in which order those are worked on that run pods already.
#[derive(Clone, Copy)]
pub(crate) struct Order<'s> {
    pub(crate) site: &'s Site,
    pub(crate) rolling: &'s Rolling,
}

impl Order<'_> {
    /// Where a phase happens.
    pub(crate) fn places(&self, phase: &Phase) -> Vec<Option<usize>> {
        let hosts = |wanted: fn(&Seat) -> bool| {
            let all = self.site.seats.iter().enumerate();
            all.filter(|(_, seat)| wanted(seat))
                .map(|(index, _)| Some(index))
                .collect()
        };
        match phase.on {
            On::Every => hosts(|_| true),
            On::Masters => hosts(|seat| seat.master),
            On::Registries => hosts(|seat| seat.registry),
            On::First => vec![Some(self.site.first_master())],
            On::Cluster => vec![None],
            On::External if self.site.registry.external => vec![None],
            On::External => Vec::new(),
            On::Rolling => self.rolling.turns.iter().map(|turn| Some(turn.index)).collect(),
            On::Hooks(action) => hooks::places(self.site, action).into_iter().map(Some).collect(),
        }
    }

    /// What a phase waits for at a place. A phase may be named where it does not happen: that is no hindrance.
    pub(crate) fn needed(&self, phase: &Phase, place: Option<usize>) -> Vec<Place> {
        let first = Some(self.site.first_master());
        let mut needed = Vec::new();
        for need in phase.needs {
            match *need {
                Need::Here(name) => needed.push((name, place)),
                Need::First(name) => needed.extend([(name, first), (name, None)]),
                Need::Everywhere(name) => needed.extend(self.everywhere(name, place).into_iter().map(|at| (name, at))),
                Need::Turn(name) => {
                    let before = self.rolling.before(place);
                    needed.extend(before.into_iter().map(|index| (name, Some(index))));
                    // Only before the first master works again the API server may not be there.
                    needed.extend((place != first).then_some(("api", None)));
                }
            }
        }
        needed
    }

    /// Where a phase happens, for somebody who waits for it at `place`: a host that is a node already does not wait for what others do
    /// when it is their turn, or they would wait for each other. Meanwhile they are what they were before.
    fn everywhere(&self, name: &'static str, place: Option<usize>) -> Vec<Option<usize>> {
        let Some(phase) = named(name) else { return Vec::new() };
        let mut places = self.places(phase);
        let waits = place.filter(|index| self.site.seats[*index].seen.joined && !is_beforehand(name));
        if let Some(here) = waits {
            let own = self.rolling.position(here);
            places.retain(|at| match (at.and_then(|at| self.rolling.position(at)), own) {
                (None, _) => true,
                (Some(theirs), Some(own)) => theirs <= own,
                (Some(_), None) => false,
            });
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        phases::PHASES,
        rolling::{Care, Turn},
        testing::{seat, site},
    };
    use std::{collections::BTreeSet, num::NonZeroUsize};

    /// Three masters, three nodes; those in `new` have not joined.
    fn cluster(new: &[usize]) -> Site {
        let mut site = site();
        site.seats = (0..6)
            .map(|n| seat(&format!("10.0.0.{}", n + 1), &format!("h{n}"), n < 3))
            .collect();
        for (index, seat) in site.seats.iter_mut().enumerate() {
            seat.seen.joined = !new.contains(&index);
        }
        site
    }

    fn rolling(indices: &[usize], width: usize) -> Rolling {
        Rolling {
            turns: indices
                .iter()
                .map(|&index| Turn {
                    index,
                    master: index < 3,
                    drain: true,
                })
                .collect(),
            care: Care {
                max_unavailable: NonZeroUsize::new(width).unwrap(),
                ..Care::default()
            },
        }
    }

    /// Carries everything out as soon as it may be; the order in which it ended. Panics when something waits for ever.
    fn ends(site: &Site, rolling: &Rolling) -> Vec<Place> {
        let order = Order { site, rolling };
        let mut waiting: Vec<(Place, Vec<Place>)> = Vec::new();
        for phase in PHASES {
            for place in order.places(phase) {
                waiting.push(((phase.name, place), order.needed(phase, place)));
            }
        }
        let all: BTreeSet<Place> = waiting.iter().map(|(place, _)| *place).collect();
        let mut done = Vec::new();
        while !waiting.is_empty() {
            let is_open = |need: &Place| all.contains(need) && !done.contains(need);
            let ready = waiting.iter().position(|(_, needs)| !needs.iter().any(is_open));
            let ready = ready.unwrap_or_else(|| panic!("all wait for each other: {waiting:?}"));
            done.push(waiting.remove(ready).0);
        }
        done
    }

    /// All that `place` waits for, however indirectly.
    fn behind(site: &Site, rolling: &Rolling, place: Place) -> BTreeSet<Place> {
        let order = Order { site, rolling };
        let (mut seen, mut next) = (BTreeSet::new(), vec![place]);
        while let Some((name, at)) = next.pop() {
            let phase = named(name).unwrap();
            if order.places(phase).contains(&at) && seen.insert((name, at)) {
                next.extend(order.needed(phase, at));
            }
        }
        seen.remove(&place);
        seen
    }

    #[test]
    fn whoever_has_a_turn_and_whoever_joins_nobody_waits_for_ever() {
        let new: [&[usize]; 3] = [&[], &[5], &[2, 4, 5]];
        let turns: [&[usize]; 7] = [&[], &[0], &[1], &[0, 1, 2, 3, 4, 5], &[1, 2, 3], &[3, 4], &[0, 4]];
        for new in new {
            for turns in turns {
                let turns: Vec<usize> = turns.iter().copied().filter(|index| !new.contains(index)).collect();
                for width in [1, 2, 9] {
                    let (site, rolling) = (cluster(new), rolling(&turns, width));
                    let settled = ends(&site, &rolling)
                        .iter()
                        .filter(|(name, _)| *name == "settle")
                        .count();
                    assert_eq!(settled, turns.len(), "{new:?} {turns:?}");
                }
            }
        }
    }

    #[test]
    fn a_host_is_touched_only_when_all_before_it_work_again_and_all_hosts_have_what_they_need() {
        let (site, rolling) = (cluster(&[]), rolling(&[0, 1, 2, 3, 4, 5], 1));
        let order = Order {
            site: &site,
            rolling: &rolling,
        };
        for name in [
            "drain",
            "rootfs",
            "registry",
            "runtime",
            "balancer",
            "control-plane",
            "agent",
        ] {
            let phase = named(name).unwrap();
            for here in order.places(phase).into_iter().flatten() {
                let behind = behind(&site, &rolling, (phase.name, Some(here)));
                for before in 0..here {
                    assert!(behind.contains(&("settle", Some(before))), "{} on {here}", phase.name);
                }
                assert!(!behind.contains(&("drain", Some(here + 1))), "{} on {here}", phase.name);
            }
        }
        let behind_first = behind(&site, &rolling, ("drain", Some(0)));
        for host in 0..6 {
            for phase in ["blobs", "unpack"] {
                assert!(behind_first.contains(&(phase, Some(host))), "{phase} on {host}");
            }
        }
    }

    #[test]
    fn two_nodes_at_once_are_two_and_masters_go_alone() {
        let (site, rolling) = (cluster(&[]), rolling(&[0, 1, 2, 3, 4, 5], 2));
        let behind = |here: usize| behind(&site, &rolling, ("drain", Some(here)));
        assert!(behind(2).contains(&("settle", Some(1))) && behind(3).contains(&("settle", Some(2))));
        assert!(!behind(4).contains(&("settle", Some(3))));
        assert!(behind(5).contains(&("settle", Some(3))) && !behind(5).contains(&("settle", Some(4))));
    }
}
