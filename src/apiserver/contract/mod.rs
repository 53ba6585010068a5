//! Contract tests against a real etcd: what clients rely on, over the wire.
//!
//! Every test has its own etcd and server, both on ports of 127.0.0.1 that the kernel chose, and ends them.

mod access;
mod apply;
mod changes;
mod controllers;
mod helm;
mod kinds;
mod kubectl;
mod objects;
mod openapi;
mod programs;
mod proxies;
mod services;
mod watches;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{Args, Server};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    args: Args,
}

/// A child process that is ended by its handle.
struct Etcd {
    child: Option<Child>,
    dir: PathBuf,
    client: u16,
    peer: u16,
}

impl Etcd {
    fn start(dir: &Path) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = dir.join("etcd");
        for _ in 0..5 {
            let mut etcd = Self {
                child: None,
                dir: dir.clone(),
                client: free(),
                peer: free(),
            };
            etcd.launch();
            if etcd.listens() {
                return etcd;
            }
            // Somebody else took one of the free ports in between.
            drop(etcd);
            let _ = std::fs::remove_dir_all(&dir);
        }
        panic!("etcd does not start");
    }

    /// Waits until it listens; false if it has ended.
    fn listens(&mut self) -> bool {
        while self.child.as_mut().is_some_and(|c| c.try_wait().unwrap().is_none()) {
            if std::net::TcpStream::connect(("127.0.0.1", self.client)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    fn launch(&mut self) {
        let (client, peer) = (
            format!("http://127.0.0.1:{}", self.client),
            format!("http://127.0.0.1:{}", self.peer),
        );
        let child = Command::new("/usr/bin/etcd")
            .args([
                "--data-dir",
                self.dir.to_str().unwrap(),
                "--name",
                "test",
                "--log-level",
                "error",
            ])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args([
                "--initial-cluster",
                &format!("test={peer}"),
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "300",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, file: &str, name: &str, groups: &[&str], server: bool) {
        let names = if server {
            vec!["127.0.0.1".to_owned(), "localhost".to_owned()]
        } else {
            vec![]
        };
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for g in groups {
            params.distinguished_name.push(DnType::OrganizationName, *g);
        }
        let usage = if server {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        };
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.dir.join(format!("{file}.crt")), cert.pem()).unwrap();
        std::fs::write(self.dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

/// A server with its etcd.
struct Cluster {
    server: Option<Server>,
    etcd: Etcd,
    pki: Pki,
    stop: CancellationToken,
    dir: tempfile::TempDir,
    port: u16,
    args: Args,
}

/// Who makes a request.
#[derive(Clone)]
enum As {
    /// `system:masters` by certificate.
    Admin,
    /// A certificate issued before under this file name.
    Cert(String),
    /// A bearer token.
    Token(String),
    /// Nobody.
    Anonymous,
}

struct Answer {
    code: u16,
    headers: http::HeaderMap,
    bytes: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }
}

impl Cluster {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(flags: &[&str]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(dir.path());
        let pki = Pki::new(dir.path());
        pki.issue("server", "kube-apiserver", &[], true);
        pki.issue("admin", "admin", &["system:masters"], false);
        std::fs::write(dir.path().join("sa.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let path = |f: &str| dir.path().join(f).to_str().unwrap().to_owned();
        let mut line = vec!["apiserver".to_owned()];
        for (k, v) in [
            ("advertise-address", "192.0.2.1".to_owned()),
            ("bind-address", "127.0.0.1".to_owned()),
            ("secure-port", "0".to_owned()),
            ("etcd-servers", format!("http://127.0.0.1:{}", etcd.client)),
            ("client-ca-file", path("ca.crt")),
            ("tls-cert-file", path("server.crt")),
            ("tls-private-key-file", path("server.key")),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-signing-key-file", path("sa.key")),
            ("service-account-key-file", path("sa.key")),
            ("enable-bootstrap-token-auth", "true".to_owned()),
            ("etcd-compaction-interval-seconds", "0".to_owned()),
            ("shutdown-grace-seconds", "2".to_owned()),
        ] {
            line.push(format!("--{k}={v}"));
        }
        line.extend(flags.iter().map(|f| f.replace("DIR", dir.path().to_str().unwrap())));
        let stop = CancellationToken::new();
        let args = Flags::parse_from(line).args;
        let server = Server::start(args.clone(), stop.clone()).await.unwrap();
        let port = server.address.port();
        let cluster = Self {
            server: Some(server),
            etcd,
            pki,
            stop,
            dir,
            port,
            args,
        };
        cluster.until_ready().await;
        cluster
    }

    async fn until_ready(&self) {
        let mut last = String::new();
        for _ in 0..600 {
            let answer = self.call(Method::GET, "/readyz", &As::Anonymous, None).await;
            if answer.code == 200 {
                return;
            }
            last = String::from_utf8_lossy(&answer.bytes).into_owned();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not become ready:\n{last}");
    }

    async fn end(mut self) {
        self.stop.cancel();
        if let Some(s) = self.server.take() {
            tokio::time::timeout(Duration::from_secs(10), s.wait())
                .await
                .expect("the server ends");
        }
    }

    /// Ends the server and starts another one on the same store.
    async fn restart(&mut self) {
        self.stop.cancel();
        if let Some(s) = self.server.take() {
            s.wait().await;
        }
        self.stop = CancellationToken::new();
        let server = Server::start(self.args.clone(), self.stop.clone()).await.unwrap();
        self.port = server.address.port();
        self.server = Some(server);
        self.until_ready().await;
    }

    async fn open(&self, who: &As, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let path = |f: &str| self.dir.path().join(f);
        let file = match who {
            As::Admin => Some("admin".to_owned()),
            As::Cert(f) => Some(f.clone()),
            _ => None,
        };
        let identity = file.map(|f| (path(&format!("{f}.crt")), path(&format!("{f}.key"))));
        let identity = identity.as_ref().map(|(c, k)| (c.as_path(), k.as_path()));
        let config = Arc::new(crate::tls::client(Some(&path("ca.crt")), identity).unwrap());
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = tokio_rustls::TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    fn request(method: Method, path: &str, who: &As, headers: &[(&str, &str)], body: Vec<u8>) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
        if let As::Token(t) = who {
            request = request.header("authorization", format!("Bearer {t}"));
        }
        for (k, v) in headers {
            request = request.header(*k, *v);
        }
        request.body(Full::new(Bytes::from(body))).unwrap()
    }

    async fn raw(&self, method: Method, path: &str, who: &As, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let response = self.open(who, Self::request(method, path, who, headers, body)).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            bytes,
        }
    }

    async fn call(&self, method: Method, path: &str, who: &As, body: Option<&Value>) -> Answer {
        let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        self.raw(method, path, who, &[("content-type", "application/json")], bytes)
            .await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &As::Admin, None).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, &As::Admin, Some(&body)).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, &As::Admin, Some(&body)).await
    }

    async fn delete(&self, path: &str, options: Value) -> Answer {
        self.call(Method::DELETE, path, &As::Admin, Some(&options)).await
    }

    async fn patch(&self, path: &str, media: &str, body: Value) -> Answer {
        self.raw(
            Method::PATCH,
            path,
            &As::Admin,
            &[("content-type", media)],
            body.to_string().into_bytes(),
        )
        .await
    }

    async fn watch(&self, path: &str) -> Watch {
        self.watch_as(path, "application/json").await
    }

    async fn watch_as(&self, path: &str, accept: &str) -> Watch {
        let request = Self::request(Method::GET, path, &As::Admin, &[("accept", accept)], vec![]);
        let response = self.open(&As::Admin, request).await;
        assert_eq!(response.status(), 200);
        Watch {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }
}

/// An open watch.
struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None` when the server ended the watch.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame())
                .await
                .expect("an event comes");
            self.buffer.extend_from_slice(frame?.ok()?.data_ref()?);
        }
    }

    /// Type and name of the next event.
    async fn brief(&mut self) -> (String, String) {
        let e = self.next().await.expect("the watch goes on");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&e["type"]), text(&e["object"]["metadata"]["name"]))
    }
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

fn config_map(name: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
