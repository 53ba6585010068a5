//! Kinds that are only answered: TokenReview, SelfSubjectReview, the SubjectAccessReview family, Binding.

use std::collections::BTreeMap;

use api::Kind;
use api::metadata::strings;
use http::Request;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::body::{self, WriteOptions};
use super::format::Format;
use super::{Context, pods, render};
use crate::authn::User;
use crate::authz::{Attributes, Decision, Rule};
use crate::error::{ApiError, Result};
use crate::server::Response;

/// Answers a create of such a kind.
///
/// # Errors
/// The refusal.
pub async fn create(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    if kind.plural == "bindings" {
        return pods::bind_by_body(c, request).await;
    }
    let format = Format::negotiate_untabled(request.headers(), &c.info.query)?;
    let options = WriteOptions::parse(c)?;
    let (mut value, warnings) =
        body::object(Some(kind), (kind.group, kind.version, kind.kind), &options, request).await?;
    value["status"] = match kind.plural {
        "tokenreviews" => token(c, &value["spec"]).await,
        "selfsubjectreviews" => {
            value["metadata"]["creationTimestamp"] = api::time::time(Timestamp::now()).into();
            json!({"userInfo": c.user.info()})
        }
        "subjectaccessreviews" => access(c, &subject(&value["spec"])?, &value["spec"])?,
        "localsubjectaccessreviews" => local(c, &value)?,
        "selfsubjectaccessreviews" => access(c, &c.user, &value["spec"])?,
        "selfsubjectrulesreviews" => rules(c, &value["spec"])?,
        _ => return Err(ApiError::method_not_allowed()),
    };
    let response = render::object(kind, format, 201, &value)?;
    Ok(body::warn(response, &warnings))
}

async fn token(c: &Context, spec: &Value) -> Value {
    let wanted = strings(&spec["audiences"]);
    match c
        .app
        .authn
        .token(spec["token"].as_str().unwrap_or_default(), &wanted)
        .await
    {
        Some((user, audiences)) => json!({"authenticated": true, "user": user.info(), "audiences": audiences}),
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

fn subject(spec: &Value) -> Result<User> {
    let user = User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .map(|m| {
                m.iter()
                    .map(|(k, v)| (k.to_lowercase(), strings(v)))
                    .collect::<BTreeMap<_, _>>()
            })
            .unwrap_or_default(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(ApiError::bad_request(
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    Ok(user)
}

fn local(c: &Context, value: &Value) -> Result<Value> {
    let asked = value["spec"]["resourceAttributes"]["namespace"]
        .as_str()
        .unwrap_or_default();
    if asked != c.info.namespace {
        return Err(ApiError::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {asked:?} is not {:?}",
            c.info.namespace
        )));
    }
    access(c, &subject(&value["spec"])?, &value["spec"])
}

fn action(spec: &Value) -> Result<Attributes> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        return Err(ApiError::bad_request(
            "spec: exactly one of resourceAttributes and nonResourceAttributes must be specified",
        ));
    }
    let text = |k: &str| resource[k].as_str().unwrap_or_default().to_owned();
    if path.is_object() {
        return Ok(Attributes {
            verb: path["verb"].as_str().unwrap_or_default().to_owned(),
            path: path["path"].as_str().unwrap_or_default().to_owned(),
            ..Attributes::default()
        });
    }
    Ok(Attributes {
        verb: text("verb"),
        resource_request: true,
        group: text("group"),
        version: text("version"),
        resource: text("resource"),
        subresource: text("subresource"),
        namespace: text("namespace"),
        name: text("name"),
        path: String::new(),
        field_selector: String::new(),
    })
}

fn access(c: &Context, user: &User, spec: &Value) -> Result<Value> {
    Ok(match c.app.authz.decide(user, &action(spec)?) {
        Decision::Allow(reason) if reason.is_empty() => json!({"allowed": true}),
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::NoOpinion(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::NoOpinion(reason) => json!({"allowed": false, "reason": reason}),
    })
}

fn rules(c: &Context, spec: &Value) -> Result<Value> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let mut all = c.app.authz.rbac.rules(&c.user, namespace);
    if c.user.in_group(crate::authn::MASTERS) {
        let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "nonResourceURLs": ["*"]});
        all.push(Rule::from_value(&everything));
    }
    let resource: Vec<Value> = all
        .iter()
        .filter(|r| !r.resources.is_empty())
        .map(|r| {
            let mut v = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
            if !r.names.is_empty() {
                v["resourceNames"] = json!(r.names);
            }
            v
        })
        .collect();
    let paths: Vec<Value> = all
        .iter()
        .filter(|r| !r.urls.is_empty())
        .map(|r| json!({"verbs": r.verbs, "nonResourceURLs": r.urls}))
        .collect();
    // The Node authorizer's answer depends on objects and cannot be listed.
    Ok(json!({"resourceRules": resource, "nonResourceRules": paths, "incomplete": false}))
}
