//! Request bodies: bounded, decoded by content type, checked for fields nobody knows.

use api::{Kind, managed};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::Context;
use super::format::PROTOBUF;
use crate::error::{ApiError, FieldError, Result};
use crate::model;
use crate::server::Response;

/// Largest request body, in bytes.
pub const LIMIT: usize = 3 << 20;

/// Reads a body of at most 3 MiB.
///
/// # Errors
/// 413 for larger ones.
pub async fn read(body: Incoming) -> Result<Bytes> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(b) => Ok(b.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {LIMIT}"),
        )),
        Err(e) => Err(ApiError::bad_request(format!("unable to read the request body: {e}"))),
    }
}

/// `Content-Type` without parameters; JSON if there is none.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media.is_empty() {
        "application/json".to_owned()
    } else {
        media
    }
}

/// Decodes one object.
///
/// # Errors
/// 415 for unknown types, 400 for malformed content.
pub fn decode(media: &str, bytes: &[u8]) -> Result<Value> {
    let bad = |e: &dyn std::fmt::Display| ApiError::bad_request(format!("the object provided is unrecognized: {e}"));
    let value = match media {
        "application/json" => serde_json::from_slice::<Value>(bytes).map_err(|e| bad(&e))?,
        // Whether a field may occur twice is a question of field validation.
        media if model::is_yaml(media) => model::from_lax_yaml(bytes)?,
        PROTOBUF => model::from_protobuf(bytes)?,
        other => {
            return Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml, {PROTOBUF}; got {other}"
            )));
        }
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err(ApiError::bad_request("the body is not an object"))
    }
}

/// How fields that nobody knows are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped silently.
    Ignore,
    /// They are dropped with a warning.
    Warn,
    /// They are refused.
    Strict,
}

/// Parameters of a write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Whether to do everything but storing.
    pub dry: bool,
    /// Unknown fields.
    pub validation: FieldValidation,
    /// Name of the manager that comes to own what is written.
    pub manager: String,
}

/// 422 about a parameter of a verb.
pub fn invalid_option(verb: &str, error: FieldError) -> ApiError {
    let kind = match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        _ => "DeleteOptions",
    };
    ApiError::invalid("meta.k8s.io", kind, "", &[error])
}

/// Whether `dryRun=All` is asked for.
///
/// # Errors
/// 422 for other values.
pub fn dry_run<'a>(verb: &str, values: impl Iterator<Item = &'a str>) -> Result<bool> {
    let mut dry = false;
    for v in values {
        match v {
            "All" => dry = true,
            other => {
                return Err(invalid_option(
                    verb,
                    FieldError::not_supported("dryRun", other, &["All"]),
                ));
            }
        }
    }
    Ok(dry)
}

impl WriteOptions {
    /// Reads them off a request.
    ///
    /// # Errors
    /// 422 for unknown values.
    pub fn parse(c: &Context) -> Result<Self> {
        let (query, verb) = (&c.info.query, c.info.verb.as_str());
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                let error = FieldError::not_supported("fieldValidation", other, &supported);
                return Err(invalid_option(verb, error));
            }
        };
        let manager = match query.get("fieldManager") {
            None => managed::default_manager(&c.user_agent),
            Some(name) if name.len() > managed::MAX_MANAGER => {
                return Err(invalid_option(
                    verb,
                    FieldError::too_long("fieldManager", managed::MAX_MANAGER),
                ));
            }
            Some(name) if name.chars().any(char::is_control) => {
                let error = FieldError::invalid_text("fieldManager", name, "should only contain printable characters");
                return Err(invalid_option(verb, error));
            }
            Some(name) => name.to_owned(),
        };
        Ok(Self {
            dry: dry_run(verb, query.all("dryRun"))?,
            validation,
            manager,
        })
    }
}

