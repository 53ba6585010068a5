//! What the end-to-end tests share: a lab, the programs as users have them, and waiting for conditions.
//!
//! The programs and the default cluster image must have been built (`make image`); a test says so if they are not there.
//! The tests take turns (`.config/nextest.toml`), because they share the machine and one lab's name.

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, Lab, Options, Output, PASSWORD};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// The lab's name and the start of its addresses; the demo uses others, so both can be up. With `E2E_LAB` and `E2E_PREFIX` two trees can be
/// tested on one machine.
fn place() -> (String, String) {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    (variable("E2E_LAB", "e2e"), variable("E2E_PREFIX", "10.89.0"))
}

/// How long anything may take that should happen by itself.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Hosts, a Clusterfile for them, and the operator's tools. Dropping it takes the hosts down.
pub struct Site {
    /// The hosts.
    pub lab: Lab,
    dir: tempfile::TempDir,
}

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// A program built from this tree, of the same profile as this test.
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let path = test.ancestors().nth(2).context("a test lies in deps/")?.join(name);
    if !path.exists() {
        bail!("{} is missing: run `make image` first", path.display());
    }
    Ok(path)
}

/// The operator's store, which holds the images the Makefile has built.
pub fn store() -> PathBuf {
    std::env::var_os("INSTALLER_STORE").map_or_else(|| repository().join("target/store"), PathBuf::from)
}

impl Site {
    /// Boots hosts with these names: the first has the address `.11`, the next `.12`, ….
    ///
    /// # Errors
    /// When the lab cannot be made.
    pub fn up(hosts: &[&str]) -> Result<Self> {
        let hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        let state = repository().join("target/lab");
        let (name, prefix) = place();
        let lab = Lab::up(&Options {
            name,
            prefix,
            hosts,
            state,
        })?;
        Ok(Self {
            lab,
            dir: tempfile::tempdir()?,
        })
    }

    /// The address of a host.
    pub fn ip(&self, host: &str) -> String {
        self.host(host).ip.to_string()
    }

