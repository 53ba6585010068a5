//! Changing hosts that run pods: one after the other, each empty while its agent or its runtime is restarted.
//!
//! ```text
//! everywhere:     blobs ─▶ unpack ─┐
//! host by host:                    └▶ drain ─▶ rootfs … runtime … agent ─▶ settle ─▶ the next
//! ```
//!
//! Masters come first, one at a time, then so many nodes at once as [`Care`] allows. What is to be done is decided here, from the
//! plan's restarts; [`work`] does it. A host whose agent or runtime does not run has no turn: nothing there can be disturbed.

pub(crate) mod hold;
pub(crate) mod pods;
pub(crate) mod work;

use crate::{paths::unit, plan::HostPlan, site::Seat};
use serde::Serialize;
use std::{num::NonZeroUsize, time::Duration};

/// How careful a run is with pods.
#[derive(Debug, Clone, Copy)]
pub struct Care {
    /// How many nodes may be worked on at once. Masters are always worked on one at a time.
    pub max_unavailable: NonZeroUsize,
    /// Whether pods are moved elsewhere before.
    pub drain: bool,
    /// How long pods get to leave a node.
    pub patience: Duration,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            max_unavailable: NonZeroUsize::MIN,
            drain: true,
            patience: Duration::from_secs(300),
        }
    }
}

/// A host that is worked on when those before it work again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Its index in the site.
    pub index: usize,
    /// Whether it is a master.
    pub master: bool,
    /// Whether its pods are moved elsewhere before.
    pub drain: bool,
}

/// A turn as a plan tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedTurn {
    /// Name of the host.
    pub host: String,
    /// Whether its pods are moved elsewhere before.
    pub drain: bool,
}

/// The turns of a run, in their order.
#[derive(Debug, Clone, Default)]
pub struct Rolling {
    /// Masters first.
    pub turns: Vec<Turn>,
    /// How careful it is.
    pub care: Care,
}

impl Rolling {
    /// Who is to be worked on in turns, by what the plan restarts. Pure; both lists are in the site's order.
    pub fn of(seats: &[Seat], hosts: &[HostPlan], care: Care) -> Self {
        let both = seats.iter().zip(hosts).enumerate();
        let mut turns: Vec<Turn> = both
            .filter(|(_, (seat, _))| seat.seen.joined)
            .filter_map(|(index, (seat, host))| {
                Some(Turn {
                    index,
                    master: seat.master,
                    drain: disturbance(host)? == Disturbance::Pods && care.drain,
                })
            })
            .collect();
        turns.sort_by_key(|turn| !turn.master);
        Self { turns, care }
    }

    /// As the plan tells it.
    pub fn told(&self, seats: &[Seat]) -> Vec<PlannedTurn> {
        let turn = |turn: &Turn| PlannedTurn {
            host: seats[turn.index].name.clone(),
            drain: turn.drain,
        };
        self.turns.iter().map(turn).collect()
    }

    /// The turn of a host.
    pub fn turn(&self, index: usize) -> Option<&Turn> {
        self.turns.iter().find(|turn| turn.index == index)
    }

    pub(crate) fn position(&self, index: usize) -> Option<usize> {
        self.turns.iter().position(|turn| turn.index == index)
    }

    /// The hosts that must work again before one is touched. All that came long enough before are named, so that after a failure no
    /// further host is touched.
    pub(crate) fn before(&self, place: Option<usize>) -> Vec<usize> {
        let Some(own) = place.and_then(|index| self.position(index)) else {
            return Vec::new();
        };
        let width = self.care.max_unavailable.get();
        let before = self.turns[..own].iter().enumerate();
        before
            .filter(|(position, turn)| turn.master || position + width <= own)
            .map(|(_, turn)| turn.index)
            .collect()
    }
}

/// What an apply disturbs on a host that works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    /// Whoever is served by the control plane.
    ControlPlane,
    /// Whoever is served by pods: their agent or their runtime is restarted.
    Pods,
}

fn disturbance(host: &HostPlan) -> Option<Disturbance> {
    let how = |name: &str| {
        let what = format!("unit {name}");
        host.restarts.iter().find(|one| one.what == what).map(|one| one.how)
    };
    let carriers = [how(unit::AGENT), how(unit::CONTAINERD)];
    if carriers.contains(&Some("start")) {
        return None;
    }
    if carriers.contains(&Some("restart")) {
        return Some(Disturbance::Pods);
    }
    let control_plane = host.restarts.iter().any(|one| one.what.starts_with("static pod "));
    control_plane.then_some(Disturbance::ControlPlane)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::Restart, testing::seat};

    fn host(restarts: &[(&str, &'static str)]) -> HostPlan {
        HostPlan {
            host: String::new(),
            name: String::new(),
            role: "node",
            joins: false,
            blobs: 0,
            bytes: 0,
            changes: Vec::new(),
            restarts: restarts
                .iter()
                .map(|(what, how)| Restart {
                    what: (*what).to_owned(),
                    how,
                })
                .collect(),
        }
    }

    const AGENT: &str = "unit installer-agent.service";
    const RUNTIME: &str = "unit installer-containerd.service";

    #[test]
    fn pods_leave_when_what_carries_them_restarts_and_at_nothing_else() {
        let pods = Some(Disturbance::Pods);
        type Restarts = &'static [(&'static str, &'static str)];
        let table: [(Restarts, Option<Disturbance>); 8] = [
            (&[], None),
            (&[(AGENT, "restart")], pods),
            (&[(RUNTIME, "restart")], pods),
            (&[("unit installer-lb.service", "restart")], None),
            (&[("static pod etcd", "replace")], Some(Disturbance::ControlPlane)),
            (&[("static pod etcd", "replace"), (AGENT, "restart")], pods),
            // Who is to be mended cannot end its pods.
            (&[(AGENT, "start")], None),
            (&[(AGENT, "restart"), (RUNTIME, "start")], None),
        ];
        for (restarts, expected) in table {
            assert_eq!(disturbance(&host(restarts)), expected, "{restarts:?}");
        }
    }

    #[test]
    fn masters_come_first_and_hosts_that_join_or_do_not_change_have_no_turn() {
        let mut seats = vec![
            seat("10.0.0.1", "n1", false),
            seat("10.0.0.2", "m1", true),
            seat("10.0.0.3", "new", false),
            seat("10.0.0.4", "same", false),
            seat("10.0.0.5", "m2", true),
        ];
        for seat in &mut seats {
            seat.seen.joined = seat.name != "new";
        }
        let restart: &[(&str, &'static str)] = &[(AGENT, "restart")];
        let hosts = [restart, restart, restart, &[], &[("static pod etcd", "replace")]].map(host);
        let told = |care: Care| -> Vec<(String, bool)> {
            let rolling = Rolling::of(&seats, &hosts, care);
            rolling
                .told(&seats)
                .into_iter()
                .map(|turn| (turn.host, turn.drain))
                .collect()
        };
        let expected =
            |drain: bool| [("m1", drain), ("m2", false), ("n1", drain)].map(|(name, d)| (name.to_owned(), d));
        assert_eq!(told(Care::default()), expected(true));
        let care = Care {
            drain: false,
            ..Care::default()
        };
        assert_eq!(told(care), expected(false));
    }
}
