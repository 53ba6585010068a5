//! The pull side: manifests and blobs, whole or in part.

use std::{fs::File, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use oci::Digest;
use tokio::task::spawn_blocking;

use crate::{
    answer::{self, Answer, Body, CONTENT_DIGEST, Code, Refusal, insert},
    catalog::{Id, MAX_MANIFEST},
    names,
    push::Push,
    range::{Wanted, wanted},
    serve::parse_digest,
    socket::Outbox,
    store::Store,
    stream::{FileBody, WholePiece},
};

/// `/v2/<name>/manifests/<reference>`
///
/// # Errors
/// When there is none.
pub async fn manifest(
    store: &Store,
    candidates: &[String],
    reference: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Answer {
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
    let Some(document) = found else {
        let looked_for = format!("{reference} of {}", candidates.join(", "));
        return Err(Refusal::new(
            Code::ManifestUnknown,
            "no such image is here",
            &looked_for,
        ));
    };
    let digest = &document.digest;
    if is_cached(headers, digest) {
        return Ok(not_modified(digest));
    }
    let bytes = if method == Method::HEAD {
        Bytes::new()
    } else {
        let (blobs, wanted) = (store.layout().blobs().clone(), digest.clone());
        let bytes = spawn_blocking(move || blobs.read(&wanted, MAX_MANIFEST)).await;
        bytes??.into()
    };
    let mut response = answer::with_bytes(StatusCode::OK, &document.media_type, bytes);
    content_headers(response.headers_mut(), digest, document.size);
    Ok(response)
}

/// `/v2/<name>/blobs/<digest>`. `outbox` sends files on connections that can.
///
/// # Errors
/// When the blob is not in this repository.
pub async fn blob(
    (store, push): (&Store, Option<&Push>),
    candidates: &[String],
    text: &str,
    (method, headers): (&Method, &HeaderMap),
    outbox: Option<&Arc<Outbox>>,
) -> Answer {
    let digest = parse_digest(text)?;
    let unknown = || Refusal::new(Code::BlobUnknown, "the blob is in no image of this repository", text);
    let catalog = store.catalog().await;
    let id = Id::from(&digest);
    let is_of_image = candidates
        .iter()
        .filter_map(|name| catalog.repositories.get(name))
        .any(|repository| repository.has_blob(&id) || repository.has_manifest(&id));
    if !is_of_image && !push.is_some_and(|push| push.has_blob(&digest, candidates)) {
        return Err(unknown());
    }
    if is_cached(headers, &digest) {
        return Ok(not_modified(&digest));
    }
    let (file, size) = match open(store, &digest).await? {
        Some(opened) => opened,
        None => return Err(unknown()),
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
            return Err(refusal.with(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    let mut response = answer::empty(status);
    if method == Method::GET && length > 0 {
        *response.body_mut() = content(store, file, first, length, outbox).await?;
    }
    let answered = response.headers_mut();
    let octets = HeaderValue::from_static("application/octet-stream");
    answered.insert(header::CONTENT_TYPE, octets);
    answered.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{size}", first + length - 1);
        insert(answered, header::CONTENT_RANGE, &range);
    }
    content_headers(answered, &digest, length);
    Ok(response)
}

/// A blob's file and its size in bytes, if it is there.
async fn open(store: &Store, digest: &Digest) -> Result<Option<(File, u64)>, Refusal> {
    let (blobs, wanted) = (store.layout().blobs().clone(), digest.clone());
    let opened = spawn_blocking(move || {
        let file = blobs.open(&wanted)?;
        let metadata = file
            .metadata()
            .map_err(|source| oci::Error::io(blobs.path(&wanted), source))?;
        Ok((file, metadata.len()))
    });
    match opened.await? {
        Ok(opened) => Ok(Some(opened)),
        Err(oci::Error::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn content(
    store: &Store,
    file: File,
    first: u64,
    length: u64,
    outbox: Option<&Arc<Outbox>>,
) -> Result<Body, Refusal> {
    let file = match outbox {
        None => file,
        Some(outbox) => match outbox.piece(file, first, length) {
            Ok(piece) => return Ok(WholePiece::new(piece, length).boxed_unsync()),
            Err(file) => file,
        },
    };
    // Memory is bounded by waiting here.
    let place = store.streams.enter().await?;
    Ok(FileBody::new(file, first, length, place).boxed_unsync())
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
