//! The private registry beside Debian's docker-registry: the same client pulls the same image from both.

use anyhow::{Context, Result, bail};
use oci::{Descriptor, Index, Layout, REF_NAME, media_type};
use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LAYERS: usize = 8;
const LAYER_BYTES: usize = 32 << 20;
const OURS: &str = "127.0.0.1:5097";
const RIVAL: &str = "127.0.0.1:5098";

/// A server that ends with its owner.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(command: &mut Command, address: &str) -> Result<Self> {
        let shown = format!("{command:?}");
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(shown)?;
        let server = Self(child);
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if start.elapsed() > Duration::from_secs(20) {
                bail!("nothing answers at {address}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn resident_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
        let kib: f64 = line.split_whitespace().nth(1).unwrap_or("0").parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}

/// How long the same client needs with us and with the rival.
pub struct Pulls {
    /// From `clusterd registry`.
    pub ours: Duration,
    /// From docker-registry.
    pub rival: Duration,
    /// Resident memory of both after that, in MB.
    pub resident: (f64, f64),
}

/// Bytes of the image that is pulled.
pub const BYTES: u64 = (LAYERS * LAYER_BYTES) as u64;

/// Makes an image of bytes that do not compress, and pulls it from both, taking turns; the best of three counts.
///
/// # Errors
/// When docker-registry or skopeo is not installed, or a pull fails.
pub fn compare(clusterd: &Path, dir: &Path) -> Result<Pulls> {
    let layout = dir.join("layout");
    image(&layout)?;
    let mut command = Command::new(clusterd);
    command
        .arg("registry")
        .arg("--store")
        .arg(&layout)
        .args(["--listen", OURS]);
    let ours = Server::start(&mut command, OURS)?;
    let config = dir.join("docker-registry.yml");
    let storage = dir.join("docker-registry");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {RIVAL}}}\n",
        storage.display()
    );
    fs::write(&config, text)?;
    let rival = Server::start(Command::new("docker-registry").arg("serve").arg(&config), RIVAL)?;
    let from = format!("oci:{}:docker.io/library/data:1", layout.display());
    skopeo(&["--dest-tls-verify=false", &from, &format!("docker://{RIVAL}/data:1")])?;
    let pull = |address: &str| -> Result<Duration> {
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
    };
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        best = (best.0.min(pull(OURS)?), best.1.min(pull(RIVAL)?));
    }
    Ok(Pulls {
        ours: best.0,
        rival: best.1,
        resident: (ours.resident_mb()?, rival.resident_mb()?),
    })
}

fn skopeo(args: &[&str]) -> Result<()> {
    let mut command = Command::new("skopeo");
    lab::output(command.args(["--insecure-policy", "copy", "--quiet"]).args(args))?
        .ok()
        .map(drop)
}

fn image(layout: &Path) -> Result<()> {
    let layout = Layout::create(layout)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut layers = Vec::new();
    for _ in 0..LAYERS {
        let mut bytes = Vec::with_capacity(LAYER_BYTES);
        while bytes.len() < LAYER_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        layout.blobs().put(&bytes)?;
        layers.push(Descriptor::of(media_type::LAYER_TAR, &bytes));
    }
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.digest).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}
    }))?;
    layout.blobs().put(&config)?;
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::MANIFEST,
        "config": Descriptor::of(media_type::CONFIG, &config),
        "layers": layers,
    }))?;
    layout.blobs().put(&manifest)?;
    let mut entry = Descriptor::of(media_type::MANIFEST, &manifest);
    entry
        .annotations
        .insert(REF_NAME.to_owned(), "docker.io/library/data:1".to_owned());
    layout.write_index(&Index {
        manifests: vec![entry],
        ..Index::default()
    })?;
    Ok(())
}
