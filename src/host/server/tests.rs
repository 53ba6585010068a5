//! Client and server over a pipe in memory, on a host in a folder.

use super::*;
use crate::{
    Client, ClientError, Effect, beat,
    effect::{File, Subject, Usage},
    proto::{Condition, Missing, RunEnd, RunMark},
    system::Ran,
};
use std::path::Path;

mod sharing;

struct NoSystem;

impl System for NoSystem {
    fn run(&self, _: &[&str]) -> io::Result<Ran> {
        Ok(Ran::default())
    }
}

fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["run", "etc", "var/lib", "proc/sys"] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    dir
}

/// A connected client, and the server's task.
fn connect(root: &Path) -> (Client, tokio::task::JoinHandle<io::Result<()>>) {
    let (here, there) = tokio::io::duplex(1 << 20);
    let ((reader, writer), (server_reader, server_writer)) = (tokio::io::split(here), tokio::io::split(there));
    let task = tokio::spawn(serve(
        server_reader,
        server_writer,
        Root::at(root),
        Arc::new(NoSystem),
        Own::default(),
    ));
    (Client::new(reader, writer), task)
}

/// A reset whose connection was lost opens a host once more that is bare by then, and may be lost again.
#[tokio::test]
async fn a_host_that_was_only_opened_keeps_nothing() {
    let host = host();
    for blobs in [false, true] {
        let (client, task) = writer(host.path()).await;
        if blobs {
            let blob = Blob {
                digest: oci::Digest::of(b"x"),
                size: 1,
            };
            client.put_blob(&blob, 0, &b"x"[..]).await.unwrap();
        }
        drop(client);
        task.await.unwrap().unwrap();
        assert_eq!(host.path().join("data").exists(), blobs);
    }
    let (client, _task) = writer(host.path()).await;
    assert_eq!(client.undo().await.unwrap().left, []);
    assert!(!host.path().join("data").exists());
}

#[tokio::test]
async fn with_the_last_installation_goes_the_program_and_what_was_left_of_its_coming() {
    let host = host();
    let folder = host.path().join("var/lib/installer");
    std::fs::create_dir(&folder).unwrap();
    for file in crate::CLUSTERD_FILES {
        let name = Path::new(file).file_name().unwrap();
        std::fs::write(folder.join(name), "").unwrap();
    }
    let (client, _task) = writer(host.path()).await;
    assert_eq!(client.undo().await.unwrap().failed, Vec::<String>::new());
    assert!(!folder.exists());
}

