//! Giving this very program to a host that has none yet: there only a shell can fetch it, so it is asked for with one line of text.
//!
//! ```text
//! bare host ──plain TCP──▶ host that has it
//!    TOKEN[ gzip]\n ──▶
//!            ◀── the file, or a gzip of it … end
//! ```
//!
//! The file is no secret, and the bare host compares it with the digest that it has from the operator, over SSH, before anything runs. So
//! nothing here is encrypted. The token keeps passers-by from taking the place of the one who is waited for: it is good for one time.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, read::GzEncoder};
use rustix::fs::{Mode, OFlags};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use crate::{
    CLUSTERD_PACKED, Error, Result,
    proto::{FaultKind, GiveProgram, MAX_TOKEN},
};

/// The running program's own file, even when it has been replaced meanwhile.
const OWN_FILE: &str = "/proc/self/exe";
/// Connections that may be about to show the token; further ones wait.
const ASKING_AT_ONCE: usize = 16;
/// How long one may take for that.
const ASKING: Duration = Duration::from_secs(5);
/// How long a piece may take to be taken.
const TAKING: Duration = Duration::from_secs(30);
/// The longest that is listened and given.
const LONGEST: Duration = Duration::from_secs(3600);
/// Bytes of a piece.
const PIECE: usize = 256 << 10;
/// Pieces in memory at once.
const PIECES: usize = 4;
/// What follows the token when the file shall be compressed.
const GZIP: &[u8] = b" gzip";

/// The program that runs, as it can be given on.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// Its digest, if it could be read.
    pub(crate) digest: Option<oci::Digest>,
    file: PathBuf,
    /// A gzip of it. Whoever gets it compares what comes out.
    packed: Option<Arc<File>>,
}

impl Default for Own {
    /// Without knowing anything of it.
    fn default() -> Self {
        Self {
            digest: None,
            file: OWN_FILE.into(),
            packed: None,
        }
    }
}

impl Own {
    /// Looks at it. The gzip that it came as has no name from then on, so that it goes with us.
    pub(crate) fn running() -> Self {
        let digest = File::open(OWN_FILE).and_then(|mut file| oci::Digest::of_reader(&mut file));
        Self {
            digest: digest.ok().map(|(digest, _)| digest),
            packed: take(Path::new(CLUSTERD_PACKED)).ok().map(Arc::new),
            ..Self::default()
        }
    }

    /// Opens what is read from the beginning.
    fn content(&self, gzip: bool) -> io::Result<Box<dyn io::Read>> {
        Ok(match (&self.packed, gzip) {
            (Some(packed), true) => Box::new(FromStart(Arc::clone(packed), 0)),
            (None, true) => Box::new(GzEncoder::new(File::open(&self.file)?, Compression::fast())),
            (_, false) => Box::new(File::open(&self.file)?),
        })
    }
}

/// Opens a file and takes its name away.
fn take(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    fs::remove_file(path)?;
    Ok(file.into())
}

/// Reads a file that others read as well.
struct FromStart(Arc<File>, u64);

impl io::Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read_at(buffer, self.1)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// Who is given the file, and how.
struct Taker {
    stream: TcpStream,
    gzip: bool,
}

/// A port at which the program is given once.
pub(crate) struct Giving {
    socket: TcpListener,
    token: oci::Digest,
    limit: Duration,
}

fn failed(e: io::Error) -> Error {
    Error::failed(format!("giving clusterd to another host: {e}"))
}

impl Giving {
    /// Takes a free port.
    pub(crate) fn begin(wish: &GiveProgram) -> Result<Self> {
        if !(1..=MAX_TOKEN).contains(&wish.token.length()) {
            return Err(Error::invalid(format!("a token has 1 to {MAX_TOKEN} bytes")));
        }
        Ok(Self {
            socket: bind(wish.address).map_err(failed)?,
            token: wish.token.digest(),
            limit: Duration::from_millis(wish.timeout_ms).min(LONGEST),
        })
    }

    /// Which port this is.
    pub(crate) fn port(&self) -> Result<u16> {
        self.socket.local_addr().map(|at| at.port()).map_err(failed)
    }

    /// Gives `own` to the first who shows the token, and to nobody else. Ended by `end` before, that is no error.
    pub(crate) async fn serve(self, own: &Own, end: impl Future<Output = ()>) -> Result<()> {
        let limit = self.limit;
        let giving = async {
            let taker = taker(self.socket, &self.token).await.map_err(failed)?;
            give(own, taker).await
        };
        tokio::select! {
            () = end => Ok(()),
            given = timeout(limit, giving) => {
                given.unwrap_or_else(|_| Err(Error::new(FaultKind::Timeout, "nobody took clusterd in time".to_owned())))
            }
        }
    }
}

fn bind(address: Ipv4Addr) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::bind((address, 0))?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// Who shows the token first. Nobody can connect any more then.
async fn taker(socket: TcpListener, token: &oci::Digest) -> io::Result<Taker> {
    let mut asking = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept(), if asking.len() < ASKING_AT_ONCE => match accepted {
                Ok((stream, client)) => {
                    let token = token.clone();
                    asking.spawn(async move { timeout(ASKING, shown(stream, client, &token)).await.ok().flatten() });
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => return Err(e),
            },
            Some(asked) = asking.join_next() => if let Ok(Some(stream)) = asked {
                return Ok(stream);
            },
        }
    }
}

