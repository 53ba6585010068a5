//! What a controller has asked for and not yet seen: while something is outstanding its cache is known to be behind, and
//! creating or deleting by it would do so twice.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An answer that never comes must not stop a controller for ever.
const PATIENCE: Duration = Duration::from_secs(300);

struct Outstanding {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

/// Outstanding creations (counted) and deletions (by UID) by owner UID.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<String, Outstanding>>);

impl Expectations {
    /// Whether the cache has caught up with everything asked for on behalf of `owner`.
    pub(crate) fn satisfied(&self, owner: &str) -> bool {
        self.lock()
            .get(owner)
            .is_none_or(|o| (o.creations <= 0 && o.deletions.is_empty()) || o.since.elapsed() > PATIENCE)
    }

    /// `creations` pods will be created and the pods `deletions` deleted.
    pub(crate) fn expect(&self, owner: &str, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let outstanding = Outstanding {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions: deletions.into_iter().collect(),
            since: Instant::now(),
        };
        self.lock().insert(owner.to_owned(), outstanding);
    }

    /// A creation was seen, or will never happen.
    pub(crate) fn created(&self, owner: &str) {
        if let Some(outstanding) = self.lock().get_mut(owner) {
            outstanding.creations -= 1;
        }
    }

    /// A deletion was seen, or will never happen.
    pub(crate) fn deleted(&self, owner: &str, pod: &str) {
        if let Some(outstanding) = self.lock().get_mut(owner) {
            outstanding.deletions.remove(pod);
        }
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &str) {
        self.lock().remove(owner);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Outstanding>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_waits_for_all_it_asked_for() {
        let expectations = Expectations::default();
        assert!(expectations.satisfied("o"));
        expectations.expect("o", 2, ["p".to_owned()]);
        expectations.created("o");
        expectations.deleted("o", "p");
        assert!(!expectations.satisfied("o"));
        expectations.deleted("o", "p");
        expectations.created("o");
        assert!(expectations.satisfied("o"));
    }
}
