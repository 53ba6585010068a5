//! gzip for large answers to clients that ask for it.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY};

use crate::body::Body;
use crate::server::Response;

/// Smaller answers are sent as they are, in bytes; upstream's threshold.
const WORTHWHILE: usize = 128 << 10;

/// Compresses an answer if it is large and the client accepts it.
pub async fn gzip(request: &HeaderMap, response: Response) -> Response {
    let accepts = request
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| {
            v.split(',')
                .any(|e| e.split(';').next().unwrap_or_default().trim() == "gzip")
        });
    if !accepts || response.body().len().is_none_or(|l| l < WORTHWHILE) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Body::Pieces(pieces) = body else {
        return http::Response::from_parts(parts, body);
    };
    let kept = pieces.clone();
    let packed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        pieces.iter().try_for_each(|p| encoder.write_all(p))?;
        encoder.finish()
    })
    .await;
    let Ok(Ok(packed)) = packed else {
        return http::Response::from_parts(parts, Body::Pieces(kept));
    };
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    http::Response::from_parts(parts, packed.into())
}
