//! The chain every request goes through: identity, impersonation, a place in flight, permission, then its work.

use std::sync::Arc;
use std::time::Instant;

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request};
use hyper::body::Incoming;
use tokio::sync::SemaphorePermit;

use super::{Connection, Response, negotiated, status};
use crate::app::App;
use crate::authn::{User, impersonation};
use crate::authz::Attributes;
use crate::error::{ApiError, Result};
use crate::metrics::RequestLabels;
use crate::request::RequestInfo;
use crate::rest::{self, Context};
use crate::{discovery, health};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Answers one request.
pub(super) async fn handle(app: Arc<App>, connection: Arc<Connection>, request: Request<Incoming>) -> Response {
    let start = Instant::now();
    let info = RequestInfo::parse(request.method(), request.uri());
    let mut labels = labels(&info);
    let mut response = match answer(&app, &connection, info, request).await {
        Ok(r) => r,
        Err(e) => {
            if e.code >= 500 {
                tracing::warn!(code = e.code, verb = labels.verb, resource = labels.resource, "{e}");
            }
            status(&e)
        }
    };
    labels.code = response.status().as_u16();
    app.metrics.answered(labels, start.elapsed());
    if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        response.headers_mut().insert(AUDIT_ID, id);
    }
    response
        .headers_mut()
        .entry(http::header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache, private"));
    response
}

/// The labels a request is counted under. Only words that the server knows: others would let anybody make labels, and so
/// take its memory, whatever the answer is.
fn labels(info: &RequestInfo) -> RequestLabels {
    let known = [
        "get", "head", "post", "put", "patch", "delete", "options", "trace", "connect",
    ];
    let mut labels = RequestLabels {
        verb: info.verb.clone(),
        group: String::new(),
        resource: String::new(),
        subresource: String::new(),
        code: 0,
    };
    if !info.resource_request && !known.contains(&info.verb.as_str()) {
        labels.verb.clear();
    }
    let kind = api::kinds::find(&info.group, &info.version, &info.resource);
    let sub = info.subresource.as_str();
    if kind.is_some_and(|k| sub.is_empty() || k.subresource(sub).is_some()) {
        labels.group.clone_from(&info.group);
        labels.resource.clone_from(&info.resource);
        labels.subresource.clone_from(&info.subresource);
    }
    labels
}

async fn answer(
    app: &Arc<App>,
    connection: &Connection,
    info: RequestInfo,
    request: Request<Incoming>,
) -> Result<Response> {
    // Probes come without credentials, also while there are no roles yet.
    let probe = info.path.trim_matches('/').split('/').next().unwrap_or_default();
    if matches!(probe, "livez" | "readyz" | "healthz") && request.method() == Method::GET {
        return health::serve(app, &info.path, &info.query)
            .await
            .ok_or_else(ApiError::no_such_path);
    }
    let user = app
        .authn
        .authenticate(connection.user.as_ref(), request.headers())
        .await?;
    let user = impersonate(app, user, &request)?;
    let _place = place(app, &info)?;
    app.authz.require(&user, &attributes(&info))?;
    if !info.resource_request {
        return other(app, &info, &request).await;
    }
    let agent = request.headers().get(http::header::USER_AGENT);
    let context = Context {
        app: app.clone(),
        info,
        user,
        user_agent: agent.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned(),
    };
    rest::serve(context, request).await
}

/// The action a request stands for.
pub fn attributes(info: &RequestInfo) -> Attributes {
    Attributes {
        verb: info.verb.clone(),
        resource_request: info.resource_request,
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        // The namespace a Namespace is «in» is itself, so that roles in it may speak of it.
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        path: info.path.clone(),
        field_selector: info.query.get("fieldSelector").unwrap_or_default().to_owned(),
    }
}

fn impersonate(app: &App, user: User, request: &Request<Incoming>) -> Result<User> {
    let Some((wanted, asked)) = impersonation(request.headers())? else {
        return Ok(user);
    };
    for a in asked {
        app.authz.require(
            &user,
            &Attributes {
                verb: "impersonate".into(),
                resource_request: true,
                group: a.group.into(),
                version: "v1".into(),
                resource: a.resource.into(),
                subresource: a.subresource,
                namespace: a.namespace,
                name: a.name,
                ..Attributes::default()
            },
        )?;
    }
    tracing::debug!(by = user.name, who = wanted.name, "impersonation");
    Ok(wanted)
}

/// A place among the requests in flight; long-running ones need none.
fn place<'a>(app: &'a App, info: &RequestInfo) -> Result<Option<SemaphorePermit<'a>>> {
    let long = info.verb == "watch"
        || matches!(
            info.subresource.as_str(),
            "log" | "exec" | "attach" | "portforward" | "proxy"
        );
    if long {
        return Ok(None);
    }
    let places = if matches!(info.verb.as_str(), "get" | "list" | "head" | "options") {
        &app.reads
    } else {
        &app.writes
    };
    match places.try_acquire() {
        Ok(p) => Ok(Some(p)),
        Err(_) => Err(ApiError::too_many_requests(
            "too many requests, please try again later",
            1,
        )),
    }
}

/// Paths that are no resources.
async fn other(app: &App, info: &RequestInfo, request: &Request<Incoming>) -> Result<Response> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    if info.path.trim_end_matches('/') == "/metrics" {
        let page = app.metrics.page(app).map_err(ApiError::internal)?;
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return Ok(negotiated(200, kind, page.into()));
    }
    let answer = discovery::serve(app, info, request.headers())?;
    Ok(crate::compress::gzip(request.headers(), answer).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_under_words_that_the_server_knows() {
        for (method, path, expected) in [
            ("GET", "/api/v1/namespaces/a/pods/p/log", ("get", "", "pods", "log")),
            ("GET", "/apis/apps/v1/deployments", ("list", "apps", "deployments", "")),
            ("GET", "/apis/apps/v1/inventions", ("list", "", "", "")),
            ("GET", "/api/v1/namespaces/a/pods/p/invention", ("get", "", "", "")),
            ("FETCH", "/api/v1/pods", ("", "", "pods", "")),
            ("FETCH", "/version", ("", "", "", "")),
            ("OPTIONS", "/version", ("options", "", "", "")),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let labels = labels(&RequestInfo::parse(&method, &path.parse().unwrap()));
            let got = (
                labels.verb.as_str(),
                labels.group.as_str(),
                labels.resource.as_str(),
                labels.subresource.as_str(),
            );
            assert_eq!(got, expected, "{method} {path}");
        }
    }
}
