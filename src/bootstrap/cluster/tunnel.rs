//! A port of this machine's loopback that leads to a port as a host sees it.
//!
//! It has a connection of its own, because bulk data on a shared one would hold it up.

use crate::{
    Error, Result,
    way::{Connection, Way},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

/// Connections through one tunnel at the same time.
const CONNECTIONS: usize = 64;
/// How long a lost way to the host is looked for again.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the head of this file. Ends, with all its connections, when dropped.
pub struct Tunnel {
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tunnel {
    /// Listens on a free port of 127.0.0.1 and leads to `host:port` as seen by the host at the end of `way`.
    ///
    /// # Errors
    /// When the host cannot be reached or this machine has no free port.
    pub async fn open(way: &Arc<Way>, host: &str, port: u16) -> Result<Self> {
        let local = |source| Error::Local {
            what: "cannot listen on 127.0.0.1".to_owned(),
            source,
        };
        let connection = Connection::open(Arc::clone(way)).await?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(local)?;
        let own = listener.local_addr().map_err(local)?.port();
        let task = tokio::spawn(serve(listener, connection, host.to_owned(), port));
        Ok(Self { port: own, task })
    }

    /// One that leads nowhere.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            port: 0,
            task: tokio::spawn(std::future::pending()),
        }
    }

    /// The port on this machine.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn serve(listener: TcpListener, connection: Connection, host: String, port: u16) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut streams = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (connection, host) = (connection.clone(), host.clone());
                streams.spawn(async move {
                    if let Err(error) = carry(stream, &connection, &host, port).await {
                        tracing::debug!(%error, "a connection through the tunnel ended");
                    }
                    drop(permit);
                });
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

/// The failures of one connection, which are only logged.
type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn carry(mut near: TcpStream, connection: &Connection, host: &str, port: u16) -> Outcome {
    near.set_nodelay(true)?;
    // Whoever asks something meanwhile waits; to be refused would look as if the host's port were closed.
    let mut far = connection.connect_stream_within(PATIENCE, host, port).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}
