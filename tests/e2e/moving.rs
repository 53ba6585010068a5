//! The examples of docs/moving.md, run as they stand with the program that users have. No host is needed.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A registry on a port of its own; it ends with the value.
struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn debian(dir: &Path, address: &str) -> Result<Command> {
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            dir.join("registry").display()
        );
        let file = dir.join("registry.yml");
        fs::write(&file, config)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        Ok(command)
    }

    fn ours(dir: &Path, address: &str) -> Result<Command> {
        let mut command = Command::new(e2e::program("clusterd")?);
        command.args(["registry", "--writable", "--listen", address, "--store"]);
        command.arg(dir.join("registry"));
        Ok(command)
    }

    /// None if it is not installed.
    fn start(dir: &Path, command: fn(&Path, &str) -> Result<Command>) -> Result<Option<Registry>> {
        let free = TcpListener::bind("127.0.0.1:0")?;
        let address = free.local_addr()?.to_string();
        drop(free);
        let mut command = command(dir, &address)?;
        let Ok(child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            return Ok(None);
        };
        let registry = Registry { child, address };
        let start = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            ensure!(start.elapsed() < Duration::from_secs(20), "{command:?} does not listen");
            std::thread::yield_now();
        }
        Ok(Some(registry))
    }
}

#[test]
fn the_examples_of_moving_images_work_as_they_stand() -> Result<()> {
    run_examples(Registry::debian)
}

#[test]
fn the_examples_of_moving_images_work_with_our_own_registry() -> Result<()> {
    run_examples(Registry::ours)
}

fn run_examples(command: fn(&Path, &str) -> Result<Command>) -> Result<()> {
    let text = fs::read_to_string(e2e::repository().join("docs/moving.md"))?;
    let mut blocks: Vec<String> = e2e::examples(&text).into_iter().map(|example| example.script).collect();
    ensure!(blocks.len() >= 9, "docs/moving.md has only {} examples", blocks.len());
    let dir = tempfile::tempdir()?;
    let registry = Registry::start(dir.path(), command)?;
    if registry.is_none() {
        eprintln!("docker-registry is not installed; its example is not run");
        blocks.retain(|block| !block.contains("$REGISTRY"));
    }
    let program = e2e::program("installer")?;
    let programs = program.parent().context("a program lies in a folder")?;
    let path = std::env::join_paths(
        [programs.to_path_buf()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    let output = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &blocks.join("\n")])
        .current_dir(dir.path())
        .env("PATH", path)
        .env("INSTALLER_STORE", dir.path().join("here"))
        .env("SITE", dir.path().join("site"))
        .env("REGISTRY", registry.as_ref().map_or("", |registry| &registry.address))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{said}", output.status);
    let shown = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "~ file manifests/shop.yaml",
        "blobs to send",
        "manifests/extra.yaml",
        "would be freed",
    ] {
        ensure!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
    Ok(())
}
