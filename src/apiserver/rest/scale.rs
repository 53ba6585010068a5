//! The `scale` subresource: an `autoscaling/v1` Scale that stands for a workload's number of replicas.

use api::Kind;
use api::convert::{scale_of, with_scale};
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use serde_json::Value;

use super::body::{self, WriteOptions};
use super::format::{Encoding, Format, View};
use super::patch::Patch;
use super::write::{Target, Writer};
use super::{Context, render};
use crate::error::{ApiError, FieldError, Result};
use crate::objects;
use crate::server::{Response, negotiated};

const MESSAGE: &str = "autoscaling.v1.Scale";

fn shown(kind: &Kind, value: &Value, encoding: Encoding) -> Result<Response> {
    let scale = scale_of(kind, value).ok_or_else(ApiError::no_such_path)?;
    Ok(negotiated(
        200,
        encoding.media_type(),
        render::encode(encoding, &scale)?.into(),
    ))
}

fn encoding(headers: &HeaderMap, c: &Context) -> Result<Encoding> {
    let format = Format::negotiate(headers, &c.info.query, false)?;
    match format.view {
        View::Whole => Ok(format.encoding),
        _ => Err(ApiError::not_acceptable(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Answers a get.
///
/// # Errors
/// The refusal.
pub async fn get(c: &Context, kind: &'static Kind, headers: &HeaderMap) -> Result<Response> {
    let encoding = encoding(headers, c)?;
    let value = objects::read(&c.app, kind, c.namespace(kind), &c.info.name).await?;
    shown(kind, &value, encoding)
}

/// Answers an update or a patch.
///
/// # Errors
/// The refusal.
pub async fn write(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let encoding = encoding(request.headers(), c)?;
    let options = WriteOptions::parse(&c.info.query)?;
    let patch = if c.info.verb == "patch" {
        let media = body::content_type(request.headers());
        Ok(Patch::parse(&media, &body::read(request.into_body()).await?)?)
    } else {
        let (mut scale, _) = body::object(None, ("autoscaling", "v1", "Scale"), options, request).await?;
        body::place(c, kind, &mut scale)?;
        Err(scale)
    };
    // What is stored is the workload itself: its spec moves, so it is no subresource to the strategy.
    let target = Target {
        subresource: None,
        ..Target::of(c, kind)
    };
    let writer = Writer {
        app: &c.app,
        user: Some(&c.user),
    };
    let outcome = writer
        .update(&target, options.dry, |wire| {
            let current = scale_of(kind, wire).ok_or_else(ApiError::no_such_path)?;
            let wanted = match &patch {
                Ok(p) => p.apply(MESSAGE, &current)?,
                Err(whole) => whole.clone(),
            };
            check(&c.info.name, &wanted)?;
            Ok(with_scale(wire, &wanted))
        })
        .await?;
    shown(kind, &outcome.into_value(), encoding)
}

fn check(name: &str, scale: &Value) -> Result<()> {
    let replicas = &scale["spec"]["replicas"];
    let valid = replicas.is_null()
        || replicas
            .as_i64()
            .is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n));
    if valid {
        return Ok(());
    }
    let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
    Err(ApiError::invalid("autoscaling", "Scale", name, &[error]))
}
