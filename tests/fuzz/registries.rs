//! What clients of a registry send: paths, queries and ranges.

use registry::range::{Wanted, wanted};
use registry::route::{decode, encode, page, parameter, route};
use registry::{names, route::Route};

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
