//! Stock programs against the server: kubectl and helm. They are found by `KUBECTL` and `HELM`, else where the Makefile puts them, else
//! on PATH; where there is none of them, their tests are skipped.

use super::*;
use std::io::Write as _;

/// A program with the administrator's credentials for a cluster.
pub(super) struct Program<'a> {
    name: &'static str,
    path: PathBuf,
    pub(super) cluster: &'a Cluster,
}

/// Where a program is.
pub(super) fn find(name: &'static str) -> Option<PathBuf> {
    let tools = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let found = std::env::var_os(name.to_uppercase()).map(PathBuf::from).or_else(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::iter::once(tools)
            .chain(std::env::split_paths(&path))
            .map(|d| d.join(name))
            .find(|p| p.is_file())
    });
    if found.is_none() {
        eprintln!("no {name} found: skipped");
    }
    found
}

impl<'a> Program<'a> {
    pub(super) fn new(name: &'static str, path: PathBuf, cluster: &'a Cluster) -> Self {
        let file = |f: &str| cluster.dir.path().join(f).to_str().unwrap().to_owned();
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", cluster.port), "certificate-authority": file("ca.crt")}}],
            "users": [{"name": "admin", "user": {"client-certificate": file("admin.crt"), "client-key": file("admin.key")}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        });
        std::fs::write(file("kubeconfig"), config.to_string()).unwrap();
        Self { name, path, cluster }
    }

    /// Starts it; words are separated by single spaces.
    pub(super) fn start(&self, line: &str, stdin: &str) -> Child {
        let dir = self.cluster.dir.path();
        let mut child = Command::new(&self.path)
            .env_clear()
            // kubectl's diff asks the system's own.
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", dir)
            .env("KUBECONFIG", dir.join("kubeconfig"))
            .current_dir(dir)
            .args(line.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child
    }

    /// Runs it; standard output if it succeeds, both outputs if not.
    pub(super) async fn run(&self, line: &str, stdin: &str) -> Result<String, String> {
        let child = self.start(line, stdin);
        let out = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
            .await
            .unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if out.status.success() {
            Ok(text(&out.stdout))
        } else {
            Err(text(&out.stdout) + &text(&out.stderr))
        }
    }

    /// Runs it, which must succeed and print all of these.
    pub(super) async fn check(&self, line: &str, stdin: &str, expected: &[&str]) {
        let name = self.name;
        let out = self
            .run(line, stdin)
            .await
            .unwrap_or_else(|e| panic!("{name} {line}: {e}"));
        for e in expected {
            assert!(out.contains(e), "{name} {line}: no {e:?} in\n{out}");
        }
    }

    /// Runs it, which must fail and print all of these.
    pub(super) async fn refused(&self, line: &str, stdin: &str, expected: &[&str]) {
        let name = self.name;
        let out = self.run(line, stdin).await.expect_err(line);
        for e in expected {
            assert!(out.contains(e), "{name} {line}: no {e:?} in\n{out}");
        }
    }
}
