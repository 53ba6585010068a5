//! What a request's path and query mean. Pure: knows no store.

use std::borrow::Cow;

/// The end points of the distribution spec, and ours for probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/healthz`
    Health,
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags(&'a str),
    /// `/v2/<name>/manifests/<tag or digest>`
    Manifest(&'a str, &'a str),
    /// `/v2/<name>/blobs/<digest>`
    Blob(&'a str, &'a str),
    /// `/v2/<name>/blobs/uploads/`: where uploads begin.
    Uploads(&'a str),
    /// `/v2/<name>/blobs/uploads/<id>`: one that has begun.
    Upload(&'a str, &'a str),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(&'a str, &'a str),
    /// Nothing we know.
    Unknown,
}

/// Reads a decoded path. Repository names may contain the words of the grammar, so it is read from its end.
pub fn route(path: &str) -> Route<'_> {
    let rest = match path {
        "/healthz" => return Route::Health,
        "/v2" | "/v2/" => return Route::Base,
        "/v2/_catalog" => return Route::Catalog,
        _ => match path.strip_prefix("/v2/") {
            Some(rest) => rest,
            None => return Route::Unknown,
        },
    };
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Route::Tags(name);
    }
    let Some((head, last)) = rest.rsplit_once('/') else {
        return Route::Unknown;
    };
    if let Some(name) = head.strip_suffix("/blobs/uploads") {
        return if last.is_empty() {
            Route::Uploads(name)
        } else {
            Route::Upload(name, last)
        };
    }
    match (head.rsplit_once('/'), last) {
        (Some((name, "blobs")), "uploads") => Route::Uploads(name),
        (Some((name, "blobs")), digest) => Route::Blob(name, digest),
        (Some((name, "manifests")), reference) => Route::Manifest(name, reference),
        (Some((name, "referrers")), digest) => Route::Referrers(name, digest),
        _ => Route::Unknown,
    }
}

impl<'a> Route<'a> {
    /// The repository the request is about.
    pub fn repository(&self) -> Option<&'a str> {
        match self {
            Self::Tags(name)
            | Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Referrers(name, _) => Some(name),
            Self::Health | Self::Base | Self::Catalog | Self::Unknown => None,
        }
    }

    /// What the route is called in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Base => "base",
            Self::Catalog => "catalog",
            Self::Tags(_) => "tags",
            Self::Manifest(..) => "manifest",
            Self::Blob(..) => "blob",
            Self::Uploads(_) | Self::Upload(..) => "upload",
            Self::Referrers(..) => "referrers",
            Self::Unknown => "unknown",
        }
    }
}

/// The value of a query parameter, decoded; the first one if it is repeated.
pub fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    parameters(query, name).next()
}

/// All values of a query parameter, decoded.
pub fn parameters<'a>(query: Option<&'a str>, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    query
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| decode(value))
}

/// Undoes percent encoding; what is malformed stays as it is, and is then refused as a name.
pub fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = (byte == b'%')
            .then(|| {
                tail.get(..2)
                    .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok())
            })
            .flatten();
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// One page of a sorted list: at most `limit` entries after `last`, and whether more follow.
pub fn page<'a>(sorted: &[&'a str], limit: Option<usize>, last: Option<&str>) -> (Vec<&'a str>, bool) {
    let start = last.map_or(0, |last| sorted.partition_point(|entry| *entry <= last));
    let after = &sorted[start..];
    let length = limit.unwrap_or(after.len()).min(after.len());
    (after[..length].to_vec(), length > 0 && length < after.len())
}

/// A link of the `Link` header must not carry characters that end it or the query.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut encoded, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
            encoded
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, expected) in [
            ("/v2/", Route::Base),
            ("/v2", Route::Base),
            ("/healthz", Route::Health),
            ("/v2/_catalog", Route::Catalog),
            ("/v2/a/tags/list", Route::Tags("a")),
            ("/v2/a/b/tags/list", Route::Tags("a/b")),
            ("/v2/a/manifests/1", Route::Manifest("a", "1")),
            ("/v2/a/manifests/manifests/x", Route::Manifest("a/manifests", "x")),
            ("/v2/a/blobs/sha256:1", Route::Blob("a", "sha256:1")),
            ("/v2/a/blobs/uploads/", Route::Uploads("a")),
            ("/v2/a/blobs/uploads", Route::Uploads("a")),
            ("/v2/a/b/blobs/uploads/1234", Route::Upload("a/b", "1234")),
            ("/v2/a/referrers/sha256:1", Route::Referrers("a", "sha256:1")),
            ("/v2/blobs/uploads/manifests/1", Route::Manifest("blobs/uploads", "1")),
            ("/v2/x", Route::Unknown),
            ("/v1/", Route::Unknown),
            ("/", Route::Unknown),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }

    #[test]
    fn the_namespace_is_decoded() {
        assert_eq!(
            parameter(Some("n=1&ns=sea.hub%3A5000"), "ns").as_deref(),
            Some("sea.hub:5000")
        );
        assert_eq!(parameter(Some("nsx=1"), "ns"), None);
        assert_eq!(parameter(Some("ns"), "ns").as_deref(), Some(""));
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    #[test]
    fn pages_follow_each_other_without_gap() {
        let all = ["a", "b", "c"];
        assert_eq!(page(&all, None, None), (vec!["a", "b", "c"], false));
        assert_eq!(page(&all, Some(2), None), (vec!["a", "b"], true));
        assert_eq!(page(&all, Some(2), Some("b")), (vec!["c"], false));
        assert_eq!(page(&all, Some(1), Some("aa")), (vec!["b"], true));
        assert_eq!(page(&all, Some(0), None), (vec![], false));
        assert_eq!(page(&all, Some(9), Some("z")), (vec![], false));
    }

    proptest! {
        #[test]
        fn encoding_is_undone_by_decoding(text in "\\PC{0,40}") {
            let encoded = encode(&text);
            prop_assert_eq!(decode(&encoded), text);
        }
    }
}
