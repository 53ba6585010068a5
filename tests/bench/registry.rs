//! The private registry beside Debian's docker-registry, and beside nginx with the same files: pulls and pushes by many clients.

use crate::{
    load::{Client, at_once},
    noise,
};
use anyhow::{Context, Result, bail};
use oci::{Descriptor, Digest, Index, Layout, REF_NAME, media_type};
use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LAYERS: usize = 8;
const LAYER_BYTES: usize = 32 << 20;
/// Bytes of the image that is pulled.
pub const BYTES: u64 = (LAYERS * LAYER_BYTES) as u64;
/// Bytes of a layer that is pushed.
const PUSHED_BYTES: usize = 16 << 20;
/// Clients at once, and the layers that each of them pushes.
const CLIENTS: [(usize, usize); 3] = [(1, 8), (8, 2), (32, 1)];
const ROUNDS: usize = 3;

const OURS: &str = "127.0.0.1:5097";
const RIVAL: &str = "127.0.0.1:5098";
const STATIC: &str = "127.0.0.1:5099";

/// A server that ends with its owner.
struct Server {
    child: Child,
    address: &'static str,
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx' workers end with a master that is asked to, not with one that is killed.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").arg(&id).status();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(command: &mut Command, address: &'static str) -> Result<Self> {
        let shown = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(shown)?;
        let server = Self { child, address };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if start.elapsed() > Duration::from_secs(20) {
                bail!("nothing answers at {address}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The server's process and its children.
    fn processes(&self) -> Vec<String> {
        let own = self.child.id().to_string();
        let children = Command::new("pgrep").args(["-P", &own]).output();
        let children = children.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let children = children.unwrap_or_default();
        children.lines().map(str::to_owned).chain([own]).collect()
    }

    /// Forgets the peak of the memory.
    fn reset_peak(&self) -> Result<()> {
        for process in self.processes() {
            fs::write(format!("/proc/{process}/clear_refs"), "5")?;
        }
        Ok(())
    }

    /// The most resident memory since the last reset, in MB, summed over processes.
    fn peak_mb(&self) -> Result<f64> {
        let mut kib = 0.0;
        for process in self.processes() {
            let status = fs::read_to_string(format!("/proc/{process}/status"))?;
            let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
            kib += line.split_whitespace().nth(1).unwrap_or("0").parse::<f64>()?;
        }
        Ok(kib * 1024.0 / 1e6)
    }
}

/// How a server did at one number of clients.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Bytes in a second, in MB: the best of several rounds.
    pub rate: f64,
    /// Peak of resident memory, in MB.
    pub peak: f64,
}

impl Run {
    const NONE: Self = Self { rate: 0.0, peak: 0.0 };

    fn add(&mut self, rate: f64, peak: f64) {
        self.rate = self.rate.max(rate);
        self.peak = self.peak.max(peak);
    }
}

/// The servers at one number of clients: ours first.
pub struct Row {
    /// What was done.
    pub what: &'static str,
    /// By how many clients.
    pub clients: usize,
    /// The servers by name.
    pub runs: Vec<(&'static str, Run)>,
}

/// What the comparison found.
pub struct Found {
    /// How long skopeo needs for a pull from us and from docker-registry.
    pub skopeo: (Duration, Duration),
    /// Rates and memory.
    pub rows: Vec<Row>,
}

/// Makes an image of bytes that do not compress, pulls it from all, and pushes others to those that take pushes.
///
/// # Errors
/// When docker-registry, nginx or skopeo is not installed, or something is refused.
pub fn compare(clusterd: &Path, dir: &Path) -> Result<Found> {
    let layout = dir.join("layout");
    let layers = image(&layout)?;
    let mut command = Command::new(clusterd);
    command.args(["registry", "--writable", "--listen", OURS, "--store"]);
    let ours = Server::start(command.arg(&layout).env("RUST_LOG", "error"), OURS)?;
    let rival = docker_registry(dir)?;
    let files = nginx(dir, &layout)?;
    let from = format!("oci:{}:docker.io/library/data:1", layout.display());
    skopeo(&["--dest-tls-verify=false", &from, &format!("docker://{RIVAL}/data:1")])?;

    let mut rows = Vec::new();
    for (clients, _) in CLIENTS {
        rows.push(pulls(clients, &layers, [&ours, &rival, &files])?);
    }
    let mut round = 0;
    for (clients, layers) in CLIENTS {
        rows.push(pushes(clients, layers, [&ours, &rival], &mut round)?);
    }
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        best = (
            best.0.min(skopeo_pull(dir, OURS)?),
            best.1.min(skopeo_pull(dir, RIVAL)?),
        );
    }
    Ok(Found { skopeo: best, rows })
}

fn docker_registry(dir: &Path) -> Result<Server> {
    let config = dir.join("docker-registry.yml");
    let storage = dir.join("docker-registry");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {RIVAL}}}\n",
        storage.display()
    );
    fs::write(&config, text)?;
    Server::start(Command::new("docker-registry").arg("serve").arg(&config), RIVAL)
}

/// nginx with the layout's folder as it is.
fn nginx(dir: &Path, layout: &Path) -> Result<Server> {
    let config = dir.join("nginx.conf");
    let (pid, root) = (dir.join("nginx.pid"), layout.canonicalize()?);
    let text = format!(
        "daemon off; user root; worker_processes auto; pid {}; error_log stderr error;\nevents {{ worker_connections 512; }}\nhttp {{ access_log off; sendfile on; tcp_nopush on; server {{ listen {STATIC}; root {}; }} }}\n",
        pid.canonicalize()
            .unwrap_or(dir.canonicalize()?.join("nginx.pid"))
            .display(),
        root.display()
    );
    fs::write(&config, text)?;
    let mut command = Command::new("nginx");
    Server::start(command.arg("-c").arg(config.canonicalize()?), STATIC)
}

