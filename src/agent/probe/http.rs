//! One HTTP GET of a probe or of a life cycle hook, with the redirects that belong to it. Certificates are not verified,
//! as documented: the server is the pod's own.
//!
//! A redirect to the host that was asked first is followed, whatever its port. One to another host is not: the server
//! has answered, which is what was asked, and somebody else's health says nothing about the pod. That is a success, and
//! a warning tells that the probe may not check what it was meant to.

use super::Outcome;
use super::run::{Target, connect, connect_target, port};
use bytes::Bytes;
use http::header::{HeaderMap, LOCATION};
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use std::sync::Arc;
use url::{Host, Position, Url};

/// Most requests of one run: the first, and those it is redirected to.
const MAX_REQUESTS: usize = 10;
/// Most bytes that are read of a body. Reading a little lets the server finish its answer.
const BODY_LIMIT: usize = 10 * 1024;

/// Asks, and judges the last answer: 200 ≤ status < 300 is a success, a redirect that is not followed one with a warning.
pub async fn get(target: &Target, container: &Container, action: &HTTPGetAction, agent: &str) -> Outcome {
    let port = match port(&action.port, container) {
        Ok(port) => port,
        Err(e) => return Outcome::Failure(e),
    };
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.ip);
    let tls = action
        .scheme
        .as_deref()
        .is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let path = match action.path.as_deref().unwrap_or_default() {
        rooted if rooted.starts_with('/') => rooted.to_owned(),
        bare => format!("/{bare}"),
    };
    let scheme = if tls { "https" } else { "http" };
    let text = format!("{scheme}://{}{path}", connect_target(host, port));
    let failed = |url: &str, e: &dyn std::fmt::Display| Outcome::Failure(format!("Get \"{url}\": {e}"));
    let first = match Url::parse(&text) {
        Ok(url) => url,
        Err(e) => return failed(&text, &e),
    };
    // The path of the first request goes out as it was written.
    let (mut url, mut path, mut keeps_host) = (first.clone(), path, true);
    for _ in 0..MAX_REQUESTS {
        let answer = match ask(&url, &path, action, agent, keeps_host).await {
            Ok(answer) => answer,
            Err(e) => return failed(url.as_str(), &e),
        };
        match judge(&first, &url, &answer) {
            Ok(Next::Done(outcome)) => return outcome,
            Ok(Next::Follow { to, relative }) => {
                path = to[Position::BeforePath..Position::AfterQuery].to_owned();
                keeps_host &= relative;
                url = to;
            }
            Err(e) => return failed(url.as_str(), &e),
        }
    }
    failed(url.as_str(), &format!("stopped after {MAX_REQUESTS} redirects"))
}

/// What a server said.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    /// The Location header; `None` if there is none.
    location: Option<String>,
    body: String,
}

/// What an answer leads to.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    /// The run is over.
    Done(Outcome),
    /// Another request.
    Follow {
        to: Url,
        /// Whether the server named a path only: then a Host header of the action still holds.
        relative: bool,
    },
}

