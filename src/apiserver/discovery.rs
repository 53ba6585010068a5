//! Paths that describe the server: discovery, OpenAPI, version, OIDC.

use std::sync::OnceLock;

use http::HeaderMap;
use http::header::{ACCEPT, CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, Result};
use crate::request::RequestInfo;
use crate::rest::{
    format::{Encoding, PROTOBUF},
    render, tokens,
};
use crate::server::{Response, json as answer, negotiated};

/// Media type of the protobuf form of OpenAPI v2.
const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The name by which Go clients ask for it, which is no valid media type, so that they could not read it in an answer.
const OPENAPI_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers a path that is no resource.
///
/// # Errors
/// 404 for unknown paths, 406 for forms there are not.
pub fn serve(app: &App, info: &RequestInfo, headers: &HeaderMap) -> Result<Response> {
    let path: Vec<&str> = info.path.split('/').filter(|p| !p.is_empty()).collect();
    match path.as_slice() {
        [] => Ok(answer(200, &root())),
        ["version"] => Ok(answer(200, &version())),
        ["api"] if wants_aggregated(headers) => Ok(aggregated(true, headers)),
        ["apis"] if wants_aggregated(headers) => Ok(aggregated(false, headers)),
        ["api"] => encoded(headers, &api::discovery::api_versions(&server_address(app))),
        ["apis"] => encoded(headers, &api::discovery::api_group_list()),
        ["apis", group] => found(headers, api::discovery::api_group(group)),
        ["api", version] => found(headers, api::discovery::api_resource_list("", version)),
        ["apis", group, version] => found(headers, api::discovery::api_resource_list(group, version)),
        ["openapi", "v2"] => openapi_v2(headers),
        ["openapi", "v3"] => Ok(answer(200, api::openapi::v3_index())),
        ["openapi", "v3", "api", version] => openapi_v3(info, headers, "", version),
        ["openapi", "v3", "apis", group, version] => openapi_v3(info, headers, group, version),
        [".well-known", "openid-configuration"] => Ok(tokens::configuration(app)),
        ["openid", "v1", "jwks"] => Ok(tokens::keys(app)),
        _ => Err(ApiError::no_such_path()),
    }
}

fn server_address(app: &App) -> String {
    match app.args.advertise_address {
        std::net::IpAddr::V4(ip) => format!("{ip}:{}", app.args.secure_port),
        std::net::IpAddr::V6(ip) => format!("[{ip}]:{}", app.args.secure_port),
    }
}

fn root() -> Value {
    let mut paths = vec![
        "/.well-known/openid-configuration".to_owned(),
        "/api".into(),
        "/api/v1".into(),
        "/apis".into(),
    ];
    for (group, versions) in api::kinds::groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned),
    );
    json!({"paths": paths})
}

/// `version.Info`.
pub fn version() -> Value {
    let mut parts = api::KUBERNETES_VERSION.trim_start_matches('v').split('.');
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": parts.next(),
        "minor": parts.next(),
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "36",
        "gitVersion": api::KUBERNETES_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{arch}", std::env::consts::OS),
    })
}

fn accept(headers: &HeaderMap) -> &str {
    headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// Whether aggregated discovery of a version served here is asked for before anything else.
fn wants_aggregated(headers: &HeaderMap) -> bool {
    accept(headers).split(',').map(str::trim).find_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<&str> = parts.collect();
        let shaped = parameters.iter().any(|p| p.starts_with("as="));
        let fits = ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
            .iter()
            .all(|w| parameters.contains(w));
        match media {
            "application/json" if shaped && fits => Some(true),
            "application/json" | "*/*" | PROTOBUF if !shaped => Some(false),
            _ => None,
        }
    }) == Some(true)
}

