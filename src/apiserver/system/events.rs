//! A bound on the number of events. Each lives for an hour, so that what they take of the store and of every server's cache
//! depends on how much happens in one; under steady churn they would be most of what a server holds.

use std::sync::Arc;

use api::Kind;
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};

use super::kind;
use crate::app::App;
use crate::cache::Object;
use crate::error::Result;
use crate::objects;

/// Deletions that run at once.
const AT_ONCE: usize = 8;

/// Deletes the oldest events above the bound, and a tenth more, so that not every new one costs a deletion. All masters do
/// it; what another one has deleted, or somebody has written since, is left alone.
///
/// # Errors
/// When the store cannot be reached.
pub(super) async fn bound(app: &App) -> Result<()> {
    let kind = kind("", "v1", "events")?;
    let cache = objects::cache_of(app, kind)?;
    let most = app.args.max_events;
    if most == 0 || cache.len() <= most {
        return Ok(());
    }
    let surplus = oldest(cache.list("", 0, |_| true).items, most - most / 10);
    tracing::info!(
        events = surplus.len(),
        most,
        "there are more events than are kept; the oldest go"
    );
    let mut deleting = FuturesUnordered::new();
    for event in surplus {
        if deleting.len() == AT_ONCE {
            deleting.next().await.transpose()?;
        }
        deleting.push(delete(app, kind, event));
    }
    while deleting.try_next().await?.is_some() {}
    Ok(())
}

async fn delete(app: &App, kind: &Kind, event: Arc<Object>) -> Result<()> {
    let key = objects::key(kind, &event.namespace, &event.name);
    app.etcd.delete(&key, event.rev).await?;
    Ok(())
}

/// All but the `kept` objects that were written last.
fn oldest(mut objects: Vec<Arc<Object>>, kept: usize) -> Vec<Arc<Object>> {
    objects.sort_unstable_by_key(|o| o.rev);
    objects.truncate(objects.len().saturating_sub(kept));
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_written_last_is_kept() {
        let events = |revs: &[i64]| -> Vec<_> {
            let event = |rev: &i64| Arc::new(Object::from_value(json!({"metadata": {}}), *rev, &[]).0);
            revs.iter().map(event).collect()
        };
        let revs = |events: Vec<Arc<Object>>| -> Vec<i64> { events.iter().map(|e| e.rev).collect() };
        assert_eq!(revs(oldest(events(&[5, 2, 9, 4]), 2)), [2, 4]);
        assert!(oldest(events(&[5, 2]), 2).is_empty());
        assert!(oldest(events(&[5]), 2).is_empty());
    }
}
