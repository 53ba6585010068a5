//! Giving blobs to other hosts.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use oci::BlobStore;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{Ask, MAX_HEAD, SIGN_OF_LIFE, identity};
use crate::{
    Error, Result,
    arrivals::{Arrivals, Arrived},
    frame::{self, CHUNK, Frame, Kind},
    proto::{Answer, Blob, FaultKind, Serving, Token},
};

/// Connections served at once; further ones wait.
const CONNECTIONS: usize = 32;
/// How long a host may take to say what it wants.
const ASKING: Duration = Duration::from_secs(10);
/// How long a piece may take to be taken.
const TAKING: Duration = Duration::from_secs(30);
/// How long a blob is waited for that shall begin to arrive any moment.
const BEGINNING: Duration = Duration::from_secs(15);

/// Blobs being given to other hosts, until dropped.
pub(crate) struct Sharing {
    /// Where.
    pub(crate) serving: Serving,
    token: oci::Digest,
    task: AbortHandle,
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is given, and to whom.
struct Shelf {
    blobs: BlobStore,
    arrivals: Arrivals,
    token: oci::Digest,
}

impl Sharing {
    /// Listens on a free port of `address`.
    ///
    /// # Errors
    /// When the host does not have the address.
    pub(crate) async fn begin(address: IpAddr, token: &Token, blobs: BlobStore, arrivals: Arrivals) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))
            .await
            .map_err(|e| Error::failed(format!("listening on {address} for other hosts: {e}")))?;
        let address = listener.local_addr().map_err(Error::io("a port for other hosts"))?;
        let (config, certificate) = identity()?;
        let token = token.digest();
        let shelf = Arc::new(Shelf {
            blobs,
            arrivals,
            token: token.clone(),
        });
        let task = tokio::spawn(listen(listener, TlsAcceptor::from(Arc::new(config)), shelf));
        Ok(Self {
            serving: Serving { address, certificate },
            token,
            task: task.abort_handle(),
        })
    }

    /// Whether this is what would begin with `address` and `token`.
    pub(crate) fn is_for(&self, address: IpAddr, token: &Token) -> bool {
        self.serving.address.ip() == address && self.token == token.digest() && !self.task.is_finished()
    }
}

