//! Watches: a place in the kind's ring of events, a selection, a writer. One task each, which ends with its client.

use std::sync::Arc;
use std::time::Duration;

use api::Kind;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::Context;
use super::format::Format;
use super::options::{At, ListOptions};
use super::render::EventWriter;
use super::select::Selection;
use crate::app::App;
use crate::body::Body;
use crate::cache::{Change, Cursor, Event, KindCache, Object};
use crate::error::{ApiError, Result};
use crate::metrics::KindLabels;
use crate::objects;
use crate::server::{Response, negotiated};

/// Chunks waiting for a client that reads slowly; behind them the watcher just stays where it is in the ring.
const CHUNKS: usize = 8;
/// Events taken from the ring at once.
const BATCH: usize = 128;
/// Bytes after which a chunk is sent.
const CHUNK_BYTES: usize = 64 << 10;
/// Time between bookmarks.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Shortest and longest life of a watch whose client names none, in seconds; random, so that they don't end together.
const LIFE: std::ops::Range<u64> = 1800..3600;

/// What a watcher gets to see of an event: its type and the object, with another revision if it left the selection.
fn seen<'a>(selection: &Selection, e: &'a Event) -> Option<(&'static str, &'a Object, Option<i64>)> {
    let before = e.prev.as_deref().filter(|p| selection.matches(p));
    match e.change {
        Change::Delete => {
            let known = before.is_some() || (e.prev.is_none() && selection.matches(&e.object));
            known.then_some(("DELETED", &e.object, None))
        }
        Change::Put => match (before, selection.matches(&e.object)) {
            (None, true) => Some(("ADDED", &e.object, None)),
            (Some(_), true) => Some(("MODIFIED", &e.object, None)),
            (Some(old), false) => Some(("DELETED", old, Some(e.object.rev))),
            (None, false) => None,
        },
    }
}

struct Watcher {
    app: Arc<App>,
    cache: Arc<KindCache>,
    selection: Selection,
    options: ListOptions,
    writer: EventWriter,
    out: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

/// The client is gone or the watch is over.
struct Ended;

/// Answers a watch.
///
/// # Errors
/// 400/406/422 for bad parameters, 504 for a revision not reached in time.
pub async fn watch(c: &Context, kind: &'static Kind, headers: &http::HeaderMap) -> Result<Response> {
    let format = Format::negotiate(headers, &c.info.query, false)?;
    let options = ListOptions::parse(&c.info.query, true)?;
    let cache = objects::cache_of(&c.app, kind)?;
    let selection = Selection::parse(kind, &cache.spec.fields, c.namespace(kind), &c.info.query)?;
    let start = start(c, &cache, &selection, &options).await?;
    let writer = EventWriter::new(kind, format);
    let media_type = writer.media_type();
    let (out, receiver) = mpsc::channel(CHUNKS);
    let labels = KindLabels {
        group: kind.group.into(),
        resource: kind.plural.into(),
    };
    let gauge = c.app.metrics.watches.get_or_create_owned(&labels);
    let watcher = Watcher {
        app: c.app.clone(),
        cache,
        selection,
        options,
        writer,
        out,
        buffer: Vec::new(),
    };
    tokio::spawn(async move {
        gauge.inc();
        watcher.run(start).await;
        gauge.dec();
    });
    Ok(negotiated(200, &media_type, Body::Stream(receiver)))
}

/// Where a watch begins.
struct Start {
    initial: Vec<Arc<Object>>,
    /// Revision of the bookmark after the initial events.
    end: Option<i64>,
    cursor: std::result::Result<Cursor, crate::cache::TooOld>,
}

async fn start(c: &Context, cache: &KindCache, selection: &Selection, options: &ListOptions) -> Result<Start> {
    let caches = &c.app.cache;
    let progress = match options.at {
        // A client that names no version gets the state first, as a list would show it.
        At::Newest => caches.consistent().await?,
        At::Any => caches.progress(),
        At::Exact(rev) | At::NotOlderThan(rev) => {
            caches.wait(rev).await?;
            if !options.initial_events {
                return Ok(Start {
                    initial: Vec::new(),
                    end: None,
                    cursor: cache.cursor(rev),
                });
            }
            caches.progress()
        }
    };
    let (snapshot, cursor) = cache.list_and_cursor(&selection.namespace, progress, |o| selection.matches(o));
    let end = (options.initial_events && options.bookmarks).then_some(snapshot.rev);
    Ok(Start {
        initial: snapshot.items,
        end,
        cursor: Ok(cursor),
    })
}

impl Watcher {
    async fn run(mut self, start: Start) {
        let mut error = None;
        if self.session(start, &mut error).await.is_err() {
            return;
        }
        if let Some(e) = error {
            let _ = self.writer.error(&e, &mut self.buffer);
        }
        let _ = self.flush().await;
    }

