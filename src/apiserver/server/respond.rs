//! Making responses.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use crate::body::Body;
use crate::error::ApiError;

/// A response of this server.
pub type Response = http::Response<Body>;

/// A JSON response.
pub fn json(code: u16, value: &Value) -> Response {
    negotiated(code, "application/json", Bytes::from(value.to_string()).into())
}

/// A response of any type.
pub fn negotiated(code: u16, content_type: &str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(v) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, v);
    }
    response
}

/// A refusal.
pub fn status(error: &ApiError) -> Response {
    let mut response = json(error.code, &error.to_value());
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}
