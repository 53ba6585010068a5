//! Questions about names outside of the cluster: asked of the nameservers of `/etc/resolv.conf`.
//!
//! Messages are passed on as bytes. Without nameservers, as in a cluster without a way out, nobody waits: see [`Upstream::ask`].
//! Answers are not cached: the resolvers asked do that.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

/// Questions waiting for others at once; more fail at once.
const MAX_WAITING: usize = 1000;
/// How long one nameserver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a nameserver that did not answer is left alone.
const REST: Duration = Duration::from_secs(5);
/// Nameservers used, as resolvers do.
const MAX_SERVERS: usize = 3;

/// The nameservers outside of the cluster.
pub struct Upstream {
    servers: Vec<Server>,
    turn: AtomicUsize,
    waiting: Semaphore,
}

struct Server {
    address: SocketAddr,
    silent_since: Mutex<Option<Instant>>,
}

/// Why nobody outside answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// There is nobody to ask: such names do not exist for this cluster.
    Nobody,
    /// Nobody answered in time, or too many questions wait.
    Failed,
}

impl Upstream {
    /// The nameservers of a resolver configuration's text. Those on the loopback are left out: from here they would be ourselves.
    pub fn new(resolv_conf: &str) -> Self {
        let servers = nameservers(resolv_conf).into_iter().map(|address| (address, 53).into());
        Self::with(servers.collect())
    }

    /// These nameservers.
    pub fn with(addresses: Vec<SocketAddr>) -> Self {
        let servers = addresses.into_iter().map(|address| Server {
            address,
            silent_since: Mutex::new(None),
        });
        Self {
            servers: servers.collect(),
            turn: AtomicUsize::new(0),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    /// The nameservers' addresses.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    /// Asks a question, given as a message's bytes; the answer has the question's id.
    ///
    /// # Errors
    /// At once when there is nobody to ask, all have been silent lately, or too many wait; else after [`PATIENCE`] for each.
    pub async fn ask(&self, question: &[u8], over_tcp: bool) -> Result<Vec<u8>, Unanswered> {
        if self.servers.is_empty() {
            return Err(Unanswered::Nobody);
        }
        let Ok(_permit) = self.waiting.try_acquire() else {
            return Err(Unanswered::Failed);
        };
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for offset in 0..self.servers.len() {
            let server = &self.servers[first.wrapping_add(offset) % self.servers.len()];
            if server.rests() {
                continue;
            }
            let asked = async {
                if over_tcp {
                    tcp(server.address, question).await
                } else {
                    udp(server.address, question).await
                }
            };
            let answer = timeout(PATIENCE, asked).await;
            server.note(matches!(answer, Ok(Ok(_))));
            if let Ok(Ok(answer)) = answer {
                return Ok(answer);
            }
        }
        Err(Unanswered::Failed)
    }
}

impl Server {
    fn rests(&self) -> bool {
        let silent = self.silent_since.lock().unwrap_or_else(PoisonError::into_inner);
        silent.is_some_and(|since| since.elapsed() < REST)
    }

    fn note(&self, answered: bool) {
        let mut silent = self.silent_since.lock().unwrap_or_else(PoisonError::into_inner);
        *silent = (!answered).then(Instant::now);
    }
}

async fn udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    // A socket of its own, connected: a random port, and nobody else's answers.
    let local: IpAddr = if server.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0u16; 8].into()
    };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 12 && answer.get(..2) == question.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answer.len() < 12 || answer.get(..2) != question.get(..2) {
        return Err(std::io::Error::other("the answer is to another question"));
    }
    Ok(answer)
}

fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        if !address.is_loopback() && !found.contains(&address) && found.len() < MAX_SERVERS {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_those_that_can_be_others() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver fd00::1\n\
                    nameserver 10.0.0.1\nnameserver ::1\nnameserver x\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n";
        let expected: Vec<IpAddr> = ["10.0.0.1", "fd00::1", "10.0.0.2"]
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        assert_eq!(nameservers(text), expected);
    }

    #[tokio::test]
    async fn without_nameservers_the_answer_is_immediate() {
        assert_eq!(Upstream::new("").ask(&[0; 12], false).await, Err(Unanswered::Nobody));
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_not_taken() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::with(vec![server.local_addr().unwrap()]);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 64];
            let (length, client) = server.recv_from(&mut buffer).await.unwrap();
            let mut other = buffer;
            other[0] ^= 1;
            server.send_to(&other[..length], client).await.unwrap();
            server.send_to(&buffer[..length], client).await.unwrap();
        });
        let question = [7u8; 20];
        assert_eq!(upstream.ask(&question, false).await, Ok(question.to_vec()));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_silent_nameserver_is_left_alone_for_a_while() {
        // Nothing listens: the kernel refuses at once.
        let gone = { UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
        let upstream = Upstream::with(vec![gone]);
        assert_eq!(upstream.ask(&[0; 12], false).await, Err(Unanswered::Failed));
        assert!(upstream.servers[0].rests());
        assert_eq!(upstream.ask(&[0; 12], false).await, Err(Unanswered::Failed));
    }
}
