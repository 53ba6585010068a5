//! Listening for a moment, and knocking there from another host: so that a packet filter between hosts is found before anything is
//! installed. Nothing is read from who connects, and nothing is told but a token.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{
    Error, Result,
    proto::{Door, KnockAt, Knocked, Listen, MAX_DOORS, MAX_PORTS, MAX_TOKEN},
};

/// Connections answered at once, of all ports; further ones wait.
const ANSWERING: usize = 256;
/// Connections that wait to be accepted, of a port.
const BACKLOG: u32 = 1024;
/// Doors knocked at at once.
const KNOCKING: usize = 256;
/// The longest that is listened.
const LONGEST: Duration = Duration::from_secs(60);
/// Whoever connected is expected to be gone by then.
const LEAVING: Duration = Duration::from_secs(1);

/// Ports that are listened on.
pub(crate) struct Listening {
    sockets: Vec<TcpListener>,
    token: String,
    limit: Duration,
}

impl Listening {
    /// Takes those of the ports that are free.
    pub(crate) fn begin(wish: &Listen) -> Result<Self> {
        if wish.ports.len() > MAX_PORTS || wish.token.len() > MAX_TOKEN || wish.token.is_empty() {
            return Err(Error::invalid(format!(
                "at most {MAX_PORTS} ports can be listened on, with a token of 1 to {MAX_TOKEN} bytes"
            )));
        }
        let mut sockets = Vec::new();
        for port in &wish.ports {
            match bind(SocketAddrV4::new(wish.address, *port)) {
                Ok(socket) => sockets.push(socket),
                Err(e) => tracing::debug!(port, error = %e, "not listened on"),
            }
        }
        Ok(Self {
            sockets,
            token: wish.token.clone(),
            limit: Duration::from_millis(wish.timeout_ms).min(LONGEST),
        })
    }

    /// Which ports these are.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let port = |socket: &TcpListener| socket.local_addr().map(|at| at.port());
        self.sockets.iter().filter_map(|socket| port(socket).ok()).collect()
    }

    /// Answers until `end` or the limit. All ports are free when this has returned or is dropped.
    pub(crate) async fn serve(self, end: impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(ANSWERING));
        let token: Arc<str> = self.token.into();
        let mut attending = JoinSet::new();
        for socket in self.sockets {
            attending.spawn(attend(socket, Arc::clone(&token), Arc::clone(&slots)));
        }
        tokio::select! {
            () = end => {}
            () = tokio::time::sleep(self.limit) => {}
        }
        attending.shutdown().await;
    }
}

fn bind(at: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Connections of a moment ago do not hinder, here or for who listens next.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::V4(at))?;
    socket.listen(BACKLOG)
}

async fn attend(socket: TcpListener, token: Arc<str>, slots: Arc<Semaphore>) {
    let mut answers = JoinSet::new();
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match socket.accept().await {
            Ok((stream, _)) => {
                let token = Arc::clone(&token);
                answers.spawn(async move {
                    let _ = timeout(LEAVING, answer(stream, &token)).await;
                    drop(slot);
                });
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => return tracing::warn!(error = %e, "a port is not listened on any more"),
        }
        while answers.try_join_next().is_some() {}
    }
}

/// Tells the token, and waits until the other side has closed: so that the port is left without a trace here.
async fn answer(mut stream: TcpStream, token: &str) -> io::Result<()> {
    stream.write_all(token.as_bytes()).await?;
    stream.read(&mut [0; 1]).await.map(drop)
}

/// Knocks at all doors at once; the results are in their order.
pub(crate) async fn knock(wish: KnockAt) -> Result<Vec<Knocked>> {
    if wish.doors.len() > MAX_DOORS {
        return Err(Error::invalid(format!("more than {MAX_DOORS} doors to knock at")));
    }
    let limit = Duration::from_millis(wish.timeout_ms).min(LONGEST);
    let mut results = vec![Knocked::Silent; wish.doors.len()];
    let mut knocking = JoinSet::new();
    for (n, door) in wish.doors.into_iter().enumerate() {
        if knocking.len() >= KNOCKING
            && let Some(Ok((n, result))) = knocking.join_next().await
        {
            results[n] = result;
        }
        knocking.spawn(async move { (n, knock_at(&door, limit).await) });
    }
    while let Some(joined) = knocking.join_next().await {
        let (n, result) = joined.map_err(|e| Error::failed(format!("knocking failed inside: {e}")))?;
        results[n] = result;
    }
    Ok(results)
}

