//! Get and list.

use std::sync::Arc;

use api::Kind;

use super::Context;
use super::format::Format;
use super::options::{At, ListOptions, Token};
use super::render::{self, ListMeta};
use super::select::Selection;
use crate::cache::{KindCache, Object, object_key};
use crate::error::{ApiError, Result};
use crate::objects;
use crate::server::Response;
use crate::store::{StoreError, prefix, prefix_end};

/// Keys read from etcd at once when a page must come from there.
const CHUNK: i64 = 500;

/// Answers a get.
///
/// # Errors
/// 404, 406, 504 for a revision this server has not reached.
pub async fn get(c: &Context, kind: &'static Kind, headers: &http::HeaderMap) -> Result<Response> {
    let format = Format::negotiate(headers, &c.info.query, false)?;
    let (namespace, name) = (c.namespace(kind), c.info.name.as_str());
    let missing = || ApiError::not_found(kind.group, kind.plural, name);
    match c.info.query.get("resourceVersion") {
        None => {
            let value = objects::read(&c.app, kind, namespace, name).await?;
            render::object(kind, format, 200, &render::in_version(kind, value))
        }
        Some(v) => {
            c.app.cache.wait(super::options::revision(v)?).await?;
            let object = objects::cache_of(&c.app, kind)?
                .get(namespace, name)
                .ok_or_else(missing)?;
            render::cached(kind, format, &object)
        }
    }
}

/// Answers a list.
///
/// # Errors
/// 400/422 for bad parameters, 410 for forgotten revisions, 504 for future ones.
pub async fn list(c: &Context, kind: &'static Kind, headers: &http::HeaderMap) -> Result<Response> {
    let format = Format::negotiate(headers, &c.info.query, true)?;
    let options = ListOptions::parse(&c.info.query, false)?;
    let cache = objects::cache_of(&c.app, kind)?;
    let selection = Selection::parse(kind, &cache.spec.fields, c.namespace(kind), &c.info.query)?;
    let (meta, items) = page(c, kind, &cache, &selection, &options).await?;
    render::list(kind, format, &meta, &items)
}

/// The objects of a list and what is to be said of it.
///
/// # Errors
/// As [`list`].
pub async fn page(
    c: &Context,
    kind: &Kind,
    cache: &KindCache,
    selection: &Selection,
    options: &ListOptions,
) -> Result<(ListMeta, Vec<Arc<Object>>)> {
    if let Some(token) = &options.token {
        return stored_page(c, kind, cache, selection, token.rev, Some(&token.start), options.limit).await;
    }
    let progress = match options.at {
        At::Exact(rev) => return stored_page(c, kind, cache, selection, rev, None, options.limit).await,
        At::Newest => c.app.cache.consistent().await?,
        At::Any => c.app.cache.progress(),
        At::NotOlderThan(rev) => {
            c.app.cache.wait(rev).await?;
            c.app.cache.progress()
        }
    };
    if options.limit == 0
        && let Some(name) = selection.name()
        && (!selection.namespace.is_empty() || !kind.namespaced)
    {
        // One name: no need to look at every object.
        let found = cache.get(&selection.namespace, name).filter(|o| selection.matches(o));
        let rev = progress.max(cache.version().1).max(found.as_ref().map_or(0, |o| o.rev));
        return Ok((
            ListMeta {
                rev,
                ..ListMeta::default()
            },
            found.into_iter().collect(),
        ));
    }
    let mut snapshot = cache.list(&selection.namespace, progress, |o| selection.matches(o));
    let mut meta = ListMeta {
        rev: snapshot.rev,
        ..ListMeta::default()
    };
    if options.limit > 0 && snapshot.items.len() > options.limit {
        let rest = snapshot.items.len() - options.limit;
        snapshot.items.truncate(options.limit);
        if let Some(last) = snapshot.items.last() {
            let start = format!("{}\0", object_key(&last.namespace, &last.name));
            meta.token = Token { rev: meta.rev, start }.encode();
        }
        meta.remaining = selection.is_plain().then_some(rest as i64);
    }
    Ok((meta, snapshot.items))
}

/// A page at an exact revision, from etcd's history. `rev` −1 means the newest.
async fn stored_page(
    c: &Context,
    kind: &Kind,
    cache: &KindCache,
    selection: &Selection,
    rev: i64,
    start: Option<&str>,
    limit: usize,
) -> Result<(ListMeta, Vec<Arc<Object>>)> {
    let root = prefix(kind.storage_group, kind.plural);
    let scope = if selection.namespace.is_empty() {
        root.clone()
    } else {
        format!("{root}{}/", selection.namespace)
    };
    let end = prefix_end(&scope);
    let mut from = match start {
        Some(s) if format!("{root}{s}") >= scope => format!("{root}{s}"),
        _ => scope.clone(),
    };
    let mut at = rev.max(0);
    let mut items: Vec<Arc<Object>> = Vec::new();
    loop {
        let want = if limit > 0 && selection.is_plain() {
            (limit - items.len()) as i64
        } else {
            CHUNK
        };
        let range = c
            .app
            .etcd
            .range(&from, &end, at, want)
            .await
            .map_err(|e| expired(e, rev, start))?;
        if at == 0 {
            at = range.rev;
        }
        let mut seen = 0;
        for stored in &range.items {
            seen += 1;
            let (object, _) = Object::parse(&stored.key, &stored.value, stored.rev, &cache.spec.fields)?;
            from = format!("{}\0", stored.key);
            if selection.matches(&object) {
                items.push(Arc::new(object));
            }
            if limit > 0 && items.len() == limit {
                break;
            }
        }
        let left = range.count - seen;
        let mut meta = ListMeta {
            rev: at,
            ..ListMeta::default()
        };
        if limit > 0 && items.len() == limit && left > 0 {
            meta.token = Token {
                rev: if rev < 0 { -1 } else { at },
                start: from[root.len()..].to_owned(),
            }
            .encode();
            meta.remaining = selection.is_plain().then_some(left);
            return Ok((meta, items));
        }
        if left <= 0 {
            return Ok((meta, items));
        }
    }
}

/// What a client is told whose page is forgotten: it may go on from there, but in the newest state.
fn expired(e: StoreError, rev: i64, start: Option<&str>) -> ApiError {
    match (e, start) {
        (StoreError::Compacted, Some(start)) => {
            let mut error = ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                 without the continue parameter, or use the continue token in this response to retrieve the remainder of \
                 the results. Continuing with the provided token results in an inconsistent list - objects that were \
                 created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            );
            error.continue_token = Some(
                Token {
                    rev: -1,
                    start: start.to_owned(),
                }
                .encode(),
            );
            error
        }
        (StoreError::Compacted, None) => {
            ApiError::expired(format!("The resourceVersion for the provided list is too old: {rev}"))
        }
        (StoreError::Future, _) => ApiError::too_large_resource_version(rev, 0),
        (e, _) => e.into(),
    }
}
