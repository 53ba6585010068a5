//! Patches: JSON, merge, strategic merge.

use api::Kind;
use http::Request;
use hyper::body::Incoming;
use serde_json::Value;

use super::body::{self, WriteOptions};
use super::format::Format;
use super::write::{Target, Writer};
use super::{Context, apply, render};
use crate::error::{ApiError, FieldError, Result};
use crate::model;
use crate::server::Response;

/// A patch as it came.
#[derive(Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own.
    Strategic(Value),
}

impl Patch {
    /// Decodes by content type.
    ///
    /// # Errors
    /// 415 for other types, 400 for malformed content.
    pub fn parse(media: &str, bytes: &[u8]) -> Result<Self> {
        let value = || {
            serde_json::from_slice::<Value>(bytes)
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))
        };
        match media {
            "application/json-patch+json" => Ok(Self::Json(value()?)),
            "application/merge-patch+json" => Ok(Self::Merge(value()?)),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(value()?)),
            other => Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                 {}; got {other}",
                apply::MEDIA
            ))),
        }
    }

    /// Fields that occur twice in its text.
    ///
    /// # Errors
    /// 400 for malformed content.
    fn repeated(&self, bytes: &[u8]) -> Result<Vec<String>> {
        let kind = if matches!(self, Self::Json(_)) {
            "json patch "
        } else {
            ""
        };
        let found = api::fieldcheck::odd_fields(bytes, Vec::new())?;
        Ok(found.iter().map(|odd| format!("{kind}{odd}")).collect())
    }

    /// Applies it to an object of a message.
    ///
    /// # Errors
    /// 422 or 400 for patches that don't fit.
    pub fn apply(&self, message: &str, current: &Value) -> Result<Value> {
        match self {
            Self::Json(p) => api::patch::json(current, p),
            Self::Merge(p) => api::patch::merge(current, p),
            Self::Strategic(p) => api::patch::strategic(message, current, p),
        }
    }
}

/// Answers a patch of an object or one of its subresources that travel as the object itself.
///
/// # Errors
/// The refusal.
pub async fn patch(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let media = body::content_type(request.headers());
    if media == apply::MEDIA {
        return apply::apply(c, kind, request).await;
    }
    let format = Format::negotiate(request.headers(), &c.info.query, false)?;
    let options = WriteOptions::parse(c)?;
    if c.info.query.has("force") {
        let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
        return Err(body::invalid_option("patch", error));
    }
    let bytes = body::read(request.into_body()).await?;
    let patch = Patch::parse(&media, &bytes)?;
    let twice = patch.repeated(&bytes)?;
    let mut warnings = Vec::new();
    let writer = Writer::of(c, &options.manager);
    let target = Target::of(c, kind);
    let outcome = writer
        .update(&target, options.dry, |wire| {
            let mut new = patch.apply(kind.message, wire)?;
            same_object(kind, &c.info.name, &new)?;
            let unknown = model::check_fields(kind, &mut new, None)?;
            warnings = body::judge([twice.clone(), unknown].concat(), options.validation)?;
            Ok(new)
        })
        .await?;
    let response = render::object(kind, format, 200, &render::in_version(kind, outcome.into_value()))?;
    Ok(body::warn(response, &warnings))
}

/// A patch changes an object; it does not make it another one.
fn same_object(kind: &Kind, name: &str, new: &Value) -> Result<()> {
    if new["metadata"]["name"] != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            new["metadata"]["name"].as_str().unwrap_or_default()
        )));
    }
    if new["apiVersion"] != kind.api_version() || new["kind"] != kind.kind {
        return Err(ApiError::bad_request("a patch may not change apiVersion or kind"));
    }
    Ok(())
}
