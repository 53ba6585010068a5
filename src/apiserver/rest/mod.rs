//! The generic REST verbs over the table of kinds.

pub mod apply;
pub mod body;
pub mod csr;
pub mod delete;
pub mod eviction;
pub mod format;
pub mod list;
pub mod logs;
pub mod lookup;
pub mod options;
pub mod patch;
pub mod pods;
pub mod render;
pub mod restrict;
pub mod reviews;
pub mod scale;
pub mod select;
pub mod tokens;
pub mod watch;
pub mod write;

use std::sync::Arc;

use api::Kind;
use http::Request;
use hyper::body::Incoming;

use crate::app::App;
use crate::authn::User;
use crate::authz::Attributes;
use crate::error::{ApiError, Result};
use crate::request::RequestInfo;
use crate::server::Response;

/// One request that was let in.
pub struct Context {
    /// The server.
    pub app: Arc<App>,
    /// What is asked.
    pub info: RequestInfo,
    /// Who asks.
    pub user: User,
    /// With which program, as it says itself.
    pub user_agent: String,
}

impl Context {
    /// The namespace that objects of the kind live in, for this request.
    pub fn namespace(&self, kind: &Kind) -> &str {
        if kind.namespaced { &self.info.namespace } else { "" }
    }

    /// Another verb on the same object, to ask the authorizer about.
    pub fn action(&self, verb: &str) -> Attributes {
        Attributes {
            verb: verb.to_owned(),
            resource_request: true,
            group: self.info.group.clone(),
            version: self.info.version.clone(),
            resource: self.info.resource.clone(),
            subresource: self.info.subresource.clone(),
            namespace: self.info.namespace.clone(),
            name: self.info.name.clone(),
            ..Attributes::default()
        }
    }
}

/// Serves a resource request.
///
/// # Errors
/// The refusal.
pub async fn serve(c: Context, request: Request<Incoming>) -> Result<Response> {
    let Some(kind) = api::kinds::find(&c.info.group, &c.info.version, &c.info.resource) else {
        return no_definitions(&c);
    };
    if !kind.namespaced && !c.info.namespace.is_empty() && kind.plural != "namespaces" {
        return Err(ApiError::no_such_path());
    }
    if !c.info.subresource.is_empty() {
        return subresource(c, kind, request).await;
    }
    let verb = c.info.verb.as_str();
    if !kind.verbs.contains(&verb) {
        return Err(ApiError::method_not_allowed());
    }
    let response = by_verb(&c, kind, request).await?;
    let warnings: Vec<String> = kind.deprecation().map(str::to_owned).into_iter().collect();
    Ok(body::warn(response, &warnings))
}

/// There are no custom resources, so the list of their definitions is empty. kubectl asks for it before it says of a kind that
/// it is not there, and takes an error for a fault of the server. Every other unknown resource is 404.
fn no_definitions(c: &Context) -> Result<Response> {
    let i = &c.info;
    let asked = (
        i.verb.as_str(),
        i.group.as_str(),
        i.version.as_str(),
        i.resource.as_str(),
    );
    if asked != ("list", "apiextensions.k8s.io", "v1", "customresourcedefinitions") || !i.subresource.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let list = serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinitionList",
        "metadata": {"resourceVersion": c.app.cache.progress().to_string()}, "items": [],
    });
    Ok(crate::server::json(200, &list))
}

async fn by_verb(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    match c.info.verb.as_str() {
        "get" => list::get(c, kind, request.headers()).await,
        "list" => {
            let answer = list::list(c, kind, request.headers()).await?;
            Ok(crate::compress::gzip(request.headers(), answer).await)
        }
        "watch" => watch::watch(c, kind, request.headers()).await,
        "create" if !kind.stored() => reviews::create(c, kind, request).await,
        "create" => write::create(c, kind, request).await,
        "update" => write::update(c, kind, request).await,
        "patch" => patch::patch(c, kind, request).await,
        "delete" => delete::delete(c, kind, request).await,
        "deletecollection" => delete::collection(c, kind, request).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn subresource(c: Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let name = c.info.subresource.as_str();
    let sub = kind.subresource(name).ok_or_else(ApiError::no_such_path)?;
    // What is behind a proxy is asked what it allows by itself.
    let asks_options = name == "proxy" && request.method() == http::Method::OPTIONS;
    if !asks_options && !sub.verbs.contains(&c.info.verb.as_str()) {
        return Err(ApiError::method_not_allowed());
    }
    match (kind.plural, name, c.info.verb.as_str()) {
        (_, "proxy", _) | ("pods", "log" | "exec" | "attach" | "portforward", _) => {
            pods::proxied(&c, kind, request).await
        }
        ("pods", "binding", _) => pods::bind(&c, kind, request).await,
        ("pods", "eviction", _) => eviction::evict(&c, kind, request).await,
        ("serviceaccounts", "token", _) => tokens::create(&c, kind, request).await,
        (_, "scale", "get") => scale::get(&c, kind, request.headers()).await,
        (_, "scale", _) => scale::write(&c, kind, request).await,
        (_, _, "get") => list::get(&c, kind, request.headers()).await,
        (_, _, "update") => write::update(&c, kind, request).await,
        (_, _, "patch") => patch::patch(&c, kind, request).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}
