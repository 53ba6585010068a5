//! Streams as the Python and the JavaScript client open them, through the API server and the agent. The clients lie where the
//! Makefile puts them; where there is none, it is left out.

use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools")
}

/// What a script prints, line by line.
async fn lines(name: &str, mut command: Command) -> Vec<String> {
    let running = command.kill_on_drop(true).output();
    let Ok(out) = tokio::time::timeout(Duration::from_secs(120), running).await else {
        panic!("{name} does not end");
    };
    let out = out.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        out.status.success(),
        "{name}: {}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
    text(&out.stdout).lines().map(|l| l.trim_end().to_owned()).collect()
}

/// Runs commands and reaches a port of a pod with every client that is there.
pub async fn check_streams(kubeconfig: &Path, pod: &str, container: &str, port: u16) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/clients");
    let port = port.to_string();
    let served = "root:x:0:0:root:/root:/bin/sh";
    let python = tools().join("python");
    if python.join("kubernetes").is_dir() {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &python).arg(scripts.join("streams.py"));
        command.arg(kubeconfig).args([pod, container, &port]);
        let expected = [
            "exec plain bad 0".to_owned(),
            "exec text  3".to_owned(),
            "exec binary  4".to_owned(),
            format!("forward HTTP/1.1 200 OK {served} None"),
            "log serving".to_owned(),
        ];
        assert_eq!(lines("the Python client", command).await, expected);
    } else {
        eprintln!("SKIPPED: the Python client is not in {}", python.display());
    }
    let javascript = tools().join("javascript");
    if javascript.join("node_modules").is_dir() {
        let mut command = Command::new("node");
        command
            .arg(scripts.join("streams.mjs"))
            .arg(&javascript)
            .arg(kubeconfig);
        command.args([pod, container, &port]);
        let expected = [
            "exec plain bad Success".to_owned(),
            "exec written  Failure 3".to_owned(),
            "exec to the end  Success".to_owned(),
            format!("forward HTTP/1.1 200 OK {served}"),
        ];
        assert_eq!(lines("the JavaScript client", command).await, expected);
    } else {
        eprintln!("SKIPPED: the JavaScript client is not in {}", javascript.display());
    }
}
