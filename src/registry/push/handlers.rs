//! The requests of the push side, one function each.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, header};
use http_body::Body as HttpBody;
use oci::Digest;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::{
    MANIFESTS_ON_THE_WAY, Push, chunk, manifest,
    receive::{self, Bounds},
    uploads::{Held, Upload},
    writer::{Change, Put},
};
use crate::{
    answer::{self, Answer, Body, Code, Refusal, insert},
    catalog::Id,
    names,
    route::{encode, parameter, parameters},
    serve::parse_digest,
};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

/// How long a request waits for the one that is writing to the same upload: it may be about to notice that its client is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most tags that one request may set.
const MOST_TAGS: usize = 64;

/// What a request of the push side says.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The repository as in the path.
    pub name: &'a str,
    /// The full name of the repository that is written to.
    pub repository: &'a str,
    /// The `?ns=` of the request: its answers lead back to the same repository.
    pub ns: Option<&'a str>,
    /// The request's query.
    pub query: Option<&'a str>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
}

impl Asked<'_> {
    /// A path of this repository.
    fn location(&self, rest: &str) -> String {
        let ns = self.ns.map(|ns| format!("?ns={}", encode(ns))).unwrap_or_default();
        format!("/v2/{}/{rest}{ns}", encode(self.name))
    }

    fn blob(&self, digest: &Digest) -> Response<Body> {
        answer::created(&self.location(&format!("blobs/{digest}")), digest)
    }

    /// The headers that say where an upload is and how far.
    fn progress(&self, id: &str, size: u64) -> [(HeaderName, String); 3] {
        [
            (header::LOCATION, self.location(&format!("blobs/uploads/{id}"))),
            (header::RANGE, chunk::range(size)),
            (UPLOAD_ID, id.to_owned()),
        ]
    }

    fn under_way(&self, status: StatusCode, id: &str, size: u64) -> Response<Body> {
        let mut response = answer::empty(status);
        for (name, value) in self.progress(id, size) {
            insert(response.headers_mut(), name, &value);
        }
        response
    }
}

/// `POST …/blobs/uploads/`: mounts a blob of another repository, takes a whole blob, or begins an upload.
///
/// # Errors
/// When a parameter is refused, too many uploads are open, or the content does not have its digest.
pub async fn begin<B>(push: &Push, asked: Asked<'_>, body: &mut B, own: &[String]) -> Answer
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    if let Some(algorithm) = parameter(asked.query, "digest-algorithm").filter(|name| name != "sha256") {
        let message = "the digest's algorithm is not supported: only sha256 is";
        return Err(Refusal::new(Code::DigestInvalid, message, &algorithm));
    }
    if let Some(digest) = parameter(asked.query, "mount") {
        let digest = parse_digest(&digest)?;
        let from = parameter(asked.query, "from").filter(|from| !from.is_empty());
        if mount(push, asked.repository, &digest, from.as_deref(), own).await? {
            return Ok(asked.blob(&digest));
        }
    }
    let whole = parameter(asked.query, "digest")
        .map(|text| parse_digest(&text))
        .transpose()?;
    let (uploads, repository) = (Arc::clone(&push.uploads), asked.repository.to_owned());
    let begun = spawn_blocking(move || uploads.begin(&repository)).await;
    let id = begun??.to_string();
    let Some(digest) = whole else {
        return Ok(asked.under_way(StatusCode::ACCEPTED, &id, 0));
    };
    let held = push.uploads.hold(asked.repository, &id, PATIENCE).await?;
    let (mut held, result) = receive(push, asked, held, body).await?;
    if let Err(refusal) = result {
        push.uploads.cancel(&mut held);
        return Err(refusal);
    }
    finish(push, asked, held, digest).await
}

/// Links a blob that another repository has; `false` if none has it.
async fn mount(
    push: &Push,
    repository: &str,
    digest: &Digest,
    from: Option<&str>,
    own: &[String],
) -> Result<bool, Refusal> {
    let _content = push.desk.content.read().await;
    let catalog = push.desk.store.catalog().await;
    let id = Id::from(digest);
    let links = &push.desk.links;
    let found = match from {
        None => catalog.has_blob(&id) || links.any(&id),
        Some(from) if !names::is_valid(from) => false,
        Some(from) => names::candidates(from, None, own).iter().any(|from| {
            let there = catalog.repositories.get(from);
            there.is_some_and(|there| there.has_blob(&id)) || links.has(&id, from)
        }),
    };
    if !found || push.desk.store.layout().blobs().size(digest).is_none() {
        return Ok(false);
    }
    links.add(&id, repository)?;
    Ok(true)
}

