//! The `scale` subresource: an `autoscaling/v1` Scale that stands for a workload's number of replicas.

use api::Kind;
use api::convert::{scale_of, with_scale};
use api::kinds::SCALE;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{self, WriteOptions};
use super::format::Format;
use super::patch::Patch;
use super::write::{Target, Writer};
use super::{Context, apply, render};
use crate::error::{ApiError, FieldError, Result};
use crate::objects;
use crate::server::Response;

const MESSAGE: &str = SCALE.message;

fn shown(kind: &Kind, value: &Value, format: Format) -> Result<Response> {
    let scale = scale_of(kind, value).ok_or_else(ApiError::no_such_path)?;
    render::object(&SCALE, format, 200, &scale)
}

/// Answers a get.
///
/// # Errors
/// The refusal.
pub async fn get(c: &Context, kind: &'static Kind, headers: &HeaderMap) -> Result<Response> {
    let format = Format::negotiate(headers, &c.info.query, false)?;
    let value = objects::read(&c.app, kind, c.namespace(kind), &c.info.name).await?;
    shown(kind, &value, format)
}

/// Answers an update or a patch.
///
/// # Errors
/// The refusal.
pub async fn write(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let format = Format::negotiate(request.headers(), &c.info.query, false)?;
    let options = WriteOptions::parse(c)?;
    let (target, writer) = (Target::of(c, kind), Writer::of(c, &options.manager));
    let media = body::content_type(request.headers());
    if c.info.verb == "patch" && media == apply::MEDIA {
        let force = apply::forced(c)?;
        let (scale, warnings) = apply::decode(&body::read(request.into_body()).await?, options.validation)?;
        let config = configuration(c, kind, scale)?;
        let outcome = writer.apply(&target, &config, force, options.dry).await?;
        return Ok(body::warn(shown(kind, &outcome.into_value(), format)?, &warnings));
    }
    let patch = if c.info.verb == "patch" {
        Ok(Patch::parse(&media, &body::read(request.into_body()).await?)?)
    } else {
        let (mut scale, _) = body::object(None, ("autoscaling", "v1", "Scale"), &options, request).await?;
        body::place(c, kind, &mut scale)?;
        Err(scale)
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
    shown(kind, &outcome.into_value(), format)
}

/// What an applied Scale says of the workload.
fn configuration(c: &Context, kind: &Kind, mut scale: Value) -> Result<Value> {
    if (scale["apiVersion"].as_str(), scale["kind"].as_str()) != (Some("autoscaling/v1"), Some("Scale")) {
        return Err(ApiError::bad_request(
            "the applied object must be a Scale of autoscaling/v1",
        ));
    }
    body::place(c, kind, &mut scale)?;
    let unknown = api::fieldcheck::prune(MESSAGE, &mut scale)?;
    if let Some(path) = unknown.first() {
        let why = format!("failed to create typed patch object: .{path}: field not declared in schema");
        return Err(ApiError::bad_request(why));
    }
    check(&c.info.name, &scale)?;
    let mut config = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": scale["metadata"]});
    if let Some(replicas) = scale["spec"].get("replicas") {
        config["spec"] = json!({"replicas": replicas});
    }
    Ok(config)
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
