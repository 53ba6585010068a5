//! Sockets: UDP and TCP loops around [`crate::message`], bounded in every direction.

use std::{
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::op::{Message, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    forward::{Unanswered, Upstream},
    message::{Outcome, encode, handle, merge, payload},
    zone::Zone,
};

/// TCP connections at once.
const MAX_CONNECTIONS: usize = 256;
/// How long a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// What all sockets share.
pub struct Server {
    zone: RwLock<Arc<Zone>>,
    upstream: Upstream,
    turn: AtomicUsize,
    /// Counters for `/metrics`.
    pub counters: Counters,
}

/// What has been done so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests over UDP and TCP.
    pub requests: [AtomicU64; 2],
    /// Responses NOERROR, NXDOMAIN, SERVFAIL, others.
    pub responses: [AtomicU64; 4],
    /// Requests that were asked of others.
    pub forwarded: AtomicU64,
}

impl Server {
    /// A server without names yet.
    pub fn new(upstream: Upstream) -> Self {
        Self {
            zone: RwLock::default(),
            upstream,
            turn: AtomicUsize::new(0),
            counters: Counters::default(),
        }
    }

    /// Replaces all names at once.
    pub fn replace(&self, zone: Zone) {
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }

    fn zone(&self) -> Arc<Zone> {
        Arc::clone(&self.zone.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What needs nobody else is done at once; the rest comes back as a forward.
    fn begin(&self, request: &[u8], over_tcp: bool) -> Outcome {
        self.counters.requests[usize::from(over_tcp)].fetch_add(1, Ordering::Relaxed);
        handle(&self.zone(), request, self.turn.fetch_add(1, Ordering::Relaxed))
    }

    async fn forward(&self, mut response: Message, question: &Message, over_tcp: bool) -> Message {
        self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
        let asked = match question.to_vec() {
            Ok(bytes) => self.upstream.ask(&bytes, over_tcp).await,
            Err(_) => Err(Unanswered::Failed),
        };
        match asked {
            Ok(theirs) => merge(response, &theirs),
            Err(why) => {
                // An alias out of a cluster without a way out is still an alias.
                response.metadata.response_code = match why {
                    Unanswered::Nobody if response.answers.is_empty() => ResponseCode::NXDomain,
                    Unanswered::Nobody => ResponseCode::NoError,
                    Unanswered::Failed => ResponseCode::ServFail,
                };
                response
            }
        }
    }

    fn finish(&self, response: &Message, payload: Option<u16>, over_tcp: bool) -> Option<Vec<u8>> {
        let index = match response.metadata.response_code {
            ResponseCode::NoError => 0,
            ResponseCode::NXDomain => 1,
            ResponseCode::ServFail => 2,
            _ => 3,
        };
        self.counters.responses[index].fetch_add(1, Ordering::Relaxed);
        encode(response, payload, over_tcp)
    }
}

/// Answers on a UDP socket for ever.
pub async fn serve_udp(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Mostly a client that is gone, reported by the kernel on the next call.
                tracing::debug!(%error, "receiving failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let request = &buffer[..length];
        let payload = payload(request);
        match server.begin(request, false) {
            Outcome::Respond(response) => send(&server, &socket, client, &response, payload).await,
            Outcome::Forward { response, question } => {
                // Bounded by the upstream: what it does not take fails without waiting.
                let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                tokio::spawn(async move {
                    let response = server.forward(response, &question, false).await;
                    send(&server, &socket, client, &response, payload).await;
                });
            }
            Outcome::Ignore => {}
        }
    }
}

async fn send(server: &Server, socket: &UdpSocket, client: SocketAddr, response: &Message, payload: Option<u16>) {
    if let Some(bytes) = server.finish(response, payload, false)
        && let Err(error) = socket.send_to(&bytes, client).await
    {
        tracing::debug!(%client, %error, "sending failed");
    }
}

/// Answers on TCP connections for ever.
pub async fn serve_tcp(server: Arc<Server>, listener: TcpListener) {
    component::serving::accept(listener, MAX_CONNECTIONS, |stream, client| {
        let server = Arc::clone(&server);
        async move {
            if let Err(error) = converse(&server, stream).await {
                tracing::debug!(%client, %error, "a connection ended early");
            }
        }
    })
    .await;
}

async fn converse(server: &Server, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let length = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => length,
            // Idle, or ended by the client.
            Ok(Err(_)) | Err(_) => return Ok(()),
        };
        let mut request = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut request)).await??;
        let response = match server.begin(&request, true) {
            Outcome::Respond(response) => response,
            Outcome::Forward { response, question } => server.forward(response, &question, true).await,
            Outcome::Ignore => return Ok(()),
        };
        let Some(bytes) = server.finish(&response, None, true) else {
            return Ok(());
        };
        let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat())).await??;
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
