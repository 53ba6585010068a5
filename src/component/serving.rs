//! What every small server of a component shares: taking connections, a bounded number at once, and answering short
//! texts over HTTP/1.1.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long a connection may wait between requests.
const IDLE: Duration = Duration::from_secs(30);

/// Gives every connection to `serve`, each in a task of its own, for ever. While `most` are open, further peers wait.
pub async fn accept<F, Fut>(listener: TcpListener, most: usize, serve: F)
where
    F: Fn(TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let served = serve(stream, peer);
                tokio::spawn(async move {
                    let _slot = slot;
                    served.await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: the next try would fail at once too.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Opens `addr`, and says which address that is (the real port, if 0 was asked for).
///
/// # Errors
/// [`Error::Listen`](crate::Error::Listen).
pub(crate) async fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), crate::Error> {
    let fail = |source| crate::Error::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(fail)?;
    let addr = listener.local_addr().map_err(fail)?;
    Ok((listener, addr))
}

/// A short answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Content type, and whatever else goes with it.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    pub text: String,
}

impl From<(StatusCode, String)> for Reply {
    /// Plain text, which is what metrics are too.
    fn from((status, text): (StatusCode, String)) -> Self {
        let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        Self {
            status,
            headers: vec![(header::CONTENT_TYPE, plain)],
            text,
        }
    }
}

/// Answers the requests of one connection until it ends or idles.
pub async fn converse<S, A, Fut, R>(stream: S, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = R>,
    R: Into<Reply>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(response(answer.await.into())) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(IDLE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a probe's connection ended early");
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.text)));
    *response.status_mut() = reply.status;
    response.headers_mut().extend(reply.headers);
    response
}
