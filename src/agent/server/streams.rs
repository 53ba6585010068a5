//! `/exec`, `/attach`, `/portForward`: finds the container, asks the runtime for a streaming URL, and joins the caller's
//! upgraded connection with it. SPDY and the older web-socket protocols are the runtime's own, so their bytes pass as
//! they are; `v5.channel.k8s.io` is translated, a tunnelled SPDY connection is taken out of its web socket.

use super::Shared;
use super::pods::{find, refuse};
use super::translate;
use crate::observed::{Observed, State as ContainerState};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest};
use std::sync::Arc;
use tokio::net::TcpStream;

/// Streams wanted, from the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Command and arguments.
    pub(super) command: Vec<String>,
    /// Standard input.
    pub(super) stdin: bool,
    /// Standard output.
    pub(super) stdout: bool,
    /// Standard error.
    pub(super) stderr: bool,
    /// A terminal.
    pub(super) tty: bool,
}

/// Reads the query; both the kubelet's names (`input`, …) and the API's (`stdin`, …) are known.
fn wanted(query: &str) -> Result<Wanted, String> {
    let mut out = Wanted::default();
    for (key, value) in form_pairs(query) {
        let on = matches!(value.as_str(), "1" | "true" | "True");
        match key.as_str() {
            "command" => out.command.push(value),
            "input" | "stdin" => out.stdin |= on,
            "output" | "stdout" => out.stdout |= on,
            "error" | "stderr" => out.stderr |= on,
            "tty" => out.tty |= on,
            _ => {}
        }
    }
    if !(out.stdin || out.stdout || out.stderr) {
        return Err("you must specify at least 1 of stdin, stdout, stderr".into());
    }
    // With a terminal both outputs are one.
    out.stderr &= !out.tty;
    Ok(out)
}

fn form_pairs(query: &str) -> Vec<(String, String)> {
    serde_html_form(query)
}

/// Decodes `a=b&c=d` with `+` and `%XX`.
fn serde_html_form(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| -> String {
        let mut out = Vec::with_capacity(text.len());
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            let hex = bytes
                .get(i + 1..i + 3)
                .and_then(|h| std::str::from_utf8(h).ok())
                .and_then(|h| u8::from_str_radix(h, 16).ok());
            match (bytes[i], hex) {
                (b'+', _) => out.push(b' '),
                (b'%', Some(byte)) => {
                    out.push(byte);
                    i += 2;
                }
                (byte, _) => out.push(byte),
            }
            i += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn running<'a>(observed: &'a Observed, container: &str) -> Option<&'a str> {
    observed
        .latest(container)
        .filter(|c| c.state == ContainerState::Running)
        .map(|c| c.id.as_str())
}

type Place = (String, String, String);

/// `/exec/NS/POD/CONTAINER`.
pub(super) async fn exec(State(shared): State<Arc<Shared>>, Path(place): Path<Place>, request: Request) -> Response {
    run(&shared, place, None, request, true).await
}

