//! Responses: the spec's error JSON and the headers every answer carries.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use oci::Digest;

use crate::socket::Piece;

/// The body of every response: in memory when small, streamed or sent from a file when a blob.
pub type Body = UnsyncBoxBody<Piece, std::io::Error>;

/// A response, or why there is none.
pub type Answer = Result<Response<Body>, Refusal>;

/// The digest of the content that is answered with or was stored.
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Why a request is refused: an error code of the distribution spec, with the status that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The blob is not in this repository.
    BlobUnknown,
    /// The upload does not go on like this.
    BlobUploadInvalid,
    /// A chunk does not begin where the upload stands.
    BlobUploadOutOfOrder,
    /// No such upload: never begun, finished, cancelled, or too old.
    BlobUploadUnknown,
    /// A blob is larger than this registry takes.
    BlobTooLarge,
    /// The digest is malformed, of an unknown algorithm, or not that of the content.
    DigestInvalid,
    /// A manifest names content that is not here.
    ManifestBlobUnknown,
    /// The manifest is malformed.
    ManifestInvalid,
    /// The manifest is larger than this registry takes.
    ManifestTooLarge,
    /// No manifest of that tag or digest.
    ManifestUnknown,
    /// The repository's name is malformed.
    NameInvalid,
    /// No such repository.
    NameUnknown,
    /// The length announced is not that of the content.
    SizeInvalid,
    /// Who asks has not said who they are, or not truly.
    Unauthorized,
    /// Known, and not allowed.
    Denied,
    /// The operation is not offered.
    Unsupported,
    /// Too much at once; later it may work.
    TooManyRequests,
    /// A parameter of the listing is malformed.
    PaginationNumberInvalid,
    /// The requested range lies outside the blob.
    RangeInvalid,
    /// The client did not go on sending.
    Timeout,
    /// Reading or writing the store failed; the log says why.
    Unknown,
}

impl Code {
    fn parts(self) -> (&'static str, StatusCode) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", StatusCode::BAD_REQUEST),
            Self::BlobUploadOutOfOrder => ("BLOB_UPLOAD_INVALID", StatusCode::RANGE_NOT_SATISFIABLE),
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND),
            Self::BlobTooLarge => ("SIZE_INVALID", StatusCode::PAYLOAD_TOO_LARGE),
            Self::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestBlobUnknown => ("MANIFEST_BLOB_UNKNOWN", StatusCode::BAD_REQUEST),
            Self::ManifestInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestTooLarge => ("MANIFEST_INVALID", StatusCode::PAYLOAD_TOO_LARGE),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND),
            Self::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST),
            Self::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Self::SizeInvalid => ("SIZE_INVALID", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("UNAUTHORIZED", StatusCode::UNAUTHORIZED),
            Self::Denied => ("DENIED", StatusCode::FORBIDDEN),
            Self::Unsupported => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED),
            Self::TooManyRequests => ("TOOMANYREQUESTS", StatusCode::TOO_MANY_REQUESTS),
            Self::PaginationNumberInvalid => ("PAGINATION_NUMBER_INVALID", StatusCode::BAD_REQUEST),
            Self::RangeInvalid => ("RANGE_INVALID", StatusCode::RANGE_NOT_SATISFIABLE),
            Self::Timeout => ("BLOB_UPLOAD_INVALID", StatusCode::REQUEST_TIMEOUT),
            Self::Unknown => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// Why a request is not answered with what it asks for.
#[derive(Debug, Clone)]
pub struct Refusal(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    code: Code,
    message: &'static str,
    /// What it is about: one error of the answer each, at least one.
    details: Vec<String>,
    headers: HeaderMap,
}

impl Refusal {
    /// A refusal with a message for people, and what it is about.
    pub fn new(code: Code, message: &'static str, detail: &str) -> Self {
        Self::of_many(code, message, vec![detail.to_owned()])
    }

    /// A refusal for several reasons of one kind.
    pub fn of_many(code: Code, message: &'static str, details: Vec<String>) -> Self {
        Self(Box::new(Parts {
            code,
            message,
            details,
            headers: HeaderMap::new(),
        }))
    }

    /// A failure of ours: the log says why, the client that it is not its fault.
    fn failed(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %error, "the store failed");
        let message = "the registry's store failed; its log says why";
        Self::new(Code::Unknown, message, "")
    }

    /// The same refusal with one more header.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        insert(&mut self.0.headers, name, value);
        self
    }

    /// Whether what has come of an upload is of no use any more.
    pub fn ends_upload(&self) -> bool {
        matches!(self.0.code, Code::BlobTooLarge)
    }

    /// The kind of refusal.
    #[cfg(test)]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The spec's error answer.
    pub fn answer(self) -> Response<Body> {
        let Parts {
            code,
            message,
            details,
            headers,
        } = *self.0;
        let (name, status) = code.parts();
        let errors: Vec<_> = details
            .iter()
            .map(|detail| serde_json::json!({"code": name, "message": message, "detail": detail}))
            .collect();
        let mut response = json(status, &serde_json::json!({"errors": errors}));
        response.headers_mut().extend(headers);
        response
    }
}

/// Failures of ours, by what went wrong.
macro_rules! failures {
    ($($error:ty),*) => {$(
        impl From<$error> for Refusal {
            fn from(error: $error) -> Self {
                Self::failed(&error)
            }
        }
    )*};
}

failures!(
    std::io::Error,
    oci::Error,
    serde_json::Error,
    tokio::task::JoinError,
    tokio::sync::AcquireError,
    tokio::sync::oneshot::error::RecvError
);

/// A JSON answer.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    with_bytes(status, "application/json", Bytes::from(value.to_string()))
}

/// A small answer held in memory.
pub fn with_bytes(status: StatusCode, content_type: &str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    insert(response.headers_mut(), header::CONTENT_TYPE, content_type);
    response
}

/// An answer without content, with a status.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// The answer to content that is now stored: where it is, and its digest.
pub fn created(location: &str, digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    insert(response.headers_mut(), header::LOCATION, location);
    insert(response.headers_mut(), CONTENT_DIGEST, digest.as_str());
    response
}

/// Bytes as a body.
pub fn full(bytes: Bytes) -> Body {
    Full::new(Piece::from(bytes))
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Sets a header; a value that no header can have is left out and logged.
pub fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => _ = headers.insert(name, value),
        Err(error) => tracing::warn!(%name, %error, "header left out"),
    }
}
