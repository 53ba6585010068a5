//! Pods that wait: for their turn (active), for a pause to end after an error (backoff), for the cluster to change
//! (unschedulable). Plain data; the caller says what time it is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::PodInfo;
use crate::filters::Reason;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// Whatever was forgotten is tried again after this.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How often those who wait are looked through for that.
const SWEEP: Duration = Duration::from_secs(30);

type Turn = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Active(Turn),
    Backoff(Instant),
    Unschedulable(Instant),
    InFlight,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    reasons: BTreeSet<Reason>,
}

/// What a change of the cluster means for a waiting pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nothing.
    No,
    /// It may fit now; after its pause.
    Later,
    /// It fits now.
    Now,
}

/// The waiting pods.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeMap<Turn, String>,
    backoff: BTreeSet<(Instant, String)>,
    sequence: u64,
    /// When those that wait for a change were last looked through for forgotten ones.
    swept: Option<Instant>,
}

/// How many pods wait in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// For their turn.
    pub active: usize,
    /// For a pause to end.
    pub backoff: usize,
    /// For the cluster to change.
    pub unschedulable: usize,
}

impl Queue {
    fn activate(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let Place::Backoff(due) = entry.place {
            self.backoff.remove(&(due, uid.to_owned()));
        }
        if let Place::Active(turn) = entry.place {
            self.active.remove(&turn);
        }
        self.sequence += 1;
        let turn = (Reverse(entry.pod.priority), self.sequence);
        entry.place = Place::Active(turn);
        self.active.insert(turn, uid.to_owned());
    }

    /// A pod without node was seen; `true` if it is to be tried now. One that waits and has changed in what it asks for
    /// is tried again.
    pub fn put(&mut self, pod: Arc<PodInfo>) -> bool {
        let uid = pod.uid.clone();
        match self.entries.get_mut(&uid) {
            None => {
                let entry = Entry {
                    pod,
                    place: Place::InFlight,
                    attempts: 0,
                    reasons: BTreeSet::new(),
                };
                self.entries.insert(uid.clone(), entry);
                self.activate(&uid);
                true
            }
            Some(entry) => {
                let same = entry.pod.pod.spec == pod.pod.spec && entry.pod.labels() == pod.labels();
                entry.pod = pod;
                if !same && matches!(entry.place, Place::Unschedulable(_)) {
                    self.activate(&uid);
                    return true;
                }
                false
            }
        }
    }

    /// The pod waits no longer.
    pub fn remove(&mut self, uid: &str) {
        match self.entries.remove(uid).map(|e| e.place) {
            Some(Place::Active(turn)) => {
                self.active.remove(&turn);
            }
            Some(Place::Backoff(due)) => {
                self.backoff.remove(&(due, uid.to_owned()));
            }
            _ => {}
        }
    }

    /// The next pod to try: the most important, and among those the one that has waited longest.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.tick(now);
        let (_, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts = entry.attempts.saturating_add(1);
        Some(Arc::clone(&entry.pod))
    }

