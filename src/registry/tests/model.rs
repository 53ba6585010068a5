//! The same story told to Debian's docker-registry: where the two differ is said here, with the reason.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use super::{
    Target,
    conformance::{EXPECTED, story},
    until,
};

/// Where the model does not do what the spec describes: it is older than version 1.1 of it, and pages, takes and deletes less.
const DIFFERENCES: &[(&str, u16)] = &[
    ("referrers of nothing", 404),
    ("whole by POST", 202),
    // It appends a chunk wherever that claims to belong, finds another digest, and ends the upload.
    ("last chunk out of order", 400),
    ("out of order", 404),
    ("mount from anywhere", 202),
    ("wrong digest by POST", 202),
    // Its own failures.
    ("manifest of malformed digest", 500),
    ("pull of malformed digest", 500),
    ("manifest that is none", 500),
    ("manifest with layers elsewhere", 500),
    ("manifest that is too large", 400),
    ("referrers", 404),
    ("referrers of a type", 404),
    ("referrers of what is missing", 404),
    ("referrers of malformed digest", 404),
    // It deletes manifests only, with all their tags.
    ("delete tag", 400),
    ("deleted tag", 200),
];

struct Model {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Model {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: \"{address}\"}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        let child = command
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let model = Self {
            child: child.expect("this test needs docker-registry"),
            address,
            _dir: dir,
        };
        until("docker-registry answers", async || TcpStream::connect(address).is_ok()).await;
        model
    }
}

#[tokio::test]
async fn the_registry_behaves_like_docker_registry_but_for_what_is_said_here() {
    let model = Model::start().await;
    let transcript = story(Target(model.address)).await;
    let mut differences = Vec::new();
    for (step, status) in &transcript.steps {
        let ours = EXPECTED.iter().filter(|(name, _)| name == step);
        if !ours.clone().any(|(_, expected)| expected == status) {
            differences.push((step.as_str(), *status));
        }
    }
    assert_eq!(differences, DIFFERENCES);
}
