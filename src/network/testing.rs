//! Network namespaces for tests: hosts and pods with real kernels' rules, and nothing of the machine's own. Needs root and
//! iproute2.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace; it ends with the value.
pub struct Space {
    name: String,
}

impl Space {
    pub fn new() -> Self {
        let name = format!("nt{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let space = Self { name };
        ip(&format!("netns add {}", space.name));
        space.ip("link set lo up");
        space
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// Connects two namespaces by a pair of links of these names.
    pub fn connect(&self, link: &str, other: &Self, other_link: &str) {
        let peer = format!("peer name {other_link} netns {}", other.name);
        ip(&format!("link add {link} netns {} type veth {peer}", self.name));
        self.ip(&format!("link set {link} up"));
        other.ip(&format!("link set {other_link} up"));
    }

    /// Gives this host a pod, as `ptp` does.
    pub fn pod(&self, link: &str, address: &str, gateway: &str) -> Self {
        let pod = Self::new();
        self.connect(link, &pod, "eth0");
        self.ip(&format!("addr add {gateway}/32 dev {link}"));
        self.ip(&format!("route add {address}/32 dev {link}"));
        pod.ip(&format!("addr add {address}/24 dev eth0"));
        pod.ip("route flush table main");
        pod.ip(&format!("route add {gateway}/32 dev eth0 scope link"));
        pod.ip(&format!("route add default via {gateway} dev eth0"));
        pod
    }

    /// Switches packets between links on.
    pub fn forward(&self) {
        self.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
            .unwrap();
    }

    /// Runs `work` in a thread inside.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let file = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsFd;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// Applies a script of `nft` inside.
    pub fn nft(&self, script: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}\n{script}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Serves TCP and UDP on a port: answers `name client-address`.
    pub fn serve(&self, name: &'static str, port: u16) {
        let (tcp, udp) = self.run(move || {
            (
                TcpListener::bind(("0.0.0.0", port)).unwrap(),
                UdpSocket::bind(("0.0.0.0", port)).unwrap(),
            )
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let client = stream.peer_addr().unwrap().ip();
                _ = stream.write_all(format!("{name} {client}").as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, client)) = udp.recv_from(&mut buffer) {
                _ = udp.send_to(format!("{name} {}", client.ip()).as_bytes(), client);
            }
        });
    }

    /// What a server says to us, or the kind of the error.
    pub fn ask(&self, address: impl Into<SocketAddr>) -> String {
        let address = address.into();
        self.run(
            move || match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
                Ok(mut stream) => {
                    let mut text = String::new();
                    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                    stream
                        .read_to_string(&mut text)
                        .map(|_| text)
                        .unwrap_or_else(|error| error.kind().to_string())
                }
                Err(error) => error.kind().to_string(),
            },
        )
    }

    /// The same over UDP.
    pub fn ask_udp(&self, address: impl Into<SocketAddr>) -> String {
        let address = address.into();
        self.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut buffer = [0; 64];
            let asked = socket
                .connect(address)
                .and_then(|()| socket.send(b"?"))
                .and_then(|_| socket.recv(&mut buffer));
            asked
                .map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
                .unwrap_or_else(|error| error.kind().to_string())
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("these tests need iproute2");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An address of the tests.
pub fn at(address: &str, port: u16) -> SocketAddr {
    (address.parse::<Ipv4Addr>().unwrap(), port).into()
}