/// Decides what an answer to `asked` means; `first` is what the run began with.
fn judge(first: &Url, asked: &Url, answer: &Answer) -> Result<Next, String> {
    let status = answer.status.as_u16();
    let redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
    if let Some(location) = answer.location.as_deref().filter(|l| redirect && !l.is_empty()) {
        let to = asked
            .join(location)
            .map_err(|e| format!("failed to parse Location header {location:?}: {e}"))?;
        if to.host() == first.host() {
            if !matches!(to.scheme(), "http" | "https") {
                return Err(format!("unsupported protocol scheme {:?}", to.scheme()));
            }
            let relative = Url::parse(location).is_err();
            return Ok(Next::Follow { to, relative });
        }
    }
    Ok(Next::Done(match status {
        200..300 => Outcome::Success,
        300..400 => Outcome::Warning(format!("Probe terminated redirects, Response body: {}", answer.body)),
        _ => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One request. `keeps_host`: whether a Host header of the action is sent.
async fn ask(url: &Url, path: &str, action: &HTTPGetAction, agent: &str, keeps_host: bool) -> Result<Answer, BoxError> {
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => return Err("no Host in request URL".into()),
    };
    let port = url.port_or_known_default().unwrap_or(80);
    let mut request = http::Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.parse::<Uri>()?;
    *request.headers_mut() = headers(action, &connect_target(&host, port), agent, keeps_host)?;
    let stream = connect(&host, port).await?;
    if url.scheme() == "https" {
        let connector = tokio_rustls::TlsConnector::from(insecure_tls()?);
        let name = rustls_pki_types::ServerName::try_from(host)?;
        send(connector.connect(name, stream).await?, request).await
    } else {
        send(stream, request).await
    }
}

/// The action's headers, and those that every request has. An empty User-Agent or Accept takes that header away.
fn headers(action: &HTTPGetAction, host: &str, agent: &str, keeps_host: bool) -> Result<HeaderMap, http::Error> {
    let mut out = HeaderMap::new();
    let mut named = [("host", false), ("user-agent", false), ("accept", false)];
    for header in action.http_headers.iter().flatten() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") && !keeps_host {
            continue;
        }
        named.iter_mut().for_each(|(name, is_named)| *is_named |= is(name));
        if !(header.value.is_empty() && (is("accept") || is("user-agent"))) {
            let name = http::HeaderName::try_from(header.name.as_str())?;
            out.append(name, http::HeaderValue::try_from(header.value.as_str())?);
        }
    }
    for ((name, is_named), value) in named.into_iter().zip([host, agent, "*/*"]) {
        if !is_named {
            out.insert(name, http::HeaderValue::try_from(value)?);
        }
    }
    out.insert("connection", http::HeaderValue::from_static("close"));
    Ok(out)
}

async fn send<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<Answer, BoxError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    let result = match answer {
        Ok(response) => Ok(read(response).await),
        Err(e) => Err(e.into()),
    };
    driver.abort();
    result
}

