//! The registry's numbers, and the address at which they are given away (OpenMetrics text).

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use crate::route::Route;

const MAX_CONNECTIONS: usize = 16;
/// How long one scrape may take.
const SCRAPE: Duration = Duration::from_secs(30);

type Labels = [(&'static str, String); 3];

/// The numbers of a registry.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    received: Counter,
    /// Connections that are open.
    pub connections: Gauge,
    refused_connections: Counter,
}

/// What is asked for only when somebody looks.
pub struct Looked {
    /// Repositories that are served.
    pub repositories: usize,
    /// Uploads under way.
    pub uploads: usize,
}

impl Metrics {
    /// Counts a request that was answered. `sent` bytes of content were or are being sent.
    pub fn answered(&self, method: &Method, route: Route<'_>, status: StatusCode) {
        let labels = [
            ("method", known(method).to_owned()),
            ("route", route.label().to_owned()),
            ("code", status.as_u16().to_string()),
        ];
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts content that was received.
    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    /// Counts a connection that was closed because its client has too many.
    pub fn refused_connection(&self) {
        self.refused_connections.inc();
    }

    fn render(&self, looked: &Looked) -> String {
        let mut registry = Registry::with_prefix("registry");
        registry.register("http_requests", "Requests answered", self.requests.clone());
        registry.register(
            "received_bytes",
            "Bytes of pushed content that arrived",
            self.received.clone(),
        );
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register(
            "refused_connections",
            "Connections closed because their client had too many",
            self.refused_connections.clone(),
        );
        let gauge = |value: u64| {
            let gauge = Gauge::<u64, AtomicU64>::default();
            gauge.inner().store(value, Ordering::Relaxed);
            gauge
        };
        registry.register("repositories", "Repositories served", gauge(looked.repositories as u64));
        registry.register("uploads", "Uploads under way", gauge(looked.uploads as u64));
        if let Some(bytes) = resident() {
            registry.register("resident_memory_bytes", "Resident memory of the process", gauge(bytes));
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// Clients may send any word as method; metrics must not grow by that.
fn known(method: &Method) -> &'static str {
    let all = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    all.into_iter().find(|name| *name == method.as_str()).unwrap_or("other")
}

fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Answers `/metrics` and `/healthz` for as long as it is polled.
pub async fn serve(listener: TcpListener, metrics: Metrics, look: impl Fn() -> Looked + Send + Sync + 'static) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let look = Arc::new(look);
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (metrics, look) = (metrics.clone(), Arc::clone(&look));
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, || metrics.render(&look()));
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .max_buf_size(16 * 1024)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Who scrapes tries again.
            let _ = timeout(SCRAPE, connection).await;
        });
    }
}

fn answer(request: &Request<Incoming>, render: impl FnOnce() -> String) -> Response<Full<Bytes>> {
    let (status, content_type, text) = match request.uri().path() {
        "/metrics" => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            render(),
        ),
        "/healthz" => (StatusCode::OK, "text/plain; charset=utf-8", "ok".to_owned()),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "not here\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_routes_are_few_whatever_clients_send() {
        let metrics = Metrics::default();
        for method in ["GET", "BREW", "X1", "X2"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            metrics.answered(&method, Route::Blob("a", "b"), StatusCode::OK);
        }
        metrics.received(5);
        let text = metrics.render(&Looked {
            repositories: 3,
            uploads: 1,
        });
        for line in [
            r#"registry_http_requests_total{method="GET",route="blob",code="200"} 1"#,
            r#"registry_http_requests_total{method="other",route="blob",code="200"} 3"#,
            "registry_received_bytes_total 5",
            "registry_repositories 3",
            "registry_uploads 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.contains("registry_resident_memory_bytes "));
    }
}
