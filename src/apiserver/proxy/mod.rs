//! Passing requests on: to kubelets for logs, exec, attach and port-forward, and to nodes, pods and services for the
//! `proxy` subresource. After a 101 answer bytes are copied both ways; what protocol runs inside (web sockets, SPDY) is
//! the business of the two ends.
//!
//! One connection per request, no pool: these requests are few and long.

mod links;
pub mod page;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tls_files::Reread;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::body::Body;
use crate::error::{ApiError, Result};
use crate::server::Response;
use crate::tls::{self, TlsError};
pub use links::Base;

const CONNECT: Duration = Duration::from_secs(10);
const KUBELET_PORT: u16 = 10250;
/// Headers that concern one connection or the caller's identity, and are not passed on.
const OWN: &[&str] = &[
    "host",
    "authorization",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-connection",
];

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub tls: Tls,
    /// Path and query.
    pub path: String,
}

/// How a connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    Plain,
    /// Without verification and without our certificate: `https:` pods and services.
    Unverified,
    /// As a kubelet's client.
    Kubelet,
}

/// The client side.
pub struct Kubelets {
    kubelet: Reread<ClientConfig>,
    unverified: Arc<ClientConfig>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Kubelets {
    /// Reads the client certificate and authority.
    ///
    /// # Errors
    /// [`TlsError`] for unusable files.
    pub fn new(args: &Args) -> Result<Self, TlsError> {
        Ok(Self {
            kubelet: tls::kubelet_client(args)?,
            unverified: Arc::new(tls::client(None, None)?),
        })
    }

    async fn connect(&self, target: &Target) -> std::io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
        tcp.set_nodelay(true)?;
        let config = match target.tls {
            Tls::Plain => return Ok(Box::new(tcp)),
            Tls::Unverified => Arc::clone(&self.unverified),
            Tls::Kubelet => self.kubelet.current(),
        };
        let name = ServerName::try_from(target.host.clone()).map_err(std::io::Error::other)?;
        Ok(Box::new(TlsConnector::from(config).connect(name, tcp).await?))
    }

    /// Sends the request on and returns the answer, connected to the caller if both sides upgrade. What is behind the
    /// path `prefix` of this server has its links rewritten.
    ///
    /// # Errors
    /// 503 if nobody listens at the target, 400 for a malformed upgrade.
    pub async fn forward(
        &self,
        mut request: Request<Incoming>,
        target: &Target,
        prefix: Option<String>,
        stop: CancellationToken,
    ) -> Result<Response> {
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let base = prefix.map(|prefix| Base {
            prefix,
            asked: asked_host(&request),
            target: host_header(target),
        });
        let has_body = request.method() != Method::HEAD;
        let (parts, body) = request.into_parts();
        let mut out = Request::builder()
            .method(parts.method.clone())
            .uri(target.path.as_str())
            .body(if upgrade.is_some() {
                Either::Left(Empty::<bytes::Bytes>::new())
            } else {
                Either::Right(body)
            })
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        *out.headers_mut() = passed_on(&parts.headers);
        let authority = host_header(target);
        if let Ok(v) = HeaderValue::from_str(&authority) {
            out.headers_mut().insert(header::HOST, v);
        }
        if base.is_some()
            && let Ok(path) = HeaderValue::from_str(parts.uri.path())
        {
            out.headers_mut().insert("x-forwarded-uri", path);
        }
        if let Some(protocol) = upgrade {
            out.headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            out.headers_mut().insert(header::UPGRADE, protocol);
        }
        let unreachable =
            |e: &dyn std::fmt::Display| ApiError::unavailable(format!("error trying to reach {authority}: {e}"));
        let stream = match tokio::time::timeout(CONNECT, self.connect(target)).await {
            Ok(Ok(s)) => s,
            Ok(Err(e)) => return Err(unreachable(&e)),
            Err(_) => return Err(unreachable(&"connection timed out")),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| unreachable(&e))?;
        tokio::spawn(async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!(error = %e, "proxied connection ended");
            }
        });
        let answer = sender.send_request(out).await.map_err(|e| unreachable(&e))?;
        Ok(match (answer.status(), client_side) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => splice(answer, client, stop),
            _ => plain(answer, base, has_body),
        })
    }
}

/// Host and port that a caller asked.
fn asked_host(request: &Request<Incoming>) -> String {
    let header = request.headers().get(header::HOST).and_then(|v| v.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    header.or(authority).unwrap_or_default().to_owned()
}

fn host_header(target: &Target) -> String {
    match target.host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", target.port),
        _ => format!("{}:{}", target.host, target.port),
    }
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_ascii_lowercase())
        .collect();
    let keep = |name: &HeaderName| {
        let n = name.as_str();
        !OWN.contains(&n) && !n.starts_with("impersonate-") && !named.iter().any(|x| x == n)
    };
    let mut out = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(n, _)| keep(n)) {
        if name == header::SEC_WEBSOCKET_PROTOCOL {
            // The caller's token may travel as a web-socket protocol; it stays here.
            let kept: Vec<&str> = value
                .to_str()
                .unwrap_or_default()
                .split(',')
                .map(str::trim)
                .filter(|p| !p.starts_with("base64url.bearer.authorization.k8s.io."))
                .collect();
            if let Ok(v) = HeaderValue::from_str(&kept.join(", ")) {
                out.append(name.clone(), v);
            }
            continue;
        }
        out.append(name.clone(), value.clone());
    }
    out
}

