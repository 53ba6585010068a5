//! A tiny HTTP server for probes and metrics: a function from path to answer.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

/// Connections at once; probes are few.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may wait between requests.
const IDLE: Duration = Duration::from_secs(30);

/// The state of a component under one path: whether it is good, and a text that says more. `None`: no such path.
pub type Answers = dyn Fn(&str) -> Option<(bool, String)> + Send + Sync;

/// Opens `address` and answers probes there in the background until the runtime ends: 200 if good, 503 if not, 404 for
/// unknown paths. Returns the address it listens on.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, answers: Arc<Answers>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a probe's connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                let _slot = slot;
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = answer(answers(request.uri().path()));
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(IDLE);
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a probe's connection ended early");
                }
            });
        }
    });
    Ok(local)
}

fn answer(found: Option<(bool, String)>) -> Response<Full<Bytes>> {
    let (status, text) = match found {
        Some((true, text)) => (StatusCode::OK, text),
        Some((false, text)) => (StatusCode::SERVICE_UNAVAILABLE, text),
        None => (StatusCode::NOT_FOUND, "no such path\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}
