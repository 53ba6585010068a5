//! Keeps the caches fed: fill once, then follow etcd's stream; resume where it broke, refill if history is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchResponse};
use tokio_util::sync::CancellationToken;

use super::kind::{Change, KindCache};
use super::object::Object;
use super::{Cache, Spec};
use crate::store::{ROOT, StoreError, prefix_end};

/// Objects read at once while filling.
const PAGE: i64 = 500;
/// Pause before a broken stream is opened again.
const RETRY: Duration = Duration::from_millis(250);
/// How often idle rings let old events go.
const PRUNE: Duration = Duration::from_secs(30);

type Batch = HashMap<usize, (Arc<KindCache>, Vec<(Change, Object)>)>;

impl Cache {
    /// Runs until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rev = 0;
        loop {
            let end = tokio::select! {
                () = stop.cancelled() => return,
                end = self.session(rev) => end,
            };
            match end {
                Ok(()) => tracing::info!("etcd ended the watch"),
                Err(StoreError::Compacted) => {
                    tracing::warn!("etcd has compacted the history this cache needs; reading everything again");
                    self.synced.send_replace(false);
                }
                Err(e) => tracing::warn!(error = %e, "the watch on etcd broke"),
            }
            rev = if self.synced() { self.progress() } else { 0 };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// One stream: from `rev`, or from a fresh fill if it is 0.
    async fn session(&self, rev: i64) -> Result<(), StoreError> {
        let rev = if rev == 0 { self.fill().await? } else { rev };
        let mut stream = self.etcd.watch_all(rev).await?;
        if !self.synced() {
            self.progress.send_replace(rev);
            self.synced.send_replace(true);
        }
        let mut prune = tokio::time::interval(PRUNE);
        loop {
            tokio::select! {
                message = stream.message() => match message? {
                    None => return Ok(()),
                    Some(m) if m.compact_revision() > 0 => return Err(StoreError::Compacted),
                    Some(m) if m.canceled() => return Ok(()),
                    Some(m) => self.take(&m),
                },
                _ = prune.tick() => self.all().iter().for_each(|k| k.prune()),
            }
        }
    }

    /// Reads every object at one revision.
    async fn fill(&self) -> Result<i64, StoreError> {
        let end = prefix_end(ROOT);
        let mut start = ROOT.to_owned();
        let mut rev = 0;
        let mut found: HashMap<usize, Vec<Object>> = HashMap::new();
        loop {
            let page = self.etcd.range(&start, &end, rev, PAGE).await?;
            if rev == 0 {
                rev = page.rev;
            }
            for item in &page.items {
                let Some((kind, _)) = self.by_key(&item.key) else {
                    continue;
                };
                match Object::parse(&item.key, &item.value, item.rev, &kind.spec.fields) {
                    Ok((o, _)) => found.entry(Arc::as_ptr(&kind) as usize).or_default().push(o),
                    Err(e) => tracing::error!(error = %e, "object left out of the cache"),
                }
            }
            match page.items.last() {
                Some(last) if page.more => start = format!("{}\0", last.key),
                _ => break,
            }
        }
        for kind in self.all() {
            kind.refill(found.remove(&(Arc::as_ptr(&kind) as usize)).unwrap_or_default(), rev);
        }
        Ok(rev)
    }

    fn take(&self, message: &WatchResponse) {
        let mut batch = Batch::new();
        let mut rev = 0;
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            rev = rev.max(kv.mod_revision());
            let Ok(key) = kv.key_str() else { continue };
            let Some((kind, name)) = self.by_key(key) else { continue };
            let pending = &mut batch
                .entry(Arc::as_ptr(&kind) as usize)
                .or_insert_with(|| (kind.clone(), Vec::new()))
                .1;
            let change = match event.event_type() {
                EventType::Put => put(&kind.spec, key, kv.value(), kv.mod_revision()),
                EventType::Delete => deletion(&kind, name, pending, kv.mod_revision()),
            };
            pending.extend(change);
        }
        for (_, (kind, changes)) in batch {
            kind.apply(changes);
        }
        if rev > 0 {
            self.progress.send_if_modified(|p| {
                let newer = rev > *p;
                *p = rev.max(*p);
                newer
            });
        }
    }
}

fn put(spec: &Spec, key: &str, value: &[u8], rev: i64) -> Option<(Change, Object)> {
    match Object::parse(key, value, rev, &spec.fields) {
        Ok((object, _)) => Some((Change::Put, object)),
        Err(e) => {
            tracing::error!(error = %e, "event left out of the cache");
            None
        }
    }
}

/// The last version with the revision of its deletion: from this very batch if it was written there, else from the map.
fn deletion(kind: &KindCache, name: &str, pending: &[(Change, Object)], rev: i64) -> Option<(Change, Object)> {
    let in_batch = pending
        .iter()
        .rev()
        .find(|(_, o)| super::object_key(&o.namespace, &o.name) == name);
    let value = match in_batch {
        Some((Change::Delete, _)) => return None,
        Some((Change::Put, o)) => o.value(),
        None => kind.get_key(name)?.value(),
    };
    Some((Change::Delete, Object::from_value(value, rev, &kind.spec.fields).0))
}