    /// No node takes the pod for those reasons: wait for a change.
    pub fn unschedulable(&mut self, uid: &str, reasons: BTreeSet<Reason>, now: Instant) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.reasons = reasons;
            entry.place = Place::Unschedulable(now);
        }
    }

    /// Something went wrong that time may heal.
    pub fn failed(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        self.remove_place(&uid);
        let entry = self.entries.entry(uid.clone()).or_insert(Entry {
            pod,
            place: Place::InFlight,
            attempts: 1,
            reasons: BTreeSet::new(),
        });
        let due = now + pause(entry.attempts);
        entry.place = Place::Backoff(due);
        self.backoff.insert((due, uid));
    }

    fn remove_place(&mut self, uid: &str) {
        match self.entries.get(uid).map(|e| &e.place) {
            Some(Place::Active(turn)) => {
                self.active.remove(turn);
            }
            Some(Place::Backoff(due)) => {
                self.backoff.remove(&(*due, uid.to_owned()));
            }
            _ => {}
        }
    }

    /// The cluster changed: asks `wakes` about every pod that waits for that. `true` if any is to be tried now.
    pub fn wake(&mut self, now: Instant, wakes: impl Fn(&PodInfo, &BTreeSet<Reason>) -> Wake) -> bool {
        let woken: Vec<(String, Wake)> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.place, Place::Unschedulable(_)))
            .map(|(uid, e)| (uid.clone(), wakes(&e.pod, &e.reasons)))
            .filter(|(_, wake)| *wake != Wake::No)
            .collect();
        let any = !woken.is_empty();
        for (uid, wake) in woken {
            let Some(entry) = self.entries.get_mut(&uid) else {
                continue;
            };
            let Place::Unschedulable(since) = entry.place else {
                continue;
            };
            let due = since + pause(entry.attempts);
            if wake == Wake::Now || due <= now {
                self.activate(&uid);
            } else {
                entry.place = Place::Backoff(due);
                self.backoff.insert((due, uid));
            }
        }
        any
    }

    /// Moves what is due into the active queue.
    fn tick(&mut self, now: Instant) {
        while let Some((due, uid)) = self.backoff.first().cloned() {
            if due > now {
                break;
            }
            self.activate(&uid);
        }
        if self.swept.is_some_and(|at| now.duration_since(at) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        let forgotten: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.place, Place::Unschedulable(since) if now.duration_since(since) > LONGEST_WAIT))
            .map(|(uid, _)| uid.clone())
            .collect();
        forgotten.iter().for_each(|uid| self.activate(uid));
    }

    /// When [`Queue::pop`] may have something although nothing changed.
    pub fn next_due(&self) -> Option<Instant> {
        let sweep = self.swept.filter(|_| !self.entries.is_empty()).map(|at| at + SWEEP);
        self.backoff.first().map(|(due, _)| *due).into_iter().chain(sweep).min()
    }

    /// How many wait in which way.
    pub fn waiting(&self) -> Waiting {
        let unschedulable = self
            .entries
            .values()
            .filter(|e| matches!(e.place, Place::Unschedulable(_)))
            .count();
        Waiting {
            active: self.active.len(),
            backoff: self.backoff.len(),
            unschedulable,
        }
    }
}

fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << attempts.saturating_sub(1).min(8))
        .min(LAST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{info, pod};

    fn ranked(name: &str, priority: i32) -> Arc<PodInfo> {
        let mut pod = pod(name, "1", "1Mi");
        pod.spec.as_mut().unwrap().priority = Some(priority);
        info(pod)
    }

    fn pop(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|p| p.key.name.clone())
    }

    #[test]
    fn the_important_come_first_and_then_the_early() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.put(ranked(name, priority));
        }
        let now = Instant::now();
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_failed_pod_pauses_longer_each_time() {
        for (attempts, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (50, 10)] {
            assert_eq!(pause(attempts), Duration::from_secs(seconds), "{attempts}");
        }
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.put(ranked("a", 0));
        let pod = queue.pop(start).unwrap();
        queue.failed(pod, start);
        assert_eq!(pop(&mut queue, start), None);
        assert_eq!(queue.next_due(), Some(start + Duration::from_secs(1)));
        assert_eq!(pop(&mut queue, start + Duration::from_secs(1)), Some("a".into()));
    }

    #[test]
    fn an_unschedulable_pod_waits_for_a_change_that_matters() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.put(ranked("a", 0));
        let pod = queue.pop(start).unwrap();
        queue.unschedulable(&pod.uid, [Reason::TooManyPods].into(), start);
        assert_eq!(
            queue.waiting(),
            Waiting {
                unschedulable: 1,
                ..Waiting::default()
            }
        );
        assert!(!queue.wake(start, |_, reasons| if reasons.contains(&Reason::Ports) {
            Wake::Now
        } else {
            Wake::No
        }));
        assert!(queue.wake(start, |_, _| Wake::Later));
        assert_eq!(pop(&mut queue, start), None, "its pause is not over");
        assert_eq!(pop(&mut queue, start + Duration::from_secs(2)), Some("a".into()));
        queue.unschedulable(&pod.uid, BTreeSet::new(), start);
        queue.wake(start, |_, _| Wake::Now);
        assert_eq!(pop(&mut queue, start), Some("a".into()));
        queue.unschedulable(&pod.uid, BTreeSet::new(), start);
        assert_eq!(
            pop(&mut queue, start + LONGEST_WAIT + Duration::from_secs(1)),
            Some("a".into()),
            "nobody is forgotten"
        );
    }
}
