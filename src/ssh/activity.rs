//! When something last happened with a program on the host, so that one with which nothing happens any more is given
//! up.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// See the head of this file. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    last: Instant,
    /// It is not the host that is waited for.
    paused: bool,
}

impl Activity {
    pub(crate) fn new() -> Self {
        let last = Instant::now();
        Self(Arc::new(Mutex::new(State { last, paused: false })))
    }

    fn set(&self, paused: bool) {
        let last = Instant::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State { last, paused };
    }

    /// Something happened.
    pub(crate) fn note(&self) {
        self.set(false);
    }

    /// Until the next [`Self::note`] it is this machine that takes its time.
    pub(crate) fn pause(&self) {
        self.set(true);
    }

    /// Waits until nothing has happened for so long.
    pub(crate) async fn stalled(&self, limit: Duration) {
        loop {
            let until = {
                let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let since = if state.paused { Instant::now() } else { state.last };
                since + limit
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_stands_still_without_a_reason_is_given_up() {
        const LIMIT: Duration = Duration::from_secs(60);
        let activity = Activity::new();
        let begun = Instant::now();
        let watched = activity.clone();
        let watching = tokio::spawn(async move {
            watched.stalled(LIMIT).await;
            begun.elapsed()
        });
        tokio::time::sleep(Duration::from_secs(50)).await;
        activity.note();
        tokio::time::sleep(Duration::from_secs(50)).await;
        activity.pause();
        tokio::time::sleep(Duration::from_secs(500)).await;
        activity.note();
        assert_eq!(watching.await.unwrap(), Duration::from_secs(660));
    }
}