/// All clients pull the whole image.
fn pulls(clients: usize, layers: &[Digest], servers: [&Server; 3]) -> Result<Row> {
    let mut runs = vec![
        ("clusterd registry", Run::NONE),
        ("docker-registry", Run::NONE),
        ("nginx", Run::NONE),
    ];
    for _ in 0..ROUNDS {
        for (server, (_, run)) in servers.into_iter().zip(&mut runs) {
            server.reset_peak()?;
            let took = at_once(clients, |_| {
                let mut client = Client::connect(server.address)?;
                for layer in layers {
                    client.get(&if server.address == STATIC {
                        format!("/blobs/sha256/{}", layer.hex())
                    } else {
                        format!("/v2/data/blobs/{layer}")
                    })?;
                }
                Ok(())
            })?;
            let bytes = BYTES * clients as u64;
            run.add(bytes as f64 / 1e6 / took.as_secs_f64(), server.peak_mb()?);
        }
    }
    let what = "pull";
    Ok(Row { what, clients, runs })
}

/// All clients push images of their own, which nobody has seen before.
fn pushes(clients: usize, layers: usize, servers: [&Server; 2], round: &mut u64) -> Result<Row> {
    let mut runs = vec![("clusterd registry", Run::NONE), ("docker-registry", Run::NONE)];
    let common = noise(PUSHED_BYTES - 16, 7);
    for _ in 0..ROUNDS {
        for (server, (_, run)) in servers.into_iter().zip(&mut runs) {
            *round += 1;
            let beginning = |client: usize, layer: usize| {
                [*round, (client * layers + layer) as u64]
                    .map(u64::to_le_bytes)
                    .concat()
            };
            let mut hasher = vec![Vec::new(); clients];
            for (client, digests) in hasher.iter_mut().enumerate() {
                for layer in 0..layers {
                    digests.push(digest(&[&beginning(client, layer), &common]));
                }
            }
            server.reset_peak()?;
            let took = at_once(clients, |client| {
                let mut connection = Client::connect(server.address)?;
                let name = format!("pushed/{round}/{client}");
                connection.push_blob(&name, Digest::of(b"{}").as_str(), &[b"{}"])?;
                let mut descriptors = Vec::new();
                for (layer, digest) in hasher[client].iter().enumerate() {
                    connection.push_blob(&name, digest.as_str(), &[&beginning(client, layer), &common])?;
                    descriptors.push(Descriptor::new(
                        media_type::LAYER_TAR,
                        digest.clone(),
                        PUSHED_BYTES as u64,
                    ));
                }
                let manifest = manifest(&Descriptor::of(media_type::CONFIG, b"{}"), &descriptors)?;
                let content_type = format!("Content-Type: {}\r\n", media_type::MANIFEST);
                connection.ask(
                    "PUT",
                    &format!("/v2/{name}/manifests/1"),
                    &content_type,
                    &[&manifest],
                    201,
                )?;
                Ok(())
            })?;
            let bytes = clients * layers * PUSHED_BYTES;
            run.add(bytes as f64 / 1e6 / took.as_secs_f64(), server.peak_mb()?);
        }
    }
    let what = "push";
    Ok(Row { what, clients, runs })
}

fn digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = oci::Hasher::default();
    for part in parts {
        hasher.update(part);
    }
    hasher.finish()
}

fn skopeo_pull(dir: &Path, address: &str) -> Result<Duration> {
    let to = dir.join("pulled");
    let start = Instant::now();
    skopeo(&[
        "--src-tls-verify=false",
        &format!("docker://{address}/data:1"),
        &format!("dir:{}", to.display()),
    ])?;
    let took = start.elapsed();
    fs::remove_dir_all(to)?;
    Ok(took)
}

fn skopeo(args: &[&str]) -> Result<()> {
    let mut command = Command::new("skopeo");
    lab::output(
        command
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
            .args(args),
    )?
    .ok()
    .map(drop)
}

fn manifest(config: &Descriptor, layers: &[Descriptor]) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::MANIFEST,
        "config": config,
        "layers": layers,
    }))?)
}

/// A layout with the image that is pulled; the digests of its layers.
fn image(layout: &Path) -> Result<Vec<Digest>> {
    let layout = Layout::create(layout)?;
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        let bytes = noise(LAYER_BYTES, layer as u64 * 2 + 1);
        layout.blobs().put(&bytes)?;
        layers.push(Descriptor::of(media_type::LAYER_TAR, &bytes));
    }
    let digests: Vec<_> = layers.iter().map(|layer| layer.digest.clone()).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": digests}
    }))?;
    layout.blobs().put(&config)?;
    let manifest = manifest(&Descriptor::of(media_type::CONFIG, &config), &layers)?;
    layout.blobs().put(&manifest)?;
    let mut entry = Descriptor::of(media_type::MANIFEST, &manifest);
    entry
        .annotations
        .insert(REF_NAME.to_owned(), "docker.io/library/data:1".to_owned());
    layout.write_index(&Index {
        manifests: vec![entry],
        ..Index::default()
    })?;
    Ok(digests)
}
