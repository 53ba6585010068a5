//! Points at which a test may stop a host: between the journal's record of a change (or its knowing of it already) and the change itself,
//! and between the steps of an undo. Only in builds with debug assertions; others have none of this.
//!
//! Nothing happens unless there is the file [`ARMED`]. It holds the number of the point to stop at; `0` stops nowhere. How many points
//! this process has passed is written to [`PASSED`]. At the chosen one it goes no further as long as the file holds that number.

/// Which point to stop at.
#[cfg(debug_assertions)]
const ARMED: &str = "/run/installer-fault";
/// How many were passed.
#[cfg(debug_assertions)]
const PASSED: &str = "/run/installer-fault.passed";

/// Passes a point, or stops there.
#[cfg(debug_assertions)]
pub(crate) fn point() {
    use std::{
        fs,
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let armed = || -> Option<u64> { fs::read_to_string(ARMED).ok()?.trim().parse().ok() };
    if armed().is_none() {
        return;
    }
    let passed = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    // Whoever waits for the number cannot do anything about it either.
    let _ = fs::write(PASSED, passed.to_string());
    while armed() == Some(passed) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn point() {}
