//! A containerd of its own for a test, an image, and the agent as a child process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes the test binary itself run the agent when it is started with this variable.
const ROLE: &str = "AGENT_TEST_CONFIG";

/// A containerd and its folders.
pub struct Host {
    dir: tempfile::TempDir,
    name: String,
    containerd: Child,
}

/// A running agent.
pub struct Agent(Child);

impl Agent {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as systemd would.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Host {
    /// Starts containerd; `None` (said on stderr) if there is none on this machine.
    pub fn start(name: &str) -> Option<Host> {
        if Command::new("containerd").arg("--version").output().is_err() || !Path::new("/bin/busybox").exists() {
            eprintln!("SKIPPED: containerd or /bin/busybox (busybox-static) is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let name = format!("agent-test-{name}-{}", std::process::id());
        std::fs::create_dir_all(root.join("manifests")).unwrap();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n[grpc]\naddress = \"{0}/c.sock\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"test/busybox:1\"\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{0}/net.d\"\n",
            root.display()
        );
        std::fs::write(root.join("config.toml"), config).unwrap();
        let log = std::fs::File::create(root.join("containerd.log")).unwrap();
        let mut containerd = Command::new("containerd");
        containerd
            .arg("--config")
            .arg(root.join("config.toml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null());
        let host = Host {
            containerd: containerd.spawn().unwrap(),
            dir,
            name,
        };
        let end = Instant::now() + Duration::from_secs(20);
        while !host.ctr(&["version"]).status().unwrap().success() {
            assert!(Instant::now() < end, "containerd did not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        host.import_image();
        Some(host)
    }

    /// A path in the host's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut c = Command::new("ctr");
        c.arg("--address")
            .arg(self.path("c.sock"))
            .args(["-n", "k8s.io"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        c
    }

    /// A docker archive with one layer: busybox and its links.
    fn import_image(&self) {
        let image = self.path("image");
        let rootfs = self.path("rootfs");
        for d in ["bin", "etc", "tmp", "dev", "proc", "sys", "root"] {
            std::fs::create_dir_all(rootfs.join(d)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for tool in [
            "sh", "sleep", "cat", "echo", "test", "true", "rm", "touch", "ls", "httpd", "nc", "wget", "id", "head",
            "pause",
        ] {
            let target = if tool == "pause" { "pause" } else { "busybox" };
            if tool == "pause" {
                std::fs::write(rootfs.join("bin/pause"), "#!/bin/sh\nexec sleep 1000000\n").unwrap();
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(rootfs.join("bin/pause"), PermissionsExt::from_mode(0o755)).unwrap();
            } else {
                let _ = std::os::unix::fs::symlink(target, rootfs.join("bin").join(tool));
            }
        }
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        std::fs::create_dir_all(&image).unwrap();
        run(Command::new("tar")
            .arg("-C")
            .arg(&rootfs)
            .arg("-cf")
            .arg(image.join("layer.tar"))
            .arg("."));
        let digest = run(Command::new("sha256sum").arg(image.join("layer.tar")));
        let digest = digest.split(' ').next().unwrap();
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/bin/pause"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
        std::fs::write(image.join("config.json"), config.to_string()).unwrap();
        let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["docker.io/test/busybox:1"], "Layers": ["layer.tar"]}]);
        std::fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
        let archive = self.path("image.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&image)
            .arg("-cf")
            .arg(&archive)
            .args(["manifest.json", "config.json", "layer.tar"]));
        let out = self
            .ctr(&["images", "import"])
            .arg(&archive)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// Puts a static pod's manifest.
    pub fn write_pod(&self, file: &str, pod: &serde_json::Value) {
        std::fs::write(self.path("manifests").join(format!("{file}.yaml")), pod.to_string()).unwrap();
    }

    /// Takes it away.
    pub fn remove_pod(&self, file: &str) {
        std::fs::remove_file(self.path("manifests").join(format!("{file}.yaml"))).unwrap();
    }

    /// A port that is free again when somebody binds it; nobody else on this machine asks for that very one.
    pub fn free_port(&self) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    /// Starts the agent in a child process, for static pods only.
    pub fn agent(&self) -> Agent {
        let open = serde_json::json!({"authentication": {"anonymous": {"enabled": true}}, "authorization": {"mode": "AlwaysAllow"}});
        self.agent_with(open, &[])
    }

    /// Starts the agent with more configuration and flags.
    pub fn agent_with(&self, more: serde_json::Value, flags: &[String]) -> Agent {
        let port = self.free_port();
        std::fs::write(self.path("port"), port.to_string()).unwrap();
        let mut config = serde_json::json!({"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "staticPodPath": self.path("manifests"), "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", self.name), "failSwapOn": false,
            "address": "127.0.0.1", "port": port, "healthzPort": 0, "evictionHard": {}});
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        std::fs::write(self.path("kubelet.yaml"), config.to_string()).unwrap();
        std::fs::write(self.path("flags.json"), serde_json::to_vec(flags).unwrap()).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))
            .unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["support::agent_process", "--exact", "--nocapture", "--ignored"])
            .env(ROLE, self.dir.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Agent(child)
    }

    /// What the agent said.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Waits for a text in the agent's log.
    pub fn wait_agent_log(&self, text: &str, limit: Duration) {
        self.wait(text, limit, || self.agent_log().contains(text).then_some(()));
    }

    fn wait<T>(&self, what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + limit;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > end {
                let log = std::fs::read_to_string(self.path("containerd.log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(15).collect();
                panic!(
                    "{what}: not within {limit:?}\n--- agent\n{}\n--- containerd\n{}",
                    self.agent_log(),
                    tail.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ids, attempts of containers of a name, newest last, from their log files and tasks.
    fn logs(&self, container: &str) -> Vec<(u32, PathBuf)> {
        let mut out = vec![];
        for pod in std::fs::read_dir(self.path("log/pods")).into_iter().flatten().flatten() {
            for file in std::fs::read_dir(pod.path().join(container))
                .into_iter()
                .flatten()
                .flatten()
            {
                if let Some(n) = file
                    .file_name()
                    .to_string_lossy()
                    .strip_suffix(".log")
                    .and_then(|n| n.parse().ok())
                {
                    out.push((n, file.path()));
                }
            }
        }
        out.sort();
        out
    }

    /// Whether a container was ever started.
    pub fn was_started(&self, container: &str) -> bool {
        !self.logs(container).is_empty()
    }

    /// How many times a container was started again.
    pub fn attempts(&self, container: &str) -> u32 {
        self.logs(container).last().map_or(0, |(n, _)| *n)
    }

    /// Waits for a restart.
    pub fn wait_attempt(&self, container: &str, attempt: u32, limit: Duration) {
        self.wait(&format!("attempt {attempt}"), limit, || {
            (self.attempts(container) >= attempt).then_some(())
        });
    }

    /// Waits until the container with `attempt` restarts runs; its id.
    pub fn wait_running(&self, container: &str, attempt: u32, limit: Duration) -> String {
        self.wait(&format!("container {container} #{attempt}"), limit, || {
            let links = std::fs::read_dir(self.path("log/containers")).ok()?;
            for link in links.flatten() {
                let target = std::fs::read_link(link.path()).ok()?;
                let name = link.file_name().to_string_lossy().into_owned();
                let id = name.strip_suffix(".log")?.rsplit('-').next()?.to_owned();
                if target.ends_with(format!("{container}/{attempt}.log")) && self.is_running(&id) {
                    return Some(id);
                }
            }
            None
        })
    }

    /// Whether a container's process runs.
    pub fn is_running(&self, id: &str) -> bool {
        let out = self.ctr(&["tasks", "ls"]).stdout(Stdio::piped()).output().unwrap();
        String::from_utf8_lossy(&out.stdout)
            .lines()
            .any(|l| l.starts_with(id) && l.contains("RUNNING"))
    }

    /// Waits until a log contains a text; the log.
    pub fn wait_log(&self, container: &str, attempt: u32, text: &str, limit: Duration) -> String {
        self.wait(&format!("log with {text:?}"), limit, || {
            let (_, path) = self.logs(container).into_iter().find(|(n, _)| *n == attempt)?;
            std::fs::read_to_string(path).ok().filter(|t| t.contains(text))
        })
    }

    /// Runs a command in a container.
    pub fn exec(&self, id: &str, command: &[&str]) {
        let out = self
            .ctr(&["tasks", "exec", "--exec-id", "t1", id])
            .args(command)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// Waits until the runtime has no container left.
    pub fn wait_empty(&self, limit: Duration) {
        self.wait("no containers", limit, || {
            let out = self
                .ctr(&["containers", "ls", "-q"])
                .stdout(Stdio::piped())
                .output()
                .unwrap();
            out.stdout.is_empty().then_some(())
        });
        self.wait("no pod folders", limit, || self.pod_dirs().is_empty().then_some(()));
    }

    /// Memory of a process that is its own, bytes.
    pub fn anonymous_memory(&self, pid: u32) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Folders of pods.
    pub fn pod_dirs(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.path("kubelet/pods"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect()
    }

    /// Cgroups of pods.
    pub fn pod_cgroups(&self) -> Vec<PathBuf> {
        let mut out = vec![];
        for mount in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for class in ["", "burstable", "besteffort"] {
                let dir = mount.path().join(&self.name).join("kubepods").join(class);
                out.extend(
                    std::fs::read_dir(dir)
                        .into_iter()
                        .flatten()
                        .flatten()
                        .map(|e| e.path())
                        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pod"))),
                );
            }
        }
        out
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Killed first and removed by the runtime after it has seen the end; what outlives it would outlive the test.
        for _ in 0..50 {
            let list = self.ctr(&["tasks", "ls", "-q"]).stdout(Stdio::piped()).output();
            let list = list
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
                .unwrap_or_default();
            if list.trim().is_empty() {
                break;
            }
            for id in list.lines() {
                let _ = self.ctr(&["tasks", "kill", "-s", "SIGKILL", id]).status();
                let _ = self.ctr(&["tasks", "delete", "--force", id]).status();
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let pid = rustix::process::Pid::from_raw(self.containerd.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.containerd.wait();
        self.kill_leftovers();
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts: Vec<_> = text
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|p| Path::new(p).starts_with(self.dir.path()))
            .collect();
        mounts.reverse();
        for m in mounts {
            let _ = rustix::mount::unmount(m, rustix::mount::UnmountFlags::DETACH);
        }
        for mount in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_cgroups(&mount.path().join(&self.name));
        }
    }
}

impl Host {
    /// Ends shims of this test's containerd and what runs in this test's cgroups: a test may fail at any moment.
    fn kill_leftovers(&self) {
        let address = self.path("c.sock").display().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_string_lossy()
                .parse::<i32>()
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            else {
                continue;
            };
            let read = |file: &str| {
                String::from_utf8_lossy(&std::fs::read(entry.path().join(file)).unwrap_or_default()).into_owned()
            };
            if read("cmdline").contains(&address) || read("cgroup").contains(&format!("/{}/", self.name)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn remove_cgroups(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

/// Not a test: the agent's process, started by [`Host::agent`].
#[test]
#[ignore = "the agent's process, started by the other tests"]
fn agent_process() {
    let Ok(root) = std::env::var(ROLE).map(PathBuf::from) else {
        return;
    };
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: agent::Args,
    }
    let socket = format!("unix://{}", root.join("c.sock").display());
    let path = |name: &str| root.join(name).display().to_string();
    let mut line: Vec<String> = vec!["agent".into()];
    for (flag, value) in [
        ("config", path("kubelet.yaml")),
        ("container-runtime-endpoint", socket),
        ("hostname-override", "node".into()),
        ("node-ip", "127.0.0.1".into()),
        ("root-dir", path("kubelet")),
        ("log-dir", path("log")),
    ] {
        line.push(format!("--{flag}={value}"));
    }
    line.extend(serde_json::from_slice::<Vec<String>>(&std::fs::read(root.join("flags.json")).unwrap()).unwrap());
    let cli = <Cli as clap::Parser>::parse_from(line);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    tracing_subscriber::fmt()
        .with_env_filter("agent=debug")
        .with_writer(std::io::stderr)
        .init();
    runtime.block_on(agent::run(cli.args)).unwrap();
}

/// What a remote command said.
#[derive(Debug, Default)]
pub struct Remote {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The final status, JSON.
    pub status: String,
}

impl Host {
    async fn tls(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(std::sync::Arc::new(Any(provider)))
            .with_no_client_auth();
        let port: u16 = std::fs::read_to_string(self.path("port")).unwrap().parse().unwrap();
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("node").unwrap();
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// GET from the agent's server.
    pub async fn get(&self, path: &str) -> (u16, String) {
        use http_body_util::BodyExt;
        let io = hyper_util::rt::TokioIo::new(self.tls().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(path)
            .header("Host", "node")
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    /// A remote command over a web socket.
    pub async fn remote(&self, path: &str, protocol: &str, input: &[u8]) -> Remote {
        use futures::{SinkExt, StreamExt};
        use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
        let mut request = format!("wss://node{path}").into_client_request().unwrap();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
        let (mut socket, response) = tokio_tungstenite::client_async(request, self.tls().await)
            .await
            .unwrap();
        assert_eq!(response.headers()["Sec-WebSocket-Protocol"], protocol);
        if !input.is_empty() {
            // Some clients write strings, as frames of text, and some bytes.
            let (text, bytes) = input.split_at(input.len() / 2);
            let text = String::from_utf8([&[0], text].concat()).unwrap();
            socket.send(Message::text(text)).await.unwrap();
            socket
                .send(Message::Binary([&[0], bytes].concat().into()))
                .await
                .unwrap();
            socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
        }
        let mut out = Remote::default();
        while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(15), socket.next()).await {
            let Message::Binary(data) = message else { continue };
            let text = String::from_utf8_lossy(&data[1..]).into_owned();
            match data[0] {
                1 => out.stdout.push_str(&text),
                2 => out.stderr.push_str(&text),
                3 => out.status.push_str(&text),
                _ => {}
            }
        }
        out
    }
}

impl Host {
    /// Sends a request to a forwarded port as the clients in Python and JavaScript do: a channel for data and one for errors,
    /// on which the number of the port comes first. The answer, until the far side closes.
    pub async fn forward(&self, path: &str, port: u16, request: &[u8]) -> String {
        use futures::{SinkExt, StreamExt};
        use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
        let protocol = "v4.channel.k8s.io";
        let mut opening = format!("wss://node{path}").into_client_request().unwrap();
        let asked = format!("v5.channel.k8s.io,{protocol}");
        opening
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", asked.parse().unwrap());
        let (mut socket, response) = tokio_tungstenite::client_async(opening, self.tls().await)
            .await
            .unwrap();
        assert_eq!(response.headers()["Sec-WebSocket-Protocol"], protocol);
        socket
            .send(Message::Binary([&[0], request].concat().into()))
            .await
            .unwrap();
        let mut channels = [Vec::new(), Vec::new()];
        while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(15), socket.next()).await {
            let Message::Binary(data) = message else { continue };
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
        assert_eq!(channels[1], port.to_le_bytes(), "no error");
        assert_eq!(channels[0][..2], port.to_le_bytes());
        String::from_utf8(channels[0].split_off(2)).unwrap()
    }
}

#[derive(Debug)]
struct Any(std::sync::Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &rustls_pki_types::CertificateDer<'_>,
        d: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &rustls_pki_types::CertificateDer<'_>,
        d: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
