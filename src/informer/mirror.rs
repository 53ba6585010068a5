//! A local copy of the objects of one kind.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        utils::Backoff,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

/// First and longest pause after a failed request. Shorter than usual: a node without these components is of no use, and
/// there are few of them.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Starts to keep a copy of all objects that `config` selects. `trim` drops the fields that the component does not need;
/// `changed` is told after every change, once the first listing is complete.
///
/// The copy follows until the runtime ends. What goes wrong is logged and tried again for ever; ask
/// [`Store::wait_until_ready`] for the first complete listing.
pub fn mirror<K>(api: Api<K>, config: watcher::Config, changed: Arc<Notify>, trim: fn(&mut K)) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, config).backoff(Doubling::default()).modify(move |object| {
        object.managed_fields_mut().clear();
        trim(object);
    });
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events.reflect(writer));
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::InitDone | watcher::Event::Apply(_) | watcher::Event::Delete(_)) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(kind = %K::kind(&()), "following again");
                    }
                    changed.notify_one();
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Err(error) => {
                    // One line per outage at the level people see; the rest for those who look.
                    if std::mem::replace(&mut failing, true) {
                        tracing::debug!(kind = %K::kind(&()), %error, "still not following");
                    } else {
                        tracing::warn!(kind = %K::kind(&()), %error, "cannot follow; trying again");
                    }
                }
            }
        }
    });
    store
}

/// Pauses that double up to a limit.
struct Doubling(Duration);

impl Default for Doubling {
    fn default() -> Self {
        Self(PAUSES.0)
    }
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSES.1);
        Some(pause)
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_again_after_success() {
        let mut pauses = Doubling::default();
        let seconds: Vec<_> = pauses.by_ref().take(8).map(|pause| pause.as_secs_f64()).collect();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]);
        pauses.reset();
        assert_eq!(pauses.next(), Some(PAUSES.0));
    }
}
