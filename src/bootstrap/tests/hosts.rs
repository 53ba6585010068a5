//! Sessions with real hosts: `clusterd host` as a child of this program.
//!
//! This program is its own `clusterd`: called as `clusterd host --stdio` it serves the host protocol. Because a session puts it
//! to its fixed place, all happens in a mount namespace with a `/var/lib` and `/run` of its own. Needs root, util-linux
//! and `/usr/sbin/sshd` (Debian: openssh-server).

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failing step fails the test

use bootstrap::session::{Access, Program, Session};
use clusterfile::Clusterfile;
use host::{
    CLUSTERD, ClientError, Effect, Mode, Scope,
    effect::File,
    facts::Query,
    proto::{Blob, Condition, FaultKind},
};
use rustix::process::{Pid, Signal};
use ssh::{Become, Command, ExitStatus};
use std::{
    env,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

type Test = fn();

const TESTS: [(&str, Test); 4] = [
    ("work_goes_on_when_a_host_was_away_for_a_while", || {
        block_on(work_goes_on_when_a_host_was_away_for_a_while())
    }),
    ("this_machine_is_a_host_without_ssh", || {
        block_on(this_machine_is_a_host_without_ssh())
    }),
    (
        "a_host_that_cannot_take_our_program_is_told_and_one_that_is_gone_is_noticed",
        || block_on(a_host_that_cannot_take_our_program_is_told_and_one_that_is_gone_is_noticed()),
    ),
    ("this_machine_is_refused_as_a_host_unless_we_are_root", || {
        block_on(this_machine_is_refused_as_a_host_unless_we_are_root())
    }),
];

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    match args.first().map(String::as_str) {
        Some("host") => return block_on(async { host::run(host::Args { stdio: true }).await.unwrap() }),
        Some("inside") => return named(&args[1]).1(),
        Some("unprivileged") => return block_on(unprivileged()),
        _ => {}
    }
    // What test runners ask of a program that is a test.
    if has("--list") {
        let list = TESTS.iter().fold(String::new(), |mut list, (name, _)| {
            let _ = writeln!(list, "{name}: test");
            list
        });
        print!("{}", if has("--ignored") { "" } else { &list });
        return;
    }
    let chosen = TESTS.iter().filter(|(name, _)| {
        let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
        names.is_empty() || names.iter().any(|part| name.contains(part.as_str()))
    });
    for (name, _) in chosen {
        let script =
            "mount -t tmpfs none /var/lib; mount -t tmpfs none /run; mkdir /run/sshd; exec \"$0\" inside \"$1\"";
        let status = process::Command::new("unshare")
            .args(["-m", "sh", "-ec", script])
            .arg(env::current_exe().unwrap())
            .arg(name)
            .status()
            .unwrap();
        assert!(status.success(), "{name} failed");
    }
}