/// Reads and decodes the object of a write, and says what is odd about it. `expected` is group, version and kind.
///
/// # Errors
/// 400, 413, 415, and 400 for unknown fields under strict validation.
pub async fn object(
    kind: Option<&'static Kind>,
    expected: (&str, &str, &str),
    options: &WriteOptions,
    request: Request<Incoming>,
) -> Result<(Value, Vec<String>)> {
    let media = content_type(request.headers());
    let bytes = read(request.into_body()).await?;
    let mut value = decode(&media, &bytes)?;
    identify(&mut value, expected)?;
    let raw = (media != PROTOBUF).then_some((media.as_str(), bytes.as_ref()));
    let warnings = match kind {
        Some(kind) => check(kind, &mut value, raw, options.validation)?,
        None => Vec::new(),
    };
    Ok((value, warnings))
}

/// Checks an object's fields against the schema and drops those that are unknown.
///
/// # Errors
/// 400 for unknown fields under strict validation, and for fields of the wrong type.
pub fn check(
    kind: &'static Kind,
    value: &mut Value,
    raw: Option<(&str, &[u8])>,
    validation: FieldValidation,
) -> Result<Vec<String>> {
    judge(model::check_fields(kind, value, raw)?, validation)
}

/// What is told of odd fields.
///
/// # Errors
/// 400 under strict validation.
pub fn judge(found: Vec<String>, validation: FieldValidation) -> Result<Vec<String>> {
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(found),
        FieldValidation::Strict if found.is_empty() => Ok(found),
        FieldValidation::Strict => Err(ApiError::bad_request(format!(
            "strict decoding error: {}",
            found.join(", ")
        ))),
    }
}

/// An object must be what its path says; one that does not say gets it.
fn identify(value: &mut Value, (group, version, kind): (&str, &str, &str)) -> Result<()> {
    let wanted = api::kinds::join_api_version(group, version);
    match value["apiVersion"].as_str().unwrap_or_default() {
        "" => value["apiVersion"] = wanted.into(),
        v if v == wanted => {}
        v => {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({v}) does not match the expected API version ({wanted})"
            )));
        }
    }
    match value["kind"].as_str().unwrap_or_default() {
        "" => value["kind"] = kind.into(),
        k if k == kind => {}
        k => {
            return Err(ApiError::bad_request(format!(
                "the kind in the data ({k}) does not match the expected kind ({kind})"
            )));
        }
    }
    if !value["metadata"].is_object() {
        if !value["metadata"].is_null() {
            return Err(ApiError::bad_request("metadata must be an object"));
        }
        value["metadata"] = serde_json::json!({});
    }
    Ok(())
}

/// Adds `Warning` headers (RFC 7234, code 299).
pub fn warn(mut response: Response, warnings: &[String]) -> Response {
    for w in warnings.iter().take(32) {
        let text: String = w.chars().filter(|c| !c.is_control()).take(256).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(v) = http::HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(http::header::WARNING, v);
        }
    }
    response
}

/// The name and namespace of the object must be those of the path; absent ones are filled in.
///
/// # Errors
/// 400 where they differ.
pub fn place(c: &Context, kind: &Kind, value: &mut Value) -> Result<()> {
    let meta = &mut value["metadata"];
    let namespace = c.namespace(kind);
    match meta["namespace"].as_str().unwrap_or_default() {
        "" if kind.namespaced => meta["namespace"] = namespace.into(),
        "" => {}
        n if n == namespace => {}
        n => {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(ApiError::bad_request(format!("{why} ({n} is not {namespace:?})")));
        }
    }
    if !kind.namespaced
        && let Some(m) = meta.as_object_mut()
    {
        m.remove("namespace");
    }
    if c.info.name.is_empty() {
        return Ok(());
    }
    match meta["name"].as_str().unwrap_or_default() {
        "" => meta["name"] = c.info.name.as_str().into(),
        n if n == c.info.name => {}
        n => {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({n}) does not match the name on the URL ({})",
                c.info.name
            )));
        }
    }
    Ok(())
}
