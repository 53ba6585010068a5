//! The way back to a host after the connection was lost.
//!
//! ```text
//! lost ──dial──▶ hello ──▶ open, if it was open ──▶ the request is asked again
//!   ▲              │          │ locked: the host has not noticed yet that we were gone
//!   └── pause ◀────┴──────────┘
//! ```

use std::{
    fmt,
    pin::Pin,
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    client::{ClientError, Opened, Result, greet},
    link::Link,
    proto::{FaultKind, Request},
};

/// The first pause between two attempts; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// A program that does not greet or open within this time is not waited for.
const ANSWER: Duration = Duration::from_secs(20);

/// What `clusterd host --stdio` writes, and what it reads.
pub type Streams = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// Starting `clusterd host` anew failed.
#[derive(Debug)]
pub struct DialError {
    /// Why, in words.
    pub message: String,
    /// Whether another attempt would fail too.
    pub lasting: bool,
}

/// An attempt to start `clusterd host` anew.
pub type Dialing = Pin<Box<dyn Future<Output = Result<Streams, DialError>> + Send>>;

/// How to come back to a host.
pub struct Redial {
    /// Starts `clusterd host` anew.
    pub dial: Box<dyn Fn() -> Dialing + Send + Sync>,
    /// How long it is tried again after the connection was lost.
    pub patience: Duration,
}

impl fmt::Debug for Redial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redial(for {:?})", self.patience)
    }
}

/// The pause after so many failed attempts.
fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(attempts))
        .min(LONGEST_PAUSE)
}

/// Another connection in place of one that was `lost`, opened as that one was.
///
/// # Errors
/// Both losses, when patience is at its end or nothing can come of it.
pub(crate) async fn back(redial: &Redial, lost: &ClientError, opened: Option<Opened>) -> Result<Link> {
    let until = Instant::now() + redial.patience;
    let mut attempts = 0;
    loop {
        let failure = match attempt(redial, opened.as_ref()).await {
            Ok(link) => return Ok(link),
            Err(failure) => failure,
        };
        tracing::info!(why = %failure.message, attempts, "the way back to the host failed");
        let pause = pause(attempts);
        if failure.lasting || Instant::now() + pause > until {
            return Err(ClientError::Lost(format!(
                "{}; connecting again: {}",
                lost.reason(),
                failure.message
            )));
        }
        attempts += 1;
        tokio::time::sleep(pause).await;
    }
}

async fn attempt(redial: &Redial, opened: Option<&Opened>) -> Result<Link, DialError> {
    let (reader, writer) = (redial.dial)().await?;
    let link = Link::new(reader, writer);
    let failed = |error: ClientError| DialError {
        message: error.to_string(),
        // A host that still believes in the connection before will notice.
        lasting: error.fault().is_some_and(|fault| fault.kind != FaultKind::Locked),
    };
    let late = |_| DialError {
        message: format!("clusterd did not answer within {} s", ANSWER.as_secs()),
        lasting: false,
    };
    let begin = async {
        greet(&link).await?;
        if let Some((scope, mode)) = opened.cloned() {
            link.ask(&Request::Open { scope, mode }).await?;
        }
        Ok(())
    };
    tokio::time::timeout(ANSWER, begin)
        .await
        .map_err(late)?
        .map_err(failed)?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_a_bound() {
        let all: Vec<u64> = (0..8).map(|n| pause(n).as_millis() as u64).collect();
        assert_eq!(all, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