fn named(name: &str) -> (&'static str, Test) {
    *TESTS.iter().find(|(known, _)| *known == name).unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

/// This program, as what sessions bring to hosts.
fn program() -> Program {
    let path = env::current_exe().unwrap();
    let mut file = fs::File::open(&path).unwrap();
    let (digest, _) = oci::Digest::of_reader(&mut file).unwrap();
    Program { path, digest }
}

/// The one host of a Clusterfile with this `ssh`.
fn host_with(ssh: &str) -> (Ipv4Addr, clusterfile::Ssh) {
    let text = format!(
        "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: i\n  ssh: {ssh}\n  \
         hosts: [{{ips: [127.0.0.1], roles: [master]}}]\n"
    );
    let file = Clusterfile::parse(&text, "Clusterfile", Path::new("/")).unwrap();
    let host = &file.cluster.hosts[0];
    (host.ip, host.ssh.clone())
}

fn scope() -> Scope {
    Scope {
        cluster: "demo".into(),
        data_root: "/var/lib/demo".into(),
    }
}

async fn this_machine_is_a_host_without_ssh() {
    let (ip, ssh) = host_with("{connection: local}");
    let (access, program) = (Access::default(), program());
    let error = Session::open(ip, &ssh, &access, None).await.err().unwrap();
    assert!(
        error.to_string().contains("nothing of this installer is there"),
        "{error}"
    );

    let elsewhere = Session::open(Ipv4Addr::new(192, 0, 2, 1), &ssh, &access, None)
        .await
        .err()
        .unwrap();
    assert!(
        elsewhere.to_string().contains("no interface of this machine"),
        "{elsewhere}"
    );

    // What lies there and is not ours is replaced, and what is ours stays.
    fs::create_dir_all("/var/lib/installer").unwrap();
    fs::write(CLUSTERD, "#!/bin/sh\necho an older one >&2\nexit 1\n").unwrap();
    fs::set_permissions(CLUSTERD, fs::Permissions::from_mode(0o755)).unwrap();
    let session = Session::open(ip, &ssh, &access, Some(&program)).await.unwrap();
    assert!(
        session
            .pushed
            .is_some_and(|pushed| !pushed.from_peer && pushed.bytes > 0)
    );
    let again = Session::open(ip, &ssh, &access, Some(&program)).await.unwrap();
    assert_eq!(again.pushed, None);

    session.client.open(&scope(), Mode::Read).await.unwrap();
    let facts = session.client.facts(&Query::default()).await.unwrap();
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(facts.hostname, own.trim());

    let run = async |argv: &[&str], input: &str| {
        let command = Command::new(argv.iter().copied()).stdin(input).elevate(Become::User);
        let output = session.connection.exec(&command.max_output(100)).await.unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.stderr, output.status)
    };
    assert_eq!(
        run(&["sh", "-c", "cat; echo oops >&2; exit 7"], "in").await,
        ("in".to_owned(), "oops".to_owned(), ExitStatus::Code(7))
    );
    assert_eq!(
        run(&["sh", "-c", "kill -9 $$"], "").await.2,
        ExitStatus::Signal("9".into())
    );
    assert_eq!(run(&["head", "-c", "5000000", "/dev/zero"], "").await.0.len(), 100);
    let (pid, _, status) = run(&["sh", "-c", "sleep 1000 & echo $!"], "").await;
    assert!(status.success() && run(&["kill", pid.trim()], "").await.2.success());
    let slow = Command::new(["sleep", "60"]).timeout(Duration::from_millis(100));
    let late = session.connection.exec(&slow).await.unwrap_err().to_string();
    assert!(late.contains("sleep 60"), "{late}");
    let absent = session.connection.exec(&Command::new(["no-such-program"])).await;
    assert!(absent.unwrap_err().to_string().contains("cannot start no-such-program"));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move { listener.accept().await.unwrap().0.write_all(b"hello").await.unwrap() });
    let mut stream = session.connection.connect_stream("127.0.0.1", port).await.unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    served.await.unwrap();
    assert_eq!(got, "hello");
    assert!(session.connection.connect_stream("127.0.0.1", 1).await.is_err());

    drop(again);
    session.remove_program().await.unwrap();
    assert!(!Path::new("/var/lib/installer").exists());
}

async fn this_machine_is_refused_as_a_host_unless_we_are_root() {
    let copy = PathBuf::from("/var/lib/copy");
    fs::copy(env::current_exe().unwrap(), &copy).unwrap();
    let status = process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .arg("unprivileged")
        .status();
    assert!(status.unwrap().success());
}

async fn unprivileged() {
    let (ip, ssh) = host_with("{connection: local}");
    let error = Session::open(ip, &ssh, &Access::default(), Some(&program()))
        .await
        .err()
        .unwrap();
    let error = error.to_string();
    assert!(error.contains("127.0.0.1") && error.contains("needs root"), "{error}");
}

/// A real sshd of this machine.
struct Sshd {
    port: u16,
    listener: process::Child,
}

impl Sshd {
    fn start(port: u16) -> Self {
        let config = "/var/lib/sshd/config";
        if !Path::new(config).exists() {
            fs::create_dir("/var/lib/sshd").unwrap();
            for name in ["host", "key"] {
                let file = format!("/var/lib/sshd/{name}");
                let status = process::Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f", &file])
                    .status();
                assert!(status.unwrap().success());
            }
            let text = "HostKey /var/lib/sshd/host\nAuthorizedKeysFile /var/lib/sshd/key.pub\nStrictModes no\nUsePAM no\n\
                 PermitRootLogin yes\nListenAddress 127.0.0.1\nPidFile none\nLogLevel QUIET\n";
            fs::write(config, text).unwrap();
        }
        let listener = process::Command::new("/usr/sbin/sshd")
            .args(["-D", "-f", config, "-p", &port.to_string()])
            .spawn()
            .unwrap();
        Self { port, listener }
    }

