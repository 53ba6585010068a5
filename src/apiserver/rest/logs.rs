//! `pods/log`: what the kubelet answers, as it comes or in the messages of a web socket. A kubelet's refusal becomes a Status.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::body::Body;
use crate::error::{ApiError, Result};
use crate::proxy::Target;
use crate::server::Response;

/// Most bytes that are read of a refusal.
const REFUSAL_LIMIT: usize = 50_000;
const BINARY: &str = "binary.k8s.io";
const BASE64_TEXT: &str = "base64.binary.k8s.io";

/// What a web socket for logs was opened with.
#[derive(Debug, PartialEq, Eq)]
struct Handshake {
    key: String,
    /// The chosen protocol; `None` where the caller named none.
    protocol: Option<&'static str>,
}

/// Answers with a log of the kubelet at `target`.
///
/// # Errors
/// The kubelet's refusal; 400 for a web socket with protocols that there are not; 503 if the kubelet cannot be reached.
pub async fn follow(c: &Context, mut request: Request<Incoming>, target: &Target) -> Result<Response> {
    let handshake = handshake(request.headers())?;
    let caller = handshake.is_some().then(|| hyper::upgrade::on(&mut request));
    // The kubelet is asked for a plain answer.
    for name in [
        header::UPGRADE,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_PROTOCOL,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
    ] {
        request.headers_mut().remove(name);
    }
    let stop = c.app.stop.clone();
    let answer = c.app.kubelets.forward(request, target, None, stop.clone()).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer, &c.info.name).await);
    }
    match (handshake, caller) {
        (Some(handshake), Some(caller)) => Ok(accept(&handshake, caller, answer.into_body(), stop)),
        _ => Ok(answer),
    }
}

/// The handshake of a request that opens a web socket.
fn handshake(headers: &HeaderMap) -> Result<Option<Handshake>> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    if !text(header::UPGRADE).is_some_and(|u| u.eq_ignore_ascii_case("websocket")) {
        return Ok(None);
    }
    let key = text(header::SEC_WEBSOCKET_KEY).ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key is missing"))?;
    let asked = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let asked: Vec<&str> = asked
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        // The caller's token may travel as a protocol.
        .filter(|p| !p.is_empty() && !p.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    let known = |p: &&str| [BINARY, BASE64_TEXT].into_iter().find(|k| k == p);
    let protocol = asked.iter().find_map(known);
    if protocol.is_none() && !asked.is_empty() {
        let why = format!(
            "logs speak the web-socket protocols {BINARY} and {BASE64_TEXT}, not {}",
            asked.join(", ")
        );
        return Err(ApiError::bad_request(why));
    }
    Ok(Some(Handshake {
        key: key.to_owned(),
        protocol,
    }))
}

/// Accepts the web socket and leaves the log to a task.
fn accept(handshake: &Handshake, caller: OnUpgrade, log: Body, stop: CancellationToken) -> Response {
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(handshake.key.as_bytes());
    let headers = [
        (header::CONNECTION, Some("Upgrade")),
        (header::UPGRADE, Some("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, Some(accept.as_str())),
        (header::SEC_WEBSOCKET_PROTOCOL, handshake.protocol),
    ];
    for (name, value) in headers {
        if let Some(value) = value.and_then(|v| HeaderValue::from_str(v).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    let is_text = handshake.protocol == Some(BASE64_TEXT);
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            sent = send(caller, log, is_text) => if let Err(error) = sent {
                tracing::debug!(error, "a log over a web socket ended");
            },
        }
    });
    response
}

/// Sends the log in messages until it ends, or the caller closes.
async fn send(caller: OnUpgrade, mut log: Body, is_text: bool) -> Result<(), String> {
    let upgraded = caller.await.map_err(|e| e.to_string())?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (mut out, mut messages) = socket.split();
    let message = |piece: Bytes| match is_text {
        true => Message::text(BASE64.encode(piece)),
        false => Message::Binary(piece),
    };
    // An empty message first: the caller knows that the log is there, though nothing may be written for long.
    out.send(message(Bytes::new())).await.map_err(|e| e.to_string())?;
    loop {
        tokio::select! {
            frame = log.frame() => match frame {
                None => break,
                Some(Err(e)) => return Err(e.to_string()),
                Some(Ok(frame)) => if let Ok(piece) = frame.into_data() {
                    out.send(message(piece)).await.map_err(|e| e.to_string())?;
                },
            },
            heard = messages.next() => match heard {
                None | Some(Err(_) | Ok(Message::Close(_))) => return Ok(()),
                Some(Ok(Message::Ping(data))) => out.send(Message::Pong(data)).await.map_err(|e| e.to_string())?,
                Some(Ok(_)) => {}
            },
        }
    }
    let end = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    out.send(Message::Close(Some(end))).await.map_err(|e| e.to_string())
}

/// What a kubelet said instead of a log, as a Status.
async fn refusal(answer: Response, pod: &str) -> ApiError {
    let code = answer.status().as_u16();
    let text = match Limited::new(answer.into_body(), REFUSAL_LIMIT).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
        Err(error) => format!("the kubelet answered {code} and no reason: {error}"),
    };
    match code {
        400 => ApiError::bad_request(text),
        404 => ApiError::new(404, "NotFound", text).about("", "pods/log", pod),
        500 => ApiError::internal(text),
        _ => ApiError::new(code, reason(code), text).about("", "pods/log", pod),
    }
}

fn reason(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_socket_is_opened_with_a_known_protocol_or_none() {
        let opened = |protocols: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert("upgrade", HeaderValue::from_static("WebSocket"));
            headers.insert("sec-websocket-key", HeaderValue::from_static("k"));
            if let Some(protocols) = protocols {
                headers.insert("sec-websocket-protocol", HeaderValue::from_static(protocols));
            }
            handshake(&headers).map(|h| h.unwrap().protocol)
        };
        assert_eq!(opened(None).unwrap(), None);
        assert_eq!(opened(Some("x, base64.binary.k8s.io")).unwrap(), Some(BASE64_TEXT));
        let token = "base64url.bearer.authorization.k8s.io.eA, binary.k8s.io";
        assert_eq!(opened(Some(token)).unwrap(), Some(BINARY));
        assert_eq!(opened(Some("v4.channel.k8s.io")).unwrap_err().code, 400);
        assert_eq!(handshake(&HeaderMap::new()).unwrap(), None);
    }
}