    async fn session(&mut self, start: Start, error: &mut Option<ApiError>) -> std::result::Result<(), Ended> {
        let mut cursor = match start.cursor {
            Ok(c) => c,
            Err(e) => {
                *error = Some(e.into());
                return Ok(());
            }
        };
        let mut news = self.cache.changed();
        for o in &start.initial {
            self.write(|w, out| w.event("ADDED", o, None, out)).await?;
        }
        if let Some(rev) = start.end {
            self.write(|w, out| w.bookmark(rev, true, out)).await?;
        }
        drop(start.initial);
        let life = self.options.timeout.unwrap_or_else(|| rand::random_range(LIFE));
        let deadline = Instant::now() + Duration::from_secs(life);
        let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARK, BOOKMARK);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut due = false;
            news.mark_unchanged();
            if self.drain(&mut cursor, error).await? {
                return Ok(());
            }
            tokio::select! {
                // The sender lives in the cache, which this task holds.
                _ = news.changed() => {}
                () = self.out.closed() => return Err(Ended),
                () = self.app.stop.cancelled() => return self.last_bookmark(&mut cursor, error).await,
                () = tokio::time::sleep_until(deadline) => return self.last_bookmark(&mut cursor, error).await,
                _ = bookmarks.tick() => due = true,
            }
            if due {
                self.bookmark(&mut cursor, error).await?;
            }
        }
    }

    /// Writes all events there are; whether the watch is over.
    async fn drain(&mut self, cursor: &mut Cursor, error: &mut Option<ApiError>) -> std::result::Result<bool, Ended> {
        loop {
            let events = match self.cache.next(cursor, BATCH) {
                Ok(e) => e,
                Err(e) => {
                    *error = Some(e.into());
                    return Ok(true);
                }
            };
            if events.is_empty() {
                self.flush().await?;
                return Ok(false);
            }
            for e in &events {
                let Some((name, object, rev)) = seen(&self.selection, e) else {
                    continue;
                };
                self.write(|w, out| w.event(name, object, rev, out)).await?;
            }
        }
    }

    /// A bookmark promises that everything up to its revision was sent: the promise is taken before the events are.
    async fn bookmark(&mut self, cursor: &mut Cursor, error: &mut Option<ApiError>) -> std::result::Result<(), Ended> {
        if !self.options.bookmarks {
            return Ok(());
        }
        let progress = self.app.cache.progress();
        if self.drain(cursor, error).await? {
            return Ok(());
        }
        self.write(|w, out| w.bookmark(progress, false, out)).await?;
        self.flush().await
    }

    async fn last_bookmark(
        &mut self,
        cursor: &mut Cursor,
        error: &mut Option<ApiError>,
    ) -> std::result::Result<(), Ended> {
        self.bookmark(cursor, error).await
    }

    async fn write(
        &mut self,
        f: impl FnOnce(&mut EventWriter, &mut Vec<u8>) -> Result<()>,
    ) -> std::result::Result<(), Ended> {
        if let Err(e) = f(&mut self.writer, &mut self.buffer) {
            tracing::error!(error = %e, "event cannot be encoded; the watch ends");
            return Err(Ended);
        }
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn flush(&mut self) -> std::result::Result<(), Ended> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        // A client that does not read for minutes is ended: its place in the ring would be gone anyway.
        let sent = tokio::time::timeout(Duration::from_secs(300), self.out.send(chunk)).await;
        sent.map_err(|_| Ended)?.map_err(|_| Ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Spec;
    use crate::request::Query;
    use serde_json::json;

    fn pod(label: &str, rev: i64) -> Object {
        Object::from_value(
            json!({"metadata": {"namespace": "a", "name": "p", "labels": {"x": label}}}),
            rev,
            &[],
        )
        .0
    }

    #[test]
    fn a_watcher_sees_objects_enter_and_leave_its_selection() {
        let kind = api::kinds::find("", "v1", "pods").unwrap();
        let selection = Selection::parse(kind, &[], "a", &Query::parse("labelSelector=x%3Dyes")).unwrap();
        let cache = KindCache::new(Spec {
            group: String::new(),
            plural: "pods".into(),
            fields: vec![],
        });
        cache.refill(vec![], 0);
        for (i, (change, label)) in [
            (Change::Put, "no"),
            (Change::Put, "yes"),
            (Change::Put, "yes"),
            (Change::Put, "no"),
            (Change::Delete, "no"),
            (Change::Put, "yes"),
            (Change::Delete, "yes"),
        ]
        .into_iter()
        .enumerate()
        {
            cache.apply(vec![(change, pod(label, i as i64 + 1))]);
        }
        let events = cache.next(&mut cache.cursor(0).unwrap(), 10).unwrap();
        let got: Vec<_> = events
            .iter()
            .map(|e| seen(&selection, e).map(|(n, o, r)| (n, r.unwrap_or(o.rev))))
            .collect();
        assert_eq!(
            got,
            [
                None,
                Some(("ADDED", 2)),
                Some(("MODIFIED", 3)),
                Some(("DELETED", 4)),
                None,
                Some(("ADDED", 6)),
                Some(("DELETED", 7)),
            ]
        );
    }
}