    /// Ends it with all its connections, without a word to anybody.
    fn kill(mut self) {
        // While it stands still it neither forks nor reaps: the kernel may leave children out of the list when others are reaped meanwhile.
        let listener = i32::try_from(self.listener.id()).unwrap();
        signal(listener, Signal::STOP);
        while !stands_still(listener) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for pid in children(listener) {
            signal(pid, Signal::KILL);
        }
        self.listener.kill().unwrap();
        self.listener.wait().unwrap();
    }

    async fn is_up(&self) {
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn signal(pid: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn stands_still(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('T')
}

fn children(parent: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// What is heard through a port of this machine.
async fn through(port: u16) -> String {
    let mut text = String::new();
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

fn shell(script: &str) {
    let status = process::Command::new("sh").args(["-euc", script]).status();
    assert!(status.unwrap().success(), "{script}");
}

/// Root logs in with this shell from now on, and with these files in the home folder.
fn log_in_with(login_shell: &str, files: &[(&str, &str)]) {
    shell("umount /etc/passwd 2>/dev/null || true; rm -rf /var/lib/home; mkdir -p /var/lib/home/.ssh");
    for (name, content) in files {
        fs::write(Path::new("/var/lib/home").join(name), content).unwrap();
    }
    shell(&format!(
        "sed 's#^root:.*#root:x:0:0:root:/var/lib/home:{login_shell}#' /etc/passwd > /var/lib/passwd
        mount --bind /var/lib/passwd /etc/passwd"
    ));
}

async fn a_host_that_cannot_take_our_program_is_told_and_one_that_is_gone_is_noticed() {
    let sshd = Sshd::start(free_port());
    sshd.is_up().await;
    let (ip, ssh) = host_with(&format!("{{port: {}, pk: /var/lib/sshd/key}}", sshd.port));
    let access = Access {
        known_hosts: vec!["/var/lib/sshd/known".into()],
        accept_new_host_keys: true,
        ..Access::default()
    };
    let program = program();
    let open = async || {
        let opened = Session::open(ip, &ssh, &access, Some(&program));
        tokio::time::timeout(Duration::from_secs(180), opened)
            .await
            .expect("it ends")
    };
    let refused = async |expected: &str| {
        let error = open().await.err().expect(expected).to_string();
        assert!(
            error.contains(expected) && error.contains("127.0.0.1"),
            "{expected} in {error}"
        );
        assert!(!Path::new(CLUSTERD).exists() && !Path::new(CLUSTERD).with_extension("part").exists());
    };
    log_in_with("/usr/sbin/nologin", &[]);
    refused("currently not available").await;
    log_in_with("/bin/false", &[]);
    refused("said nothing").await;
    log_in_with("/bin/bash", &[(".bashrc", "sleep 1000\n")]);
    refused("it waits for something").await;

    log_in_with("/bin/sh", &[]);
    shell("mkdir /var/lib/installer; mount -t tmpfs -o size=1m none /var/lib/installer");
    refused("No space left on device").await;
    shell("mount -o remount,ro /var/lib/installer");
    refused("Read-only file system").await;
    shell("umount /var/lib/installer");

    log_in_with("/usr/bin/tcsh", &[]);
    let session = open().await.unwrap();
    assert!(session.pushed.is_some());
    // What is printed before our program begins is passed over.
    log_in_with(
        "/bin/bash",
        &[
            (".bashrc", "echo hello from bashrc\n"),
            (".ssh/rc", "printf 'and more'\n"),
        ],
    );
    let session = open().await.unwrap();
    assert_eq!(session.pushed, None);
    session.client.open(&scope(), Mode::Read).await.unwrap();
    assert!(session.client.preamble().contains("hello from bashrc"));
    // From now on nobody is there. Whoever waits for something else learns it, long before the time for which a host
    // that answers is looked for.
    sshd.kill();
    let gone = tokio::time::timeout(Duration::from_secs(150), session.client.gone());
    let error = gone.await.expect("a minute is enough").to_string();
    assert!(error.contains("no sign of life"), "{error}");
}

async fn work_goes_on_when_a_host_was_away_for_a_while() {
    let port = free_port();
    let sshd = Sshd::start(port);
    sshd.is_up().await;
    let (ip, ssh) = host_with(&format!("{{port: {port}, pk: /var/lib/sshd/key}}"));
    let access = Access {
        known_hosts: vec!["/var/lib/sshd/known".into()],
        accept_new_host_keys: true,
        bandwidth: Some(bootstrap::bandwidth::Bandwidth::new("4MB".parse().unwrap())),
        ..Access::default()
    };
    let unhindered = Access {
        bandwidth: None,
        ..access.clone()
    };
    drop(Session::open(ip, &ssh, &unhindered, Some(&program())).await.unwrap());
    let session = Session::open(ip, &ssh, &access, None).await.unwrap();
    let write = || Mode::Write {
        who: "apply by ann".into(),
    };
    session.client.open(&scope(), write()).await.unwrap();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let behind = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"hello").await.unwrap();
        }
    });
    let tunnel = bootstrap::cluster::Tunnel::open(&session.config, "127.0.0.1", behind)
        .await
        .unwrap();
    assert_eq!(through(tunnel.port()).await, "hello");

    // Something to wait for, and a blob that takes some seconds.
    let waiting = session.client.clone();
    let later = Condition::Path {
        path: "/var/lib/later".into(),
    };
    let waited = tokio::spawn(async move { waiting.wait_for(later, Duration::from_secs(60)).await });
    let content: Vec<u8> = (0..12_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write("/var/lib/blob", &content).unwrap();
    let blob = Blob {
        digest: oci::Digest::of(&content),
        size: content.len() as u64,
    };
    let missing = session
        .client
        .missing_blobs(vec![blob.clone()])
        .await
        .unwrap()
        .remove(0);
    let sent = std::sync::Arc::new(AtomicU64::new(0));
    let (sending, counted) = (session.clone(), sent.clone());
    let delivered = tokio::spawn(async move {
        let told = |bytes| {
            counted.fetch_add(bytes, Ordering::Relaxed);
        };
        bootstrap::transfer::deliver(&sending, Path::new("/var/lib/blob"), missing, told).await
    });
    while sent.load(Ordering::Relaxed) < 3_000_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sshd.kill();
    let applying = session.client.clone();
    let effect = Effect::File(File {
        path: "/var/lib/written".into(),
        content: "x".into(),
        mode: 0o600,
        owner: None,
        secret: false,
    });
    let applied = tokio::spawn(async move { applying.apply(vec![effect]).await });
    let tunnelled = tokio::spawn(async move { through(tunnel.port()).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waited.is_finished(), "{:?}", waited.await);
    assert!(!delivered.is_finished(), "{:?}", delivered.await);
    assert!(!applied.is_finished(), "{:?}", applied.await);
    assert!(!tunnelled.is_finished(), "{:?}", tunnelled.await);

    let sshd = Sshd::start(port);
    assert!(applied.await.unwrap().unwrap()[0].changed());
    assert_eq!(fs::read_to_string("/var/lib/written").unwrap(), "x");
    delivered.await.unwrap().unwrap();
    assert_eq!(sent.load(Ordering::Relaxed), blob.size, "each byte is told once");
    assert!(session.client.missing_blobs(vec![blob]).await.unwrap().is_empty());
    assert_eq!(tunnelled.await.unwrap(), "hello");
    fs::write("/var/lib/later", "").unwrap();
    waited.await.unwrap().unwrap();
    // The lock is ours again, and programs can be run as before.
    let other = Session::open(ip, &ssh, &access, None).await.unwrap();
    match other.client.open(&scope(), write()).await {
        Err(ClientError::Fault(fault)) => assert_eq!(fault.kind, FaultKind::Locked),
        other => panic!("{other:?}"),
    }
    let output = session.connection.exec(&Command::new(["id", "-u"])).await.unwrap();
    assert_eq!(output.stdout, b"0\n");
    drop((session, other));
    sshd.kill();
}
