//! Pulls and logins against Debian's `docker-registry`, filled by `skopeo`, where both are installed: HTTPS by an authority of
//! its own, and a password.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clusterfile::Secret;
use oci::{Descriptor, Digest, Index, Layout, REF_NAME, Reference, media_type};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::credentials::{AuthFile, CredentialFiles};
use crate::manifest::Manifest;
use crate::progress::NoProgress;
use crate::pull::{PullOptions, Puller};
use crate::remote::{Remote, RemoteOptions, Retry};
use crate::{Store, host_platform};

/// `me:s3cret-pass`, for htpasswd.
const PASSWORDS: &str = "me:$2b$05$abcdefghijklmnopqrstuuV7fpPozvyqJfnY19y0802WTlXUm6Rjy\n";

struct Registry {
    process: Child,
    address: String,
    dir: tempfile::TempDir,
    layer: Vec<u8>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Certificate authority and server certificate below `dir`.
fn certificates(dir: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(dir.join("ca.crt"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
    std::fs::write(dir.join("tls.crt"), server.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
}

/// A layout with the image `x`, of one layer that is large enough to be cut.
fn layout(dir: &Path) -> Vec<u8> {
    let layout = Layout::create(dir).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", content.as_slice()).unwrap();
    let layer = builder.into_inner().unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        layout.blobs().put(bytes).unwrap();
        Descriptor::of(kind, bytes)
    };
    let config = serde_json::json!({
        "architecture": host_platform().architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
    });
    let config = put(media_type::CONFIG, config.to_string().as_bytes());
    let tar = put(media_type::LAYER_TAR, &layer);
    let manifest = serde_json::to_vec(&Manifest::new(config, vec![tar])).unwrap();
    let mut entry = put(media_type::MANIFEST, &manifest);
    entry.annotations.insert(REF_NAME.into(), "x".into());
    let index = Index {
        manifests: vec![entry],
        ..Index::default()
    };
    layout.write_index(&index).unwrap();
    layer
}

impl Registry {
    /// None where the programs are not installed.
    fn start() -> Option<Registry> {
        let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !has("docker-registry") || !has("skopeo") {
            eprintln!("SKIPPED: docker-registry or skopeo is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        std::fs::write(dir.path().join("passwords"), PASSWORDS).unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = serde_json::json!({
            "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": path("data")}},
            "http": {"addr": address, "tls": {"certificate": path("tls.crt"), "key": path("tls.key")}},
            "auth": {"htpasswd": {"realm": "test", "path": path("passwords")}},
        });
        std::fs::write(dir.path().join("config.yml"), config.to_string()).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let layer = layout(&dir.path().join("layout"));
        let registry = Registry {
            process,
            address,
            dir,
            layer,
        };
        registry.fill();
        Some(registry)
    }

    fn fill(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(&self.address).is_err() {
            assert!(Instant::now() < end, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let from = format!("oci:{}:x", self.path("layout").display());
        let to = format!("docker://{}/team/app:v1", self.address);
        let output = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--dest-creds",
                "me:s3cret-pass",
                &from,
                &to,
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Trusts the authority, and knows this password.
    fn options(&self, password: Option<&str>) -> RemoteOptions {
        let file = self.path(&format!("auth-{}.json", password.unwrap_or_default()));
        if let Some(password) = password {
            AuthFile::new(&file)
                .store(&self.address, "me", &Secret::new(password))
                .unwrap();
        }
        RemoteOptions {
            ca_files: vec![self.path("ca.crt")],
            credentials: Arc::new(CredentialFiles::only(&file)),
            retry: Retry {
                tries: 2,
                first: Duration::from_millis(1),
                longest: Duration::from_millis(1),
            },
            ..RemoteOptions::default()
        }
    }

    fn pull(&self, store: &Store, remote: RemoteOptions, name: &str) -> Result<Descriptor, String> {
        let reference: Reference = format!("{}/{name}", self.address).parse().unwrap();
        let options = PullOptions { remote, offline: false };
        let puller = Puller::new(&options, Arc::new(NoProgress)).unwrap();
        let pulled = run(puller.pull_all(store, vec![reference], &host_platform())).remove(0);
        pulled.map_err(|error| error.to_string())
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}

#[test]
fn docker_registry_gives_what_skopeo_stored_to_who_has_the_password_and_trusts_it() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let good = || registry.options(Some("s3cret-pass"));
    for (options, name, expected) in [
        (
            registry.options(None),
            "team/app:v1",
            "there is no login for it: use `installer login",
        ),
        (
            registry.options(Some("wrong")),
            "team/app:v1",
            "the login of me was refused",
        ),
        (good(), "team/none:v1", "has no such image"),
        (
            RemoteOptions {
                ca_files: Vec::new(),
                ..good()
            },
            "team/app:v1",
            "--registry-ca",
        ),
        (
            RemoteOptions {
                insecure: vec![registry.address.clone()],
                ..good()
            },
            "team/app:v1",
            "400 Bad Request",
        ),
    ] {
        let error = registry.pull(&store, options, name).unwrap_err();
        assert!(
            error.contains(expected) && !error.contains("s3cret"),
            "{expected}: {error}"
        );
    }
    let entry = registry.pull(&store, good(), "team/app:v1").unwrap();
    let manifest: Manifest = store.read_json(&entry).unwrap();
    let layer = &manifest.layers[0];
    // As an earlier pull leaves it that was stopped half way.
    let bytes = std::fs::read(store.blobs().path(&layer.digest)).unwrap();
    store.blobs().remove(&layer.digest).unwrap();
    let mut writer = store.blobs().writer(&layer.digest, layer.size, false).unwrap();
    writer.write(&bytes[..bytes.len() / 2]).unwrap();
    drop(writer);
    let certs = registry.path("certs.d").join(&registry.address);
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(registry.path("ca.crt"), certs.join("mine.crt")).unwrap();
    let options = RemoteOptions {
        ca_files: Vec::new(),
        certs_dirs: vec![registry.path("none"), registry.path("certs.d")],
        ..good()
    };
    assert_eq!(registry.pull(&store, options, "team/app:v1").unwrap(), entry);
    store.blobs().verify(&layer.digest, layer.size).unwrap();
    let mut unpacked = Vec::new();
    let mut reader = crate::layer::open_layer(store.blobs(), layer).unwrap();
    std::io::Read::read_to_end(&mut reader, &mut unpacked).unwrap();
    assert_eq!(unpacked, registry.layer);
}

#[test]
fn a_login_is_tried_before_it_is_believed() {
    let Some(registry) = Registry::start() else { return };
    let check = |password: &str| {
        let remote = Remote::new(registry.options(Some(password))).unwrap();
        run(remote.check_login(&registry.address)).map_err(|error| error.to_string())
    };
    check("s3cret-pass").unwrap();
    let error = check("wrong").unwrap_err();
    assert!(
        error.contains("cannot log in to 127.0.0.1") && error.contains("401"),
        "{error}"
    );
}
