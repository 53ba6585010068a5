//! What a long operation is doing, told to whoever wants to show it.

use oci::Digest;

/// A notable moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An instruction begins.
    Step {
        /// Which one, from 1.
        number: usize,
        /// Of how many.
        total: usize,
        /// The instruction's text.
        text: String,
    },
    /// A RUN command printed a line.
    Output(String),
    /// A layer is in the store.
    Layer {
        /// Its blob's digest.
        digest: Digest,
        /// Its blob's size in bytes.
        size: u64,
        /// Whether it was there before.
        cached: bool,
    },
    /// Something may not be meant as it is, though it stops nothing: what, where, and what to write instead.
    Warning(String),
    /// Something else must end first; says what.
    Waiting(String),
    /// An image is being fetched or built to be carried.
    Image(String),
    /// Bytes of an image arrived from a registry.
    Pulled {
        /// The image's name in its short form.
        image: String,
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Bytes were moved.
    Bytes {
        /// So far.
        done: u64,
        /// In all, 0 if unknown.
        total: u64,
    },
}

/// Somebody who shows progress. Called from several threads.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _: Event) {}
}
