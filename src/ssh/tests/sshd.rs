//! Against a real OpenSSH server on loopback: its own keys and configuration in a temporary folder, one `sshd -i` per connection.
//! Needs root and `/usr/sbin/sshd` (Debian: openssh-server).

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failing step fails the test

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ssh::{Auth, Become, Command, Config, Connection, Error, ExitStatus, Pin};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Server {
    dir: tempfile::TempDir,
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn keygen(path: &Path, kind: &str, passphrase: &str) {
    let status = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", passphrase, "-C", "test", "-f"])
        .arg(path)
        .status();
    assert!(status.unwrap().success());
}

impl Server {
    /// `extra` lines come first in sshd's configuration, so they win.
    async fn start(extra: &str) -> Self {
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
        let config = format!(
            "{extra}\nHostKey {0}/host_ed25519\nHostKey {0}/host_rsa\nAuthorizedKeysFile {0}/authorized\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication yes\nLogLevel QUIET\n",
            dir.path().display()
        );
        fs::write(at("config"), config).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = at("config");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream = stream.into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                let (input, output) = (OwnedFd::from(stream.try_clone().unwrap()), OwnedFd::from(stream));
                let mut sshd = tokio::process::Command::new("/usr/sbin/sshd");
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

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> Config {
        let mut config = Config::new("127.0.0.1", "root");
        config.port = self.port;
        config.auth = vec![Auth::KeyFile {
            path: self.at("key"),
            passphrase: None,
        }];
        config.host_key.known_hosts = vec![self.at("known_hosts")];
        config.host_key.accept_new = true;
        config
    }

    async fn connect(&self) -> Connection {
        Connection::connect(&self.config()).await.unwrap()
    }

    fn fingerprint(&self, name: &str) -> String {
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

async fn refused(config: &Config) -> Error {
    Connection::connect(config).await.expect_err("must be refused")
}

#[tokio::test]
async fn commands_keep_their_arguments_streams_and_exit_codes() {
    let server = Server::start("").await;
    let connection = server.connect().await;
    let tricky = ["printf", "%s|", "a b", "it's", "$HOME", "", "*", "x;y"];
    let out = connection.exec(&Command::new(tricky)).await.unwrap();
    assert_eq!(
        (String::from_utf8_lossy(&out.stdout).as_ref(), out.status),
        ("a b|it's|$HOME||*|x;y|", ExitStatus::Code(0))
    );
    let out = connection
        .exec(&Command::new(["sh", "-c", "cat; echo oops >&2; exit 7"]).stdin("in"))
        .await
        .unwrap();
    assert_eq!(
        (out.stdout, out.stderr.as_str(), out.status),
        (b"in".to_vec(), "oops", ExitStatus::Code(7))
    );
    let out = connection
        .exec(&Command::new(["sh", "-c", "kill -9 $$"]))
        .await
        .unwrap();
    assert_eq!(out.status, ExitStatus::Signal("KILL".into()));
    let out = connection
        .exec(&Command::new(["head", "-c", "5000000", "/dev/zero"]).max_output(1000))
        .await
        .unwrap();
    assert_eq!((out.stdout.len(), out.status.success()), (1000, true));
    let late = connection
        .exec(&Command::new(["sleep", "60"]).timeout(Duration::from_millis(200)))
        .await
        .unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    // The connection is as good as before.
    assert!(
        connection
            .exec(&Command::new(["id"]).elevate(Become::Root { password: None }))
            .await
            .unwrap()
            .status
            .success()
    );
}

#[tokio::test]
async fn a_process_and_a_tunnel_carry_bytes_both_ways() {
    let server = Server::start("").await;
    let connection = server.connect().await;
    let payload: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut process = connection.open_process(&Command::new(["cat"])).await.unwrap();
    let (mut stdin, data) = (process.stdin, payload.clone());
    let writing = tokio::spawn(async move {
        stdin.write_all(&data).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    process.stdout.read_to_end(&mut back).await.unwrap();
    writing.await.unwrap();
    assert!(back == payload && process.status.wait().await.success());

    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let mut stream = connection.connect_stream("127.0.0.1", port).await.unwrap();
    stream.write_all(b"through the host").await.unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"through the host");
    let nobody = connection.connect_stream("127.0.0.1", 1).await.unwrap_err();
    assert!(matches!(nobody, Error::Refusal { .. }), "{nobody}");
}

#[tokio::test]
async fn a_dropped_process_is_hung_up_on() {
    let server = Server::start("").await;
    let connection = server.connect().await;
    let pidfile = server.at("pid");
    let script = format!("echo $$ > {}; exec cat", pidfile.display());
    let process = connection
        .open_process(&Command::new(["sh", "-c", &script]))
        .await
        .unwrap();
    let pid = loop {
        match fs::read_to_string(&pidfile) {
            Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    drop(process);
    tokio::time::timeout(Duration::from_secs(10), async {
        while Path::new("/proc").join(&pid).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("cat ends when its stdin closes");
}

#[tokio::test]
async fn unknown_changed_and_pinned_host_keys_are_judged() {
    let server = Server::start("").await;
    let mut config = server.config();
    config.host_key.accept_new = false;
    let shown = server.fingerprint("host_ed25519.pub");
    let unknown = refused(&config).await.to_string();
    assert!(
        unknown.contains(&shown) && unknown.contains("--accept-new-host-keys"),
        "{unknown}"
    );
    assert!(!server.at("known_hosts").exists());

    server.connect().await;
    Connection::connect(&config).await.expect("now it is known");

    // A file that knows only the RSA key makes the server show that one.
    let rsa = fs::read_to_string(server.at("host_rsa.pub")).unwrap();
    let line = |key: &str| format!("[127.0.0.1]:{} {key}", server.port);
    fs::write(server.at("known_hosts"), line(&rsa)).unwrap();
    Connection::connect(&config).await.expect("known by its RSA key");

    let stranger = fs::read_to_string(server.at("stranger.pub")).unwrap();
    fs::write(server.at("known_hosts"), line(&stranger)).unwrap();
    config.host_key.accept_new = true;
    let changed = refused(&config).await.to_string();
    let expected = server.fingerprint("stranger.pub");
    assert!(
        changed.contains("CHANGED")
            && changed.contains(&shown)
            && changed.contains(&expected)
            && changed.contains("known_hosts:1"),
        "{changed}"
    );

    config.host_key.pinned = Some(Pin::Fingerprint(shown));
    Connection::connect(&config).await.expect("the pin rules");
    config.host_key.pinned = Some(stranger.parse().unwrap());
    assert!(matches!(refused(&config).await, Error::HostKeyChanged { .. }));
}

#[tokio::test]
async fn every_way_to_authenticate_is_tried_and_told() {
    let server = Server::start("").await;
    let key = |name: &str, passphrase: Option<&str>| Auth::KeyFile {
        path: server.at(name),
        passphrase: passphrase.map(Into::into),
    };
    let mut config = server.config();
    config.auth = vec![
        key("absent", None),
        key("locked", None),
        key("locked", Some("wrong")),
        key("stranger", None),
        Auth::Password("wrong-pw".into()),
    ];
    let error = refused(&config).await.to_string();
    for part in [
        "absent: no such file",
        "no passphrase is given",
        "passphrase is wrong",
        "stranger: refused",
        "password: refused",
        "publickey",
        "user 'root'",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(!error.contains("wrong-pw") && !format!("{config:?}").contains("wrong-pw"));
    config.auth = vec![key("stranger", None), key("locked", Some("open sesame"))];
    Connection::connect(&config).await.expect("the second key is right");
    config.auth.clear();
    assert!(
        refused(&config)
            .await
            .to_string()
            .contains("No key, agent or password is configured")
    );
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_apart() {
    let server = Server::start("").await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut config = server.config();
    config.port = free;
    assert!(matches!(refused(&config).await, Error::Refused { .. }));
    config.host = "no-such-name.invalid".into();
    assert!(matches!(refused(&config).await, Error::Resolve { .. }));
    // Somebody who accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.host = "127.0.0.1".into();
    config.port = silent.local_addr().unwrap().port();
    config.connect_timeout = Duration::from_millis(300);
    assert!(matches!(
        refused(&config).await,
        Error::Timeout {
            during: "exchanging keys",
            ..
        }
    ));
}

#[tokio::test]
async fn a_bastion_is_gone_through_and_its_refusal_is_told() {
    let (bastion, inner) = (Server::start("").await, Server::start("").await);
    let mut config = inner.config();
    config.jump = Some(Box::new(bastion.config()));
    let connection = Connection::connect(&config).await.unwrap();
    assert!(connection.exec(&Command::new(["true"])).await.unwrap().status.success());
    config.port = 1;
    assert!(matches!(refused(&config).await, Error::Jump { .. }));
    let closed = Server::start("AllowTcpForwarding no").await;
    let mut config = inner.config();
    config.jump = Some(Box::new(closed.config()));
    let error = refused(&config).await.to_string();
    assert!(error.contains("AllowTcpForwarding"), "{error}");
}

#[tokio::test]
async fn a_file_arrives_whole_and_with_its_mode() {
    let server = Server::start("").await;
    let connection = server.connect().await;
    let content: Vec<u8> = (0..2_000_000u32).map(|n| (n % 249) as u8).collect();
    let path = server.at("new folder/program");
    let sent = connection
        .upload(path.to_str().unwrap(), 0o755, &content[..], &Become::User)
        .await
        .unwrap();
    assert_eq!(sent, content.len() as u64);
    assert!(fs::read(&path).unwrap() == content);
    let error = connection
        .upload("/proc/nope/x", 0o755, &content[..], &Become::User)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/proc/nope"), "{error}");
}