async fn knock_at(door: &Door, limit: Duration) -> Knocked {
    let begun = Instant::now();
    let mut stream = match timeout(limit, TcpStream::connect(door.at)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => return Knocked::Refused,
        Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut => return Knocked::Silent,
        Ok(Err(e)) => return Knocked::Failed(e.to_string()),
        Err(_) => return Knocked::Silent,
    };
    let Some(token) = &door.token else {
        return Knocked::Reached;
    };
    let mut said = vec![0; token.len()];
    match timeout(limit.saturating_sub(begun.elapsed()), stream.read_exact(&mut said)).await {
        Ok(Ok(_)) if said == token.as_bytes() => Knocked::Reached,
        _ => Knocked::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const LIMIT: Duration = Duration::from_secs(5);

    fn listen(ports: Vec<u16>) -> Listen {
        Listen {
            address: Ipv4Addr::LOCALHOST,
            ports,
            token: "of this run".into(),
            timeout_ms: 30_000,
        }
    }

    fn door(port: u16, token: Option<&str>) -> Door {
        Door {
            at: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
            token: token.map(str::to_owned),
        }
    }

    async fn knock_within(doors: Vec<Door>, timeout_ms: u64) -> Vec<Knocked> {
        knock(KnockAt { doors, timeout_ms }).await.unwrap()
    }

    /// A port that nobody has.
    fn free() -> u16 {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn each_way_of_not_reaching_is_told_from_the_others() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let (open, closed) = (free(), free());
        let listening = Listening::begin(&listen(vec![open, taken_port])).unwrap();
        assert_eq!(listening.ports(), [open], "what is in use is left alone");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(listening.serve(async { drop(ended.await) }));
        let doors = vec![
            door(open, Some("of this run")),
            door(open, Some("of another")),
            door(closed, Some("of this run")),
            door(taken_port, None),
            door(taken_port, Some("of this run")),
        ];
        use Knocked::{Other, Reached, Refused};
        assert_eq!(
            knock_within(doors, 400).await,
            [Reached, Other, Refused, Reached, Other]
        );
        end.send(()).unwrap();
        serving.await.unwrap();
        assert_eq!(
            knock_within(vec![door(open, None)], 400).await,
            [Refused],
            "the port is free at the end"
        );
        Listening::begin(&listen(vec![open]))
            .unwrap()
            .sockets
            .pop()
            .expect("and can be had again");
    }

    #[tokio::test]
    async fn silence_ends_with_the_limit() {
        // A full queue of connections lets further ones wait without an answer, as a packet filter that drops them does.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = socket.local_addr().unwrap();
        let _full = socket.listen(0).unwrap();
        let _first = TcpStream::connect(at).await.unwrap();
        let begun = Instant::now();
        assert_eq!(knock_within(vec![door(at.port(), None)], 300).await, [Knocked::Silent]);
        assert!(begun.elapsed() < LIMIT);
    }

    #[tokio::test]
    async fn more_than_can_be_answered_at_once_are_answered_in_turn() {
        let port = free();
        let listening = Listening::begin(&listen(vec![port])).unwrap();
        let serving = tokio::spawn(listening.serve(std::future::pending()));
        let doors = vec![door(port, Some("of this run")); ANSWERING * 2];
        let results = knock_within(doors, 20_000).await;
        assert!(results.iter().all(|result| *result == Knocked::Reached), "{results:?}");
        serving.abort();
    }

    #[tokio::test]
    async fn listening_ends_by_itself() {
        let listening = Listening::begin(&Listen {
            timeout_ms: 1,
            ..listen(vec![free()])
        });
        timeout(LIMIT, listening.unwrap().serve(std::future::pending()))
            .await
            .unwrap();
    }

    #[test]
    fn too_much_is_refused() {
        assert!(Listening::begin(&listen(vec![1; MAX_PORTS + 1])).is_err());
        let token = "x".repeat(MAX_TOKEN + 1);
        assert!(
            Listening::begin(&Listen {
                token,
                ..listen(Vec::new())
            })
            .is_err()
        );
    }
}
