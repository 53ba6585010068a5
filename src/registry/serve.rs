//! The pull side of the OCI distribution spec (v1.1) over a store, and a clear refusal of the push side.
//!
//! Not offered: pushing, deleting, and the referrers API (404, after which clients fall back to tags as the spec says).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use oci::Digest;
use tokio::task::spawn_blocking;

use crate::{
    answer::{self, Body, Code, Refusal},
    catalog::MAX_MANIFEST,
    names,
    range::{Wanted, wanted},
    route::{Route, decode, encode, page, parameter, route},
    store::Store,
    stream::FileBody,
};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Answers one request. Its body, if any, is never read.
pub async fn serve<B>(store: Arc<Store>, request: Request<B>) -> Response<Body> {
    let path = decode(request.uri().path()).into_owned();
    let query = request.uri().query();
    let mut response = respond(&store, request.method(), &path, query, request.headers()).await;
    response
        .headers_mut()
        .insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    tracing::debug!(method = %request.method(), uri = %request.uri(), status = response.status().as_u16(), "request");
    if request.method() == Method::HEAD {
        *response.body_mut() = answer::full(Bytes::new());
    }
    response
}

async fn respond(
    store: &Store,
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Response<Body> {
    let route = route(path);
    if route == Route::Unknown {
        return Refusal::new(Code::NameUnknown, "no such end point", path).answer();
    }
    if route == Route::Upload || (method != Method::GET && method != Method::HEAD) {
        let why = "this registry is read-only: images come with the cluster image";
        return Refusal::new(Code::Unsupported, why, path).answer();
    }
    let ns = parameter(query, "ns").filter(|ns| !ns.is_empty());
    let repository = |name: &str| {
        names::is_valid(name)
            .then(|| names::candidates(name, ns.as_deref(), &store.domains))
            .ok_or_else(|| Refusal::new(Code::NameInvalid, "the repository's name is malformed", name))
    };
    let answer = match route {
        Route::Health => Ok(answer::with_bytes(
            StatusCode::OK,
            "text/plain; charset=utf-8",
            Bytes::from_static(b"ok"),
        )),
        Route::Base => Ok(answer::json(StatusCode::OK, &serde_json::json!({}))),
        Route::Catalog => catalog(store, query).await,
        Route::Tags(name) => match repository(name) {
            Ok(candidates) => tags(store, name, &candidates, query).await,
            Err(refusal) => Err(refusal),
        },
        Route::Manifest(name, reference) => match repository(name) {
            Ok(candidates) => manifest(store, name, &candidates, reference, headers).await,
            Err(refusal) => Err(refusal),
        },
        Route::Blob(name, digest) => match repository(name) {
            Ok(candidates) => blob(store, &candidates, digest, method, headers).await,
            Err(refusal) => Err(refusal),
        },
        Route::Upload | Route::Unknown => Err(Refusal::new(Code::Unsupported, "not offered", path)),
    };
    answer.unwrap_or_else(|refusal| refusal.answer())
}

type Answer = Result<Response<Body>, Refusal>;

async fn catalog(store: &Store, query: Option<&str>) -> Answer {
    let catalog = store.catalog().await;
    let mut names: Vec<&str> = catalog
        .repositories
        .keys()
        .map(|name| names::listed(name, &store.domains))
        .collect();
    names.sort_unstable();
    names.dedup();
    listing(
        &names,
        query,
        "/v2/_catalog",
        |names| serde_json::json!({"repositories": names}),
    )
}

async fn tags(store: &Store, name: &str, candidates: &[String], query: Option<&str>) -> Answer {
    let catalog = store.catalog().await;
    let repository = catalog.find(candidates).ok_or_else(|| {
        Refusal::new(
            Code::NameUnknown,
            "the cluster image carries no such repository",
            &candidates[0],
        )
    })?;
    let tags: Vec<&str> = repository.tags.keys().map(String::as_str).collect();
    let path = format!("/v2/{}/tags/list", encode(name));
    listing(
        &tags,
        query,
        &path,
        |tags| serde_json::json!({"name": name, "tags": tags}),
    )
}

/// A page of a list, with the spec's `Link` to the next one.
fn listing(
    sorted: &[&str],
    query: Option<&str>,
    path: &str,
    document: impl Fn(&[&str]) -> serde_json::Value,
) -> Answer {
    let limit = match parameter(query, "n") {
        None => None,
        Some(n) => Some(n.parse::<usize>().map_err(|_| {
            Refusal::new(
                Code::PaginationNumberInvalid,
                "n must be a number of entries, 0 or more",
                &n,
            )
        })?),
    };
    let last = parameter(query, "last");
    let (entries, more) = page(sorted, limit, last.as_deref());
    let mut response = answer::json(StatusCode::OK, &document(&entries));
    if let (true, Some(limit), Some(end)) = (more, limit, entries.last()) {
        let ns = parameter(query, "ns")
            .map(|ns| format!("&ns={}", encode(&ns)))
            .unwrap_or_default();
        let link = format!("<{path}?n={limit}&last={}{ns}>; rel=\"next\"", encode(end));
        insert(response.headers_mut(), header::LINK, &link);
    }
    Ok(response)
}

async fn manifest(store: &Store, name: &str, candidates: &[String], reference: &str, headers: &HeaderMap) -> Answer {
    if reference.contains(':') {
        parse_digest(reference)?;
    } else if !names::is_tag(reference) {
        return Err(Refusal::new(Code::ManifestUnknown, "the tag is malformed", reference));
    }
    let catalog = store.catalog().await;
    // A name may mean several repositories: the first that has this very manifest is meant.
    let found = candidates
        .iter()
        .filter_map(|candidate| catalog.repositories.get(candidate))
        .find_map(|repository| repository.manifest(reference));
    let Some((digest, media_type, _)) = found else {
        let wanted = format!("{name}:{reference}, looked for as {}", candidates.join(", "));
        return Err(Refusal::new(
            Code::ManifestUnknown,
            "the cluster image carries no such image",
            &wanted,
        ));
    };
    if is_cached(headers, digest) {
        return Ok(not_modified(digest));
    }
    let (blobs, wanted) = (store.layout().blobs().clone(), digest.clone());
    let bytes = spawn_blocking(move || blobs.read(&wanted, MAX_MANIFEST)).await;
    let bytes = bytes.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    let length = bytes.len() as u64;
    let mut response = answer::with_bytes(StatusCode::OK, media_type, Bytes::from(bytes));
    content_headers(response.headers_mut(), digest, length);
    Ok(response)
}

async fn blob(store: &Store, candidates: &[String], text: &str, method: &Method, headers: &HeaderMap) -> Answer {
    let digest = parse_digest(text)?;
    let unknown = || Refusal::new(Code::BlobUnknown, "the blob is in no image of this repository", text);
    let catalog = store.catalog().await;
    let carried = candidates
        .iter()
        .filter_map(|name| catalog.repositories.get(name))
        .any(|repository| repository.blobs.contains(&digest) || repository.manifests.contains_key(&digest));
    if !carried {
        return Err(unknown());
    }
    if is_cached(headers, &digest) {
        return Ok(not_modified(&digest));
    }
    // Memory is bounded by waiting here, before the file is opened.
    let permit = Arc::clone(&store.streams)
        .acquire_owned()
        .await
        .map_err(|error| failed(&error))?;
    let (blobs, wanted_digest) = (store.layout().blobs().clone(), digest.clone());
    let opened = spawn_blocking(move || {
        let file = blobs.open(&wanted_digest)?;
        let size = file
            .metadata()
            .map_err(|source| oci::Error::io(blobs.path(&wanted_digest), source))?
            .len();
        Ok((file, size))
    });
    let (file, size) = match opened.await.map_err(|error| failed(&error))? {
        Ok(opened) => opened,
        Err(oci::Error::Missing(_)) => return Err(unknown()),
        Err(error) => return Err(failed(&error)),
    };
    let part = if may_be_partial(headers, &digest) {
        headers.get(header::RANGE)
    } else {
        None
    };
    let (status, first, length) = match wanted(part.and_then(|value| value.to_str().ok()), size) {
        Wanted::Whole => (StatusCode::OK, 0, size),
        Wanted::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Wanted::Unsatisfiable => {
            let refusal = Refusal::new(Code::RangeInvalid, "no byte of the blob lies in the range", text);
            let mut answer = refusal.answer();
            insert(answer.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(answer);
        }
    };
    let mut response = answer::empty(status);
    if method == Method::GET {
        *response.body_mut() = FileBody::new(file, first, length, permit).boxed_unsync();
    }
    let answered = response.headers_mut();
    answered.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    answered.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        insert(
            answered,
            header::CONTENT_RANGE,
            &format!("bytes {first}-{}/{size}", first + length - 1),
        );
    }
    content_headers(answered, &digest, length);
    Ok(response)
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|error: oci::Error| Refusal::new(Code::DigestInvalid, "the digest is malformed", &error.to_string()))
}