fn encoded(headers: &HeaderMap, value: &Value) -> Result<Response> {
    // Legacy discovery may be asked for in protobuf, with JSON as the second choice.
    for entry in accept(headers).split(',') {
        match entry.split(';').next().unwrap_or_default().trim() {
            PROTOBUF if !entry.contains("as=") => {
                if let Ok(b) = render::encode(Encoding::Protobuf, value) {
                    return Ok(negotiated(200, PROTOBUF, b.into()));
                }
            }
            "application/yaml" => {
                return Ok(negotiated(
                    200,
                    "application/yaml",
                    render::encode(Encoding::Yaml, value)?.into(),
                ));
            }
            "application/json" | "*/*" | "application/*" | "" => return Ok(answer(200, value)),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable(
        "application/json, application/yaml, application/vnd.kubernetes.protobuf",
    ))
}

fn found(headers: &HeaderMap, value: Option<Value>) -> Result<Response> {
    encoded(headers, &value.ok_or_else(ApiError::no_such_path)?)
}

struct Document {
    bytes: bytes::Bytes,
    etag: String,
}

impl Document {
    fn new(content: impl Into<bytes::Bytes>) -> Self {
        let bytes = content.into();
        let hash = hex::encode_upper(&sha2::Sha256::digest(&bytes)[..32]);
        Self {
            bytes,
            etag: format!("\"{hash}\""),
        }
    }

    fn respond(&self, headers: &HeaderMap, media: &str) -> Response {
        let mut response = if has(headers, &self.etag) {
            negotiated(304, media, Body::empty())
        } else {
            negotiated(200, media, self.bytes.clone().into())
        };
        tag(&mut response, &self.etag);
        response
    }
}

/// Whether the client has what this tag names.
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    known.is_some_and(|k| k.split(',').any(|e| e.trim().trim_start_matches("W/") == etag))
}

fn tag(response: &mut Response, etag: &str) {
    if let Ok(v) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(ETAG, v);
    }
}

fn aggregated(legacy: bool, headers: &HeaderMap) -> Response {
    static LEGACY: OnceLock<Document> = OnceLock::new();
    static GROUPS: OnceLock<Document> = OnceLock::new();
    let slot = if legacy { &LEGACY } else { &GROUPS };
    slot.get_or_init(|| Document::new(api::discovery::aggregated(legacy).to_string()))
        .respond(headers, AGGREGATED)
}

fn openapi_v2(headers: &HeaderMap) -> Result<Response> {
    // Few ask for it, and it is large: made anew each time rather than kept.
    for entry in accept(headers).split(',') {
        match entry.split(';').next().unwrap_or_default().trim() {
            OPENAPI_PROTOBUF | OPENAPI_PROTOBUF_ASKED => {
                return Ok(Document::new(api::openapi::v2_protobuf()).respond(headers, OPENAPI_PROTOBUF));
            }
            "application/json" | "application/*" | "*/*" | "" => {
                return Ok(Document::new(api::openapi::v2()).respond(headers, "application/json"));
            }
            _ => {}
        }
    }
    Err(ApiError::not_acceptable(&format!(
        "application/json, {OPENAPI_PROTOBUF}"
    )))
}

fn openapi_v3(info: &RequestInfo, headers: &HeaderMap, group: &str, version: &str) -> Result<Response> {
    let hash = api::openapi::v3_hash(group, version).ok_or_else(ApiError::no_such_path)?;
    let asked = info.query.get("hash");
    if asked.is_some_and(|a| a != hash) {
        // The index that the client has is of another version of this server.
        let mut response = negotiated(301, "text/plain", Body::empty());
        let place = format!(
            "/openapi/v3/{}?hash={hash}",
            api::openapi::document_path(group, version)
        );
        let place = HeaderValue::from_str(&place).map_err(ApiError::internal)?;
        response.headers_mut().insert(LOCATION, place);
        return Ok(response);
    }
    let etag = format!("\"{hash}\"");
    let mut response = if has(headers, &etag) {
        negotiated(304, "application/json", Body::empty())
    } else {
        let text = api::openapi::v3_document(group, version).ok_or_else(ApiError::no_such_path)?;
        negotiated(200, "application/json", text.into())
    };
    tag(&mut response, &etag);
    if asked.is_some() {
        // The path names the content, so it never changes.
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(CACHE_CONTROL, forever);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated_discovery_is_served_to_those_who_prefer_it() {
        for (text, expected) in [
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                true,
            ),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json",
                false,
            ),
            ("application/json", false),
            (
                "application/json,application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                false,
            ),
        ] {
            let mut h = HeaderMap::new();
            h.insert(ACCEPT, text.parse().unwrap());
            assert_eq!(wants_aggregated(&h), expected, "{text}");
        }
    }

    #[test]
    fn the_version_is_one_that_clients_can_compare() {
        let v = version();
        assert_eq!((v["major"].as_str(), v["minor"].as_str()), (Some("1"), Some("36")));
    }
}