/// Reads an answer; an endless body is not waited for, and one that ends early does not change the status.
async fn read(response: http::Response<hyper::body::Incoming>) -> Answer {
    let status = response.status();
    let location = response.headers().get(LOCATION);
    let location = location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let mut body = response.into_body();
    let mut bytes = vec![];
    while bytes.len() < BODY_LIMIT {
        let Some(Ok(frame)) = body.frame().await else { break };
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(BODY_LIMIT - bytes.len())]);
        }
    }
    Answer {
        status,
        location,
        body: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

fn insecure_tls() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    static CONFIG: std::sync::OnceLock<Arc<rustls::ClientConfig>> = std::sync::OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

/// Accepts any server certificate: probes talk to the pod's own, usually self-signed, server.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls_pki_types::CertificateDer<'_>,
        _intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _server_name: &rustls_pki_types::ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use serde_json::json;
    use std::sync::Mutex;

    #[test]
    fn only_redirects_to_the_same_host_are_followed() {
        let first = Url::parse("http://10.0.0.1:8080/a/b?x").unwrap();
        let asked = Url::parse("https://10.0.0.1:8443/c/d").unwrap();
        let follow = |to: &str, relative| {
            Ok(Next::Follow {
                to: Url::parse(to).unwrap(),
                relative,
            })
        };
        let warning = Ok(Next::Done(Outcome::Warning(
            "Probe terminated redirects, Response body: moved".into(),
        )));
        for (status, location, expected) in [
            (200, None, Ok(Next::Done(Outcome::Success))),
            (200, Some("/x"), Ok(Next::Done(Outcome::Success))),
            (
                404,
                Some("/x"),
                Ok(Next::Done(Outcome::Failure(
                    "HTTP probe failed with statuscode: 404".into(),
                ))),
            ),
            (301, Some("/x?y#z"), follow("https://10.0.0.1:8443/x?y#z", true)),
            (302, Some("x"), follow("https://10.0.0.1:8443/c/x", true)),
            (303, Some("http://10.0.0.1/"), follow("http://10.0.0.1/", false)),
            (307, Some("//10.0.0.1:1/x"), follow("https://10.0.0.1:1/x", true)),
            (308, Some("http://10.0.0.2:8080/x"), warning.clone()),
            (302, Some("https://example.com/login"), warning.clone()),
            (302, None, warning.clone()),
            (304, Some("/x"), warning),
            (
                302,
                Some("ftp://10.0.0.1/"),
                Err("unsupported protocol scheme \"ftp\"".into()),
            ),
            (
                302,
                Some("http://[::1"),
                Err("failed to parse Location header \"http://[::1\": invalid IPv6 address".into()),
            ),
        ] {
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                location: location.map(str::to_owned),
                body: "moved".into(),
            };
            assert_eq!(judge(&first, &asked, &answer), expected, "{status} {location:?}");
        }
    }

    /// A server that answers every path with what `answer` says (status and Location), and the requests it got.
    async fn serve(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> (u16, Arc<Mutex<Vec<String>>>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(vec![]));
        let requests = seen.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = vec![];
                while !text.ends_with(b"\r\n\r\n") {
                    text.push(stream.read_u8().await.unwrap());
                }
                let text = String::from_utf8(text).unwrap().to_lowercase();
                let path = text.split(' ').nth(1).unwrap().to_owned();
                let host = text.lines().find_map(|l| l.strip_prefix("host: ")).unwrap();
                requests.lock().unwrap().push(format!("{host} {path}"));
                let (status, location) = answer(&path);
                let head = format!("HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 4\r\n\r\nbody");
                stream.write_all(head.as_bytes()).await.unwrap();
            }
        });
        (port, seen)
    }

    async fn probe(port: u16, headers: serde_json::Value) -> Outcome {
        let action = HTTPGetAction {
            path: Some("/0".into()),
            port: IntOrString::Int(port.into()),
            http_headers: serde_json::from_value(headers).unwrap(),
            ..Default::default()
        };
        let target = Target {
            container_id: String::new(),
            ip: "127.0.0.1".into(),
        };
        get(&target, &Container::default(), &action, "test").await
    }

    #[tokio::test]
    async fn a_run_asks_ten_times_at_most() {
        // Counts up to the number that is asked for.
        let next = |path: &str| path[1..].parse::<usize>().unwrap() + 1;
        for (redirects, succeeds) in [(9, true), (10, false)] {
            let answer = move |path: &str| match next(path) {
                n if n <= redirects => (302, format!("/{n}")),
                _ => (200, String::new()),
            };
            let (port, seen) = serve(answer).await;
            let outcome = probe(port, json!([])).await;
            assert_eq!(seen.lock().unwrap().len(), 10);
            if succeeds {
                assert_eq!(outcome, Outcome::Success);
            } else {
                let text = format!("Get \"http://127.0.0.1:{port}/10\": stopped after 10 redirects");
                assert_eq!(outcome, Outcome::Failure(text));
            }
        }
    }

    #[tokio::test]
    async fn a_redirect_to_another_host_is_a_success_with_a_warning() {
        let (port, seen) = serve(|_| (302, "http://example.invalid/login".into())).await;
        let outcome = probe(port, json!([])).await;
        let text = "Probe terminated redirects, Response body: body";
        assert_eq!(outcome, Outcome::Warning(text.into()));
        assert_eq!(seen.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_host_header_holds_as_long_as_redirects_name_paths() {
        let here = Arc::new(std::sync::atomic::AtomicU16::new(0));
        let own = here.clone();
        let (port, seen) = serve(move |path| match path {
            "/0" => (302, "/1".into()),
            "/1" => {
                let port = own.load(std::sync::atomic::Ordering::Relaxed);
                (302, format!("http://127.0.0.1:{port}/2"))
            }
            _ => (200, String::new()),
        })
        .await;
        here.store(port, std::sync::atomic::Ordering::Relaxed);
        let outcome = probe(port, json!([{"name": "Host", "value": "site"}])).await;
        assert_eq!(outcome, Outcome::Success);
        let seen = seen.lock().unwrap().clone();
        assert_eq!(
            seen,
            ["site /0".into(), "site /1".into(), format!("127.0.0.1:{port} /2")]
        );
    }
}