    /// A host by name.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    #[expect(
        clippy::expect_used,
        reason = "a test that names an unknown host is wrong and shall say so"
    )]
    pub fn host(&self, name: &str) -> &Host {
        self.lab.host(name).expect("a host of this lab")
    }

    /// A file beside the Clusterfile.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the Clusterfile lies.
    pub fn clusterfile(&self) -> PathBuf {
        self.file("Clusterfile")
    }

    /// Copies the store, for a test that changes it; where the copy lies.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy_store(&self, name: &str) -> Result<PathBuf> {
        let copy = self.file(name);
        lab::output(Command::new("cp").arg("--recursive").arg(store()).arg(&copy))?.ok()?;
        Ok(copy)
    }

    /// Writes a Clusterfile: one master, the rest nodes, root by key. `spec` is added to the cluster's specification.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_clusterfile(&self, masters: &[&str], nodes: &[&str], spec: &str) -> Result<()> {
        let ssh = format!("ssh: {{user: root, pk: {}}}", self.lab.key().display());
        self.write_clusterfile_with(masters, nodes, &format!("{ssh}\n{spec}"))
    }

    /// The same without any `ssh`: `spec` brings it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_clusterfile_with(&self, masters: &[&str], nodes: &[&str], spec: &str) -> Result<()> {
        let ips = |names: &[&str]| names.iter().map(|n| self.ip(n)).collect::<Vec<_>>().join(", ");
        let mut text = "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {name: e2e}\nspec:\n".to_owned();
        if !spec.contains("image:") {
            text.push_str("  image: local/native:dev\n");
        }
        spec.lines()
            .filter(|l| !l.trim().is_empty())
            .for_each(|line| text.push_str(&format!("  {line}\n")));
        text.push_str(&format!("  hosts:\n  - {{ips: [{}], roles: [master]}}\n", ips(masters)));
        if !nodes.is_empty() {
            text.push_str(&format!("  - {{ips: [{}], roles: [node]}}\n", ips(nodes)));
        }
        // Lab hosts share the machine's disk: how full that is shall not decide a test.
        text.push_str(
            "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}\n",
        );
        Ok(fs::write(self.clusterfile(), text)?)
    }

    /// The `installer` as an operator calls it, with this lab's known hosts. The caller adds arguments.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn installer_command(&self) -> Result<Command> {
        self.installer_with(&store())
    }

    /// The same with another store than the one the Makefile has filled.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn installer_with(&self, store: &Path) -> Result<Command> {
        let mut command = Command::new(program("installer")?);
        command.current_dir(self.dir.path()).arg("--store").arg(store);
        command.arg("--known-hosts").arg(self.lab.known_hosts());
        Ok(command)
    }

    /// Runs `installer` to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn installer(&self, args: &[&str]) -> Result<Output> {
        lab::output(self.installer_command()?.args(args))
    }

    /// Runs `installer` and shows what it said if it fails.
    ///
    /// # Errors
    /// When it fails.
    pub fn installer_ok(&self, args: &[&str]) -> Result<String> {
        let out = self.installer(args)?;
        let said = format!("{}{}", out.stdout, out.stderr);
        out.ok().with_context(|| format!("installer {args:?}"))?;
        Ok(said)
    }

    /// Applies the Clusterfile and takes the administrator's kubeconfig.
    ///
    /// # Errors
    /// When either fails.
    pub fn apply(&self) -> Result<String> {
        let said = self.installer_ok(&["apply", "-f", "Clusterfile", "--yes"])?;
        let kubeconfig = self.installer(&["kubeconfig", "-f", "Clusterfile"])?.ok()?;
        fs::write(self.file("kubeconfig"), kubeconfig)?;
        Ok(said)
    }

    /// Runs stock kubectl as the administrator, on this machine.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(repository().join("target/tools/kubectl"));
        command
            .env("KUBECONFIG", self.file("kubeconfig"))
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path());
        lab::output(command.args(args))
    }

    /// Standard output of a kubectl that succeeds.
    ///
    /// # Errors
    /// When it does not.
    pub fn kubectl_ok(&self, args: &[&str]) -> Result<String> {
        self.kubectl(args)?.ok().with_context(|| format!("kubectl {args:?}"))
    }

    /// An object, or a list of objects, as JSON.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let args: Vec<&str> = ["get", "-o", "json"].iter().chain(what).copied().collect();
        Ok(serde_json::from_str(&self.kubectl_ok(&args)?)?)
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When kubectl refuses them.
    pub fn apply_manifest(&self, text: &str) -> Result<()> {
        let path = self.file("manifest.yaml");
        fs::write(&path, text)?;
        self.kubectl_ok(&["apply", "-f", "manifest.yaml"]).map(drop)
    }

    /// Runs a shell line on a host; its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn on(&self, host: &str, script: &str) -> Result<String> {
        self.lab
            .exec(self.host(host), &["sh", "-c", script])?
            .ok()
            .with_context(|| format!("on {host}: {script}"))
    }

    /// Puts a file on a host, readable and executable for all.
    ///
    /// # Errors
    /// When it cannot be read here or written there.
    pub fn put(&self, host: &str, from: &Path, to: &str) -> Result<()> {
        let script = format!("mkdir -p \"$(dirname {to})\" && cat > {to} && chmod 755 {to}");
        let mut command = self.lab.exec_command(self.host(host))?;
        let status = command
            .args(["sh", "-c", &script])
            .stdin(fs::File::open(from)?)
            .status()?;
        ensure!(status.success(), "cannot put {} on {host}", from.display());
        Ok(())
    }

    /// One HTTP answer's last line, asked for with bash, for the hosts have no HTTP client.
    ///
    /// # Errors
    /// When nothing answers within five seconds.
    pub fn http(&self, host: &str, address: &str, port: u16) -> Result<String> {
        let script =
            format!(r"exec 3<>/dev/tcp/{address}/{port} && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && tail -1 <&3");
        let body = self
            .lab
            .exec(self.host(host), &["timeout", "5", "bash", "-c", &script])?
            .ok()?;
        ensure!(!body.trim().is_empty(), "{address}:{port} answered nothing to {host}");
        Ok(body.trim().to_owned())
    }

    /// Asks the cluster's DNS from a host's network for a name, with this machine's `dig`: the host has no such tool.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn resolve(&self, host: &str, name: &str) -> Result<String> {
        let pid = self
            .lab
            .init_pid(self.host(host))
            .with_context(|| format!("{host} does not run"))?;
        let mut dig = Command::new("nsenter");
        dig.args([
            "--target",
            &pid.to_string(),
            "--net",
            "--",
            "dig",
            "+short",
            "+time=2",
            "@10.96.0.10",
            name,
        ]);
        Ok(lab::output(&mut dig)?.ok()?.trim().to_owned())
    }

    /// Waits until every node and every pod of kube-system is Ready.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn wait_ready(&self, nodes: usize) -> Result<()> {
        eventually("all nodes and system pods to be ready", || {
            let ready = self.get(&["nodes"])?["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|n| is_ready(n))
                .count();
            let pods = self.get(&["pods", "-n", "kube-system"])?;
            let waiting: Vec<_> = pods["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|p| !is_ready(p))
                .collect();
            if ready != nodes || !waiting.is_empty() {
                let names: Vec<_> = waiting.iter().map(|p| p["metadata"]["name"].to_string()).collect();
                bail!("{ready} of {nodes} nodes ready; not ready: {}", names.join(" "));
            }
            Ok(())
        })
    }

    /// Waits for a rollout.
    ///
    /// # Errors
    /// When it does not finish in time.
    pub fn rollout(&self, what: &str) -> Result<()> {
        self.kubectl_ok(&["rollout", "status", what, "--timeout=90s"]).map(drop)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::env::var_os("E2E_KEEP").is_some() {
            eprintln!("the hosts of lab {:?} are kept (E2E_KEEP is set)", place().0);
            return;
        }
        if let Err(error) = self.lab.down() {
            eprintln!("cannot take lab {:?} down: {error:#}", place().0);
        }
    }
}

/// A program has refused `what`, and all of `says` is in what it said; the lab's password is not.
///
/// # Errors
/// When it accepted it, or said too little or too much.
pub fn refused(out: &Output, what: &str, says: &[&str]) -> Result<()> {
    let said = format!("{}{}", out.stdout, out.stderr);
    ensure!(out.code != 0, "{what} was accepted: {said}");
    for part in says {
        ensure!(said.contains(part), "{what}: {part:?} is not in: {said}");
    }
    ensure!(!said.contains(PASSWORD), "{what}: the password is in: {said}");
    Ok(())
}

/// Whether the object's condition `Ready` is true.
pub fn is_ready(object: &Value) -> bool {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Tries until it succeeds, for at most [`PATIENCE`].
///
/// # Errors
/// The last failure, when time is up.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error.context(format!("waited {} s in vain for {what}", PATIENCE.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
