//! Responses: the spec's error JSON and the headers every answer carries.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// The body of every response: in memory when small, streamed from a file when a blob.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The error codes of the distribution spec that a read-only registry can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The blob is not in this repository.
    BlobUnknown,
    /// The digest in the path is malformed.
    DigestInvalid,
    /// No manifest of that tag or digest.
    ManifestUnknown,
    /// The repository's name is malformed.
    NameInvalid,
    /// No such repository.
    NameUnknown,
    /// The operation is not offered: this registry is read-only.
    Unsupported,
    /// A parameter of the listing is malformed.
    PaginationNumberInvalid,
    /// The requested range lies outside the blob.
    RangeInvalid,
    /// Reading the store failed; the log says why.
    Unknown,
}

impl Code {
    fn parts(self) -> (&'static str, StatusCode) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND),
            Self::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST),
            Self::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Self::Unsupported => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED),
            Self::PaginationNumberInvalid => ("PAGINATION_NUMBER_INVALID", StatusCode::BAD_REQUEST),
            Self::RangeInvalid => ("RANGE_INVALID", StatusCode::RANGE_NOT_SATISFIABLE),
            Self::Unknown => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// Why a request is not answered with what it asks for.
#[derive(Debug)]
pub struct Refusal {
    code: Code,
    message: &'static str,
    detail: String,
}

impl Refusal {
    /// A refusal with a message for people, and what it is about.
    pub fn new(code: Code, message: &'static str, detail: &str) -> Self {
        Self {
            code,
            message,
            detail: detail.to_owned(),
        }
    }

    /// The spec's error answer.
    pub fn answer(self) -> Response<Body> {
        let (name, status) = self.code.parts();
        let error = serde_json::json!({"code": name, "message": self.message, "detail": self.detail});
        let mut response = json(status, &serde_json::json!({"errors": [error]}));
        if self.code == Code::Unsupported {
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    with_bytes(status, "application/json", Bytes::from(value.to_string()))
}

/// A small answer held in memory.
pub fn with_bytes(status: StatusCode, content_type: &str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

/// An answer without content, with a status.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// Bytes as a body.
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
