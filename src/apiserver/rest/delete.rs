//! Delete and deletecollection: preconditions, grace, finalizers.

use std::sync::Arc;

use api::strategy::{self, Deletion};
use api::{Kind, metadata};
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use http::Request;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::body::{self, dry_run};
use super::format::Format;
use super::lookup::CacheLookup;
use super::options::ListOptions;
use super::select::Selection;
use super::write::Target;
use super::{Context, list, render};
use crate::admission::{self, Attributes, Operation};
use crate::app::App;
use crate::cache::Object;
use crate::error::{ApiError, Result};
use crate::model;
use crate::objects::{self, Modify, Outcome};
use crate::request::Query;
use crate::server::{Response, json as answer};

/// Deletions of a collection that run at once.
const AT_ONCE: usize = 8;

/// `DeleteOptions` from the body, or where that is silent from the query.
async fn options(query: &Query, request: Request<Incoming>) -> Result<Value> {
    let media = body::content_type(request.headers());
    let bytes = body::read(request.into_body()).await?;
    let mut options = if bytes.is_empty() {
        json!({})
    } else {
        body::decode(&media, &bytes)?
    };
    if let Some(g) = query.get("gracePeriodSeconds") {
        let seconds: i64 = g
            .parse()
            .map_err(|_| ApiError::bad_request(format!("invalid gracePeriodSeconds {g:?}")))?;
        set_absent(&mut options, "gracePeriodSeconds", seconds.into());
    }
    if let Some(p) = query.get("propagationPolicy") {
        set_absent(&mut options, "propagationPolicy", p.into());
    }
    if query.has("orphanDependents") {
        set_absent(&mut options, "orphanDependents", query.flag("orphanDependents").into());
    }
    let policy = options["propagationPolicy"].as_str();
    if policy.is_some_and(|p| !matches!(p, "Orphan" | "Foreground" | "Background")) {
        return Err(ApiError::bad_request(format!(
            "invalid propagationPolicy {:?}",
            policy.unwrap_or_default()
        )));
    }
    if policy.is_some() && !options["orphanDependents"].is_null() {
        return Err(ApiError::bad_request(
            "orphanDependents and propagationPolicy may not be set at the same time",
        ));
    }
    if options["gracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        options["gracePeriodSeconds"] = 1.into();
    }
    Ok(options)
}

fn set_absent(options: &mut Value, field: &str, value: Value) {
    if options[field].is_null() {
        options[field] = value;
    }
}

fn is_dry(options: &Value, query: &Query) -> Result<bool> {
    let listed = options["dryRun"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    dry_run("delete", listed.chain(query.all("dryRun")))
}

/// Deletes one object as `options` (a DeleteOptions) say.
///
/// # Errors
/// 404, 409 for unmet preconditions, or what admission refuses.
pub async fn delete_object(app: &App, target: &Target<'_>, options: &Value, dry: bool) -> Result<Outcome> {
    let kind = model::storage(target.kind)?;
    let attributes = Attributes {
        operation: Operation::Delete,
        group: kind.group,
        plural: kind.plural,
        subresource: "",
        namespace: target.namespace,
        name: target.name,
    };
    admission::admit(&CacheLookup(&app.cache), &attributes, &mut Value::Null)?;
    let outcome = objects::modify(app, kind, target.namespace, target.name, dry, |current| {
        strategy::preconditions(kind, current, options)?;
        Ok(match strategy::delete(kind, current, options, Timestamp::now()) {
            Deletion::Now => Modify::Delete(current.clone()),
            Deletion::Marked(v) => Modify::Write(v),
            Deletion::Unchanged => Modify::Keep,
        })
    })
    .await?;
    if kind.plural == "namespaces" && !dry {
        // Once this is answered nothing is made in the namespace any more, and that is decided by the caches.
        if let Err(e) = app.cache.consistent().await {
            tracing::warn!(
                namespace = target.name,
                "the caches do not know yet that it is going: {e}"
            );
        }
    }
    Ok(outcome)
}

/// Answers a delete.
///
/// # Errors
/// The refusal.
pub async fn delete(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let format = Format::negotiate(request.headers(), &c.info.query, false)?;
    let options = options(&c.info.query, request).await?;
    let dry = is_dry(&options, &c.info.query)?;
    match delete_object(&c.app, &Target::of(c, kind), &options, dry).await? {
        Outcome::Deleted(v) if kind.plural != "pods" => Ok(answer(200, &success(kind, &v))),
        outcome => render::object(kind, format, 200, &render::in_version(kind, outcome.into_value())),
    }
}

/// The Status that says an object is gone.
pub fn success(kind: &Kind, value: &Value) -> Value {
    let mut details = json!({"name": metadata::name(value), "kind": kind.plural, "uid": metadata::uid(value)});
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Answers a deletecollection with the list of what was to be deleted.
///
/// # Errors
/// The first refusal; what was deleted before stays deleted.
pub async fn collection(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let format = Format::negotiate(request.headers(), &c.info.query, true)?;
    let list_options = ListOptions::parse(&c.info.query, false)?;
    let options = options(&c.info.query, request).await?;
    let dry = is_dry(&options, &c.info.query)?;
    let cache = objects::cache_of(&c.app, kind)?;
    let selection = Selection::parse(kind, &cache.spec.fields, c.namespace(kind), &c.info.query)?;
    let (meta, items) = list::page(c, kind, &cache, &selection, &list_options).await?;
    let mut running = FuturesUnordered::new();
    for o in &items {
        if running.len() == AT_ONCE {
            running.next().await.transpose()?;
        }
        running.push(one_of_many(c, kind, o.clone(), &options, dry));
    }
    while running.try_next().await?.is_some() {}
    drop(running);
    render::list(kind, format, &meta, &items)
}

/// One deletion of a collection; an object that is gone already is no failure.
async fn one_of_many(c: &Context, kind: &'static Kind, object: Arc<Object>, options: &Value, dry: bool) -> Result<()> {
    let target = Target {
        kind,
        namespace: &object.namespace,
        name: &object.name,
        subresource: None,
    };
    match delete_object(&c.app, &target, options, dry).await {
        Err(e) if e.code == 404 => Ok(()),
        done => done.map(|_| ()),
    }
}