/// A failure of ours: the log says why, the client that it is not its fault.
fn failed(error: &dyn std::error::Error) -> Refusal {
    tracing::error!(error = %error, "reading the store failed");
    Refusal::new(
        Code::Unknown,
        "reading the store failed; the registry's log says why",
        "",
    )
}

fn content_headers(headers: &mut HeaderMap, digest: &Digest, length: u64) {
    insert(headers, CONTENT_DIGEST, digest.as_str());
    insert(headers, header::ETAG, &etag(digest));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn is_cached(headers: &HeaderMap, digest: &Digest) -> bool {
    let tag = etag(digest);
    headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .split(',')
                .map(str::trim)
                .any(|known| known == "*" || known.trim_start_matches("W/") == tag)
        })
}

/// `If-Range`: a part is only sent of the content that the client has begun with.
fn may_be_partial(headers: &HeaderMap, digest: &Digest) -> bool {
    headers
        .get(header::IF_RANGE)
        .is_none_or(|value| value.as_bytes() == etag(digest).as_bytes())
}

fn not_modified(digest: &Digest) -> Response<Body> {
    let mut response = answer::empty(StatusCode::NOT_MODIFIED);
    insert(response.headers_mut(), header::ETAG, &etag(digest));
    insert(response.headers_mut(), CONTENT_DIGEST, digest.as_str());
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => _ = headers.insert(name, value),
        Err(error) => tracing::warn!(%name, %error, "header left out"),
    }
}