async fn listen(listener: TcpListener, tls: TlsAcceptor, shelf: Arc<Shelf>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // They end with us.
    let mut talks = JoinSet::new();
    loop {
        while talks.try_join_next().is_some() {}
        // It is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                let (tls, shelf) = (tls.clone(), Arc::clone(&shelf));
                talks.spawn(async move {
                    let _place = place;
                    if let Err(error) = talk(stream, client, &tls, &shelf).await {
                        tracing::debug!(%client, %error, "a host could not be served");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a host could not connect");
                // Out of file descriptors: the next one would fail at once too.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn late(what: &str) -> impl FnOnce(tokio::time::error::Elapsed) -> Error + '_ {
    move |_| Error::new(FaultKind::Timeout, format!("the other host took too long for {what}"))
}

async fn talk(stream: TcpStream, client: SocketAddr, tls: &TlsAcceptor, shelf: &Shelf) -> Result<()> {
    let io = |e| Error::failed(format!("{client}: {e}"));
    stream.set_nodelay(true).map_err(io)?;
    let asking = async {
        let mut stream = tls.accept(stream).await.map_err(io)?;
        let frame = frame::read_bounded(&mut stream, MAX_HEAD).await.map_err(io)?;
        Ok::<_, Error>((stream, frame))
    };
    let (mut stream, frame) = timeout(ASKING, asking).await.map_err(late("asking"))??;
    let Some(frame) = frame.filter(|frame| frame.kind == Kind::Head) else {
        return Ok(());
    };
    let ask: Ask = serde_json::from_slice(&frame.body).map_err(|_| Error::invalid("a question nobody understands"))?;
    let result = if ask.token.digest() == shelf.token {
        give(&mut stream, shelf, &ask.blob, ask.offset).await
    } else {
        Err(Error::failed("the token is not the one of this host"))
    };
    let last = match &result {
        Ok(()) => Frame::new(Kind::End, 0, Bytes::new()),
        Err(error) => Frame::head(0, &Answer::Error(error.fault())).map_err(io)?,
    };
    let ending = async {
        frame::write(&mut stream, &last).await?;
        stream.shutdown().await
    };
    timeout(TAKING, ending).await.map_err(late("the end"))?.map_err(io)?;
    result
}

/// A blob that can be read from, maybe while it grows.
struct Source {
    file: Arc<File>,
    /// Absent: all is there.
    arrived: Option<Arrived>,
}

impl Source {
    /// The blob, if it is there or arrives. One that came whole between two looks is found by the next.
    fn find(shelf: &Shelf, blob: &Blob) -> Result<Option<Self>> {
        let arriving = shelf.arrivals.of(&blob.digest);
        if shelf.blobs.has(&blob.digest, blob.size) {
            let file = Arc::new(shelf.blobs.open(&blob.digest)?);
            return Ok(Some(Self { file, arrived: None }));
        }
        let Some((size, arrived)) = arriving.filter(|(_, arrived)| arrived.borrow().is_some()) else {
            return Ok(None);
        };
        if size != blob.size {
            return Err(Error::invalid(format!(
                "blob {} has {}, not {}",
                blob.digest,
                oci::counted(size, "byte"),
                blob.size
            )));
        }
        match shelf.blobs.open_partial(&blob.digest) {
            Ok(file) => Ok(Some(Self {
                file: Arc::new(file),
                arrived: Some(arrived),
            })),
            Err(oci::Error::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a blob that is not there yet.
    async fn wait(shelf: &Shelf, blob: &Blob) -> Result<Self> {
        let mut turns = shelf.arrivals.turns();
        loop {
            turns.borrow_and_update();
            if let Some(source) = Self::find(shelf, blob)? {
                return Ok(source);
            }
            // They are as old as we are.
            let _ = turns.changed().await;
        }
    }

    /// How many bytes can be read: more than `position`, when it is there.
    async fn beyond(&mut self, position: u64, size: u64) -> Result<u64> {
        let Some(arrived) = self.arrived.as_mut() else {
            return Ok(size);
        };
        let ended = arrived
            .wait_for(|arrived| arrived.is_some_and(|at| at > position))
            .await
            .is_err();
        let at = arrived.borrow().unwrap_or(0);
        if ended && at <= position {
            return Err(Error::failed("it stopped arriving on the host it was fetched from"));
        }
        Ok(at)
    }
}

async fn give(out: &mut (impl AsyncRead + AsyncWrite + Unpin), shelf: &Shelf, blob: &Blob, offset: u64) -> Result<()> {
    let absent = || {
        Error::new(
            FaultKind::NotFound,
            format!("blob {} is not on the host it was to be fetched from", blob.digest),
        )
    };
    let mut source = alive(out, timeout(BEGINNING, Source::wait(shelf, blob)))
        .await?
        .map_err(|_| absent())??;
    let mut position = offset;
    while position < blob.size {
        let there = alive(out, source.beyond(position, blob.size)).await??;
        while position < there.min(blob.size) {
            let length = usize::try_from(there.min(blob.size) - position).map_or(CHUNK, |left| left.min(CHUNK));
            let file = Arc::clone(&source.file);
            let piece = spawn_blocking(move || {
                let mut piece = vec![0; length];
                file.read_exact_at(&mut piece, position)?;
                Ok(Bytes::from(piece))
            });
            let piece = piece
                .await
                .map_err(|e| Error::failed(e.to_string()))?
                .map_err(Error::io(shelf.blobs.path(&blob.digest)))?;
            position += piece.len() as u64;
            send(out, piece).await?;
        }
    }
    Ok(())
}

/// Waits for something, and lets the other host know meanwhile that we are there.
async fn alive<T>(out: &mut (impl AsyncWrite + Unpin), waiting: impl Future<Output = T>) -> Result<T> {
    tokio::pin!(waiting);
    loop {
        match timeout(SIGN_OF_LIFE, &mut waiting).await {
            Ok(done) => return Ok(done),
            Err(_) => send(out, Bytes::new()).await?,
        }
    }
}

async fn send(out: &mut (impl AsyncWrite + Unpin), piece: Bytes) -> Result<()> {
    let sending = async {
        frame::write(out, &Frame::new(Kind::Data, 0, piece)).await?;
        out.flush().await
    };
    timeout(TAKING, sending)
        .await
        .map_err(late("a piece"))?
        .map_err(|e| Error::failed(format!("another host: {e}")))
}
