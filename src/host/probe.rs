//! Looking at what runs on the host: HTTP requests, TCP ports, files, units; once, or until it is as wished.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    Error, Result,
    fsops::Root,
    proto::{Condition, FaultKind, HttpGet, HttpResponse},
    system::{System, unit_status},
    tls::{self, Believing},
};

/// Body kept of an answer.
const MAX_BODY: usize = 256 << 10;

/// One GET.
pub(crate) async fn http_get(get: &HttpGet) -> Result<HttpResponse> {
    let limit = Duration::from_millis(if get.timeout_ms == 0 { 5000 } else { get.timeout_ms });
    tokio::time::timeout(limit, request(get)).await.map_err(|_| {
        Error::new(
            FaultKind::Timeout,
            format!("{}: no answer within {} ms", get.url, limit.as_millis()),
        )
    })?
}

fn trouble(url: &str) -> impl Fn(&dyn std::fmt::Display) -> Error + '_ {
    move |why| Error::failed(format!("{url}: {why}"))
}

async fn request(get: &HttpGet) -> Result<HttpResponse> {
    let fail = trouble(&get.url);
    let uri: http::Uri = get
        .url
        .parse()
        .map_err(|_| Error::invalid(format!("'{}' is no URL", get.url)))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(Error::invalid(format!("'{}' is neither http nor https", get.url))),
    };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| fail(&e))?;
    if !tls {
        return exchange(get, &uri, tcp).await;
    }
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls_config(get)?));
    let name = ServerName::try_from(host).map_err(|e| fail(&e))?;
    let stream = connector.connect(name, tcp).await.map_err(|e| fail(&e))?;
    exchange(get, &uri, stream).await
}

async fn exchange(
    get: &HttpGet,
    uri: &http::Uri,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<HttpResponse> {
    let fail = trouble(&get.url);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| fail(&e))?;
    let connection = tokio::spawn(connection);
    let authority = uri.authority().map_or("", |a| a.as_str());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = http::Request::get(path).header(http::header::HOST, authority);
    for (name, value) in &get.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| fail(&e))?;
    let response = sender.send_request(request).await.map_err(|e| fail(&e))?;
    let status = response.status().as_u16();
    let body = match Limited::new(response.into_body(), MAX_BODY).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(e) => format!("<body not read: {e}>"),
    };
    connection.abort();
    Ok(HttpResponse { status, body })
}

fn tls_config(get: &HttpGet) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::failed(e.to_string()))?;
    let builder = match &get.ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for cert in certificates(ca)? {
                roots.add(cert).map_err(|e| Error::invalid(format!("{ca}: {e}")))?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Believing::anyone())),
    };
    match (&get.cert, &get.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| Error::invalid(format!("{key}: {e}")))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|e| Error::invalid(format!("{cert}: {e}")))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| Error::invalid(format!("{path}: {e}")))
}

/// Polls until the condition holds; returns the milliseconds it took. What was wrong last is in the error.
pub(crate) async fn wait_for(
    condition: &Condition,
    timeout: Duration,
    root: &Root,
    system: &Arc<dyn System>,
) -> Result<u64> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(5);
    let mut last = "not looked at yet".to_owned();
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        match tokio::time::timeout(left.max(Duration::from_millis(1)), holds(condition, root, system)).await {
            Ok(Ok(())) => return Ok(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
            Ok(Err(why)) => last = why,
            Err(_) => {}
        }
        if begun.elapsed() + pause >= timeout {
            let message = format!("waited {:.1} s in vain: {last}", timeout.as_secs_f32());
            return Err(Error::new(FaultKind::Timeout, message));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

async fn holds(condition: &Condition, root: &Root, system: &Arc<dyn System>) -> Result<(), String> {
    match condition {
        Condition::Tcp { address } => match TcpStream::connect(address).await {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("{address}: {e}")),
        },
        Condition::NoTcp { address } => match TcpStream::connect(address).await {
            Ok(_) => Err(format!("{address} still answers")),
            Err(_) => Ok(()),
        },
        Condition::Http(get) => match http_get(get).await {
            Ok(response) if (200..400).contains(&response.status) => Ok(()),
            Ok(response) => Err(format!(
                "{} answers {}: {}",
                get.url,
                response.status,
                first_line(&response.body)
            )),
            Err(e) => Err(e.to_string()),
        },
        Condition::Path { path } if exists(root, path) => Ok(()),
        Condition::Path { path } => Err(format!("{path} is not there")),
        Condition::NoPath { path } if exists(root, path) => Err(format!("{path} is still there")),
        Condition::NoPath { .. } => Ok(()),
        Condition::Unit { name } => {
            let (system, unit) = (Arc::clone(system), name.clone());
            let shown = tokio::task::spawn_blocking(move || unit_status(system.as_ref(), &unit, 0)).await;
            match shown {
                Ok(Ok(shown)) if shown.unit.active == "active" => Ok(()),
                Ok(Ok(shown)) => Err(format!("unit {name} is {}/{}", shown.unit.active, shown.unit.sub)),
                Ok(Err(e)) => Err(e.to_string()),
                Err(e) => Err(e.to_string()),
            }
        }
    }
}

fn exists(root: &Root, path: &str) -> bool {
    root.path(path)
        .is_ok_and(|at: std::path::PathBuf| Path::new(&at).symlink_metadata().is_ok())
}

fn first_line(body: &str) -> String {
    body.lines().next().unwrap_or_default().chars().take(200).collect()
}
