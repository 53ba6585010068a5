//! podman: logs in, pushes, pulls and runs over TLS.

use std::path::Path;

use super::{Pki, Server, open_args, run, run_beside, users};
use crate::Args;

/// podman with folders of its own.
struct Podman(String);

impl Podman {
    fn new(dir: &Path) -> Self {
        let dir = dir.display();
        Self(format!(
            "podman --root {dir}/root --runroot {dir}/runroot --tmpdir {dir}/tmp --storage-driver=vfs \
             --cgroup-manager=cgroupfs --events-backend=file"
        ))
    }

    async fn run(&self, line: &str) -> Result<String, String> {
        run_beside(format!("{} {line}", self.0)).await
    }
}

/// An archive with an image that is nothing but busybox.
fn busybox(dir: &Path, image: &str) -> String {
    let made = dir.join("made").display().to_string();
    let archive = dir.join("archive.tar").display().to_string();
    run(&format!("umoci init --layout {made}")).unwrap();
    run(&format!("umoci new --image {made}:x")).unwrap();
    run(&format!("umoci insert --image {made}:x /bin/busybox /bin/busybox")).unwrap();
    run(&format!(
        "umoci config --image {made}:x --config.entrypoint /bin/busybox"
    ))
    .unwrap();
    run(&format!(
        "skopeo copy --quiet oci:{made}:x docker-archive:{archive}:{image}"
    ))
    .unwrap();
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_logs_in_pushes_pulls_and_runs_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    let server = Server::start(pki.protect(Args {
        htpasswd: Some(users(dir.path(), &[("alice", "right")])),
        ..open_args(&dir.path().join("store"))
    }))
    .await;
    let podman = Podman::new(&dir.path().join("podman"));
    let registry = server.address;
    let image = format!("{registry}/tools/busybox:1");
    let certificates = format!("--cert-dir={}", pki.folder());
    let secrets = format!("--authfile={}", dir.path().join("auth.json").display());
    let archive = busybox(dir.path(), &image);
    podman.run(&format!("load --quiet --input {archive}")).await.unwrap();

    let wrong = format!("push --quiet {certificates} --creds=alice:wrong {image}");
    let refused = podman.run(&wrong).await.unwrap_err();
    let told = ["authentication required", "unauthorized"];
    assert!(told.iter().any(|text| refused.contains(text)), "{refused}");
    let login = format!("login {certificates} {secrets} --username=alice --password");
    podman.run(&format!("{login} wrong {registry}")).await.unwrap_err();
    podman.run(&format!("{login} right {registry}")).await.unwrap();
    podman
        .run(&format!("push --quiet {certificates} {secrets} {image}"))
        .await
        .unwrap();
    podman.run("rmi --all --force").await.unwrap();
    podman
        .run(&format!("pull --quiet {certificates} {secrets} {image}"))
        .await
        .unwrap();
    // podman's own limits are more than a container or a small machine may have.
    let limits = "--ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024";
    let said = podman
        .run(&format!("run --rm --network=none {limits} {image} echo it runs"))
        .await;
    assert_eq!(said.unwrap().trim(), "it runs");
    server.stop().await;
}
