//! Sockets: accepts connections, bounded in number, speaks TLS where it must, and drains at the end.

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tls_files::Reread;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    serve::{Registry, serve},
    socket::{Outbox, Socket},
};

/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take for a request's headers, and a connection may be idle.
const HEADERS: Duration = Duration::from_secs(60);
/// How long sent bytes may stay unacknowledged before the peer is taken for dead, in milliseconds.
const UNACKNOWLEDGED: u32 = 60_000;
/// How long running requests may go on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// The largest head of a request, and the most that is read of a body at once, in bytes.
const BUFFER: usize = 64 * 1024;
/// The largest headers of a request of HTTP/2, in bytes.
const HEADER_LIST: u32 = 16 * 1024;
/// What a client of HTTP/2 may send of one body before we have read it, in bytes.
const WINDOW: u32 = 256 * 1024;

/// Counts connections, and knows when a client has more than its share.
#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    by_client: Arc<Mutex<HashMap<IpAddr, usize>>>,
    share: usize,
}

/// A connection's place, given back when dropped.
struct Place {
    by_client: Arc<Mutex<HashMap<IpAddr, usize>>>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// Places for `most` connections; one client gets at most half of them.
    fn new(most: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(most)),
            by_client: Arc::default(),
            share: (most / 2).max(1),
        }
    }

    /// A place for a client; none if it has its share already.
    fn take(&self, permit: OwnedSemaphorePermit, client: IpAddr) -> Option<Place> {
        let client = client.to_canonical();
        let mut by_client = self.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_client.entry(client).or_insert(0);
        if *count >= self.share {
            return None;
        }
        *count += 1;
        Some(Place {
            by_client: Arc::clone(&self.by_client),
            client,
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_client = self.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                by_client.remove(&self.client);
            }
        }
    }
}

/// Serves a registry on `listener` until `stop` completes, then lets running requests end for a while.
///
/// `most` connections are served at once, and one client has at most half of them; further ones wait, or are closed.
pub async fn listen(
    listener: TcpListener,
    tls: Option<Reread<rustls::ServerConfig>>,
    registry: Arc<Registry>,
    most: usize,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let places = Places::new(most);
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, client, permit) = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => match accepted {
                Some(accepted) => accepted,
                None => continue,
            },
        };
        let Some(place) = places.take(permit, client.ip()) else {
            registry.metrics.refused_connection();
            tracing::debug!(%client, "closed a connection: the client has too many");
            continue;
        };
        prepare(&stream);
        let tls = tls.as_ref().map(|config| TlsAcceptor::from(config.current()));
        let (registry, watcher) = (Arc::clone(&registry), graceful.watcher());
        tokio::spawn(async move {
            let _place = place;
            registry.metrics.connections.inc();
            let connections = registry.metrics.connections.clone();
            match tls {
                None => {
                    let (socket, outbox) = Socket::new(stream);
                    converse(socket, Some(outbox), registry, watcher).await;
                }
                Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => converse(stream, None, registry, watcher).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake took too long"),
                },
            }
            connections.dec();
        });
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still running at the end");
    }
}

async fn accept(listener: &TcpListener, places: &Places) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(&places.all).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, client)) => Some((stream, client, permit)),
        Err(error) => {
            // Out of file descriptors: the next accept would fail at once too.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
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

async fn converse<S>(
    stream: S,
    outbox: Option<Arc<Outbox>>,
    registry: Arc<Registry>,
    watcher: hyper_util::server::graceful::Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .max_header_list_size(HEADER_LIST)
        .initial_stream_window_size(WINDOW)
        .keep_alive_interval(HEADERS);
    let service = hyper::service::service_fn(move |request| {
        let (registry, outbox) = (Arc::clone(&registry), outbox.clone());
        async move { Ok::<_, std::convert::Infallible>(serve(registry, outbox, request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_client_leaves_places_for_others() {
        let places = Places::new(4);
        let take = async |client: &str| {
            let permit = Arc::clone(&places.all).try_acquire_owned().ok()?;
            places.take(permit, client.parse().unwrap())
        };
        let first = take("10.0.0.1").await;
        let second = take("::ffff:10.0.0.1").await;
        assert!(first.is_some() && second.is_some());
        assert!(
            take("10.0.0.1").await.is_none(),
            "its share is taken, in either notation"
        );
        let other = take("10.0.0.2").await;
        assert!(other.is_some());
        drop(first);
        assert!(take("10.0.0.1").await.is_some());
        drop((second, other));
        assert!(places.by_client.lock().unwrap().is_empty());
    }
}
