//! Many at once, but not too many: the one way in which this crate works on several hosts or nodes.

use crate::{Error, Result};
use futures::{StreamExt as _, future::BoxFuture, stream};
use std::{num::NonZeroUsize, sync::OnceLock};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Things done at the same time unless the user says otherwise.
pub const WIDTH: usize = 64;

/// What the user says: one choice for the whole program.
struct Limit {
    width: NonZeroUsize,
    slots: Semaphore,
}

static LIMIT: OnceLock<Limit> = OnceLock::new();

/// Sets how many hosts are worked on at once. The first call counts.
pub fn limit(width: NonZeroUsize) {
    let slots = Semaphore::new(width.get().min(Semaphore::MAX_PERMITS));
    let _ = LIMIT.set(Limit { width, slots });
}

fn width() -> usize {
    LIMIT.get().map_or(WIDTH, |limit| limit.width.get())
}

/// Waits for a turn to work on a host, where the user has limited that; the turn ends when what is returned is dropped.
pub(crate) async fn turn() -> Option<SemaphorePermit<'static>> {
    match LIMIT.get() {
        // It is never closed.
        Some(limit) => limit.slots.acquire().await.ok(),
        None => None,
    }
}

/// Does all of `work`, so many at once as are allowed; the results are in order.
pub async fn all<T: Send>(work: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    stream::iter(work).buffered(width()).collect().await
}

/// Does all of `work`; the results are in order.
///
/// # Errors
/// All failures, told together.
pub async fn all_good<T: Send>(work: Vec<BoxFuture<'_, Result<T>>>) -> Result<Vec<T>> {
    let (good, bad): (Vec<_>, Vec<_>) = all(work).await.into_iter().partition(Result::is_ok);
    match Error::merge(bad.into_iter().filter_map(Result::err).collect()) {
        Some(error) => Err(error),
        None => Ok(good.into_iter().filter_map(Result::ok).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// The most that were at work at once. Each waits until `enough` are, or nothing else can go on.
    async fn most(count: usize, turns: bool) -> usize {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = (0..count).map(|_| {
            async {
                let _turn = if turns { turn().await } else { None };
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, SeqCst);
            }
            .boxed()
        });
        if turns {
            futures::future::join_all(work).await;
        } else {
            all(work.collect()).await;
        }
        most.into_inner()
    }

    // One test, because the limit is one for the whole program.
    #[tokio::test]
    async fn no_more_hosts_are_worked_on_at_once_than_the_user_allows() {
        if LIMIT.get().is_none() {
            assert_eq!(most(WIDTH + 10, false).await, WIDTH);
            assert_eq!(
                most(WIDTH + 10, true).await,
                WIDTH + 10,
                "phases are not limited by default"
            );
        }
        limit(NonZeroUsize::new(3).unwrap());
        assert_eq!((most(20, false).await, most(20, true).await), (3, 3));
    }
}