/// `GET`, `PATCH`, `PUT`, `DELETE …/blobs/uploads/<id>`: an upload's state, a chunk, the end, or no more of it.
///
/// # Errors
/// When there is no such upload, the chunk does not belong there, or the content does not have its digest.
pub async fn upload<B>(push: &Push, asked: Asked<'_>, method: &Method, id: &str, body: &mut B) -> Answer
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let digest = match parameter(asked.query, "digest") {
        Some(text) if method == Method::PUT => Some(parse_digest(&text)?),
        None if method == Method::PUT => {
            let message = "the digest of the whole blob is missing: PUT …?digest=sha256:…";
            return Err(Refusal::new(Code::DigestInvalid, message, id));
        }
        _ => None,
    };
    let mut held = push.uploads.hold(asked.repository, id, PATIENCE).await?;
    if method == Method::DELETE {
        push.uploads.cancel(&mut held);
        return Ok(answer::empty(StatusCode::NO_CONTENT));
    }
    if method == Method::GET || method == Method::HEAD {
        return Ok(asked.under_way(StatusCode::NO_CONTENT, id, size(&held)));
    }
    let (mut held, result) = receive(push, asked, held, body).await?;
    if let Err(refusal) = result {
        if refusal.ends_upload() {
            push.uploads.cancel(&mut held);
            return Err(refusal);
        }
        let progress = asked.progress(id, size(&held));
        return Err(progress
            .into_iter()
            .fold(refusal, |refusal, (name, value)| refusal.with(name, &value)));
    }
    match digest {
        Some(digest) => finish(push, asked, held, digest).await,
        None => Ok(asked.under_way(StatusCode::ACCEPTED, id, size(&held))),
    }
}

fn size(held: &Held) -> u64 {
    held.as_ref().map_or(0, |upload: &Upload| upload.size)
}

/// Adds a request's body to an upload.
async fn receive<B>(
    push: &Push,
    asked: Asked<'_>,
    held: Held,
    body: &mut B,
) -> Result<(Held, Result<u64, Refusal>), Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let at = size(&held);
    let exactly = match chunk::length(asked.headers, at) {
        Ok(exactly) => exactly,
        Err(refusal) => return Ok((held, Err(refusal))),
    };
    let bounds = Bounds {
        exactly,
        room: push.limits.blob.saturating_sub(at),
        limit: push.limits.blob,
    };
    if body.size_hint().lower() > bounds.room {
        return Ok((held, Err(receive::too_large(bounds.limit))));
    }
    if body.is_end_stream() && exactly.is_none() {
        return Ok((held, Ok(0)));
    }
    let _writing = push.writing.acquire().await?;
    receive::into_upload(body, held, bounds).await
}

/// Makes an upload a blob of the repository.
async fn finish(push: &Push, asked: Asked<'_>, mut held: Held, digest: Digest) -> Answer {
    let content = Arc::clone(&push.desk.content).read_owned().await;
    let (uploads, desk) = (Arc::clone(&push.uploads), Arc::clone(&push.desk));
    let (repository, wanted) = (asked.repository.to_owned(), digest.clone());
    let finished = spawn_blocking(move || {
        // Held here, because this goes on even when the client is gone.
        let _content = content;
        uploads.finish(&mut held, &wanted, |path| {
            // First the link: a blob without one would never be removed again.
            let linked = desk.links.add(&Id::from(&wanted), &repository);
            linked.map_err(|error| oci::Error::io(path, error))?;
            desk.store.layout().blobs().adopt(path, &wanted)
        })
    });
    finished.await??;
    Ok(asked.blob(&digest))
}

