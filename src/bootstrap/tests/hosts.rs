//! Sessions with real hosts: `clusterd host` as a child of this program.
//!
//! This program is its own `clusterd`: called as `clusterd host --stdio` it serves the host protocol. Because a session puts it
//! to its fixed place, all happens in a mount namespace with a `/var/lib` of its own. Needs root and util-linux.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failing step fails the test

use bootstrap::session::{Access, Program, Session};
use clusterfile::Clusterfile;
use host::{CLUSTERD, Mode, Scope, facts::Query};
use ssh::{Become, Command, ExitStatus};
use std::{
    env,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
    time::Duration,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

type Test = fn();

const TESTS: [(&str, Test); 2] = [
    ("this_machine_is_a_host_without_ssh", || {
        block_on(this_machine_is_a_host_without_ssh())
    }),
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
        let script = "mount -t tmpfs none /var/lib && exec \"$0\" inside \"$1\"";
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

    // What lies there and is not ours is replaced, and what is ours stays.
    fs::create_dir_all("/var/lib/installer").unwrap();
    fs::write(CLUSTERD, "#!/bin/sh\necho an older one >&2\nexit 1\n").unwrap();
    fs::set_permissions(CLUSTERD, fs::Permissions::from_mode(0o755)).unwrap();
    let session = Session::open(ip, &ssh, &access, Some(&program)).await.unwrap();
    assert!(session.pushed);
    let again = Session::open(ip, &ssh, &access, Some(&program)).await.unwrap();
    assert!(!again.pushed);

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
    let slow = Command::new(["sleep", "60"]).timeout(Duration::from_millis(100));
    let late = session.connection.exec(&slow).await.unwrap_err().to_string();
    assert!(late.contains("sleep 60"), "{late}");
    let absent = session.connection.exec(&Command::new(["no-such-program"])).await;
    assert!(absent.unwrap_err().to_string().contains("no-such-program not found"));

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
