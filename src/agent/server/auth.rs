//! Who calls the HTTPS server, and whether they may: client certificates and bearer tokens, then a SubjectAccessReview
//! on `nodes/…` with its answer kept for a while.

use super::Shared;
use crate::api_client::{Api, limited};
use crate::config::{AuthorizationMode, Config};
use crate::error::{Error, Result};
use crate::tls::serving::Current;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use sha2::Digest;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tls_files::Reread;

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// Who is at the other end of a connection, by certificate.
#[derive(Debug, Clone, Default)]
pub struct Peer(Option<User>);

impl Peer {
    /// From a finished handshake; the certificate was verified there.
    pub fn of(connection: &rustls::ServerConnection) -> Peer {
        let certificate = connection.peer_certificates().and_then(|c| c.first());
        Peer(certificate.and_then(|c| user_of(c)))
    }
}

fn user_of(der: &[u8]) -> Option<User> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> = cert
        .subject()
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .collect();
    groups.push("system:authenticated".into());
    Some(User { name, groups })
}

/// TLS of the server, which follows the files it is made from: client certificates are asked for, and must then be good.
/// Without `files` the certificate is the one of `own`.
pub fn server_config(
    config: &Config,
    files: Option<(PathBuf, PathBuf)>,
    own: Arc<Current>,
) -> Result<Reread<rustls::ServerConfig>> {
    let authority = config.authentication.x509.client_ca_file.clone();
    let mut paths: Vec<PathBuf> = authority.iter().cloned().collect();
    paths.extend(
        files
            .iter()
            .flat_map(|(certificate, key)| [certificate.clone(), key.clone()]),
    );
    let make = move || {
        let builder = tls_files::server_builder(authority.as_deref())?;
        let mut out = match &files {
            Some((certificate, key)) => {
                let chain = tls_files::certificates(certificate)?;
                builder.with_single_cert(chain, tls_files::private_key(key)?)?
            }
            None => builder.with_cert_resolver(own.clone()),
        };
        // Streams need an upgrade, which HTTP/2 does not have.
        out.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(out)
    };
    Reread::new(paths, make).map_err(|e| Error::Certificate(e.to_string()))
}

type Decision = (User, &'static str, String);

/// Users by the digest of their token; `None`: the token is not good.
type Tokens = HashMap<[u8; 32], (Option<User>, Instant)>;

/// Answers authentication and authorisation questions.
#[derive(Debug)]
pub struct Authority {
    api: Api,
    node: String,
    anonymous: bool,
    webhook: bool,
    mode: AuthorizationMode,
    token_ttl: Duration,
    yes_ttl: Duration,
    no_ttl: Duration,
    decisions: Mutex<HashMap<Decision, (bool, Instant)>>,
    tokens: Mutex<Tokens>,
}

/// Most answers kept.
const KEPT: usize = 1024;

impl Authority {
    /// As configured.
    pub fn new(api: Api, node: String, config: &Config) -> Authority {
        let webhook = &config.authorization.webhook;
        Authority {
            api,
            node,
            anonymous: config.authentication.anonymous.enabled,
            webhook: config.authentication.webhook.enabled,
            mode: config.authorization.mode,
            token_ttl: config.authentication.webhook.cache_ttl,
            yes_ttl: webhook.cache_authorized_ttl,
            no_ttl: webhook.cache_unauthorized_ttl,
            decisions: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    async fn user(&self, peer: &Peer, token: Option<&str>) -> Result<Option<User>> {
        if let Some(user) = &peer.0 {
            return Ok(Some(user.clone()));
        }
        if let Some(token) = token.filter(|_| self.webhook) {
            return self.by_token(token).await;
        }
        Ok(self.anonymous.then(|| User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
        }))
    }

    async fn by_token(&self, token: &str) -> Result<Option<User>> {
        let key: [u8; 32] = sha2::Sha256::digest(token).into();
        if let Some((user, at)) = locked(&self.tokens).get(&key)
            && at.elapsed() < self.token_ttl
        {
            return Ok(user.clone());
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: None,
            },
            ..Default::default()
        };
        let api: kube::Api<TokenReview> = kube::Api::all(self.api.client()?);
        let made = limited(async { Ok(api.create(&Default::default(), &review).await?) }).await?;
        let status = made.status.unwrap_or_default();
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|u| User {
                name: u.username.unwrap_or_default(),
                groups: u.groups.unwrap_or_default(),
            });
        remember(&self.tokens, key, user.clone());
        Ok(user)
    }

    async fn may(&self, user: &User, verb: &'static str, subresources: &[&str]) -> Result<bool> {
        if self.mode == AuthorizationMode::AlwaysAllow {
            return Ok(true);
        }
        for subresource in subresources {
            if self.ask(user, verb, subresource).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ask(&self, user: &User, verb: &'static str, subresource: &str) -> Result<bool> {
        let key: Decision = (user.clone(), verb, subresource.to_owned());
        if let Some((yes, at)) = locked(&self.decisions).get(&key)
            && at.elapsed() < if *yes { self.yes_ttl } else { self.no_ttl }
        {
            return Ok(*yes);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: kube::Api<SubjectAccessReview> = kube::Api::all(self.api.client()?);
        let made = limited(async { Ok(api.create(&Default::default(), &review).await?) }).await?;
        let yes = made.status.is_some_and(|s| s.allowed);
        remember(&self.decisions, key, yes);
        Ok(yes)
    }
}

fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn remember<K: std::hash::Hash + Eq, V>(map: &Mutex<HashMap<K, (V, Instant)>>, key: K, value: V) {
    let mut map = locked(map);
    if map.len() >= KEPT {
        map.clear();
    }
    map.insert(key, (value, Instant::now()));
}

/// Verb of a request.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// Subresources of `nodes` any of which grants a path, the finest first.
fn subresources(path: &str) -> &'static [&'static str] {
    match path.split('/').nth(1).unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "healthz" => &["healthz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "logs" => &["log"],
        _ => &["proxy"],
    }
}

/// Lets a request through, or not.
pub async fn check(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .map(str::to_owned);
    let path = request.uri().path().to_owned();
    let verb = verb(request.method());
    let failed = |e: Error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response();
    let user = match shared.authority.user(&peer, token.as_deref()).await {
        Ok(Some(user)) => user,
        Ok(None) => return (StatusCode::UNAUTHORIZED, "Unauthorized\n").into_response(),
        Err(e) => return failed(e),
    };
    match shared.authority.may(&user, verb, subresources(&path)).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let text = format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={:?})\n",
                user.name,
                subresources(&path)
            );
            (StatusCode::FORBIDDEN, text).into_response()
        }
        Err(e) => failed(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_the_subresources_of_nodes() {
        for (path, expected) in [
            ("/exec/ns/p/c", &["proxy"][..]),
            ("/containerLogs/a/b/c", &["proxy"]),
            ("/pods", &["pods", "proxy"]),
            ("/metrics/resource", &["metrics"]),
            ("/stats/summary", &["stats"]),
        ] {
            assert_eq!(subresources(path), expected, "{path}");
        }
    }

    #[test]
    fn a_certificate_names_user_and_groups() {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().unwrap();
        let user = user_of(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(user.name, "kube-apiserver-kubelet-client");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    }
}