#[tokio::test(start_paused = true)]
async fn a_client_with_nothing_to_say_stays_connected() {
    let host = host();
    let (client, task) = connect(host.path());
    client.hello().await.unwrap();
    tokio::time::sleep(beat::SILENCE * 20).await;
    client.ping().await.unwrap();
    drop(client);
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_went_without_a_word_holds_no_host_for_long() {
    let host = host();
    let (here, there) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(there);
    let begun = tokio::time::Instant::now();
    let served = serve(
        reader,
        writer,
        Root::at(host.path()),
        Arc::new(NoSystem),
        Own::default(),
    )
    .await;
    assert_eq!(served.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(begun.elapsed() < beat::SILENCE * 2);
    drop(here);
}

fn scope() -> Scope {
    Scope {
        cluster: "demo".into(),
        data_root: "/data".into(),
    }
}

async fn writer(root: &Path) -> (Client, tokio::task::JoinHandle<io::Result<()>>) {
    let (client, task) = connect(root);
    client.hello().await.unwrap();
    client
        .open(
            &scope(),
            Mode::Write {
                who: "apply by ann".into(),
            },
        )
        .await
        .unwrap();
    (client, task)
}

fn file(content: &str) -> Effect {
    Effect::File(File {
        path: "/etc/new/x".into(),
        content: content.into(),
        mode: 0o600,
        owner: None,
        secret: true,
    })
}

fn fault(error: ClientError) -> Fault {
    error.fault().cloned().unwrap_or_else(|| panic!("{error}"))
}

#[tokio::test]
async fn requests_are_legal_only_in_their_order() {
    let dir = host();
    let (client, _task) = connect(dir.path());
    assert!(fault(client.ping().await.unwrap_err()).message.contains("hello"));
    client.hello().await.unwrap();
    assert!(
        fault(client.preview(vec![]).await.unwrap_err())
            .message
            .contains("open a scope")
    );
    client.open(&scope(), Mode::Read).await.unwrap();
    assert!(client.preview(vec![file("x")]).await.unwrap()[0].changed());
    assert!(
        fault(client.apply(vec![file("x")]).await.unwrap_err())
            .message
            .contains("looking only")
    );
    assert!(!dir.path().join("data").exists(), "looking changes nothing");
    client.open(&scope(), Mode::Write { who: "ann".into() }).await.unwrap();
    let other = Scope::new("other");
    assert!(
        fault(client.open(&other, Mode::Read).await.unwrap_err())
            .message
            .contains("another cluster")
    );
}

#[tokio::test]
async fn the_second_writer_is_told_of_the_first_who_frees_the_host_by_leaving() {
    let dir = host();
    let (first, task) = writer(dir.path()).await;
    let (second, _task) = connect(dir.path());
    second.hello().await.unwrap();
    let mode = || Mode::Write { who: "bob".into() };
    let refused = fault(second.open(&scope(), mode()).await.unwrap_err());
    assert!(
        refused.kind == FaultKind::Locked && refused.message.contains("apply by ann"),
        "{refused:?}"
    );
    drop(first);
    task.await.unwrap().unwrap();
    second.open(&scope(), mode()).await.unwrap();
}

#[tokio::test]
async fn effects_are_applied_in_order_and_the_failing_one_is_named() {
    let dir = host();
    let (client, _task) = writer(dir.path()).await;
    let bad = Effect::Link {
        path: "/etc".into(),
        target: "x".into(),
    };
    let refused = fault(
        client
            .apply(vec![file("secret"), bad, file("never")])
            .await
            .unwrap_err(),
    );
    assert_eq!(refused.effect, Some(1));
    assert_eq!(std::fs::read_to_string(dir.path().join("etc/new/x")).unwrap(), "secret");
    assert_eq!(&**client.read_file("/etc/new/x", 100).await.unwrap(), b"secret");
    let large = fault(client.read_file("/etc/new/x", 3).await.unwrap_err());
    assert!(large.message.contains("more than 3"), "{}", large.message);
    assert!(
        client
            .journal()
            .await
            .unwrap()
            .entries
            .iter()
            .any(|e| e.contains("/etc/new/x"))
    );
    let undone = client.undo().await.unwrap();
    assert_eq!((undone.failed, undone.left), (vec![], vec![]));
    assert!(!dir.path().join("etc/new").exists() && !dir.path().join("data").exists());
    let closed = fault(client.apply(vec![file("x")]).await.unwrap_err());
    assert!(closed.message.contains("open a scope"), "{}", closed.message);
}

#[tokio::test]
async fn blobs_stream_resume_and_are_verified() {
    let dir = host();
    let (client, task) = writer(dir.path()).await;
    let content: Vec<u8> = (0..5_000_000u32).map(|n| (n % 253) as u8).collect();
    let blob = Blob {
        digest: oci::Digest::of(&content),
        size: content.len() as u64,
    };

    // The connection breaks in the middle: what arrived stays.
    let (mut feed, source) = tokio::io::duplex(1 << 20);
    let (sender, wanted) = (client.clone(), blob.clone());
    let sending = tokio::spawn(async move { sender.put_blob(&wanted, 0, source).await });
    tokio::io::AsyncWriteExt::write_all(&mut feed, &content[..3_000_000])
        .await
        .unwrap();
    let layout = oci::Layout::open(dir.path().join("data/demo"));
    while layout.blobs().partial_size(&blob.digest) < 2_000_000 {
        tokio::task::yield_now().await;
    }
    sending.abort();
    assert!(sending.await.is_err());
    drop(client);
    task.await.unwrap().unwrap();

    let (client, _task) = writer(dir.path()).await;
    let missing = client.missing_blobs(vec![blob.clone()]).await.unwrap();
    let [Missing { have, .. }] = missing[..] else {
        panic!("{missing:?}")
    };
    assert!((2_000_000..=3_000_000).contains(&have));
    client.put_blob(&blob, have, &content[have as usize..]).await.unwrap();
    assert!(client.missing_blobs(vec![blob.clone()]).await.unwrap().is_empty());
    let mut back = Vec::new();
    client.get_blob(&blob.digest, 1000, &mut back).await.unwrap();
    assert!(back == content[1000..]);

    let wrong = Blob {
        digest: oci::Digest::of(b"else"),
        size: 4,
    };
    let refused = fault(client.put_blob(&wrong, 0, &b"ever"[..]).await.unwrap_err());
    assert_eq!(refused.kind, FaultKind::Corrupt);
    // A refusal before the end: the rest is not sent, the connection lives on.
    let refused = fault(client.put_blob(&wrong, 0, &content[..]).await.unwrap_err());
    assert_eq!(refused.kind, FaultKind::Corrupt);
    client.ping().await.unwrap();
}

#[tokio::test]
async fn keys_stay_where_they_are_made_and_requests_are_signed_elsewhere() {
    let (master, node) = (host(), host());
    let (ca, _a) = writer(master.path()).await;
    let (joining, _b) = writer(node.path()).await;
    let pki = |name: &str| format!("/etc/kubernetes/pki/{name}");
    let authority = crate::effect::Ca {
        cert: pki("ca.crt"),
        key: pki("ca.key"),
        common_name: "kubernetes".into(),
        days: 3650,
    };
    ca.apply(vec![Effect::Ca(authority)]).await.unwrap();
    let subject = Subject {
        common_name: "system:node:n".into(),
        organizations: vec!["system:nodes".into()],
        sans: vec![],
    };
    let csr = joining.create_csr(&pki("kubelet.key"), subject.clone()).await.unwrap();
    let cert = ca
        .sign_csr(&pki("ca.crt"), &pki("ca.key"), csr, subject, Usage::Client, 365)
        .await
        .unwrap();
    assert!(cert.starts_with("-----BEGIN CERTIFICATE-----"));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(node.path().join("etc/kubernetes/pki/kubelet.key"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn what_a_program_writes_is_told_while_it_runs() {
    let dir = host();
    let (client, _task) = connect(dir.path());
    client.hello().await.unwrap();
    let (send, mut told) = tokio::sync::mpsc::unbounded_channel();
    let go = dir.path().join("go");
    let script = format!(
        "echo first; until [ -e {} ]; do :; done; echo bad >&2; exit 3",
        go.display()
    );
    let exec = crate::proto::Exec {
        argv: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
        timeout_ms: 20_000,
        ..Default::default()
    };
    let running = client.exec_telling(exec, move |stream, line| {
        let _ = send.send((stream, line.to_owned()));
    });
    let watching = async {
        let first = told.recv().await;
        // Only now may it end: so the line came while it ran.
        std::fs::write(&go, "").unwrap();
        (first, told.recv().await)
    };
    let (ended, (first, second)) = tokio::join!(running, watching);
    assert_eq!(first, Some((crate::proto::Stream::Stdout, "first".to_owned())));
    assert_eq!(second, Some((crate::proto::Stream::Stderr, "bad".to_owned())));
    let ended = ended.unwrap();
    assert_eq!(
        (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
        (Some(3), "", "")
    );
}

#[tokio::test]
async fn waiting_requests_do_not_hold_up_others_and_end_with_the_client() {
    let dir = host();
    let (client, task) = connect(dir.path());
    client.hello().await.unwrap();
    let waiting = client.clone();
    let path = crate::proto::Condition::Path {
        path: "/etc/later".into(),
    };
    let wait = tokio::spawn(async move { waiting.wait_for(path, Duration::from_secs(600)).await });
    client.ping().await.unwrap();
    std::fs::write(dir.path().join("etc/later"), "").unwrap();
    wait.await.unwrap().unwrap();
    let (waiting, never) = (
        client.clone(),
        crate::proto::Condition::Path {
            path: "/etc/never".into(),
        },
    );
    let wait = tokio::spawn(async move { waiting.wait_for(never, Duration::from_secs(600)).await });
    client.ping().await.unwrap();
    wait.abort();
    let _ = wait.await;
    drop(client);
    tokio::time::timeout(Duration::from_secs(5), task)
        .await
        .expect("the server ends with its client")
        .unwrap()
        .unwrap();
}

/// Connections to one host that a test can cut.
#[derive(Clone)]
struct Line {
    root: std::path::PathBuf,
    servers: Arc<Mutex<Vec<tokio::task::JoinHandle<io::Result<()>>>>>,
    /// Whether nobody gets through.
    down: Arc<AtomicBool>,
}

impl Line {
    fn streams(&self) -> crate::Streams {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(here);
        let (server_reader, server_writer) = tokio::io::split(there);
        let (root, system) = (Root::at(&self.root), Arc::new(NoSystem));
        let task = tokio::spawn(serve(server_reader, server_writer, root, system, Own::default()));
        locked(&self.servers).push(task);
        (Box::new(reader), Box::new(writer))
    }

    /// Ends the server of the connection there is.
    async fn cut(&self) {
        let task = locked(&self.servers).pop().unwrap();
        task.abort();
        let _ = task.await;
    }

    fn client(root: &Path, patience: Duration) -> (Client, Self) {
        let line = Self {
            root: root.to_owned(),
            servers: Arc::default(),
            down: Arc::default(),
        };
        let (reader, writer) = line.streams();
        let own = line.clone();
        let dial = move || -> crate::Dialing {
            let line = own.clone();
            Box::pin(async move {
                match line.down.load(Ordering::Relaxed) {
                    false => Ok(line.streams()),
                    true => Err(crate::DialError {
                        message: "the line is down".into(),
                        lasting: false,
                        silence: Duration::ZERO,
                    }),
                }
            })
        };
        let redial = crate::Redial {
            dial: Box::new(dial),
            patience,
        };
        (Client::returning(reader, writer, redial), line)
    }
}

#[tokio::test]
async fn a_client_comes_back_opens_what_was_open_and_asks_again() {
    let dir = host();
    let (client, line) = Line::client(dir.path(), Duration::from_secs(30));
    client.hello().await.unwrap();
    let who = "apply by ann".to_owned();
    client.open(&scope(), Mode::Write { who }).await.unwrap();
    client.apply(vec![file("one")]).await.unwrap();

    // A request that waits for its answer when the line is cut, and is down for a while.
    let waiting = client.clone();
    let path = crate::proto::Condition::Path {
        path: "/etc/later".into(),
    };
    let wait = tokio::spawn(async move { waiting.wait_for(path, Duration::from_secs(60)).await });
    client.ping().await.unwrap();
    line.down.store(true, Ordering::Relaxed);
    line.cut().await;
    let (changing, reading) = (client.clone(), client.clone());
    let change = tokio::spawn(async move { changing.apply(vec![file("two")]).await });
    let read = tokio::spawn(async move { reading.read_file("/etc/new/x", 100).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!change.is_finished() && !read.is_finished() && !wait.is_finished());
    line.down.store(false, Ordering::Relaxed);
    assert!(change.await.unwrap().unwrap()[0].changed());
    read.await.unwrap().unwrap();
    std::fs::write(dir.path().join("etc/later"), "").unwrap();
    wait.await.unwrap().unwrap();
    // All came back over one connection, and it holds the lock.
    assert_eq!(locked(&line.servers).len(), 1);
    let (other, _task) = connect(dir.path());
    other.hello().await.unwrap();
    let who = "bob".to_owned();
    let locked = fault(other.open(&scope(), Mode::Write { who }).await.unwrap_err());
    assert_eq!(locked.kind, FaultKind::Locked);
}

#[tokio::test]
async fn a_program_is_not_run_twice() {
    let dir = host();
    let (client, line) = Line::client(dir.path(), Duration::from_secs(30));
    client.hello().await.unwrap();
    let count = dir.path().join("count");
    let script = format!("echo x >> {}; exec sleep 60", count.display());
    let exec = crate::proto::Exec {
        argv: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        timeout_ms: 60_000,
        ..Default::default()
    };
    let running = client.clone();
    let run = tokio::spawn(async move { running.exec(exec).await });
    while !count.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    line.cut().await;
    let error = run.await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Lost(_)), "{error}");
    client.ping().await.unwrap();
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
}

#[tokio::test]
async fn a_client_gives_up_when_its_patience_ends_and_may_be_asked_later() {
    let dir = host();
    let (client, line) = Line::client(dir.path(), Duration::from_millis(600));
    client.hello().await.unwrap();
    line.down.store(true, Ordering::Relaxed);
    line.cut().await;
    let error = client.ping().await.unwrap_err().to_string();
    assert!(error.contains("connecting again: the line is down"), "{error}");
    // The next request tries again, and does not wait longer than it must.
    line.down.store(false, Ordering::Relaxed);
    client.ping().await.unwrap();
}

#[tokio::test]
async fn after_an_undo_a_client_that_comes_back_begins_no_other_journal() {
    let dir = host();
    let (client, line) = Line::client(dir.path(), Duration::from_secs(30));
    client.hello().await.unwrap();
    let who = "reset by ann".to_owned();
    client.open(&scope(), Mode::Write { who }).await.unwrap();
    client.apply(vec![file("one")]).await.unwrap();
    let undone = client.undo().await.unwrap();
    assert!(undone.failed.is_empty(), "{:?}", undone.failed);
    let left = || std::fs::read_dir(dir.path()).unwrap().count();
    let before = left();
    line.cut().await;
    client.ping().await.unwrap();
    assert_eq!(left(), before);
    assert!(!dir.path().join("data").exists());
}

#[tokio::test]
async fn what_somebody_changed_since_the_last_run_is_told_and_a_half_run_is_none() {
    let dir = host();
    let at = |path: &str| dir.path().join(path);
    std::fs::create_dir_all(at("proc/sys/net")).unwrap();
    std::fs::write(at("proc/sys/net/x"), "0\n").unwrap();
    let (client, _task) = writer(dir.path()).await;
    assert_eq!(client.drift().await.unwrap().since, None);
    assert!(
        fault(client.end_run(RunEnd::Done).await.unwrap_err())
            .message
            .contains("no run")
    );
    let mark = RunMark {
        who: "apply by ann".into(),
        at_ms: 7,
        ..RunMark::default()
    };
    assert!(client.begin_run(mark.clone(), false).await.unwrap());
    let plain = |path: &str, content: &str| {
        Effect::File(File {
            path: path.into(),
            content: content.into(),
            mode: 0o644,
            owner: None,
            secret: false,
        })
    };
    let absent = |path: &str| Effect::Absent { path: path.into() };
    let wanted = vec![
        file("hunter2"),
        plain("/etc/plain", "one\n"),
        plain("/etc/mode", "x"),
        plain("/etc/token", "passing"),
        absent("/etc/token"),
        plain("/data/demo/script", "passing"),
        absent("/data/demo/script"),
        Effect::Link {
            path: "/etc/link".into(),
            target: "plain".into(),
        },
        Effect::Sysctl {
            key: "net.x".into(),
            value: "1".into(),
        },
    ];
    client.apply(wanted).await.unwrap();
    client.end_run(RunEnd::Done).await.unwrap();
    let report = client.drift().await.unwrap();
    assert_eq!((report.since, report.items, report.compared), (Some(mark), vec![], 6));
    let kept = std::fs::read_to_string(at("data/demo/applied.json")).unwrap();
    assert!(!kept.contains("hunter2"), "{kept}");

    std::fs::write(at("etc/new/x"), "hunter3").unwrap();
    std::fs::write(at("etc/plain"), "two\n").unwrap();
    std::fs::write(at("etc/token"), "again").unwrap();
    std::fs::remove_file(at("etc/link")).unwrap();
    std::fs::write(at("proc/sys/net/x"), "0\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(at("etc/mode"), mode).unwrap();
    let items = client.drift().await.unwrap().items;
    let told: Vec<String> = items
        .iter()
        .map(|item| format!("{}: {}", item.what, item.detail))
        .collect();
    assert_eq!(
        told,
        [
            "/etc/new/x: its content differs (secret)",
            "/etc/plain: content",
            "/etc/mode: mode 600 → 644",
            "/etc/token: it is there again",
            "/etc/link: it is gone (→ plain)",
            "sysctl net.x: 0 → 1",
        ]
    );
    assert!(items[1].diff.as_deref().unwrap().contains("+one"));
    let all = serde_json::to_string(&items).unwrap();
    assert!(!all.contains("hunter"), "{all}");

    // A run that fails does not change what the host is compared with; one about a part changes that part.
    let begin = |who: &str| RunMark {
        who: who.into(),
        ..RunMark::default()
    };
    assert!(!client.begin_run(begin("fails"), false).await.unwrap());
    client.apply(vec![plain("/etc/plain", "three\n")]).await.unwrap();
    client.end_run(RunEnd::Failed).await.unwrap();
    assert!(
        client
            .drift()
            .await
            .unwrap()
            .items
            .iter()
            .any(|item| item.what == "/etc/plain")
    );
    client.begin_run(begin("part"), false).await.unwrap();
    client.apply(vec![plain("/etc/plain", "three\n")]).await.unwrap();
    client.end_run(RunEnd::PartDone).await.unwrap();
    let report = client.drift().await.unwrap();
    assert!(report.items.iter().all(|item| item.what != "/etc/plain"));
    assert_eq!((report.items.len(), report.compared), (5, 6));
    let summary = client.journal().await.unwrap();
    assert_eq!(summary.first.unwrap().mark.at_ms, 7);
    assert_eq!(summary.last.unwrap().ended, Some(RunEnd::PartDone));
}

#[tokio::test]
async fn a_preview_shows_nothing_of_what_is_secret_neither_the_old_nor_the_new() {
    let dir = host();
    std::fs::create_dir_all(dir.path().join("etc/new")).unwrap();
    std::fs::write(dir.path().join("etc/new/x"), "planted-before").unwrap();
    std::fs::write(dir.path().join("etc/ca.crt"), "planted-before").unwrap();
    let (client, _task) = connect(dir.path());
    client.hello().await.unwrap();
    client.open(&scope(), Mode::Read).await.unwrap();
    let kubeconfig = Effect::Kubeconfig(crate::effect::Kubeconfig {
        path: "/etc/new/x".into(),
        server: "https://127.0.0.1:6444".into(),
        ca: "/etc/ca.crt".into(),
        cluster: "demo".into(),
        user: "joiner".into(),
        cert: None,
        key: None,
        token: Some("planted-token".into()),
    });
    let changes = client.preview(vec![file("planted-after"), kubeconfig]).await.unwrap();
    assert!(
        changes
            .iter()
            .all(|change| change.changed() && change.detail.contains("secret"))
    );
    let text = serde_json::to_string(&changes).unwrap();
    assert!(!text.contains("planted"), "{text}");
    // A large file is not shown either, but named: two previews that read alike are alike.
    let large = |byte: &str| {
        Effect::File(File {
            path: "/etc/large".into(),
            content: byte.repeat(100_000).into(),
            mode: 0o644,
            owner: None,
            secret: false,
        })
    };
    let changes = client.preview(vec![large("a"), large("b")]).await.unwrap();
    assert!(changes[0].diff.is_none() && changes[0].detail != changes[1].detail);
}

#[tokio::test]
async fn a_run_goes_on_over_a_new_connection_and_its_end_may_be_told_twice() {
    let dir = host();
    let (client, line) = Line::client(dir.path(), Duration::from_secs(30));
    client.hello().await.unwrap();
    let who = "apply by ann".to_owned();
    client.open(&scope(), Mode::Write { who }).await.unwrap();
    let plain = |path: &str, content: &str| {
        Effect::File(File {
            path: path.into(),
            content: content.into(),
            mode: 0o644,
            owner: None,
            secret: false,
        })
    };
    assert!(client.begin_run(RunMark::default(), true).await.unwrap());
    client.apply(vec![plain("/etc/a", "1"), file("hunter2")]).await.unwrap();
    line.cut().await;
    client.apply(vec![plain("/etc/b", "1")]).await.unwrap();
    client.end_run(RunEnd::Done).await.unwrap();
    client.end_run(RunEnd::Done).await.unwrap();
    let report = client.drift().await.unwrap();
    assert_eq!((report.compared, report.items), (3, vec![]));
    assert!(!dir.path().join("data/demo/applied.partial").exists());

    // And it is undone as a whole, whatever connection its changes came over.
    assert!(!client.begin_run(RunMark::default(), true).await.unwrap());
    client.apply(vec![plain("/etc/a", "2")]).await.unwrap();
    line.cut().await;
    client
        .apply(vec![plain("/etc/b", "2"), plain("/etc/c", "2")])
        .await
        .unwrap();
    assert!(client.undo_run().await.unwrap().failed.is_empty());
    assert!(client.undo_run().await.unwrap().done.is_empty());
    let content = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
    assert_eq!((content("etc/a"), content("etc/b")), ("1".to_owned(), "1".to_owned()));
    assert!(!dir.path().join("etc/c").exists());
    assert_eq!(client.drift().await.unwrap().items, []);
}

#[tokio::test]
async fn a_host_that_listens_is_reached_by_another_until_it_stops() {
    use crate::proto::{Door, KnockAt, Knocked, Listen};
    let (here, there) = (host(), host());
    let (listener, _task) = connect(here.path());
    let (knocker, _other) = connect(there.path());
    listener.hello().await.unwrap();
    knocker.hello().await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(at) = free.local_addr().unwrap() else {
        panic!("not what was asked for")
    };
    drop(free);
    let wish = Listen {
        address: *at.ip(),
        ports: vec![at.port()],
        token: "t".into(),
        timeout_ms: 30_000,
    };
    let knock = async || {
        let token = Some("t".to_owned());
        let doors = vec![Door { at, token }];
        knocker
            .knock(KnockAt {
                doors,
                timeout_ms: 5000,
            })
            .await
            .unwrap()
    };
    let ears = listener.listen(wish.clone()).await.unwrap();
    assert_eq!(ears.ports, [at.port()]);
    assert_eq!(knock().await, [Knocked::Reached]);
    ears.end().await.unwrap();
    assert_eq!(knock().await, [Knocked::Refused]);
    // Who goes away without a word ends it too.
    drop(listener.listen(wish).await.unwrap());
    let gone = Condition::NoTcp {
        address: at.to_string(),
    };
    knocker.wait_for(gone, Duration::from_secs(10)).await.unwrap();
}
