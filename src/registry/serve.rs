//! One request: who asks, what for, and which part of the registry answers.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use oci::Digest;

use crate::{
    answer::{self, Answer, Body, Code, Refusal, insert},
    auth::Auth,
    listing,
    metrics::Metrics,
    names, pull,
    push::{self, Asked, Push},
    route::{Route, decode, parameter, route},
    socket::Outbox,
    store::Store,
};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// A registry: a store, and what may be done with it.
pub struct Registry {
    /// What is served.
    pub store: Arc<Store>,
    /// The push side, if it is offered.
    pub push: Option<Arc<Push>>,
    /// Whether manifests, tags and blobs may be deleted.
    pub delete: bool,
    /// Who may do what; without it everybody may.
    pub auth: Option<Auth>,
    /// The numbers of what happens.
    pub metrics: Metrics,
}

/// The parts of a request that all answers depend on.
struct Head<'a> {
    method: &'a Method,
    path: &'a str,
    query: Option<&'a str>,
    ns: Option<&'a str>,
    headers: &'a HeaderMap,
    /// Sends files, where the connection can.
    outbox: Option<&'a Arc<Outbox>>,
}

/// Answers one request.
pub async fn serve<B>(registry: Arc<Registry>, outbox: Option<Arc<Outbox>>, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let mut body = Counted { body, bytes: 0 };
    let path = decode(parts.uri.path());
    let query = parts.uri.query();
    let ns = parameter(query, "ns").filter(|ns| !ns.is_empty());
    let sends_files = outbox.filter(|_| parts.version <= Version::HTTP_11);
    let head = Head {
        method: &parts.method,
        path: &path,
        query,
        ns: ns.as_deref(),
        headers: &parts.headers,
        outbox: sends_files.as_ref(),
    };
    let route = route(&path);
    let answer = match admit(&registry, route, &head).await {
        Ok(()) => registry.answer(route, &head, &mut body).await,
        Err(refusal) => Err(refusal),
    };
    let mut response = answer.unwrap_or_else(Refusal::answer);
    // Who waits to be told to go on has sent nothing that could be read away.
    if !body.is_end_stream() && !parts.headers.contains_key(header::EXPECT) {
        push::drain(&mut body).await;
    }
    let headers = response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let (Some(ns), Some(_)) = (&ns, route.repository()) {
        insert(headers, NAMESPACE, ns);
    }
    let status = response.status();
    registry.metrics.answered(&parts.method, route, status);
    registry.metrics.received(body.bytes);
    tracing::debug!(method = %parts.method, uri = %parts.uri, status = status.as_u16(), "request");
    if parts.method == Method::HEAD {
        *response.body_mut() = answer::full(Bytes::new());
    }
    response
}

async fn admit(registry: &Registry, route: Route<'_>, head: &Head<'_>) -> Result<(), Refusal> {
    match &registry.auth {
        Some(auth) => auth.admit(route, head.method, head.headers).await,
        None => Ok(()),
    }
}

impl Registry {
    async fn answer<B>(&self, route: Route<'_>, head: &Head<'_>, body: &mut B) -> Answer
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        if route == Route::Unknown {
            return Err(Refusal::new(Code::NameUnknown, "no such end point", head.path));
        }
        self.offers(route, head)?;
        let store = &self.store;
        match route {
            Route::Health => {
                let text = Bytes::from_static(b"ok");
                return Ok(answer::with_bytes(StatusCode::OK, "text/plain; charset=utf-8", text));
            }
            Route::Base => return Ok(answer::json(StatusCode::OK, &serde_json::json!({}))),
            Route::Catalog => return listing::catalog(store, head.query).await,
            _ => {}
        }
        let name = route.repository().filter(|name| names::is_valid(name)).ok_or_else(|| {
            let message = "the repository's name is malformed";
            Refusal::new(Code::NameInvalid, message, route.repository().unwrap_or(head.path))
        })?;
        let candidates = names::candidates(name, head.ns, &store.domains);
        let reads = matches!(*head.method, Method::GET | Method::HEAD);
        let push = self.push.as_deref();
        match route {
            Route::Tags(_) => listing::tags(store, name, &candidates, head.query).await,
            Route::Referrers(_, digest) => listing::referrers(store, name, &candidates, digest, head.query).await,
            Route::Manifest(_, reference) if reads => {
                pull::manifest(store, &candidates, reference, head.method, head.headers).await
            }
            Route::Blob(_, digest) if reads => {
                let asked = (head.method, head.headers);
                pull::blob((store, push), &candidates, digest, asked, head.outbox).await
            }
            route => self.write(route, head, name, &candidates, body).await,
        }
    }

    async fn write<B>(
        &self,
        route: Route<'_>,
        head: &Head<'_>,
        name: &str,
        candidates: &[String],
        body: &mut B,
    ) -> Answer
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let (Some(push), Some(repository)) = (self.push.as_deref(), names::target(candidates)) else {
            let message = "no image can be pushed under this name";
            return Err(Refusal::new(Code::NameInvalid, message, name));
        };
        let asked = Asked {
            name,
            repository,
            ns: head.ns,
            query: head.query,
            headers: head.headers,
        };
        match route {
            Route::Uploads(_) => push::begin(push, asked, body, &self.store.domains).await,
            Route::Upload(_, id) => push::upload(push, asked, head.method, id, body).await,
            Route::Manifest(_, reference) if head.method == Method::PUT => {
                push::put_manifest(push, asked, reference, body).await
            }
            Route::Manifest(_, reference) => push::delete_manifest(push, repository, reference).await,
            Route::Blob(_, digest) => push::delete_blob(push, repository, digest).await,
            _ => Err(Refusal::new(Code::Unsupported, "not offered", head.path)),
        }
    }

    /// Whether the method is offered at the route.
    fn offers(&self, route: Route<'_>, head: &Head<'_>) -> Result<(), Refusal> {
        let offered = allowed(route, self.push.is_some(), self.delete);
        if offered.split(", ").any(|method| method == head.method.as_str()) {
            return Ok(());
        }
        let message = match *head.method {
            _ if self.push.is_none() => "this registry is read-only (it takes pushes with --writable)",
            Method::DELETE => "this registry deletes nothing (it does with --delete)",
            _ => "the method is not offered here",
        };
        let refusal = Refusal::new(Code::Unsupported, message, &format!("{} {}", head.method, head.path));
        Err(refusal.with(header::ALLOW, offered))
    }
}

/// The methods of a route.
fn allowed(route: Route<'_>, writable: bool, delete: bool) -> &'static str {
    match (route, writable, delete) {
        (Route::Uploads(_), true, _) => "POST",
        (Route::Upload(..), true, _) => "GET, HEAD, PATCH, PUT, DELETE",
        (Route::Uploads(_) | Route::Upload(..), false, _) => "",
        (Route::Manifest(..), true, true) => "GET, HEAD, PUT, DELETE",
        (Route::Manifest(..), true, false) => "GET, HEAD, PUT",
        (Route::Blob(..), true, true) => "GET, HEAD, DELETE",
        _ => "GET, HEAD",
    }
}

/// Reads a digest of a path or query.
///
/// # Errors
/// When it is malformed or not of an algorithm we know.
pub fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|error: oci::Error| Refusal::new(Code::DigestInvalid, "the digest is refused", &error.to_string()))
}

/// A body, and how much of it has arrived.
struct Counted<B> {
    body: B,
    bytes: u64,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
