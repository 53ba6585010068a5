//! Many at once, but not too many: the one way in which this crate works on several hosts or nodes.

use crate::{Error, Result};
use futures::{StreamExt as _, future::BoxFuture, stream};

/// Things done at the same time.
pub const WIDTH: usize = 64;

/// Does all of `work`, at most [`WIDTH`] at once; the results are in order.
pub async fn all<T: Send>(work: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    stream::iter(work).buffered(WIDTH).collect().await
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
