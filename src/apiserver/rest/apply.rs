//! Server-side apply: a PATCH whose body is a configuration, in YAML or JSON.

use api::Kind;
use http::Request;
use hyper::body::Incoming;
use serde_json::Value;

use super::body::{self, FieldValidation, WriteOptions, invalid_option};
use super::format::Format;
use super::write::{Target, Writer};
use super::{Context, render};
use crate::error::{ApiError, FieldError, Result};
use crate::model;
use crate::server::Response;

/// Media type of such a patch.
pub const MEDIA: &str = "application/apply-patch+yaml";
/// Attempts to find the object either there or not, while others create and delete it.
const TRIES: usize = 3;

/// Reads a configuration and says which fields occur twice in it.
///
/// # Errors
/// 400 for malformed text, and under strict validation for fields that occur twice.
pub fn decode(bytes: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>)> {
    let malformed = |e: ApiError| ApiError::bad_request(format!("error decoding YAML: {e}"));
    // Programs send JSON, which is YAML too, but read faster and more exactly.
    let (value, twice) = match api::fieldcheck::parse_json(bytes) {
        Ok(parsed) => {
            let twice = parsed
                .duplicates
                .iter()
                .map(|p| format!("duplicate field {p:?}"))
                .collect();
            (parsed.value, twice)
        }
        Err(_) => match model::from_yaml(bytes) {
            Ok(value) => (value, Vec::new()),
            Err(e) => (model::from_lax_yaml(bytes).map_err(malformed)?, vec![e.message]),
        },
    };
    if !value.is_object() {
        return Err(ApiError::bad_request(
            "error decoding YAML: the configuration is no object",
        ));
    }
    match validation {
        FieldValidation::Ignore => Ok((value, Vec::new())),
        FieldValidation::Strict if !twice.is_empty() => Err(ApiError::bad_request(format!(
            "error strict decoding YAML: {}",
            twice.join(", ")
        ))),
        _ => Ok((value, twice)),
    }
}

/// Checks the parameters that only this kind of patch has; whether to take what others own.
///
/// # Errors
/// 422 without a manager.
pub fn forced(c: &Context) -> Result<bool> {
    if c.info.query.get("fieldManager").is_none() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        return Err(invalid_option("patch", error));
    }
    Ok(c.info.query.flag("force"))
}

/// Answers an apply of an object or one of its subresources that travel as the object itself. An object that is not there is
/// created.
///
/// # Errors
/// The refusal; 409 with a cause per field that others own.
pub async fn apply(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let format = Format::negotiate(request.headers(), &c.info.query, false)?;
    let options = WriteOptions::parse(c)?;
    let force = forced(c)?;
    let (mut config, warnings) = decode(&body::read(request.into_body()).await?, options.validation)?;
    body::place(c, kind, &mut config)?;
    let (code, stored) = converge(c, kind, &config, force, &options).await?;
    let response = render::object(kind, format, code, &render::in_version(kind, stored))?;
    Ok(body::warn(response, &warnings))
}

async fn converge(
    c: &Context,
    kind: &'static Kind,
    config: &Value,
    force: bool,
    options: &WriteOptions,
) -> Result<(u16, Value)> {
    let (writer, target) = (Writer::of(c, &options.manager), Target::of(c, kind));
    let mut tries = TRIES;
    loop {
        tries -= 1;
        match writer.apply(&target, config, force, options.dry).await {
            Err(e) if e.code == 404 && target.subresource.is_none() && kind.verbs.contains(&"create") => {}
            done => return done.map(|outcome| (200, outcome.into_value())),
        }
        c.app.authz.require(&c.user, &c.action("create"))?;
        match writer.create_applied(kind, config, options.dry).await {
            Err(e) if e.reason == "AlreadyExists" && tries > 0 => {}
            done => return done.map(|value| (201, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_come_as_json_or_yaml_and_what_occurs_twice_is_told() {
        let check = |text: &str, expected: Value| {
            let (value, twice) = decode(text.as_bytes(), FieldValidation::Warn).unwrap();
            assert_eq!(value, expected);
            twice
        };
        assert!(check(r#"{"a": 1}"#, json!({"a": 1})).is_empty());
        assert!(check("a: 1\nb: {c: x}\n", json!({"a": 1, "b": {"c": "x"}})).is_empty());
        assert_eq!(
            check(r#"{"a": {"b": 1, "b": 2}}"#, json!({"a": {"b": 2}})),
            ["duplicate field \"a.b\""]
        );
        assert_eq!(check("a: 1\na: 2\n", json!({"a": 2})).len(), 1);
        for text in [r#"{"a": 1, "a": 2}"#, "a: 1\na: 2\n"] {
            assert_eq!(decode(text.as_bytes(), FieldValidation::Strict).unwrap_err().code, 400);
            assert!(decode(text.as_bytes(), FieldValidation::Ignore).unwrap().1.is_empty());
        }
        for text in ["", "a: [", "3", "{"] {
            assert_eq!(
                decode(text.as_bytes(), FieldValidation::Warn).unwrap_err().code,
                400,
                "{text}"
            );
        }
    }
}
