//! The list of API servers: who is on it, who is healthy, whose turn it is.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// The servers, shared by all connections.
#[derive(Debug)]
pub struct Servers {
    fixed: Vec<SocketAddr>,
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    servers: Vec<Server>,
    turn: usize,
    read: Option<(SystemTime, u64)>,
}

#[derive(Debug, Clone)]
struct Server {
    address: SocketAddr,
    healthy: bool,
}

impl Servers {
    /// The servers of the flags, or of the file where it lists any.
    pub fn new(fixed: Vec<SocketAddr>, file: Option<PathBuf>) -> Self {
        let servers = Self {
            fixed,
            file,
            state: Mutex::default(),
        };
        servers.state().replace(&servers.fixed);
        servers.reload();
        servers
    }

    /// All servers, healthy or not.
    pub fn all(&self) -> Vec<SocketAddr> {
        self.state().servers.iter().map(|server| server.address).collect()
    }

    /// In which order a new connection tries the servers: healthy ones in turn, then the others, since health may be old news.
    pub fn order(&self) -> Vec<SocketAddr> {
        let mut state = self.state();
        let count = state.servers.len().max(1);
        state.turn = (state.turn + 1) % count;
        let turned = state.servers.iter().cycle().skip(state.turn).take(state.servers.len());
        let (healthy, others): (Vec<&Server>, Vec<&Server>) = turned.partition(|server| server.healthy);
        healthy.into_iter().chain(others).map(|server| server.address).collect()
    }

    /// Notes whether a connection to the server could be made.
    pub fn mark(&self, address: SocketAddr, healthy: bool) {
        let mut state = self.state();
        let Some(server) = state.servers.iter_mut().find(|server| server.address == address) else {
            return;
        };
        if server.healthy != healthy {
            tracing::info!(server = %address, healthy, "an API server's health changed");
            server.healthy = healthy;
        }
    }

    /// Reads the file again if it has changed. A file that is absent or lists nothing leaves the servers of the flags.
    pub fn reload(&self) {
        let Some(file) = &self.file else { return };
        let stamp = std::fs::metadata(file)
            .ok()
            .and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        if stamp == self.state().read {
            return;
        }
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let listed = parse(&text);
        let mut state = self.state();
        state.read = stamp;
        let changed = state.replace(if listed.is_empty() { &self.fixed } else { &listed });
        drop(state);
        if changed {
            tracing::info!(servers = ?self.all(), "the list of API servers changed");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sets the list; servers that stay keep their health, new ones are believed healthy. Tells whether anything changed.
    fn replace(&mut self, addresses: &[SocketAddr]) -> bool {
        let servers: Vec<Server> = addresses
            .iter()
            .map(|address| {
                let known = self.servers.iter().find(|server| server.address == *address);
                known.cloned().unwrap_or(Server {
                    address: *address,
                    healthy: true,
                })
            })
            .collect();
        let changed = servers
            .iter()
            .map(|server| server.address)
            .ne(self.servers.iter().map(|server| server.address));
        self.servers = servers;
        changed
    }
}

/// One address a line; empty lines and `#` comments are skipped, others that are no address are reported.
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for line in text
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim())
        .filter(|line| !line.is_empty())
    {
        match line.parse() {
            Ok(address) if !addresses.contains(&address) => addresses.push(address),
            Ok(_) => {}
            Err(_) => tracing::warn!(line, "not an IP:PORT; skipped"),
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn healthy_servers_take_turns_and_the_others_come_last() {
        let servers = Servers::new(vec![address(1), address(2), address(3)], None);
        let firsts: Vec<u16> = (0..6).map(|_| servers.order()[0].port()).collect();
        assert_eq!(firsts, [2, 3, 1, 2, 3, 1]);
        servers.mark(address(2), false);
        for _ in 0..6 {
            let order = servers.order();
            assert_eq!((order.len(), order[2]), (3, address(2)));
        }
    }

    #[test]
    fn the_file_replaces_the_flags_while_it_lists_servers() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("servers");
        let servers = Servers::new(vec![address(1)], Some(file.clone()));
        assert_eq!(servers.all(), [address(1)]);
        std::fs::write(
            &file,
            "# masters\n127.0.0.1:2\n\nnonsense\n127.0.0.1:3 # third\n127.0.0.1:2\n",
        )
        .unwrap();
        servers.mark(address(1), false);
        servers.reload();
        assert_eq!(servers.all(), [address(2), address(3)]);
        std::fs::remove_file(&file).unwrap();
        servers.reload();
        assert_eq!(servers.all(), [address(1)]);
    }

    #[test]
    fn no_server_at_all_is_no_panic() {
        assert!(Servers::new(Vec::new(), None).order().is_empty());
    }
}
