//! What clients of a registry send: paths, queries, ranges, chunks and manifests.

use http::{HeaderMap, HeaderValue, header};
use oci::{Digest, media_type};
use registry::range::{Wanted, wanted};
use registry::route::{decode, encode, page, parameter, route};
use registry::{chunk, manifest, names, route::Route};

use crate::Input;

/// Eight bytes of a blob's size, then a Range header, a path and a query, each ended by a zero byte.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut size = [0; 8];
    let taken = input.take(8);
    size[..taken.len()].copy_from_slice(taken);
    let size = u64::from_le_bytes(size);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (header, path, query) = (text(input.until_zero()), text(input.until_zero()), text(input.0));
    match wanted(Some(&header), size) {
        Wanted::Part { first, last } => assert!(first <= last && last < size, "{header:?} of {size}"),
        Wanted::Whole | Wanted::Unsatisfiable => {}
    }
    let path = decode(&path).into_owned();
    assert_eq!(decode(&encode(&path)), path);
    match route(&path) {
        Route::Manifest(name, last) | Route::Blob(name, last) => {
            assert!(!last.contains('/'));
            check_name(name, &query);
        }
        Route::Tags(name) => check_name(name, &query),
        _ => {}
    }
    let mut entries: Vec<&str> = query.split('&').collect();
    entries.sort_unstable();
    let limit = parameter(Some(&query), "n").and_then(|n| n.parse().ok());
    let last = parameter(Some(&query), "last");
    let (found, more) = page(&entries, limit, last.as_deref());
    assert!(limit.is_none_or(|limit| found.len() <= limit));
    assert!(!more || found.len() < entries.len());
    assert!(
        found
            .iter()
            .all(|entry| last.as_deref().is_none_or(|last| *entry > last))
    );
}

fn check_name(name: &str, query: &str) {
    if !names::is_valid(name) {
        return;
    }
    assert!(
        name.split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".."),
        "{name}"
    );
    let own = ["sea.hub:5000".to_string()];
    let candidates = names::candidates(name, parameter(Some(query), "ns").as_deref(), &own);
    assert!(!candidates.is_empty());
    for candidate in &candidates {
        assert!(
            candidate.ends_with(name.rsplit('/').next().unwrap_or(name)),
            "{candidate}"
        );
    }
}

/// Eight bytes that say where an upload stands, then Content-Range, Content-Length and Content-Type, each ended by a zero byte, then a manifest.
pub(crate) fn uploads(data: &[u8]) {
    let mut input = Input(data);
    let mut at = [0; 8];
    let taken = input.take(8);
    at[..taken.len()].copy_from_slice(taken);
    let at = u64::from_le_bytes(at);
    let mut headers = HeaderMap::new();
    for name in [header::CONTENT_RANGE, header::CONTENT_LENGTH] {
        if let Ok(value) = HeaderValue::from_bytes(input.until_zero()) {
            headers.insert(name, value);
        }
    }
    if let Ok(Some(length)) = chunk::length(&headers, at) {
        assert!(
            length > 0 && at.checked_add(length - 1).is_some(),
            "{length} bytes at {at}"
        );
    }
    let content_type = String::from_utf8_lossy(input.until_zero()).into_owned();
    let Ok(manifest) = manifest::check(Some(&content_type), input.0) else {
        return;
    };
    assert_eq!(manifest.descriptor.digest, Digest::of(input.0));
    assert_eq!(manifest.descriptor.size, input.0.len() as u64);
    match manifest.descriptor.media_type.as_str() {
        media_type::MANIFEST | media_type::DOCKER_MANIFEST => assert!(manifest.manifests.is_empty()),
        media_type::INDEX | media_type::DOCKER_LIST => assert!(manifest.blobs.is_empty()),
        other => panic!("{other} is no manifest"),
    }
}
