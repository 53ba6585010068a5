//! `serviceaccounts/token` (TokenRequest) and the OIDC documents that let others verify the tokens (KEP-1393).

use api::{Kind, metadata};
use http::Request;
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::body::{self, WriteOptions};
use super::format::Format;
use super::{Context, render};
use crate::app::App;
use crate::authn::Bound;
use crate::error::{ApiError, FieldError, Result};
use crate::objects;
use crate::server::{Response, json as answer, negotiated};

const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;

/// Answers a TokenRequest.
///
/// # Errors
/// The refusal.
pub async fn create(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let format = Format::negotiate_untabled(request.headers(), &c.info.query)?;
    let options = WriteOptions::parse(c)?;
    let (mut value, _) = body::object(None, ("authentication.k8s.io", "v1", "TokenRequest"), &options, request).await?;
    let namespace = c.namespace(kind);
    let account = objects::read(&c.app, kind, namespace, &c.info.name).await?;
    let spec = &value["spec"];
    let mut audiences = api::metadata::strings(&spec["audiences"]);
    if audiences.is_empty() {
        audiences.clone_from(&c.app.authn.tokens.audiences);
    }
    let seconds = seconds(c, spec)?;
    let bound = bound(&c.app, namespace, &c.info.name, &spec["boundObjectRef"]).await?;
    let expires = Timestamp::now() + SignedDuration::from_secs(seconds);
    let token = if options.dry {
        String::new()
    } else {
        c.app.authn.tokens.issue(&account, &audiences, seconds as u64, &bound)?
    };
    value["metadata"]["name"] = c.info.name.as_str().into();
    value["metadata"]["namespace"] = namespace.into();
    value["metadata"]["creationTimestamp"] = api::time::time(Timestamp::now()).into();
    value["spec"]["audiences"] = json!(audiences);
    value["spec"]["expirationSeconds"] = seconds.into();
    value["status"] = json!({"token": token, "expirationTimestamp": api::time::time(expires)});
    render::object(kind, format, 201, &value)
}

fn seconds(c: &Context, spec: &Value) -> Result<i64> {
    let asked = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let refuse = |message: &str| {
        let error = FieldError::invalid("spec.expirationSeconds", &asked.into(), message);
        Err(ApiError::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            &c.info.name,
            &[error],
        ))
    };
    if asked < SHORTEST {
        return refuse("may not specify a duration less than 10 minutes");
    }
    if asked > LONGEST {
        return refuse("may not specify a duration larger than 2^32 seconds");
    }
    Ok(asked.min(i64::try_from(c.app.args.service_account_max_token_expiration_seconds).unwrap_or(i64::MAX)))
}

/// The object a token is bound to; a pod brings its node along, for information.
async fn bound(app: &App, namespace: &str, account: &str, reference: &Value) -> Result<Vec<Bound>> {
    if reference.is_null() {
        return Ok(Vec::new());
    }
    let (ref_kind, name) = (
        reference["kind"].as_str().unwrap_or_default(),
        reference["name"].as_str().unwrap_or_default(),
    );
    let (claim, plural, scope) = match ref_kind {
        "Pod" => ("pod", "pods", namespace),
        "Secret" => ("secret", "secrets", namespace),
        "Node" => ("node", "nodes", ""),
        other => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {other}"
            )));
        }
    };
    let kind = api::kinds::find("", "v1", plural).ok_or_else(ApiError::no_such_path)?;
    let object = objects::read(app, kind, scope, name).await?;
    let uid = metadata::uid(&object).to_owned();
    if let Some(wanted) = reference["uid"].as_str().filter(|u| !u.is_empty())
        && wanted != uid
    {
        let why = format!("the UID in the bound object reference ({wanted}) does not match the UID in record ({uid})");
        return Err(ApiError::conflict("", plural, name, &why));
    }
    let mut out = vec![Bound {
        kind: claim,
        name: name.to_owned(),
        uid,
    }];
    if claim == "pod" {
        if object["spec"]["serviceAccountName"] != account {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name {}",
                object["spec"]["serviceAccountName"]
            )));
        }
        let node = objects::text(&object, "/spec/nodeName");
        if let Some(n) = app.cache.kind("", "nodes").and_then(|k| k.get("", node)) {
            out.push(Bound {
                kind: "node",
                name: node.to_owned(),
                uid: n.uid.to_string(),
            });
        }
    }
    Ok(out)
}

/// `/.well-known/openid-configuration`.
pub fn configuration(app: &App) -> Response {
    let issuer = app.authn.tokens.issuers.first().cloned().unwrap_or_default();
    let advertised = match app.args.advertise_address {
        std::net::IpAddr::V4(ip) => format!("{ip}:{}", app.args.secure_port),
        std::net::IpAddr::V6(ip) => format!("[{ip}]:{}", app.args.secure_port),
    };
    answer(
        200,
        &json!({
            "issuer": issuer,
            "jwks_uri": format!("https://{advertised}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": app.authn.tokens.algorithms(),
        }),
    )
}

/// `/openid/v1/jwks`.
pub fn keys(app: &App) -> Response {
    negotiated(
        200,
        "application/jwk-set+json",
        app.authn.tokens.jwks().to_string().into(),
    )
}
