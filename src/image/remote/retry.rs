//! When to try again: how long to wait after which failure, and when to give up.

use std::time::Duration;

use crate::error::Error;

/// How often and how long failed requests are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in a row without any progress before giving up.
    pub tries: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub first: Duration,
    /// No wait is longer than this, whatever the registry asks for.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            tries: 6,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
        }
    }
}

/// Why one attempt failed, and whether another one makes sense.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) again: Again,
}

/// Whether another attempt makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// The answer would be the same.
    No,
    /// The network or the registry had a bad moment; the registry may have said how long to wait.
    After(Option<Duration>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure {
            error,
            again: Again::No,
        }
    }
}

impl From<oci::Error> for Failure {
    fn from(error: oci::Error) -> Self {
        Error::from(error).into()
    }
}

impl Retry {
    /// The wait before the attempt that follows `failed` failures in a row (from 1). `jitter` is between 0 and 1 and
    /// spreads clients that failed together.
    fn delay(&self, failed: u32, asked: Option<Duration>, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failed.saturating_sub(1).min(16));
        let spread = doubled.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        asked.unwrap_or(spread).min(self.longest)
    }

    pub(crate) fn start(self) -> Attempts {
        Attempts { retry: self, failed: 0 }
    }
}

/// Counts the attempts of one piece of work.
#[derive(Debug)]
pub(crate) struct Attempts {
    retry: Retry,
    failed: u32,
}

impl Attempts {
    /// Some of the work was done: failures before that don't count any more.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits until the next attempt may begin; gives the error back if there's to be none.
    pub(crate) async fn wait(&mut self, failure: Failure) -> Result<(), Error> {
        let Again::After(asked) = failure.again else {
            return Err(failure.error);
        };
        self.failed += 1;
        if self.failed >= self.retry.tries {
            return Err(failure.error);
        }
        tokio::time::sleep(self.retry.delay(self.failed, asked, rand::random())).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry {
        tries: 4,
        first: Duration::from_millis(100),
        longest: Duration::from_secs(1),
    };

    #[test]
    fn waits_double_up_to_a_bound_and_the_registry_is_obeyed_within_it() {
        for (failed, asked, jitter, expected) in [
            (1, None, 1.0, 100),
            (1, None, 0.0, 50),
            (3, None, 1.0, 400),
            (30, None, 1.0, 1000),
            (1, Some(700), 0.3, 700),
            (1, Some(3_600_000), 0.3, 1000),
            (1, None, 7.0, 100),
        ] {
            let asked = asked.map(Duration::from_millis);
            let expected = Duration::from_millis(expected);
            assert_eq!(
                RETRY.delay(failed, asked, jitter),
                expected,
                "{failed} {asked:?} {jitter}"
            );
        }
    }

    /// So short that the test doesn't wait.
    const BAD_MOMENT: Again = Again::After(Some(Duration::ZERO));

    fn failure(again: Again) -> Failure {
        Failure {
            error: Error::Refused("why".into()),
            again,
        }
    }

    #[tokio::test]
    async fn gives_up_after_failures_without_progress_and_at_once_where_it_makes_no_sense() {
        let mut attempts = RETRY.start();
        for _ in 0..3 {
            attempts.wait(failure(BAD_MOMENT)).await.unwrap();
        }
        attempts.progressed();
        for _ in 0..3 {
            attempts.wait(failure(BAD_MOMENT)).await.unwrap();
        }
        assert!(attempts.wait(failure(BAD_MOMENT)).await.is_err());
        assert!(RETRY.start().wait(failure(Again::No)).await.is_err());
    }
}
