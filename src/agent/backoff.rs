//! How long to wait before trying again. Two shapes: the restart back-off of Kubernetes, which forgets after ten quiet
//! minutes, and plain doubling for everything else.

use crate::observed::{Nanos, SECOND};
use std::time::Duration;

/// First delay between restarts and between image pulls.
pub const FIRST: Nanos = 10 * SECOND;
/// Longest delay.
pub const LONGEST: Nanos = 300 * SECOND;

/// Restart back-off of one container: 10 s doubling to 300 s, forgotten after 10 minutes without a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restart {
    delay: Nanos,
    updated: Nanos,
}

impl Restart {
    /// The delay that holds now; 0 before the first restart.
    pub fn delay(&self) -> Nanos {
        self.delay
    }

    /// When a container that ended at `finished` may be started again; a time in the past means at once.
    pub fn ready_at(&self, finished: Nanos) -> Nanos {
        if self.expired(finished) {
            finished
        } else {
            finished + self.delay
        }
    }

    /// A container that ended at `finished` is being started again.
    pub fn restarted(&mut self, finished: Nanos) {
        self.delay = if self.delay == 0 || self.expired(finished) {
            FIRST
        } else {
            (self.delay * 2).min(LONGEST)
        };
        self.updated = finished;
    }

    fn expired(&self, now: Nanos) -> bool {
        self.delay > 0 && now - self.updated > 2 * LONGEST
    }
}

/// Plain doubling between two bounds.
#[derive(Debug, Clone)]
pub struct Doubling {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Doubling {
    /// From `first` doubling to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Doubling {
        Doubling {
            first,
            longest,
            next: first,
        }
    }

    /// For the API server: quick at first, because a cluster that comes up is waited for.
    pub fn api() -> Doubling {
        Doubling::new(Duration::from_millis(200), Duration::from_secs(1))
    }

    /// The next delay.
    pub fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (self.next * 2).min(self.longest);
        now
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

impl Iterator for Doubling {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(Doubling::next(self))
    }
}

impl kube::runtime::utils::Backoff for Doubling {
    fn reset(&mut self) {
        Doubling::reset(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn restarts_wait_10_20_40_up_to_300_seconds_and_the_first_is_immediate() {
        let mut b = Restart::default();
        let mut at = 1_000 * SECOND;
        let mut waits = vec![];
        for _ in 0..8 {
            waits.push((b.ready_at(at) - at) / SECOND);
            b.restarted(at);
            at = b.ready_at(at).max(at) + SECOND;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_quiet_minutes_are_forgiven() {
        let mut b = Restart::default();
        b.restarted(0);
        b.restarted(SECOND);
        let later = 602 * SECOND;
        assert_eq!(b.ready_at(later), later);
        b.restarted(later);
        assert_eq!(b.delay(), FIRST);
    }

    proptest! {
        #[test]
        fn the_delay_is_always_within_its_bounds(times in proptest::collection::vec(0i64..2_000, 1..40)) {
            let mut b = Restart::default();
            let mut at = 0;
            for t in times {
                at += t * SECOND;
                b.restarted(at);
                prop_assert!((FIRST..=LONGEST).contains(&b.delay()));
                prop_assert!(b.ready_at(at) >= at);
            }
        }
    }
}
