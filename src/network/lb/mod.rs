//! `clusterd lb`: a balancer of TCP connections from a local port to all API servers.
//!
//! Bytes are passed on as they are; TLS ends at the API server, whose certificate names 127.0.0.1. A connection goes to the next
//! healthy server in turn; when one refuses, the next is tried at once. Health is whether a connection can be made, asked in
//! the background. It needs no API server to start, which is why the list comes from flags or a file.

mod connection;
mod servers;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use component::Error;
use tokio::{net::TcpListener, time::timeout};

pub use servers::Servers;

/// Connections at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 4096;
/// Pause between looks at the servers' health and at the file.
const CHECK: Duration = Duration::from_secs(1);

/// `clusterd lb`: balances connections to the API servers.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6444")]
    pub listen: SocketAddr,
    /// An API server. May be repeated.
    #[arg(long = "server", value_name = "IP:PORT", required_unless_present = "servers_file")]
    pub servers: Vec<SocketAddr>,
    /// File that lists API servers, one IP:PORT a line; read again when it changes. While it lists any, they replace --server.
    #[arg(long, value_name = "FILE")]
    pub servers_file: Option<PathBuf>,
}

/// Balances until SIGTERM or SIGINT. Connections that are open then are cut: clients connect again.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn run(args: Args) -> Result<(), Error> {
    let stop = component::signal::stop_token()?;
    let listener = TcpListener::bind(args.listen).await.map_err(|source| Error::Listen {
        addr: args.listen,
        source,
    })?;
    serve(listener, args.servers, args.servers_file, stop.cancelled()).await;
    Ok(())
}

async fn serve(
    listener: TcpListener,
    fixed: Vec<SocketAddr>,
    file: Option<PathBuf>,
    stopped: impl Future<Output = ()>,
) {
    let servers = Arc::new(Servers::new(fixed, file));
    tracing::info!(servers = ?servers.all(), "balancing to the API servers");
    let accepting = component::serving::accept(listener, MAX_CONNECTIONS, |client, _| {
        let servers = Arc::clone(&servers);
        async move { connection::pass(client, &servers).await }
    });
    tokio::select! {
        () = stopped => {}
        () = accepting => {}
        () = watch(&servers) => {}
    }
}

/// Looks at file and health for ever.
async fn watch(servers: &Arc<Servers>) {
    loop {
        servers.reload();
        let checks = servers.all().into_iter().map(|server| async move {
            let healthy = matches!(
                timeout(connection::CONNECT, connection::connect(server)).await,
                Ok(Ok(_))
            );
            (server, healthy)
        });
        for (server, healthy) in futures::future::join_all(checks).await {
            servers.mark(server, healthy);
        }
        tokio::time::sleep(CHECK).await;
    }
}

#[cfg(test)]
mod tests;
