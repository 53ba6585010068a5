//! One connection: finds a server that answers and passes bytes both ways.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{io::copy_bidirectional_with_sizes, net::TcpStream, time::timeout};

use super::Servers;

/// How long a server may take to answer a connection before the next one is tried.
pub const CONNECT: Duration = Duration::from_secs(2);
/// Bytes held per direction.
const BUFFER: usize = 16 * 1024;
/// How long a peer may leave sent bytes or keep-alives unanswered before it is taken for dead. A server that lost its power
/// must not hold the watches of a whole node.
const DEAD: Duration = Duration::from_secs(10);

/// Passes `client` on to the first server that takes it, until both sides have ended. A half-closed side stays open the other
/// way.
pub async fn pass(mut client: TcpStream, servers: &Servers) {
    for address in servers.order() {
        match timeout(CONNECT, connect(address)).await {
            Ok(Ok(mut server)) => {
                servers.mark(address, true);
                _ = client.set_nodelay(true);
                if let Err(error) = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await {
                    tracing::debug!(server = %address, %error, "a connection ended early");
                }
                return;
            }
            Ok(Err(error)) => tracing::debug!(server = %address, %error, "no connection; trying the next server"),
            Err(_) => tracing::debug!(server = %address, "no answer; trying the next server"),
        }
        servers.mark(address, false);
    }
    tracing::warn!("no API server answers; a connection is dropped");
}

/// A connection with the settings that notice a dead peer.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, DEAD / 2)?;
    sockopt::set_tcp_keepintvl(&stream, DEAD / 5)?;
    sockopt::set_tcp_keepcnt(&stream, 3)?;
    sockopt::set_tcp_user_timeout(&stream, u32::try_from(DEAD.as_millis()).unwrap_or(u32::MAX))?;
    Ok(stream)
}
