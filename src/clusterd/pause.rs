//! `clusterd pause`: holds a pod's namespaces open. As the first process of a shared process namespace it also reaps orphans.

use rustix::{
    io::Errno,
    process::{WaitOptions, wait},
};
use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT, reaping children that others have left.
///
/// # Errors
/// When the signals cannot be caught.
pub async fn run() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = signal(SignalKind::child())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = child.recv() => reap(),
        }
    }
}

/// One signal may stand for many children.
fn reap() {
    while matches!(wait(WaitOptions::NOHANG), Ok(Some(_)) | Err(Errno::INTR)) {}
}
