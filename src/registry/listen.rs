//! Sockets: accepts connections, bounded in number, speaks TLS where it must, and drains at the end.

use std::{future::Future, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{serve::serve, store::Store};

/// Connections at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take for a request's headers, and a connection may be idle.
const HEADERS: Duration = Duration::from_secs(60);
/// How long sent bytes may stay unacknowledged before the peer is taken for dead, in milliseconds.
const UNACKNOWLEDGED: u32 = 60_000;
/// How long running downloads may go on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves `store` on `listener` until `stop` completes, then lets running requests end for a while.
pub async fn listen(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    store: Arc<Store>,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (stream, permit) = tokio::select! {
            () = &mut stop => break,
            (accepted, permit) = accepted => match accepted {
                Ok((stream, _)) => (stream, permit),
                Err(error) => {
                    // Out of file descriptors: the next accept would fail at once too.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        prepare(&stream);
        let (tls, store, watcher) = (tls.clone(), Arc::clone(&store), graceful.watcher());
        tokio::spawn(async move {
            let _permit = permit;
            match tls {
                None => converse(stream, store, watcher).await,
                Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => converse(stream, store, watcher).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake took too long"),
                },
            }
        });
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("downloads were still running at the end");
    }
}

fn prepare(stream: &TcpStream) {
    let settings = stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())
        .and_then(|()| {
            rustix::net::sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED).map_err(|error| error.to_string())
        });
    if let Err(error) = settings {
        tracing::debug!(%error, "a connection's settings were refused");
    }
}

async fn converse<S>(stream: S, store: Arc<Store>, watcher: hyper_util::server::graceful::Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .keep_alive_interval(HEADERS);
    let service = hyper::service::service_fn(move |request| {
        let store = Arc::clone(&store);
        async move { Ok::<_, std::convert::Infallible>(serve(store, request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(%error, "a connection ended early");
    }
}