/// `PUT …/manifests/<reference>`: stores a manifest under a tag, or under its digest and the tags of `?tag=`.
///
/// # Errors
/// When it is too large, malformed, does not have the digest, or needs what is not there.
pub async fn put_manifest<B>(push: &Push, asked: Asked<'_>, reference: &str, body: &mut B) -> Answer
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (digest, tags) = named(asked, reference)?;
    let _in_memory = push.manifests.acquire().await?;
    let bytes = receive::into_memory(body, manifest::LARGEST).await?;
    let found = Digest::of(&bytes);
    if let Some(digest) = digest.filter(|digest| *digest != found) {
        let detail = format!(
            "{} with the digest {found} came for {digest}",
            oci::counted(bytes.len(), "byte")
        );
        let message = "the manifest does not have the digest";
        return Err(Refusal::new(Code::DigestInvalid, message, &detail));
    }
    let content_type = asked.headers.get(header::CONTENT_TYPE);
    let checked = manifest::check(content_type.and_then(|value| value.to_str().ok()), &bytes)?;
    store_manifest(push, asked.repository, found.clone(), bytes).await?;
    let put = Put {
        repository: asked.repository.to_owned(),
        tags: tags.clone(),
        manifest: checked.descriptor,
        blobs: checked.blobs,
        manifests: checked.manifests,
    };
    push.writer.change(Change::Put(Box::new(put))).await?;
    let mut response = answer::created(&asked.location(&format!("manifests/{found}")), &found);
    if let Some(subject) = checked.subject {
        insert(response.headers_mut(), SUBJECT, subject.as_str());
    }
    if !tags.is_empty() && parameter(asked.query, "tag").is_some() {
        insert(response.headers_mut(), TAG, &tags.join(", "));
    }
    Ok(response)
}

/// The digest that a manifest must have, and the tags it gets.
fn named(asked: Asked<'_>, reference: &str) -> Result<(Option<Digest>, Vec<String>), Refusal> {
    let (digest, tags) = if reference.contains(':') {
        let tags = parameters(asked.query, "tag")
            .map(std::borrow::Cow::into_owned)
            .collect();
        (Some(parse_digest(reference)?), tags)
    } else {
        (None, vec![reference.to_owned()])
    };
    if tags.len() > MOST_TAGS {
        let message = "too many tags in one request";
        return Err(Refusal::new(
            Code::ManifestInvalid,
            message,
            &format!("at most {MOST_TAGS}"),
        ));
    }
    match tags.iter().find(|tag| !names::is_tag(tag)) {
        Some(tag) => Err(Refusal::new(Code::ManifestInvalid, "the tag is malformed", tag)),
        None => Ok((digest, tags)),
    }
}

/// Writes a manifest where blobs are; until the index names it, it is a pushed blob like any other.
async fn store_manifest(push: &Push, repository: &str, digest: Digest, bytes: Bytes) -> Result<(), Refusal> {
    let content = Arc::clone(&push.desk.content).read_owned().await;
    let (desk, repository) = (Arc::clone(&push.desk), repository.to_owned());
    let written = spawn_blocking(move || {
        let _content = content;
        let layout = desk.store.layout();
        let on_the_way = layout.root().join(".registry").join(MANIFESTS_ON_THE_WAY);
        let path = on_the_way.join(Uuid::new_v4().to_string());
        let failed = |error| oci::Error::io(&path, error);
        desk.links.add(&Id::from(&digest), &repository).map_err(failed)?;
        std::fs::write(&path, &bytes).map_err(failed)?;
        layout.blobs().adopt(&path, &digest)
    });
    Ok(written.await??)
}

/// `DELETE …/manifests/<reference>`: takes a tag away, or a manifest with all its tags.
///
/// # Errors
/// When there is none, something needs it, or it belongs to a cluster image.
pub async fn delete_manifest(push: &Push, repository: &str, reference: &str) -> Answer {
    let repository = repository.to_owned();
    let change = if reference.contains(':') {
        let digest = parse_digest(reference)?;
        Change::Remove { repository, digest }
    } else {
        let tag = reference.to_owned();
        Change::Untag { repository, tag }
    };
    push.writer.change(change).await?;
    Ok(answer::empty(StatusCode::ACCEPTED))
}

/// `DELETE …/blobs/<digest>`: takes a blob out of a repository, and off the disk with the last one.
///
/// # Errors
/// When it is not in the repository, or a manifest needs it.
pub async fn delete_blob(push: &Push, repository: &str, digest: &str) -> Answer {
    let (repository, digest) = (repository.to_owned(), parse_digest(digest)?);
    push.writer.change(Change::DropBlob { repository, digest }).await?;
    Ok(answer::empty(StatusCode::ACCEPTED))
}
