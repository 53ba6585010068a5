//! Reading and writing single objects: the optimistic loop every change goes through, below REST and above etcd.

use std::sync::Arc;

use api::Kind;
use serde_json::Value;

use crate::app::App;
use crate::cache::{KindCache, object_key};
use crate::error::{ApiError, Result};
use crate::store::{Cas, StoreError, Stored, prefix};

/// Attempts of a change that others keep overtaking.
const TRIES: usize = 5;
/// Life of events, in seconds.
const EVENT_TTL: i64 = 3600;

/// What a change wants to do with the object it was shown.
#[derive(Debug)]
pub enum Modify {
    /// Store this instead.
    Write(Value),
    /// Remove it; the value is its last state, with whatever should be seen in the DELETED event.
    Delete(Value),
    /// Leave it as it is.
    Keep,
}

/// Outcome of a change.
#[derive(Debug)]
pub enum Outcome {
    /// Stored; the object with its new resource version.
    Written(Value),
    /// Removed; its last state.
    Deleted(Value),
    /// Nothing was to be done; the object as it is.
    Kept(Value),
}

impl Outcome {
    /// The object, whatever happened to it.
    pub fn into_value(self) -> Value {
        match self {
            Self::Written(v) | Self::Deleted(v) | Self::Kept(v) => v,
        }
    }
}

/// etcd key of an object.
pub fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    format!(
        "{}{}",
        prefix(kind.storage_group, kind.plural),
        object_key(namespace, name)
    )
}

/// The watch cache of a kind.
///
/// # Errors
/// 404 for kinds that are not stored.
pub fn cache_of(app: &App, kind: &Kind) -> Result<Arc<KindCache>> {
    app.cache
        .kind(kind.storage_group, kind.plural)
        .ok_or_else(ApiError::no_such_path)
}

/// The text of a document's field, empty if there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn ttl(kind: &Kind) -> Option<i64> {
    (kind.plural == "events").then_some(EVENT_TTL)
}

fn encode(value: &Value) -> Vec<u8> {
    let mut v = value.clone();
    if let Some(meta) = v.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
        meta.remove("selfLink");
    }
    v.to_string().into_bytes()
}

fn decode(stored: &Stored) -> Result<Value> {
    let mut v: Value = serde_json::from_slice(&stored.value).map_err(|e| StoreError::Damaged {
        key: stored.key.clone(),
        reason: e.to_string(),
    })?;
    v["metadata"]["resourceVersion"] = stored.rev.to_string().into();
    Ok(v)
}

fn stamp(value: &mut Value, rev: i64) {
    value["metadata"]["resourceVersion"] = rev.to_string().into();
}

/// Reads the newest version from etcd.
///
/// # Errors
/// 404, or whatever keeps etcd from answering.
pub async fn read(app: &App, kind: &Kind, namespace: &str, name: &str) -> Result<Value> {
    match app.etcd.get(&key(kind, namespace, name)).await? {
        (Some(stored), _) => decode(&stored),
        (None, _) => Err(ApiError::not_found(kind.group, kind.plural, name)),
    }
}

/// Stores a new object; `dry` leaves it out but checks that the name is free.
///
/// # Errors
/// 409 if the name is taken.
pub async fn create(app: &App, kind: &Kind, mut value: Value, dry: bool) -> Result<Value> {
    let (namespace, name) = (
        text(&value, "/metadata/namespace").to_owned(),
        text(&value, "/metadata/name").to_owned(),
    );
    let key = key(kind, &namespace, &name);
    let taken = || ApiError::already_exists(kind.group, kind.plural, &name);
    if dry {
        return match app.etcd.get(&key).await? {
            (Some(_), _) => Err(taken()),
            (None, _) => Ok(value),
        };
    }
    match app.etcd.create(&key, encode(&value), ttl(kind)).await? {
        Cas::Done(rev) => {
            stamp(&mut value, rev);
            Ok(value)
        }
        Cas::Conflict(_) => Err(taken()),
    }
}

/// Changes an object: `change` sees the current version and says what to do. It is called again with the newer version
/// whenever somebody else was faster, and once more if it refused on the ground of a cached, perhaps stale version.
///
/// # Errors
/// 404 if there is no such object, what `change` returns, or 409 after five lost races.
pub async fn modify(
    app: &App,
    kind: &Kind,
    namespace: &str,
    name: &str,
    dry: bool,
    mut change: impl FnMut(&Value) -> Result<Modify>,
) -> Result<Outcome> {
    let key = key(kind, namespace, name);
    let absent = || ApiError::not_found(kind.group, kind.plural, name);
    let cached = cache_of(app, kind)?.get(namespace, name);
    let mut stale = cached.is_some();
    let mut current = match cached {
        Some(o) => o.value(),
        None => read(app, kind, namespace, name).await?,
    };
    for _ in 0..=TRIES {
        let rev: i64 = text(&current, "/metadata/resourceVersion").parse().unwrap_or(0);
        let wish = match change(&current) {
            Ok(w) => w,
            Err(_) if stale => {
                stale = false;
                let fresh = read(app, kind, namespace, name).await?;
                if fresh["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"] {
                    return Err(change(&fresh)
                        .err()
                        .unwrap_or_else(|| ApiError::internal("an undecided change")));
                }
                current = fresh;
                continue;
            }
            Err(e) => return Err(e),
        };
        let outcome = match wish {
            Modify::Keep if stale => {
                // What needs no change may only look so because the cache is behind.
                stale = false;
                current = read(app, kind, namespace, name).await?;
                continue;
            }
            Modify::Keep => return Ok(Outcome::Kept(current)),
            Modify::Write(v) if dry => return Ok(Outcome::Written(v)),
            Modify::Delete(v) if dry => return Ok(Outcome::Deleted(v)),
            Modify::Write(mut v) => {
                let bytes = encode(&v);
                if bytes == encode(&current) {
                    if !stale {
                        return Ok(Outcome::Kept(current));
                    }
                    stale = false;
                    current = read(app, kind, namespace, name).await?;
                    continue;
                }
                match app.etcd.put(&key, rev, bytes, ttl(kind)).await? {
                    Cas::Done(rev) => {
                        stamp(&mut v, rev);
                        return Ok(Outcome::Written(v));
                    }
                    Cas::Conflict(now) => now,
                }
            }
            Modify::Delete(mut v) => match app.etcd.delete(&key, rev).await? {
                Cas::Done(rev) => {
                    stamp(&mut v, rev);
                    return Ok(Outcome::Deleted(v));
                }
                Cas::Conflict(now) => now,
            },
        };
        stale = false;
        current = decode(&outcome.ok_or_else(absent)?)?;
    }
    Err(ApiError::conflict(
        kind.group,
        kind.plural,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    ))
}
