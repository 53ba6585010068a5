//! Points at which a test may stop a host: between the journal's record of a change (or its knowing of it already) and the change itself,
//! and between the steps of an undo. Only in builds with debug assertions; others have none of this.
//!
//! A point has the name of what is recorded there, and the number of times that this process has come to that name: `1 file /etc/x`.
//! Nothing happens unless there is the file [`ARMED`]. It holds the points to stop at, a line each. Points that are passed are added to
//! [`PASSED`], a line each; where it stops, there is a `!` before the line, and it goes no further as long as `ARMED` holds that point.

/// Which points to stop at.
#[cfg(debug_assertions)]
const ARMED: &str = "/run/lock/installer-fault";
/// Which were passed.
#[cfg(debug_assertions)]
const PASSED: &str = "/run/lock/installer-fault.passed";

/// By how many milliseconds the clock is said to be wrong: hosts of one machine share its clock.
#[cfg(debug_assertions)]
const CLOCK: &str = "/run/lock/installer-fault.clock";

/// What the test says the clock is wrong by, in milliseconds.
#[cfg(debug_assertions)]
pub(crate) fn clock_ms() -> i64 {
    let said = std::fs::read_to_string(CLOCK).ok();
    said.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The clock is what it is.
#[cfg(not(debug_assertions))]
pub(crate) fn clock_ms() -> i64 {
    0
}

/// Passes a point, or stops there.
#[cfg(debug_assertions)]
pub(crate) fn point(names: impl FnOnce() -> Vec<String>) {
    use std::{
        collections::HashMap,
        fs::{self, OpenOptions},
        io::Write as _,
        sync::{Mutex, OnceLock, PoisonError},
        time::Duration,
    };
    static PASSES: OnceLock<Mutex<HashMap<String, u64>>> = OnceLock::new();
    let armed = || fs::read_to_string(ARMED).ok();
    if armed().is_none() {
        return;
    }
    let name = names().join(", ").replace('\n', " ");
    let mut passes = PASSES
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let count = passes.entry(name.clone()).or_default();
    *count += 1;
    let point = format!("{count} {name}");
    let stops = || armed().is_some_and(|armed| armed.lines().any(|line| line == point));
    let mark = if stops() { "!" } else { "" };
    // Whoever waits for it cannot do anything about a failure either.
    let file = OpenOptions::new().create(true).append(true).open(PASSED);
    let _ = file.and_then(|mut file| file.write_all(format!("{mark}{point}\n").as_bytes()));
    drop(passes);
    while stops() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_: impl FnOnce() -> Vec<String>) {}
