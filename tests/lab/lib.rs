//! Throw-away Linux hosts on one machine, for tests and the demo: each has its own systemd, sshd, addresses and cgroups.
//!
//! A lab is a name, a bridge and a number of hosts. Everything it makes carries its name, so that two labs live side by side
//! and the leftovers of a crashed run are found without any record of it. No host has a default route.

mod base;
mod cgroup;
mod net;
mod run;
mod snapshot;
mod watches;

pub use net::Network;
pub use run::{Output, output};
pub use snapshot::{Snapshot, diff};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long a host may take until its sshd answers.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Password of root and of the users that every host has: `admin` (sudo asks for it) and `ops` (sudo does not ask).
pub const PASSWORD: &str = "lab-secret";

/// One host of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its host name: `m1`, or `h1`, `h2`, …
    pub name: String,
    /// Its address on the lab's bridge.
    pub ip: Ipv4Addr,
}

/// A lab: hosts on one bridge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lab {
    /// Its name: at most eight lowercase letters and digits.
    pub name: String,
    /// Its network.
    pub network: Network,
    /// Its hosts.
    pub hosts: Vec<Host>,
    /// The folder that holds all its files.
    pub dir: PathBuf,
}

/// What `up` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// The third octet-prefix of the lab's /24, such as `10.88.0`.
    pub prefix: String,
    /// The hosts' names; their addresses are `.11`, `.12`, …
    pub hosts: Vec<String>,
    /// Where labs and the base tree are kept.
    pub state: PathBuf,
}

impl Lab {
    /// Makes and boots a lab, after taking down what is left of one with the same name. Returns when every sshd answers.
    ///
    /// # Errors
    /// When a tool is missing, the base tree cannot be made, or a host does not come up.
    pub fn up(options: &Options) -> Result<Self> {
        let lab = Self {
            name: options.name.clone(),
            network: Network::new(&options.name, &options.prefix)?,
            hosts: hosts(options)?,
            dir: absolute(&options.state)?.join(&options.name),
        };
        lab.down()?;
        let base = base::ensure(&absolute(&options.state)?)?;
        fs::create_dir_all(&lab.dir)?;
        watches::raise(&lab.dir, lab.hosts.len())?;
        lab.make_key()?;
        lab.network.create()?;
        for host in &lab.hosts {
            lab.make_host(host, &base)?;
        }
        fs::write(lab.dir.join("lab.json"), serde_json::to_vec_pretty(&lab)?)?;
        for host in &lab.hosts {
            lab.start(host)?;
        }
        lab.wait_for_ssh(&lab.hosts)?;
        Ok(lab)
    }

    /// Reads the record of a lab that is up.
    ///
    /// # Errors
    /// When there is no such lab.
    pub fn open(state: &Path, name: &str) -> Result<Self> {
        let file = absolute(state)?.join(name).join("lab.json");
        let text = fs::read(&file).with_context(|| format!("no lab {name:?} is up ({} is missing)", file.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Ends all hosts and removes everything that carries the lab's name. A lab that is not there is no error.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn down(&self) -> Result<()> {
        cgroup::kill_all(&self.name)?;
        self.network.remove()?;
        cgroup::remove_all(&self.name)?;
        if self.dir.exists() {
            watches::restore(&self.dir)?;
            fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))?;
        }
        Ok(())
    }

    /// The host with this name or address.
    ///
    /// # Errors
    /// When the lab has no such host.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let known = || {
            self.hosts
                .iter()
                .map(|h| h.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        self.hosts
            .iter()
            .find(|h| h.name == name || h.ip.to_string() == name)
            .with_context(|| format!("lab {:?} has no host {name:?}; it has {}", self.name, known()))
    }

    /// The private key that root of every host accepts.
    pub fn key(&self) -> PathBuf {
        self.dir.join("id_ed25519")
    }

    /// A known_hosts file with the keys of all hosts.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    /// The host's folder: `upper/` and `varlib/` hold what it has written.
    pub fn host_dir(&self, host: &Host) -> PathBuf {
        self.dir.join("hosts").join(&host.name)
    }

    /// The process id of the host's init in the machine's namespace, if it runs.
    pub fn init_pid(&self, host: &Host) -> Option<u32> {
        cgroup::init_of(&self.name, &host.name)
    }

    /// Starts a host that does not run.
    ///
    /// # Errors
    /// When it runs already, or its launcher cannot be started.
    pub fn start(&self, host: &Host) -> Result<()> {
        if self.init_pid(host).is_some() {
            bail!("host {} runs already", host.name);
        }
        let dir = self.host_dir(host);
        cgroup::remove(&self.name, &host.name)?;
        let groups = cgroup::create(&self.name, &host.name)?;
        let base = base::tree(self.dir.parent().context("a lab lies in a folder")?);
        let log = fs::File::create(dir.join("launcher.log"))?;
        // The launcher enters the host's groups before it becomes the supervisor, so that no process is ever outside them.
        let enter: String = groups
            .iter()
            .map(|g| format!("echo $$ > '{}/cgroup.procs'; ", g.display()))
            .collect();
        Command::new("setsid")
            .args(["sh", "-c"])
            .arg(format!("{enter} exec \"$@\""))
            .args(["sh", "sh"])
            .arg(self.dir.join("supervise.sh"))
            .args(self.network.wiring(host))
            .arg("sh")
            .arg(self.dir.join("boot.sh"))
            .args([&dir, &base])
            .arg(&host.name)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the launcher")?;
        Ok(())
    }