fn plain(answer: http::Response<Incoming>, base: Option<Base>, has_body: bool) -> Response {
    let (mut parts, body) = answer.into_parts();
    parts.headers = passed_on(&parts.headers);
    let body = match base {
        Some(base) => page::outside(&mut parts, body, base, has_body),
        None => Body::Remote(body),
    };
    let mut response = http::Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}

/// Answers 101 and copies both ways until one side ends or the server stops.
fn splice(
    mut answer: http::Response<Incoming>,
    client: hyper::upgrade::OnUpgrade,
    stop: CancellationToken,
) -> Response {
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let remote = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let (Ok(client), Ok(remote)) = tokio::join!(client, remote) else {
            return;
        };
        let (mut client, mut remote) = (TokioIo::new(client), TokioIo::new(remote));
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut remote) => {}
            () = stop.cancelled() => {}
        }
    });
    response
}

/// Where a node's kubelet listens.
///
/// # Errors
/// 503 for a node without an address.
pub fn kubelet_of(node: &Value, path: String) -> Result<Target> {
    let addresses = node["status"]["addresses"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let of = |t: &str| {
        addresses
            .iter()
            .find(|a| a["type"] == t)
            .and_then(|a| a["address"].as_str())
    };
    let host = of("InternalIP")
        .or_else(|| of("ExternalIP"))
        .or_else(|| of("Hostname"))
        .ok_or_else(|| ApiError::unavailable(format!("node {} has no address", node["metadata"]["name"])))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p > 0)
        .unwrap_or(KUBELET_PORT);
    Ok(Target {
        host: host.to_owned(),
        port,
        tls: Tls::Kubelet,
        path,
    })
}

/// `[scheme:]name[:port]` of the proxy subresources.
///
/// # Errors
/// 400 for anything else.
pub fn proxy_name(text: &str) -> Result<(Tls, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [scheme @ ("http" | "https"), name] => (*scheme, *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return Err(ApiError::bad_request(format!("invalid proxy target {text:?}"))),
    };
    let tls = match scheme {
        "" | "http" => Tls::Plain,
        "https" => Tls::Unverified,
        _ => {
            return Err(ApiError::bad_request(format!(
                "invalid scheme in proxy target {text:?}"
            )));
        }
    };
    Ok((tls, name, port))
}

/// Path and query for the far side: what followed `/proxy`, with the caller's query.
pub fn proxied_path(rest: &str, uri: &Uri) -> String {
    match uri.query() {
        Some(q) => format!("/{rest}?{q}"),
        None => format!("/{rest}"),
    }
}

/// The path of this server that a proxied path is behind, without a slash at its end: what `…/proxy` ends with.
pub fn proxy_prefix(path: &str, namespaced: bool) -> String {
    // /api/v1/namespaces/NAMESPACE/RESOURCE/NAME/proxy or /api/v1/RESOURCE/NAME/proxy
    let words = if namespaced { 8 } else { 6 };
    path.split('/').take(words).collect::<Vec<_>>().join("/")
}

/// Whether a request asks to upgrade its connection.
pub fn is_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    matches!(*method, Method::GET | Method::POST) && headers.contains_key(header::UPGRADE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn proxy_targets_name_scheme_and_port() {
        for (text, expected) in [
            ("web", (Tls::Plain, "web", "")),
            ("web:80", (Tls::Plain, "web", "80")),
            ("https:web", (Tls::Unverified, "web", "")),
            ("https:web:main", (Tls::Unverified, "web", "main")),
            ("http:web:", (Tls::Plain, "web", "")),
        ] {
            assert_eq!(proxy_name(text).unwrap(), expected, "{text}");
        }
        assert!(proxy_name("ftp:web:1").is_err());
    }

    #[test]
    fn the_path_of_a_proxy_ends_with_its_name() {
        for (path, namespaced) in [
            ("/api/v1/namespaces/a/pods/p:80/proxy", true),
            ("/api/v1/namespaces/a/pods/p:80/proxy/", true),
            ("/api/v1/namespaces/a/pods/p:80/proxy/b/proxy/c", true),
        ] {
            assert_eq!(proxy_prefix(path, namespaced), "/api/v1/namespaces/a/pods/p:80/proxy");
        }
        assert_eq!(
            proxy_prefix("/api/v1/nodes/n/proxy/stats", false),
            "/api/v1/nodes/n/proxy"
        );
    }

    #[test]
    fn the_callers_credentials_stay_here() {
        let mut h = HeaderMap::new();
        h.insert("authorization", HeaderValue::from_static("Bearer x"));
        h.insert("impersonate-user", HeaderValue::from_static("x"));
        h.insert(
            "sec-websocket-protocol",
            HeaderValue::from_static("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eA"),
        );
        h.insert("x-stream-protocol-version", HeaderValue::from_static("v4"));
        let out = passed_on(&h);
        assert_eq!(out.len(), 2);
        assert_eq!(out["sec-websocket-protocol"], "v5.channel.k8s.io");
    }

    #[test]
    fn a_kubelet_is_reached_at_its_internal_address() {
        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}]}});
        let t = kubelet_of(&node, "/pods".into()).unwrap();
        assert_eq!((t.host.as_str(), t.port), ("10.0.0.1", 10250));
        assert!(kubelet_of(&json!({}), String::new()).is_err());
    }
}
