//! The accept loop: TLS, optional client certificates, HTTP/1.1 with upgrades and HTTP/2, graceful end.

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tls_files::Reread;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::authn::{User, user_of_certificate};

mod handler;
mod respond;

pub use respond::{Response, json, negotiated, status};

/// Most connections served at once.
const CONNECTIONS: usize = 8192;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is known about a connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The identity of its client certificate.
    pub user: Option<User>,
}

/// Serves until `stop`, with the certificate as it is when a connection begins, then lets open requests finish for at most `grace`.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    config: Reread<ServerConfig>,
    stop: CancellationToken,
    grace: Duration,
) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors or the like: give others the time to close.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "too many connections");
            continue;
        };
        let acceptor = TlsAcceptor::from(config.current());
        let (app, stop) = (app.clone(), stop.clone());
        tasks.spawn(async move {
            connection(app, acceptor, stream, peer.to_string(), stop).await;
            drop(place);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!(open = tasks.len(), "connections cut at shutdown");
    }
}

async fn connection(app: Arc<App>, acceptor: TlsAcceptor, stream: TcpStream, peer: String, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(e)) => return tracing::debug!(peer, error = %e, "TLS handshake failed"),
        Err(_) => return tracing::debug!(peer, "TLS handshake took too long"),
    };
    let user = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first())
        .and_then(user_of_certificate);
    let about = Arc::new(Connection { user });
    let service = service_fn(move |request| {
        let (app, about) = (app.clone(), about.clone());
        async move { Ok::<_, std::convert::Infallible>(handler::handle(app, about, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "connection ended");
    }
}