    /// Cuts the host's power: every process ends at once.
    ///
    /// # Errors
    /// When its processes do not end.
    pub fn kill(&self, host: &Host) -> Result<()> {
        cgroup::kill_host(&self.name, &host.name)
    }

    /// Restarts the host as its own `reboot` does and waits until its sshd answers again.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&self, host: &Host) -> Result<()> {
        let before = self
            .init_pid(host)
            .with_context(|| format!("host {} does not run", host.name))?;
        self.exec(host, &["systemctl", "reboot"])?;
        wait(&format!("host {} to go down", host.name), || {
            self.init_pid(host) != Some(before)
        })?;
        self.wait_for_ssh(std::slice::from_ref(host))
    }

    /// Runs a program on the host, in all its namespaces.
    ///
    /// # Errors
    /// When the host does not run or the program cannot be started; a failing program is no error here.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(&self, host: &Host, argv: &[S]) -> Result<Output> {
        run::output(self.exec_command(host)?.args(argv))
    }

    /// A command to which the program and its arguments are to be added; it will run on the host.
    ///
    /// # Errors
    /// When the host does not run.
    pub fn exec_command(&self, host: &Host) -> Result<Command> {
        let pid = self
            .init_pid(host)
            .with_context(|| format!("host {} does not run", host.name))?;
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &pid.to_string(),
                "--mount",
                "--uts",
                "--ipc",
                "--net",
                "--pid",
                "--cgroup",
                "--wd=/",
                "--",
            ])
            .args([
                "env",
                "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
            ]);
        Ok(command)
    }

    /// What is on the host now.
    ///
    /// # Errors
    /// When the host does not run.
    pub fn snapshot(&self, host: &Host) -> Result<Snapshot> {
        Snapshot::take(self, host)
    }

    fn wait_for_ssh(&self, hosts: &[Host]) -> Result<()> {
        for host in hosts {
            let address = (host.ip, 22).into();
            wait(&format!("sshd of host {} ({})", host.name, host.ip), || {
                TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
            })
            .with_context(|| {
                let dir = self.host_dir(host);
                let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
                format!("launcher: {}\nconsole: {}", read("launcher.log"), read("console"))
            })?;
        }
        Ok(())
    }

    fn make_key(&self) -> Result<()> {
        for (file, text) in [
            ("boot.sh", include_str!("boot.sh")),
            ("supervise.sh", include_str!("supervise.sh")),
            ("wire.sh", include_str!("wire.sh")),
        ] {
            fs::write(self.dir.join(file), text)?;
        }
        keygen(&self.key(), &format!("lab-{}", self.name))
    }

    fn make_host(&self, host: &Host, base: &Path) -> Result<()> {
        let dir = self.host_dir(host);
        for part in ["root", "upper/etc/ssh", "upper/root/.ssh", "work"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let upper = dir.join("upper");
        for private in ["root", "root/.ssh"] {
            fs::set_permissions(upper.join(private), fs::Permissions::from_mode(0o700))?;
        }
        run::check(
            Command::new("cp")
                .arg("-a")
                .arg(base.join("var/lib"))
                .arg(dir.join("varlib")),
        )?;
        fs::write(dir.join("console"), "")?;
        fs::write(upper.join("etc/hostname"), format!("{}\n", host.name))?;
        fs::write(
            upper.join("etc/hosts"),
            format!("127.0.0.1 localhost\n127.0.1.1 {}\n", host.name),
        )?;
        fs::write(
            upper.join("etc/machine-id"),
            format!("{}\n", machine_id(&self.name, &host.name)),
        )?;
        fs::copy(
            self.key().with_extension("pub"),
            upper.join("root/.ssh/authorized_keys"),
        )?;
        fs::set_permissions(
            upper.join("root/.ssh/authorized_keys"),
            fs::Permissions::from_mode(0o600),
        )?;
        let key = upper.join("etc/ssh/ssh_host_ed25519_key");
        keygen(&key, &host.name)?;
        let public = fs::read_to_string(key.with_extension("pub"))?;
        let words: Vec<_> = public.split_whitespace().take(2).collect();
        let line = format!("{} {}\n", host.ip, words.join(" "));
        let known = fs::read_to_string(self.known_hosts()).unwrap_or_default();
        Ok(fs::write(self.known_hosts(), known + &line)?)
    }
}

fn hosts(options: &Options) -> Result<Vec<Host>> {
    if options.hosts.is_empty() || options.hosts.len() > 200 {
        bail!("a lab has 1 to 200 hosts");
    }
    let host = |(i, name): (usize, &String)| {
        let ip = format!("{}.{}", options.prefix, i + 11).parse();
        Ok(Host {
            name: name.clone(),
            ip: ip.with_context(|| format!("{:?} is not the start of a /24", options.prefix))?,
        })
    };
    options.hosts.iter().enumerate().map(host).collect()
}

fn keygen(path: &Path, comment: &str) -> Result<()> {
    run::check(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
            .arg(path),
    )
}

/// An id that is the host's own and stays the same when the lab is made again.
fn machine_id(lab: &str, host: &str) -> String {
    use sha2::Digest as _;
    hex::encode(&sha2::Sha256::digest(format!("{lab}/{host}"))[..16])
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path)?;
    Ok(path.canonicalize()?)
}

/// Polls a condition for at most [`BOOT_LIMIT`].
fn wait(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > BOOT_LIMIT {
            bail!("waited {} s in vain for {what}", BOOT_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