/// `/exec/NS/POD/UID/CONTAINER`.
pub(super) async fn exec_uid(
    State(shared): State<Arc<Shared>>,
    Path((n, p, uid, c)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    run(&shared, (n, p, c), Some(uid), request, true).await
}

/// `/attach/NS/POD/CONTAINER`.
pub(super) async fn attach(State(shared): State<Arc<Shared>>, Path(place): Path<Place>, request: Request) -> Response {
    run(&shared, place, None, request, false).await
}

/// `/attach/NS/POD/UID/CONTAINER`.
pub(super) async fn attach_uid(
    State(shared): State<Arc<Shared>>,
    Path((n, p, uid, c)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    run(&shared, (n, p, c), Some(uid), request, false).await
}

async fn run(
    shared: &Shared,
    (namespace, pod, container): Place,
    uid: Option<String>,
    request: Request,
    exec: bool,
) -> Response {
    let mut want = match wanted(request.uri().query().unwrap_or_default()) {
        Ok(w) => w,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    let Some((spec, observed)) = find(shared, &namespace, &pod, uid.as_deref()) else {
        return refuse(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let Some(id) = running(&observed, &container).map(str::to_owned) else {
        return refuse(StatusCode::NOT_FOUND, format!("container not found ({container:?})"));
    };
    let url = if exec {
        let r = ExecRequest {
            container_id: id,
            cmd: want.command.clone(),
            tty: want.tty,
            stdin: want.stdin,
            stdout: want.stdout,
            stderr: want.stderr,
        };
        shared.ctx.cri.exec(r).await
    } else {
        // A terminal is the container's property, not the caller's wish.
        want.tty = crate::spec::container(&spec, &container)
            .and_then(|(_, c)| c.tty)
            .unwrap_or(false);
        want.stderr &= !want.tty;
        let r = AttachRequest {
            container_id: id,
            stdin: want.stdin,
            tty: want.tty,
            stdout: want.stdout,
            stderr: want.stderr,
        };
        shared.ctx.cri.attach(r).await
    };
    match url {
        Ok(url) => join(request, &url, Some(want)).await,
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

/// `/portForward/NS/POD`.
pub(super) async fn port_forward(
    State(shared): State<Arc<Shared>>,
    Path((n, p)): Path<(String, String)>,
    request: Request,
) -> Response {
    forward(&shared, n, p, None, request).await
}

/// `/portForward/NS/POD/UID`.
pub(super) async fn port_forward_uid(
    State(shared): State<Arc<Shared>>,
    Path((n, p, uid)): Path<Place>,
    request: Request,
) -> Response {
    forward(&shared, n, p, Some(uid), request).await
}

async fn forward(shared: &Shared, namespace: String, pod: String, uid: Option<String>, request: Request) -> Response {
    let Some((_, observed)) = find(shared, &namespace, &pod, uid.as_deref()) else {
        return refuse(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let Some(sandbox) = observed.ready_sandbox() else {
        return refuse(StatusCode::NOT_FOUND, "the pod has no running sandbox");
    };
    let ports = match ports(request.uri().query().unwrap_or_default()) {
        Ok(ports) => ports,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    if ports.is_empty() && opens_ports(request.headers()) {
        return refuse(StatusCode::BAD_REQUEST, "query parameter \"port\" is required");
    }
    match shared.ctx.cri.port_forward(&sandbox.id, ports).await {
        Ok(url) => join(request, &url, None).await,
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

/// The ports that a query names; one parameter may hold several, separated by commas.
fn ports(query: &str) -> Result<Vec<i32>, String> {
    let named = form_pairs(query)
        .into_iter()
        .filter(|(key, _)| key == "port" || key == "ports");
    let mut ports = Vec::new();
    for port in named.flat_map(|(_, value)| value.split(',').map(str::to_owned).collect::<Vec<_>>()) {
        match port.trim().parse::<u16>() {
            Ok(number @ 1..) => ports.push(number.into()),
            _ => return Err(format!("unable to parse {port:?} as a port")),
        }
    }
    Ok(ports)
}

/// Whether a web socket has channels for ports, instead of a SPDY connection inside.
fn opens_ports(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok());
    upgrade.is_some_and(|u| u.eq_ignore_ascii_case("websocket"))
        && !list(headers, header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .any(|p| p == TUNNEL)
}

fn list(headers: &HeaderMap, name: impl header::AsHeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_owned())
        .filter(|v| !v.is_empty())
        .collect()
}

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const V5: &str = "v5.channel.k8s.io";

/// Joins the caller with the runtime's URL. `want` is absent for port-forwarding.
async fn join(mut request: Request, url: &str, want: Option<Wanted>) -> Response {
    let upgrade = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let caller = hyper::upgrade::on(&mut request);
    let web_socket = upgrade.eq_ignore_ascii_case("websocket");
    let protocols = list(request.headers(), header::SEC_WEBSOCKET_PROTOCOL);
    let chosen = protocols
        .iter()
        .find(|p| (want.is_some() && *p == V5) || (want.is_none() && *p == TUNNEL));
    match (web_socket, chosen.cloned(), want) {
        (true, Some(protocol), Some(want)) => {
            let upstream = match open_spdy(url, &["v4.channel.k8s.io"]).await {
                Ok(u) => u,
                Err(message) => return refuse(StatusCode::BAD_GATEWAY, message),
            };
            accept(request.headers(), &protocol, move || async move {
                translate::channels(caller, upstream, want).await
            })
        }
        (true, Some(protocol), None) => {
            let upstream = match open_spdy(url, &["portforward.k8s.io"]).await {
                Ok(u) => u,
                Err(message) => return refuse(StatusCode::BAD_GATEWAY, message),
            };
            accept(request.headers(), &protocol, move || async move {
                translate::tunnel(caller, upstream).await
            })
        }
        _ if upgrade.is_empty() => refuse(
            StatusCode::BAD_REQUEST,
            "you must specify an upgrade to SPDY/3.1 or websocket",
        ),
        _ => pass(request, caller, url).await,
    }
}

/// Accepts a web socket with a protocol and leaves it to `work`.
fn accept<F, W>(headers: &HeaderMap, protocol: &str, work: W) -> Response
where
    W: FnOnce() -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    tokio::spawn(work());
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    for (name, value) in [
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
        (header::SEC_WEBSOCKET_PROTOCOL, protocol),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            out.insert(name, value);
        }
    }
    response
}

async fn connect(
    url: &str,
) -> Result<(http::Uri, hyper::client::conn::http1::SendRequest<Empty<bytes::Bytes>>), String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("streaming URL: {e}"))?;
    let host = uri.authority().ok_or("streaming URL has no host")?.as_str().to_owned();
    if uri.scheme_str() == Some("https") {
        return Err("the runtime's streaming server uses TLS, which is not supported".into());
    }
    let stream = TcpStream::connect(&host)
        .await
        .map_err(|e| format!("streaming server {host}: {e}"))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!("streaming connection: {e}");
        }
    });
    Ok((uri, sender))
}

async fn open_spdy(url: &str, protocols: &[&str]) -> Result<TokioIo<Upgraded>, String> {
    let (uri, mut sender) = connect(url).await?;
    let mut builder = http::Request::post(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(header::HOST, uri.authority().map_or("", |a| a.as_str()))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1");
    for p in protocols {
        builder = builder.header("X-Stream-Protocol-Version", *p);
    }
    let request = builder.body(Empty::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("the runtime's streaming server answered {}", response.status()));
    }
    hyper::upgrade::on(response)
        .await
        .map(TokioIo::new)
        .map_err(|e| e.to_string())
}

/// Passes an upgrade through as it is.
async fn pass(request: Request, caller: hyper::upgrade::OnUpgrade, url: &str) -> Response {
    let (uri, mut sender) = match connect(url).await {
        Ok(c) => c,
        Err(message) => return refuse(StatusCode::BAD_GATEWAY, message),
    };
    let (parts, _) = request.into_parts();
    let method = if parts.method == Method::POST {
        Method::POST
    } else {
        Method::GET
    };
    let mut builder = http::Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    for (name, value) in &parts.headers {
        // Identity ends here; the runtime's URL is the permission.
        if name != header::HOST && name != header::AUTHORIZATION && name != header::CONTENT_LENGTH {
            builder = builder.header(name, value);
        }
    }
    let request = match builder
        .header(header::HOST, uri.authority().map_or("", |a| a.as_str()))
        .body(Empty::new())
    {
        Ok(r) => r,
        Err(e) => return refuse(StatusCode::BAD_REQUEST, e),
    };
    let response = match sender.send_request(request).await {
        Ok(r) => r,
        Err(e) => return refuse(StatusCode::BAD_GATEWAY, e),
    };
    let (status, headers) = (response.status(), response.headers().clone());
    let mut out = if status == StatusCode::SWITCHING_PROTOCOLS {
        tokio::spawn(async move {
            let (Ok(upstream), Ok(caller)) = (hyper::upgrade::on(response).await, caller.await) else {
                return;
            };
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upstream), &mut TokioIo::new(caller)).await;
        });
        Response::new(Body::empty())
    } else {
        let body = response
            .into_body()
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        Response::new(Body::from(body))
    };
    *out.status_mut() = status;
    for (name, value) in &headers {
        if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
            out.headers_mut().append(name, value.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_one_by_one_or_in_a_list() {
        assert_eq!(ports("port=80&port=81").unwrap(), [80, 81]);
        assert_eq!(ports("ports=80%2C443&x=1").unwrap(), [80, 443]);
        assert_eq!(ports("").unwrap(), Vec::<i32>::new());
        for bad in ["port=", "port=0", "port=65536", "ports=80,", "port=http"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn both_spellings_of_the_query_are_known() {
        let a = wanted("command=sh&command=-c&command=echo+a%20b&input=1&output=1&error=1&tty=1").unwrap();
        assert_eq!(
            a,
            Wanted {
                command: vec!["sh".into(), "-c".into(), "echo a b".into()],
                stdin: true,
                stdout: true,
                stderr: false,
                tty: true
            }
        );
        let b = wanted("command=ls&stdout=true&stderr=true").unwrap();
        assert_eq!(
            b,
            Wanted {
                command: vec!["ls".into()],
                stdin: false,
                stdout: true,
                stderr: true,
                tty: false
            }
        );
        assert!(wanted("command=ls").is_err());
    }
}
