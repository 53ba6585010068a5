//! A real OpenSSH server on loopback: its own keys and configuration in a temporary folder, one `sshd -i` per connection.
//! Needs root and `/usr/sbin/sshd` (Debian: openssh-server).

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // a failing step fails the test; not every test uses all

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use ssh::{Auth, Config, Connection, Error};

pub struct Server {
    pub dir: tempfile::TempDir,
    pub port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn keygen(path: &Path, kind: &str, passphrase: &str) {
    let status = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", passphrase, "-C", "test", "-f"])
        .arg(path)
        .status();
    assert!(status.unwrap().success());
}

impl Server {
    /// `extra` lines come first in sshd's configuration, so they win.
    pub async fn start(extra: &str) -> Self {
        Self::start_with(extra, |_| String::new()).await
    }

    /// As [`Self::start`]; `prepare` is given the server's folder, where its keys are, and returns further lines of configuration. A file `pam`
    /// there stands in for the machine's own rules for sshd, and a shell script `setup` there is run first, in a
    /// mount namespace of its own.
    pub async fn start_with(extra: &str, prepare: impl FnOnce(&Path) -> String) -> Self {
        assert!(
            Path::new("/usr/sbin/sshd").exists(),
            "this test needs an OpenSSH server: apt-get install openssh-server"
        );
        fs::create_dir_all("/run/sshd").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        keygen(&at("host_ed25519"), "ed25519", "");
        keygen(&at("host_rsa"), "rsa", "");
        keygen(&at("key"), "ed25519", "");
        keygen(&at("locked"), "ed25519", "open sesame");
        keygen(&at("stranger"), "ed25519", "");
        let authorized = ["key.pub", "locked.pub"]
            .map(|name| fs::read_to_string(at(name)).unwrap())
            .concat();
        fs::write(at("authorized"), authorized).unwrap();
        let extra = format!("{extra}\n{}", prepare(dir.path()));
        let config = format!(
            "{extra}\nHostKey {0}/host_ed25519\nHostKey {0}/host_rsa\nAuthorizedKeysFile {0}/authorized\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication yes\nLogLevel QUIET\n",
            dir.path().display()
        );
        fs::write(at("config"), config).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (config, pam, setup) = (at("config"), at("pam"), at("setup"));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream = stream.into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                let (input, output) = (OwnedFd::from(stream.try_clone().unwrap()), OwnedFd::from(stream));
                let mut sshd = if pam.exists() {
                    let mut sshd = tokio::process::Command::new("unshare");
                    let script = "mount --bind \"$0\" /etc/pam.d/sshd && exec /usr/sbin/sshd \"$@\"";
                    sshd.args(["-m", "sh", "-c", script]).arg(&pam);
                    sshd
                } else if setup.exists() {
                    let mut sshd = tokio::process::Command::new("unshare");
                    let script = ". \"$0\" && exec /usr/sbin/sshd \"$@\"";
                    sshd.args(["-m", "sh", "-ec", script]).arg(&setup);
                    sshd
                } else {
                    tokio::process::Command::new("/usr/sbin/sshd")
                };
                sshd.arg("-i")
                    .arg("-f")
                    .arg(&config)
                    .stdin(Stdio::from(input))
                    .stdout(Stdio::from(output))
                    .stderr(Stdio::null());
                let mut child = sshd.spawn().unwrap();
                tokio::spawn(async move { child.wait().await });
            }
        });
        Self { dir, port, task }
    }

    /// One where root has this login shell, and these files in the home folder.
    pub async fn with_shell(shell: &str, files: &[(&str, &str)]) -> Self {
        Self::start_with("", |dir| {
            let home = dir.join("home");
            fs::create_dir(&home).unwrap();
            for (name, content) in files {
                let file = home.join(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, content).unwrap();
            }
            let passwd = dir.join("passwd");
            fs::write(
                &passwd,
                format!(
                    "root:x:0:0:root:{}:{shell}\nsshd:x:109:65534::/run/sshd:/usr/sbin/nologin\n",
                    home.display()
                ),
            )
            .unwrap();
            fs::write(
                dir.join("setup"),
                format!("mount --bind {} /etc/passwd\n", passwd.display()),
            )
            .unwrap();
            String::new()
        })
        .await
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new("127.0.0.1", "root");
        config.port = self.port;
        config.auth = vec![Auth::KeyFile {
            path: self.at("key"),
            certificate: None,
            passphrase: None,
        }];
        config.host_key.known_hosts = vec![self.at("known_hosts")];
        config.host_key.accept_new = true;
        config
    }

    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.config()).await.unwrap()
    }

    pub fn fingerprint(&self, name: &str) -> String {
        let out = std::process::Command::new("ssh-keygen")
            .arg("-lf")
            .arg(self.at(name))
            .output()
            .unwrap();
        String::from_utf8(out.stdout)
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .to_owned()
    }
}

pub async fn refused(config: &Config) -> Error {
    Connection::connect(config).await.expect_err("must be refused")
}
