//! Answers of proxied pods, services and nodes: headers that would mislead the caller, and pages whose links are rewritten
//! while they pass, whether or not they are compressed.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use http::header::{self, HeaderMap, HeaderValue};
use http::response::Parts;
use http_body::Body as _;
use hyper::body::Incoming;

use super::links::{Base, Page};
use crate::body::{Body, BodyError};

/// Compressed bytes that are taken at once: what they grow to is passed on before the next ones are taken.
const STEP: usize = 1024;

/// What a page's own server says of other origins holds for it, not for the API server.
const CROSS_ORIGIN: [header::HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// How a page is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    None,
    Gzip,
}

/// The answer as the caller shall see it; `has_body` is false for answers to HEAD.
pub fn outside(parts: &mut Parts, body: Incoming, base: Base, has_body: bool) -> Body {
    for name in CROSS_ORIGIN {
        parts.headers.remove(name);
    }
    if let Some(place) = parts.headers.get(header::LOCATION) {
        let rewritten = place.to_str().ok().and_then(|place| base.rewrite(place));
        if let Some(rewritten) = rewritten.and_then(|place| HeaderValue::from_str(&place).ok()) {
            parts.headers.insert(header::LOCATION, rewritten);
        }
        return Body::Remote(body);
    }
    match coding_of_page(&parts.headers) {
        Some(coding) if has_body && !body.is_end_stream() => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Body::Page(Box::new(Rewritten::new(body, base, coding)))
        }
        _ => Body::Remote(body),
    }
}

/// The compression of an answer that is a page; `None` for anything else, and for compressions that are not known.
fn coding_of_page(headers: &HeaderMap) -> Option<Coding> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
            .unwrap_or_default()
    };
    let media = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("text/html") {
        return None;
    }
    match text(header::CONTENT_ENCODING) {
        "" | "identity" => Some(Coding::None),
        "gzip" => Some(Coding::Gzip),
        _ => None,
    }
}

/// What unpacks a page and packs it again.
type Gzip = (GzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>);

/// The work on one page.
#[derive(Debug)]
struct Work {
    page: Page,
    gzip: Option<Gzip>,
}

impl Work {
    fn push(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let Some((decoder, encoder)) = &mut self.gzip else {
            self.page.push(piece, &mut out);
            return Ok(out);
        };
        for step in piece.chunks(STEP) {
            decoder.write_all(step)?;
            let plain = std::mem::take(decoder.get_mut());
            let mut rewritten = Vec::with_capacity(plain.len());
            self.page.push(&plain, &mut rewritten);
            encoder.write_all(&rewritten)?;
            out.append(encoder.get_mut());
        }
        Ok(out)
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let Some((decoder, mut encoder)) = self.gzip else {
            self.page.finish(&mut out);
            return Ok(out);
        };
        let plain = decoder.finish()?;
        self.page.push(&plain, &mut out);
        self.page.finish(&mut out);
        encoder.write_all(&out)?;
        encoder.finish()
    }
}

/// Another server's page with its links rewritten.
pub struct Rewritten {
    body: Incoming,
    work: Option<Work>,
}

impl Rewritten {
    fn new(body: Incoming, base: Base, coding: Coding) -> Self {
        let gzip = (coding == Coding::Gzip).then(|| {
            let encoder = GzEncoder::new(Vec::new(), Compression::fast());
            (GzDecoder::new(Vec::new()), encoder)
        });
        let page = Page::new(base);
        Self {
            body,
            work: Some(Work { page, gzip }),
        }
    }

    /// The next piece; nothing at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            let piece = match frame {
                Some(Err(error)) => Err(error.into()),
                Some(Ok(frame)) => match (frame.into_data(), &mut self.work) {
                    (Ok(data), Some(work)) => work.push(&data).map_err(Into::into),
                    _ => continue,
                },
                None => match self.work.take() {
                    Some(work) => work.finish().map_err(Into::into),
                    None => return Poll::Ready(None),
                },
            };
            match piece {
                // What a piece holds back comes with a later one.
                Ok(piece) if piece.is_empty() => {}
                piece => return Poll::Ready(Some(piece.map(Bytes::from))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(coding: Coding) -> Work {
        let base = Base {
            prefix: "/p/proxy".into(),
            asked: String::new(),
            target: String::new(),
        };
        let gzip = || {
            (
                GzDecoder::new(Vec::new()),
                GzEncoder::new(Vec::new(), Compression::fast()),
            )
        };
        Work {
            page: Page::new(base),
            gzip: (coding == Coding::Gzip).then(gzip),
        }
    }

    #[test]
    fn a_compressed_page_is_rewritten_and_stays_compressed() {
        let text = format!("{}<a href='/x'>", "<p>many words".repeat(10_000));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let (mut work, mut out) = (work(Coding::Gzip), Vec::new());
        for piece in packed.chunks(100) {
            out.extend(work.push(piece).unwrap());
        }
        out.extend(work.finish().unwrap());
        let mut plain = GzDecoder::new(Vec::new());
        plain.write_all(&out).unwrap();
        let plain = String::from_utf8(plain.finish().unwrap()).unwrap();
        assert_eq!(plain, text.replace("'/x'", "'/p/proxy/x'"));
    }

    #[test]
    fn a_compressed_page_that_is_cut_short_is_an_error() {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(b"<a href='/x'>").unwrap();
        let packed = packed.finish().unwrap();
        let mut work = work(Coding::Gzip);
        work.push(&packed[..packed.len() - 9]).unwrap();
        assert!(work.finish().is_err());
    }

    #[test]
    fn only_pages_of_a_known_compression_are_rewritten() {
        for (media, coding, expected) in [
            ("text/html", "", Some(Coding::None)),
            ("Text/HTML; charset=utf-8", "gzip", Some(Coding::Gzip)),
            ("text/html", "br", None),
            ("text/plain", "", None),
            ("application/xhtml+xml", "", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, media.parse().unwrap());
            headers.insert(header::CONTENT_ENCODING, coding.parse().unwrap());
            assert_eq!(coding_of_page(&headers), expected, "{media} {coding}");
        }
    }
}
