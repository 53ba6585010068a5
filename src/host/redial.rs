//! The way back to a host after the connection was lost.
//!
//! ```text
//! lost ──dial──▶ hello ──▶ open, if it was open ──▶ the request is asked again
//!   ▲              │          │ locked: the host has not noticed yet that we were gone
//!   └── pause ◀────┴──────────┘
//! ```

use std::{fmt, pin::Pin, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use crate::{
    client::{ClientError, Opened, Result, greet},
    link::Link,
    proto::{FaultKind, Request},
};

/// The first pause between two attempts; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// After how long without a sign of life a host is not looked for any longer, though patience is not at its end: it
/// has no power.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
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
    /// For how long the host has given no sign of life: nobody there has said anything.
    pub silence: Duration,
}

/// An attempt to start `clusterd host` anew.
pub type Dialing = Pin<Box<dyn Future<Output = Result<Streams, DialError>> + Send>>;

/// How to come back to a host.
pub struct Redial {
    /// Starts `clusterd host` anew.
    pub dial: Box<dyn Fn() -> Dialing + Send + Sync>,
    /// How long it is tried again after the connection was lost, while the host gives signs of life.
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

/// Another connection in place of one that was `lost`, opened as that one was. Who has looked for the host in vain
/// already is not `patient`.
///
/// # Errors
/// Both losses, when patience is at its end, the host is silent for too long or nothing can come of it.
pub(crate) async fn back(redial: &Redial, lost: &ClientError, opened: Option<Opened>, patient: bool) -> Result<Link> {
    let until = Instant::now() + if patient { redial.patience } else { Duration::ZERO };
    let mut attempts = 0;
    loop {
        let failure = match attempt(redial, opened.as_ref()).await {
            Ok(link) => return Ok(link),
            Err(failure) => failure,
        };
        tracing::info!(why = %failure.message, attempts, "the way back to the host failed");
        let pause = pause(attempts);
        let silent = failure.silence + pause > SILENCE_TIMEOUT;
        if failure.lasting || silent || Instant::now() + pause > until {
            let silence = match failure.silence >= LONGEST_PAUSE {
                true => format!("; no sign of life for {} s", failure.silence.as_secs()),
                false => String::new(),
            };
            return Err(ClientError::Lost(format!(
                "{}; connecting again: {}{silence}",
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
        silence: Duration::ZERO,
    };
    let late = |_| DialError {
        message: format!("clusterd did not answer within {} s", ANSWER.as_secs()),
        lasting: false,
        silence: Duration::ZERO,
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

    /// How often a host is dialled that has been silent for so many seconds already, and is silent from then on or is
    /// there and does not let us in.
    async fn dialled(silent: u64, refuses: bool, patient: bool) -> (usize, u64, String) {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counted, begun) = (count.clone(), tokio::time::Instant::now());
        let dial = move || -> Dialing {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Box::pin(async move {
                // A refusal comes at once.
                if !refuses {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
                Err(DialError {
                    message: "not there".into(),
                    lasting: false,
                    silence: if refuses {
                        Duration::ZERO
                    } else {
                        Duration::from_secs(silent) + begun.elapsed()
                    },
                })
            })
        };
        let redial = Redial {
            dial: Box::new(dial),
            patience: Duration::from_secs(180),
        };
        let lost = ClientError::Lost("gone".into());
        let error = back(&redial, &lost, None, patient).await.err().unwrap().to_string();
        let count = count.load(std::sync::atomic::Ordering::Relaxed);
        (count, begun.elapsed().as_secs(), error)
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_without_a_sign_of_life_is_given_up_after_a_minute_and_one_that_refuses_is_not() {
        let (count, seconds, error) = dialled(0, false, true).await;
        assert!(
            count > 1 && (50..=75).contains(&seconds),
            "{count} times in {seconds} s"
        );
        assert!(error.contains("no sign of life for"), "{error}");
        // What was silent before the loss was noticed counts too.
        let (count, seconds, _) = dialled(40, false, true).await;
        assert!(
            count > 1 && (15..=35).contains(&seconds),
            "{count} times in {seconds} s"
        );
        // There is always one attempt.
        assert_eq!(dialled(100, false, true).await.0, 1);
        let (_, seconds, error) = dialled(0, true, true).await;
        assert!(
            (170..=180).contains(&seconds) && !error.contains("no sign of life"),
            "{seconds} s: {error}"
        );
        assert_eq!(dialled(0, true, false).await.0, 1);
    }

    #[test]
    fn pauses_grow_and_have_a_bound() {
        let all: Vec<u64> = (0..8).map(|n| pause(n).as_millis() as u64).collect();
        assert_eq!(all, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
