//! A state that several tasks change and wait for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// See the head of this file.
pub(crate) struct Board<T> {
    state: Mutex<T>,
    changes: watch::Sender<u64>,
}

impl<T> Board<T> {
    /// Begins with `state`.
    pub(crate) fn new(state: T) -> Self {
        Self {
            state: Mutex::new(state),
            changes: watch::Sender::default(),
        }
    }

    /// The state as it is. What is changed by this wakes nobody.
    pub(crate) fn state(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes all who wait for that.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.state());
        self.tell();
        result
    }

    /// As [`Board::change`], for what may find nothing to change: then nobody is woken.
    pub(crate) fn try_change<R>(&self, change: impl FnOnce(&mut T) -> Option<R>) -> Option<R> {
        let result = change(&mut self.state())?;
        self.tell();
        Some(result)
    }

    /// Changes with every change of the state.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}
