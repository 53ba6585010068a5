//! Giving the disk a file while it is still being written, so that syncing it at the end doesn't take long.

use rustix::fs::Advice;
use std::{fs::File, num::NonZeroU64};

/// So much is handed over at once, in bytes.
const HANDED_OVER: u64 = 16 << 20;

/// How much of a growing file the disk has been asked to take.
#[derive(Debug, Default)]
pub struct Eager {
    handed_over: u64,
}

impl Eager {
    /// `file` has so many bytes by now.
    pub fn grown(&mut self, file: &File, written: u64) {
        let piece = written.saturating_sub(self.handed_over);
        if let Some(length) = NonZeroU64::new(piece).filter(|_| piece >= HANDED_OVER) {
            // Said of pages that are not on the disk yet this makes the kernel begin to write them, without waiting. It's advice:
            // a file system that doesn't take it will write at the end.
            let _ = rustix::fs::fadvise(file, self.handed_over, Some(length), Advice::DontNeed);
            self.handed_over = written;
        }
    }
}