/// The connection, if it shows the token.
async fn shown(stream: TcpStream, client: SocketAddr, token: &oci::Digest) -> Option<Taker> {
    let most = MAX_TOKEN + GZIP.len() + 1;
    let mut line = zeroize::Zeroizing::new(Vec::with_capacity(most));
    let mut reader = BufReader::new(stream.take(most as u64));
    reader.read_until(b'\n', &mut line).await.ok()?;
    let text = line.strip_suffix(b"\n").unwrap_or_default();
    let (text, gzip) = match text.strip_suffix(GZIP) {
        Some(text) => (text, true),
        None => (text, false),
    };
    if oci::Digest::of(text) != *token {
        tracing::debug!(%client, "somebody without the token wanted clusterd");
        return None;
    }
    let stream = reader.into_inner().into_inner();
    Some(Taker { stream, gzip })
}

/// Reads all of the file, or of its gzip, into `pieces`, until nobody takes them.
fn read(own: &Own, gzip: bool, pieces: &mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut content = own.content(gzip)?;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let mut rest = io::Read::take(&mut content, PIECE as u64);
        io::Read::read_to_end(&mut rest, &mut piece)?;
        if piece.is_empty() || pieces.blocking_send(piece.into()).is_err() {
            return Ok(());
        }
    }
}

async fn give(own: &Own, mut taker: Taker) -> Result<()> {
    let late = |_| Error::new(FaultKind::Timeout, "the other host does not take clusterd".to_owned());
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let own = own.clone();
    let reading = spawn_blocking(move || read(&own, taker.gzip, &sender));
    while let Some(piece) = pieces.recv().await {
        let writing = timeout(TAKING, taker.stream.write_all(&piece)).await;
        writing.map_err(late)?.map_err(failed)?;
    }
    let read = reading.await.map_err(|e| Error::failed(e.to_string()))?;
    read.map_err(failed)?;
    let ending = timeout(TAKING, taker.stream.shutdown()).await;
    ending.map_err(late)?.map_err(failed)?;
    // Closing with something unread would take back what is still on its way.
    let _ = timeout(TAKING, taker.stream.read(&mut [0; 1])).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Token;

    const FILE: &[u8] = &[7; 3 * PIECE + 1];

    /// A file that is given, and the port.
    fn giving(token: &str) -> (tempfile::NamedTempFile, Giving) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), FILE).unwrap();
        let wish = GiveProgram {
            address: Ipv4Addr::LOCALHOST,
            token: Token::new(token.to_owned().into()),
            timeout_ms: 60_000,
        };
        (file, Giving::begin(&wish).unwrap())
    }

    fn own(file: &Path) -> Own {
        Own {
            file: file.to_owned(),
            ..Own::default()
        }
    }

    /// What is heard at a port after something was said.
    async fn said(port: u16, text: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got).await;
        got
    }

    #[tokio::test]
    async fn the_program_is_given_to_who_shows_the_token_and_only_once() {
        let (file, giving) = giving("open sesame");
        let port = giving.port().unwrap();
        let path = file.path().to_owned();
        let served = tokio::spawn(async move { giving.serve(&own(&path), std::future::pending()).await });
        // One who says nothing is in nobody's way.
        let _silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let endless = "x".repeat(10 * MAX_TOKEN);
        for wrong in ["open\n", "open sesame!\n", "\n", endless.as_str()] {
            assert_eq!(said(port, wrong).await, b"", "{wrong:?}");
        }
        assert!(said(port, "open sesame\n").await == FILE);
        served.await.unwrap().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }

    #[tokio::test]
    async fn who_asks_for_it_gets_a_gzip() {
        let (file, giving) = giving("open sesame");
        let port = giving.port().unwrap();
        let path = file.path().to_owned();
        let served = tokio::spawn(async move { giving.serve(&own(&path), std::future::pending()).await });
        let got = said(port, "open sesame gzip\n").await;
        served.await.unwrap().unwrap();
        assert!(got.len() < FILE.len() / 10);
        let mut all = Vec::new();
        io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&got[..]), &mut all).unwrap();
        assert!(all == FILE);
    }

    #[tokio::test]
    async fn what_came_compressed_is_given_on_as_it_came_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clusterd.gz");
        fs::write(&path, b"as it came").unwrap();
        let (file, first) = giving("open sesame");
        let (_, second) = giving("open sesame");
        let own = Own {
            packed: Some(Arc::new(take(&path).unwrap())),
            ..own(file.path())
        };
        assert!(!path.exists());
        for (giving, text, expected) in [
            (first, "open sesame gzip\n", &b"as it came"[..]),
            (second, "open sesame\n", FILE),
        ] {
            let (port, own) = (giving.port().unwrap(), own.clone());
            let served = tokio::spawn(async move { giving.serve(&own, std::future::pending()).await });
            assert!(said(port, text).await == expected, "{text}");
            served.await.unwrap().unwrap();
        }
        // Somebody else's link is not followed.
        std::os::unix::fs::symlink(file.path(), &path).unwrap();
        assert!(take(&path).is_err());
    }

    #[tokio::test]
    async fn nothing_is_given_after_the_end() {
        let (file, giving) = giving("t");
        let port = giving.port().unwrap();
        giving.serve(&own(file.path()), std::future::ready(())).await.unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }

    #[tokio::test]
    async fn nobody_is_waited_for_longer_than_asked() {
        let (file, mut giving) = giving("t");
        giving.limit = Duration::from_millis(20);
        let late = giving
            .serve(&own(file.path()), std::future::pending())
            .await
            .unwrap_err();
        assert_eq!(late.fault().kind, FaultKind::Timeout);
    }

    #[test]
    fn a_token_that_anybody_has_is_refused() {
        let wish = |token: String| GiveProgram {
            address: Ipv4Addr::LOCALHOST,
            token: Token::new(token.into()),
            timeout_ms: 1,
        };
        assert!(Giving::begin(&wish(String::new())).is_err());
        assert!(Giving::begin(&wish("x".repeat(MAX_TOKEN + 1))).is_err());
    }
}
