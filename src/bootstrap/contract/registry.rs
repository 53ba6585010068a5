//! Contract with a registry that asks for a login, and with containerd: images are brought there, and pulled with what hosts are
//! given to pull with. Once with docker-registry, once with our own; skipped, with a message, where a program is absent.

use super::free;
use crate::{
    effects::{self, Learned},
    login::Login,
    push,
    site::Site,
    testing::site,
};
use host::Effect;
use image::{Carried, Store};
use oci::{BlobStore, Descriptor, media_type};
use serde_json::json;
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const CERTS_D: &str = "/etc/installer/containerd/certs.d/";

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come up");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn start(program: &str, args: &[&str], dir: &Path) -> Option<Running> {
    if Command::new(program).arg("--version").output().is_err() {
        eprintln!("SKIPPED: {program} is not installed");
        return None;
    }
    let log = std::fs::File::create(dir.join(format!("{program}.log"))).unwrap();
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Some(Running(command.spawn().unwrap()))
}

fn login(password: &str) -> Login {
    Login {
        user: "pusher".into(),
        password: clusterfile::Secret::new(password),
    }
}

/// `clusterd registry --writable`, ended with the test.
struct Ours(tokio::task::JoinHandle<()>);

impl Drop for Ours {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn our_registry(dir: &Path, port: u16) -> Ours {
    std::fs::write(dir.join("htpasswd"), login("s3cret").line().unwrap()).unwrap();
    let args = registry::Args {
        store: dir.join("registry"),
        listen: ([127, 0, 0, 1], port).into(),
        tls_cert: None,
        tls_key: None,
        domains: Vec::new(),
        writable: true,
        delete: false,
        htpasswd: Some(dir.join("htpasswd")),
        anonymous_pull: false,
        max_blob_size: 1 << 30,
        max_uploads: 256,
        upload_expiry: Duration::from_secs(3600),
        max_connections: 512,
        metrics_listen: None,
    };
    let running = Ours(tokio::spawn(async { registry::run(args).await.unwrap() }));
    until("our registry", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    running
}

fn docker_registry(dir: &Path, port: u16) -> Option<Running> {
    std::fs::write(dir.join("htpasswd"), login("s3cret").line().unwrap()).unwrap();
    let config = json!({
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": dir.join("registry")}},
        "http": {"addr": format!("127.0.0.1:{port}")},
        "auth": {"htpasswd": {"realm": "test", "path": dir.join("htpasswd")}},
    });
    let file = dir.join("registry.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let running = start("docker-registry", &["serve", file.to_str().unwrap()], dir)?;
    until("the registry", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    Some(running)
}

fn put(blobs: &BlobStore, kind: &str, bytes: &[u8]) -> Descriptor {
    let descriptor = Descriptor::of(kind, bytes);
    std::fs::create_dir_all(blobs.dir()).unwrap();
    std::fs::write(blobs.path(&descriptor.digest), bytes).unwrap();
    descriptor
}

/// An image with one empty layer; `mark` makes it another one.
fn image(blobs: &BlobStore, reference: &str, mark: &str) -> Carried {
    let layer = put(blobs, media_type::LAYER_TAR, &[0; 1024]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "author": mark, "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    });
    let config = put(blobs, media_type::CONFIG, config.to_string().as_bytes());
    let text = json!({"schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": config, "layers": [layer]});
    let manifest = put(blobs, media_type::MANIFEST, text.to_string().as_bytes());
    Carried {
        reference: reference.parse().unwrap(),
        blobs: vec![manifest.clone(), config, layer],
        index: None,
        manifest,
    }
}

fn elsewhere(dir: &Path, port: u16) -> (Site, Store) {
    let store = Store::open(&dir.join("store")).unwrap();
    let blobs = store.blobs().clone();
    let mut site = site();
    site.image.carried = vec![
        image(&blobs, "quay.io/a/b:1", "b"),
        image(&blobs, "docker.io/library/web:2", "web"),
        image(&blobs, "corp.example:8443/team/app:3", "app"),
    ];
    site.registry.domain = "127.0.0.1".into();
    site.registry.port = port;
    site.registry.insecure = true;
    site.registry.external = true;
    site.registry.login = true;
    site.seats[0].registry = false;
    (site, store)
}

async fn missing(site: &Site, store: &Store, password: &str) -> Result<Vec<String>, String> {
    let looked = push::look(&site.registry, &site.image, store, Some(&login(password)), None).await;
    looked
        .map(|push| push.unwrap().images())
        .map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_brought_to_a_registry_and_pulled_by_the_runtime_as_hosts_are_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, port) = (folder.path(), free());
    let Some(_registry) = docker_registry(dir, port) else {
        return;
    };
    bring_and_pull(dir, port).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_brought_to_our_own_registry_and_pulled_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, port) = (folder.path(), free());
    let _registry = our_registry(dir, port);
    bring_and_pull(dir, port).await;
}

/// Brings images to the registry on a port, and pulls them by containerd.
async fn bring_and_pull(dir: &Path, port: u16) {
    let (mut site, store) = elsewhere(dir, port);
    let refused = missing(&site, &store, "wrong").await.unwrap_err();
    assert!(
        refused.contains("spec.registry.externalRegistry") && !refused.contains("wrong"),
        "{refused}"
    );
    let all = [
        format!("127.0.0.1:{port}/quay.io/a/b:1"),
        format!("127.0.0.1:{port}/docker.io/library/web:2"),
        format!("127.0.0.1:{port}/corp.example-8443/team/app:3"),
    ];
    assert_eq!(missing(&site, &store, "s3cret").await.unwrap(), all);
    let looked = push::look(&site.registry, &site.image, &store, Some(&login("s3cret")), None)
        .await
        .unwrap()
        .unwrap();
    let sent = looked.send(&crate::event::Silent).await.unwrap();
    assert_eq!(sent.changes, 3);
    assert_eq!(missing(&site, &store, "s3cret").await.unwrap(), [""; 0]);
    // Another image under the same name.
    site.image.carried[0] = image(store.blobs(), "quay.io/a/b:1", "changed");
    assert_eq!(missing(&site, &store, "s3cret").await.unwrap(), all[..1]);
    let looked = push::look(&site.registry, &site.image, &store, Some(&login("s3cret")), None)
        .await
        .unwrap()
        .unwrap();
    looked.send(&crate::event::Silent).await.unwrap();

    let Some(runtime) = containerd(dir) else { return };
    write_mirrors(&site, dir, Some(login("s3cret")));
    for carried in &site.image.carried {
        let name = &carried.reference;
        runtime.pull(&name.to_string()).unwrap();
        runtime
            .pull(&format!("{}@{}", name.repository(), carried.manifest.digest))
            .unwrap();
    }
    runtime.pull(&all[0]).unwrap();
    write_mirrors(&site, dir, None);
    let refused = runtime.pull("quay.io/a/b:1").unwrap_err();
    assert!(
        refused.contains("401") || refused.contains("authorization"),
        "{refused}"
    );
}

/// The `hosts.toml` files that a host gets, below `dir/certs.d`.
fn write_mirrors(site: &Site, dir: &Path, login: Option<Login>) {
    let learned = Learned {
        login,
        ..Learned::default()
    };
    for effect in effects::runtime(site, &site.seats[1], &learned).unwrap() {
        let Effect::File(file) = effect else { continue };
        if let Some(name) = file.path.strip_prefix(CERTS_D) {
            let path = dir.join("certs.d").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file.content.bytes()).unwrap();
        }
    }
}

struct Runtime<'d> {
    dir: &'d Path,
    _running: Running,
}

fn containerd(dir: &Path) -> Option<Runtime<'_>> {
    let config = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n[grpc]\naddress = \"{0}/c.sock\"\n",
        dir.display()
    );
    let file = dir.join("containerd.toml");
    std::fs::write(&file, config).unwrap();
    let runtime = Runtime {
        dir,
        _running: start("containerd", &["--config", file.to_str().unwrap()], dir)?,
    };
    until("containerd", || runtime.ctr(&["version"]).is_ok());
    Some(runtime)
}

impl Runtime<'_> {
    fn ctr(&self, args: &[&str]) -> Result<(), String> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.join("c.sock")).args(args);
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(()) } else { Err(said) }
    }

    /// As verify does on a host, but without unpacking.
    fn pull(&self, name: &str) -> Result<(), String> {
        let hosts = self.dir.join("certs.d");
        self.ctr(&["content", "fetch", "--hosts-dir", hosts.to_str().unwrap(), name])
    }
}
