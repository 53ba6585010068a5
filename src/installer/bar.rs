//! A bar of bytes for what moves images: told absolute counts, from several threads.

use crate::{output::Output, progress::Task};
use image::{Event, Progress};
use std::sync::atomic::{AtomicU64, Ordering};

/// See the head of this file.
pub struct Bar {
    out: Output,
    task: Task,
    done: AtomicU64,
}

impl Bar {
    /// A bar for `label`, a file or an image.
    pub fn new(out: &Output, label: impl Into<String>) -> Self {
        Bar {
            out: out.clone(),
            task: out.task(label),
            done: AtomicU64::new(0),
        }
    }

    /// Ends the bar; the error itself is printed elsewhere.
    pub fn end(&self, good: bool) {
        match good {
            true => self.task.done("done"),
            false => self.task.fail("failed"),
        }
    }
}

impl Progress for Bar {
    fn event(&self, event: Event) {
        match event {
            Event::Bytes { done, total } => {
                let before = self.done.fetch_max(done, Ordering::Relaxed);
                if before == 0 {
                    self.task.total(total);
                }
                self.task.advance(done.saturating_sub(before));
            }
            Event::Waiting(what) => self.out.note(what),
            _ => {}
        }
    }
}
