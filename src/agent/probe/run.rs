//! One run of a probe or of an HTTP hook: exec in the container, an HTTP GET, a TCP connect, a gRPC health check. No
//! thresholds here, and no retries but those for the prober's own errors.

use super::Outcome;
use crate::cri::Cri;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Where a probe goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// Runtime's id of the container.
    pub container_id: String,
    /// The pod's address (the node's with host network).
    pub ip: String,
}

/// Longest part of a body or of output that is shown.
const SHOWN: usize = 1024;

/// Runs a probe once within its time limit.
pub async fn probe(cri: &Cri, target: &Target, container: &Container, probe: &Probe) -> Outcome {
    let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
    for attempt in 0..3 {
        let outcome = once(cri, target, container, probe, limit).await;
        match outcome {
            Outcome::Unknown(_) if attempt < 2 => {}
            done => return done,
        }
    }
    Outcome::Unknown("not run".into())
}

async fn once(cri: &Cri, target: &Target, container: &Container, probe: &Probe, limit: Duration) -> Outcome {
    let work = async {
        if let Some(exec) = &probe.exec {
            return self::exec(
                cri,
                &target.container_id,
                exec.command.clone().unwrap_or_default(),
                limit,
            )
            .await;
        }
        if let Some(get) = &probe.http_get {
            return http_get(target, container, get, "kube-probe/1.36").await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp
                .host
                .clone()
                .filter(|h| !h.is_empty())
                .unwrap_or_else(|| target.ip.clone());
            return match port(&tcp.port, container) {
                Ok(port) => tcp_connect(&host, port).await,
                Err(e) => Outcome::Failure(e),
            };
        }
        match &probe.grpc {
            Some(action) => grpc(target, action).await,
            None => Outcome::Unknown("the probe has no action".into()),
        }
    };
    // The runtime enforces whole seconds on exec by itself; a little more here lets its own message through.
    let outer = if probe.exec.is_some() {
        limit + Duration::from_secs(2)
    } else {
        limit
    };
    match tokio::time::timeout(outer, work).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!("timed out after {} s", limit.as_secs())),
    }
}

/// A port by number, or by its name in the container.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
        {
            Some(p) => p.container_port,
            None => name
                .parse()
                .map_err(|_| format!("couldn't find port: {name} in container {}", container.name))?,
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

async fn exec(cri: &Cri, id: &str, command: Vec<String>, limit: Duration) -> Outcome {
    match cri.exec_sync(id, command, limit).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Success,
        Ok(answer) => {
            let mut text = String::from_utf8_lossy(&answer.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&answer.stderr));
            Outcome::Failure(shorten(text.trim_end()))
        }
        Err(crate::error::Error::Runtime {
            code: tonic::Code::DeadlineExceeded,
            ..
        }) => Outcome::Failure(format!("command timed out after {} s", limit.as_secs())),
        Err(crate::error::Error::Runtime {
            code: tonic::Code::Unknown | tonic::Code::NotFound,
            message,
            ..
        }) => Outcome::Failure(shorten(&message)),
        Err(e) => Outcome::Unknown(e.to_string()),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

fn connect_target(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(connect_target(host, port)).await?;
    stream.set_nodelay(true)?;
    // A probe a second leaves many sockets in TIME_WAIT otherwise.
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(1)));
    Ok(stream)
}

async fn tcp_connect(host: &str, port: u16) -> Outcome {
    match connect(host, port).await {
        Ok(_) => Outcome::Success,
        Err(e) => Outcome::Failure(format!("dial tcp {}: {e}", connect_target(host, port))),
    }
}

/// An HTTP GET as probe or hook: 200 ≤ status < 400 succeeds. HTTPS certificates are not verified, as documented.
pub async fn http_get(target: &Target, container: &Container, get: &HTTPGetAction, agent: &str) -> Outcome {
    let port = match port(&get.port, container) {
        Ok(port) => port,
        Err(e) => return Outcome::Failure(e),
    };
    let host = get
        .host
        .clone()
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| target.ip.clone());
    let tls = get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let path = get.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into());
    match request(&host, port, tls, &path, get, agent).await {
        Ok(status) if (200..400).contains(&status) => Outcome::Success,
        Ok(status) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        Err(e) => Outcome::Failure(format!(
            "Get \"{}://{}{path}\": {e}",
            if tls { "https" } else { "http" },
            connect_target(&host, port)
        )),
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn request(
    host: &str,
    port: u16,
    tls: bool,
    path: &str,
    get: &HTTPGetAction,
    agent: &str,
) -> Result<u16, BoxError> {
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let mut builder = http::Request::get(path);
    let (mut has_host, mut has_agent, mut has_accept) = (false, false, false);
    for h in get.http_headers.iter().flatten() {
        has_host |= h.name.eq_ignore_ascii_case("host");
        has_agent |= h.name.eq_ignore_ascii_case("user-agent");
        has_accept |= h.name.eq_ignore_ascii_case("accept");
        if !(h.value.is_empty() && (h.name.eq_ignore_ascii_case("accept") || h.name.eq_ignore_ascii_case("user-agent")))
        {
            builder = builder.header(&h.name, &h.value);
        }
    }
    if !has_host {
        builder = builder.header("Host", connect_target(host, port));
    }
    if !has_agent {
        builder = builder.header("User-Agent", agent);
    }
    if !has_accept {
        builder = builder.header("Accept", "*/*");
    }
    let request = builder.header("Connection", "close").body(Empty::<Bytes>::new())?;
    let stream = connect(host, port).await?;
    if tls {
        let connector = tokio_rustls::TlsConnector::from(insecure_tls()?);
        let name = rustls_pki_types::ServerName::try_from(host.to_owned())?;
        send(connector.connect(name, stream).await?, request).await
    } else {
        send(stream, request).await
    }
}

async fn send<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<u16, BoxError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    let result = match answer {
        Ok(response) => {
            let status = response.status().as_u16();
            // Reading a little lets the server finish its answer; an endless body is not waited for.
            let mut body = response.into_body();
            let mut read = 0;
            while read < 10 * 1024 {
                match body.frame().await {
                    Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
                    _ => break,
                }
            }
            Ok(status)
        }
        Err(e) => Err(e.into()),
    };
    driver.abort();
    result
}

async fn grpc(target: &Target, action: &GRPCAction) -> Outcome {
    use tonic::transport::Endpoint;
    let Ok(port) = u16::try_from(action.port) else {
        return Outcome::Failure(format!("invalid port number: {}", action.port));
    };
    let address = format!("http://{}", connect_target(&target.ip, port));
    let endpoint = match Endpoint::from_shared(address).and_then(|e| e.user_agent("kube-probe/1.36")) {
        Ok(e) => e,
        Err(e) => return Outcome::Failure(e.to_string()),
    };
    let channel = match endpoint.connect().await {
        Ok(c) => c,
        Err(e) => {
            let place = connect_target(&target.ip, port);
            return Outcome::Failure(format!("failed to connect service at {place}: {e}"));
        }
    };
    let mut client = tonic::client::Grpc::new(channel);
    if let Err(e) = client.ready().await {
        return Outcome::Failure(e.to_string());
    }
    let request = tonic::Request::new(HealthCheckRequest {
        service: action.service.clone().unwrap_or_default(),
    });
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    match client.unary(request, path, codec).await {
        Ok(answer) if answer.get_ref().status == 1 => Outcome::Success,
        Ok(answer) => Outcome::Failure(format!(
            "service unhealthy (responded with status {})",
            answer.get_ref().status
        )),
        Err(e) => Outcome::Failure(format!("rpc failed: {}", e.message())),
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
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
