//! Lists: repositories, tags, and what refers to a manifest.

use bytes::Bytes;
use http::{HeaderName, StatusCode, header};
use oci::{Index, media_type};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    answer::{self, Answer, Code, Refusal, insert},
    catalog::{Document, Id, MAX_MANIFEST},
    names,
    route::{encode, page, parameter},
    serve::parse_digest,
    store::Store,
};

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Most referrers in one answer, and most bytes: clients take it for a manifest.
const MOST_REFERRERS: usize = 1000;
const MOST_BYTES: usize = 2 << 20;

/// `/v2/_catalog`
///
/// # Errors
/// When `n` is no number.
pub async fn catalog(store: &Store, query: Option<&str>) -> Answer {
    let catalog = store.catalog().await;
    let mut names: Vec<&str> = catalog
        .repositories
        .keys()
        .map(|name| names::listed(name, &store.domains))
        .collect();
    names.sort_unstable();
    names.dedup();
    listing(&names, query, "/v2/_catalog", |names| json!({"repositories": names}))
}

/// `/v2/<name>/tags/list`
///
/// # Errors
/// When there is no such repository, or `n` is no number.
pub async fn tags(store: &Store, name: &str, candidates: &[String], query: Option<&str>) -> Answer {
    let catalog = store.catalog().await;
    let repository = catalog
        .find(candidates)
        .ok_or_else(|| Refusal::new(Code::NameUnknown, "there is no such repository", name))?;
    let tags: Vec<&str> = repository.tags.keys().map(String::as_str).collect();
    let path = format!("/v2/{}/tags/list", encode(name));
    listing(&tags, query, &path, |tags| json!({"name": name, "tags": tags}))
}

/// A page of a list, with the spec's `Link` to the next one.
fn listing(sorted: &[&str], query: Option<&str>, path: &str, document: impl Fn(&[&str]) -> Value) -> Answer {
    let limit = match parameter(query, "n") {
        None => None,
        Some(n) => Some(n.parse::<usize>().map_err(|_| {
            let message = "n must be a number of entries, 0 or more";
            Refusal::new(Code::PaginationNumberInvalid, message, &n)
        })?),
    };
    let last = parameter(query, "last");
    let (entries, more) = page(sorted, limit, last.as_deref());
    let mut response = answer::json(StatusCode::OK, &document(&entries));
    if let (true, Some(limit), Some(end)) = (more, limit, entries.last()) {
        let ns = ns_parameter(query);
        let link = format!("<{path}?n={limit}&last={}{ns}>; rel=\"next\"", encode(end));
        insert(response.headers_mut(), header::LINK, &link);
    }
    Ok(response)
}

/// The `ns` that a link must carry on.
fn ns_parameter(query: Option<&str>) -> String {
    parameter(query, "ns")
        .map(|ns| format!("&ns={}", encode(&ns)))
        .unwrap_or_default()
}

/// `/v2/<name>/referrers/<digest>`: never unknown, since anybody may refer to what is not there.
///
/// # Errors
/// When the digest is malformed, or the store cannot be read.
pub async fn referrers(store: &Store, name: &str, candidates: &[String], digest: &str, query: Option<&str>) -> Answer {
    let subject = parse_digest(digest)?;
    let wanted = parameter(query, "artifactType").filter(|wanted| !wanted.is_empty());
    let last = parameter(query, "last");
    let catalog = store.catalog().await;
    let found: Vec<_> = match catalog.find(candidates) {
        Some(repository) => repository
            .referrers(&Id::from(&subject))
            .into_iter()
            .filter(|document| last.as_deref().is_none_or(|last| document.digest.as_str() > last))
            .map(std::sync::Arc::clone)
            .collect(),
        None => Vec::new(),
    };
    let (blobs, filter) = (store.layout().blobs().clone(), wanted.as_deref().map(str::to_owned));
    let described = spawn_blocking(move || {
        let read = |document: &Document| blobs.read(&document.digest, MAX_MANIFEST);
        described(&found, filter.as_deref(), read)
    });
    let (descriptors, next) = described.await??;
    let mut index = serde_json::to_value(Index::default())?;
    index["manifests"] = descriptors.into();
    let mut response = answer::with_bytes(StatusCode::OK, media_type::INDEX, Bytes::from(index.to_string()));
    let headers = response.headers_mut();
    if let Some(wanted) = &wanted {
        insert(headers, FILTERS, "artifactType");
        if let Some(next) = &next {
            let link = format!(
                "</v2/{}/referrers/{subject}?artifactType={}&last={next}{}>; rel=\"next\"",
                encode(name),
                encode(wanted),
                ns_parameter(query)
            );
            insert(headers, header::LINK, &link);
        }
    } else if let Some(next) = &next {
        let link = format!(
            "</v2/{}/referrers/{subject}?last={next}{}>; rel=\"next\"",
            encode(name),
            ns_parameter(query)
        );
        insert(headers, header::LINK, &link);
    }
    Ok(response)
}

/// The descriptors of referrers as far as one answer takes them, and the digest after which the next answer begins.
fn described<D: AsRef<Document>>(
    documents: &[D],
    wanted: Option<&str>,
    read: impl Fn(&Document) -> Result<Vec<u8>, oci::Error>,
) -> Result<(Vec<Value>, Option<String>), oci::Error> {
    let mut descriptors = Vec::new();
    let mut bytes = 0;
    let mut last: Option<&Document> = None;
    for document in documents.iter().map(AsRef::as_ref) {
        if let Some(last) = last.filter(|_| descriptors.len() >= MOST_REFERRERS || bytes >= MOST_BYTES) {
            return Ok((descriptors, Some(last.digest.to_string())));
        }
        last = Some(document);
        let content = read(document)?;
        let descriptor = descriptor(document, &content)?;
        if wanted.is_none_or(|wanted| descriptor["artifactType"] == wanted) {
            bytes += descriptor.to_string().len();
            descriptors.push(descriptor);
        }
    }
    Ok((descriptors, None))
}

/// The descriptor of a referrer: with its annotations, and with its artifact type or what stands for that in an image.
fn descriptor(document: &Document, content: &[u8]) -> Result<Value, oci::Error> {
    let fields: Value = serde_json::from_slice(content).map_err(|source| oci::Error::Json {
        path: document.digest.to_string(),
        source,
    })?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let mut descriptor = json!({
        "mediaType": document.media_type, "digest": document.digest, "size": document.size,
    });
    if let Some(artifact_type) = text(&fields["artifactType"]).or_else(|| text(&fields["config"]["mediaType"])) {
        descriptor["artifactType"] = artifact_type.into();
    }
    if let Some(annotations) = fields["annotations"].as_object().filter(|all| !all.is_empty()) {
        descriptor["annotations"] = annotations.clone().into();
    }
    Ok(descriptor)
}
