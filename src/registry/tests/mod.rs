//! The contract, seen by clients: a plain HTTP client for the details of the spec, Debian's docker-registry as the model of its
//! behaviour, and the tools that people use.

mod auth;
mod clients;
mod conformance;
mod life;
mod model;
mod podman;
mod pull;
mod push;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use oci::{Digest, Layout, media_type};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::{Args, serve_on};

/// How long anything in these tests may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A registry over a store, in this process.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), crate::Error>>,
}

fn args(store: &Path) -> Args {
    Args {
        store: store.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        tls_cert: None,
        tls_key: None,
        domains: vec!["sea.hub:5000".to_owned()],
        writable: false,
        delete: false,
        htpasswd: None,
        anonymous_pull: false,
        max_blob_size: 1 << 30,
        max_uploads: 64,
        upload_expiry: Duration::from_secs(3600),
        max_connections: 512,
        metrics_listen: None,
    }
}

/// A registry that takes pushes and deletions from everybody.
fn open_args(store: &Path) -> Args {
    Args {
        domains: Vec::new(),
        writable: true,
        delete: true,
        ..args(store)
    }
}

impl Server {
    async fn start(args: Args) -> Self {
        let listener = TcpListener::bind(args.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve_on(listener, args, async move { _ = stopped.await }));
        Self {
            address,
            stop: Some(stop),
            task,
        }
    }

    fn target(&self) -> Target {
        Target(self.address)
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        self.target().send(method, path, headers, b"").await
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        self.ask("GET", path, &[]).await
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

/// Any registry on loopback.
#[derive(Debug, Clone, Copy)]
struct Target(SocketAddr);

impl Target {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Bytes> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let uri = if path.starts_with("http://") {
            path.to_owned()
        } else {
            format!("http://{}{path}", self.0)
        };
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let response = tokio::time::timeout(PATIENCE, client.request(request))
            .await
            .unwrap()
            .unwrap();
        let (parts, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            // Debian's docker-registry announces the blob's length and sends an error.
            Err(_) if parts.status == 416 => Bytes::new(),
            Err(error) => panic!("{method} {path}: {parts:?}: {error}"),
        };
        Response::from_parts(parts, body)
    }

    /// Pushes a blob, by POST and PUT, as most clients do.
    async fn push_blob(&self, name: &str, content: &[u8]) -> Digest {
        let begun = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"").await;
        assert_eq!(begun.status(), 202, "{begun:?}");
        let digest = Digest::of(content);
        let to = with(header(&begun, "location"), &format!("digest={digest}"));
        let pushed = self.send("PUT", &to, &[OCTETS], content).await;
        assert_eq!(pushed.status(), 201, "{pushed:?}");
        digest
    }

    /// Pushes an image of one layer under a tag or digest.
    async fn push_image(&self, name: &str, reference: Option<&str>, layer: &[u8]) -> Digest {
        let manifest = image(layer);
        self.push_blob(name, b"{}").await;
        self.push_blob(name, layer).await;
        let digest = Digest::of(&manifest);
        let path = format!("/v2/{name}/manifests/{}", reference.unwrap_or(digest.as_str()));
        let pushed = self.send("PUT", &path, &[MANIFEST], &manifest).await;
        assert_eq!(pushed.status(), 201, "{pushed:?}");
        digest
    }

    async fn status(&self, method: &str, path: &str) -> u16 {
        self.send(method, path, &[], b"").await.status().as_u16()
    }
}

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");
const MANIFEST: (&str, &str) = ("content-type", media_type::MANIFEST);
const INDEX: (&str, &str) = ("content-type", media_type::INDEX);

/// The manifest of an image with the empty configuration `{}` and one layer.
fn image(layer: &[u8]) -> Vec<u8> {
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": media_type::LAYER_TAR, "digest": Digest::of(layer), "size": layer.len()}],
    });
    manifest.to_string().into_bytes()
}

/// A location with one more parameter.
fn with(location: &str, parameter: &str) -> String {
    let sign = if location.contains('?') { '&' } else { '?' };
    format!("{location}{sign}{parameter}")
}

fn header<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn code(response: &Response<Bytes>) -> String {
    let document: serde_json::Value = serde_json::from_slice(response.body()).unwrap_or_default();
    document["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
}

/// Larger than several pieces of a stream, and of no pattern that a mistake in offsets could hide in.
fn large() -> Vec<u8> {
    (0..900_001u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Runs a program to its end: a line of words, none of which has a space in it.
fn run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("these tests need {program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{line}: {}", text(&output.stderr)))
    }
}

/// [`run`] beside a server in this process.
async fn run_beside(line: String) -> Result<String, String> {
    tokio::task::spawn_blocking(move || run(&line)).await.unwrap()
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Files with a certificate for 127.0.0.1 and its key.
struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.crt"), certificate.pem()).unwrap();
        std::fs::write(dir.path().join("tls.private"), key.serialize_pem()).unwrap();
        Self { dir }
    }

    fn cert(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// The same registry, over TLS.
    fn protect(&self, args: Args) -> Args {
        Args {
            tls_cert: Some(self.cert()),
            tls_key: Some(self.dir.path().join("tls.private")),
            ..args
        }
    }

    /// The folder that tools find the certificate in.
    fn folder(&self) -> String {
        self.dir.path().display().to_string()
    }
}

/// What an `index.json` names, sorted.
fn listed(layout: &Layout) -> Vec<String> {
    let index = layout.read_index().unwrap();
    let mut names: Vec<_> = index
        .manifests
        .iter()
        .map(|entry| entry.annotations[oci::REF_NAME].clone())
        .collect();
    names.sort();
    names
}

/// A file of users with cheap hashes.
fn users(dir: &Path, users: &[(&str, &str)]) -> PathBuf {
    let file = dir.join("users");
    let lines: String = users
        .iter()
        .map(|(user, password)| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap()))
        .collect();
    std::fs::write(&file, lines).unwrap();
    file
}
