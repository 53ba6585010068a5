//! Planted secrets are in no file of a bundle, and what could not be had is named.

use super::*;
use crate::{event::Silent, session::Access, testing};
use std::sync::Mutex;

const PLANTED: &str = "Pl4nted";

/// A host all of whose programs write secrets.
struct Leaky {
    asked: Mutex<Vec<String>>,
}

impl Runs for Leaky {
    async fn run(&self, argv: &[&str]) -> Result<String, String> {
        self.asked.lock().unwrap().push(argv.join(" "));
        if argv == asked::POD_LOGS {
            return Ok("/var/log/pods/kube-system_dns-x_uid/dns/0.log\n/var/log/pods/kube-system_a_b/../../../../etc/shadow\nfind: no\n".into());
        }
        if argv[0] == "uptime" {
            return Err("password=Pl4nted was refused".into());
        }
        Ok(format!(
            "starting\npassword: {PLANTED}\n-----BEGIN EC PRIVATE KEY-----\n{PLANTED}\n-----END EC PRIVATE KEY-----\n\
             token=abcdef.0123456789abcdef\n{{\"name\":\"X_SECRET\",\"value\":\"{PLANTED}\"}}\nsudo: hunter22\nplain words\n"
        ))
    }
}

fn out(queue: &mpsc::Sender<File>) -> Out {
    let clusterfile = testing::clusterfile("  ssh: {user: ann, passwd: hunter22}\n");
    Out::new("h", "hosts/h".to_owned(), &Arc::new(Redactor::of(&clusterfile)), queue)
}

async fn drained(mut files: mpsc::Receiver<File>) -> Vec<File> {
    let mut all = Vec::new();
    while let Some(file) = files.recv().await {
        all.push(file);
    }
    all
}

fn options() -> Options {
    Options {
        access: Access {
            known_hosts: vec!["/dev/null".into()],
            accept_new_host_keys: false,
            bandwidth: None,
            aliases: crate::session::Aliases::default(),
        },
        store: "/nonexistent".into(),
        ignored: Vec::new(),
        prove_airgap: false,
        care: crate::rolling::Care::default(),
        direct: false,
        observer: Arc::new(Silent),
        who: "a test".into(),
        launch_limit: Duration::ZERO,
    }
}

#[tokio::test]
async fn no_planted_secret_comes_into_the_bundle_and_all_else_does() {
    let (queue, files) = mpsc::channel(1000);
    let mut out = out(&queue);
    let leaky = Leaky {
        asked: Mutex::default(),
    };
    programs(&leaky, &mut out).await;
    let part = out.part.clone();
    drop((out, queue));
    let files = drained(files).await;
    assert_eq!(
        (part.files, part.bytes),
        (files.len(), files.iter().map(|file| file.text.len()).sum())
    );
    for file in &files {
        for secret in [PLANTED, "0123456789abcdef", "hunter22"] {
            assert!(!file.text.contains(secret), "{} has {secret}: {}", file.path, file.text);
        }
        assert!(
            file.path.starts_with("hosts/h/") && !file.path.contains(".."),
            "{}",
            file.path
        );
    }
    let units = files
        .iter()
        .filter(|file| file.path.starts_with("hosts/h/units/installer-"));
    assert_eq!(units.filter(|file| file.text.contains("plain words")).count(), 4);
    for path in [
        "nft-ruleset.txt",
        "ip-route.txt",
        "containerd/tasks.txt",
        "pods/kube-system_dns-x/dns/0.log",
        "uptime.txt.failed.txt",
    ] {
        assert!(
            files.iter().any(|file| file.path == format!("hosts/h/{path}")),
            "{path} is missing"
        );
    }
    assert_eq!(part.problem.as_deref(), Some("password=(redacted) was refused"));
    // It only looks.
    for asked in leaky.asked.lock().unwrap().iter() {
        let program = asked.split(' ').next().unwrap().rsplit('/').next().unwrap();
        let looking = [
            "uname",
            "uptime",
            "cat",
            "grep",
            "df",
            "ps",
            "timedatectl",
            "ip",
            "ss",
            "nft",
            "systemctl",
            "journalctl",
            "ctr",
            "ls",
            "find",
            "tail",
        ];
        assert!(looking.contains(&program), "{asked}");
    }
}

#[tokio::test]
async fn files_and_hosts_are_bounded_and_the_end_is_kept() {
    let (queue, files) = mpsc::channel(1000);
    let mut out = out(&queue);
    let long: String = (0..400_000).map(|number| format!("line {number}\n")).collect();
    for index in 0..30 {
        out.put(&format!("{index}.log"), &long).await;
    }
    drop((out, queue));
    let files = drained(files).await;
    assert!(files.iter().all(|file| file.text.len() <= FILE + 64));
    assert!(files.iter().map(|file| file.text.len()).sum::<usize>() <= HOST + 64 * 30);
    assert!(
        files[0].text.starts_with("(the beginning was cut off)\nline ") && files[0].text.ends_with("line 399999\n")
    );
}

#[test]
fn texts_are_cut_between_lines_and_characters() {
    for (text, most, expected) in [
        ("ab\ncd\n", 6, "ab\ncd\n"),
        ("ab\ncd\n", 5, "(the beginning was cut off)\ncd\n"),
        ("ääää", 3, "(the beginning was cut off)\nä"),
        ("abc", 0, ""),
        ("", 0, ""),
    ] {
        assert_eq!(cut(text, most), expected);
    }
}

#[tokio::test]
async fn a_key_is_taken_out_before_anything_is_cut() {
    let (queue, files) = mpsc::channel(10);
    let mut out = out(&queue);
    let key = format!(
        "-----BEGIN RSA PRIVATE KEY-----\n{}",
        format!("{PLANTED}\n").repeat(FILE / 4)
    );
    out.put("x", &format!("before\n{key}-----END RSA PRIVATE KEY-----\nafter\n"))
        .await;
    drop((out, queue));
    assert_eq!(drained(files).await[0].text, "before\n(redacted private key)\nafter\n");
}

#[tokio::test]
async fn objects_lose_their_secrets_and_who_manages_them() {
    let (queue, files) = mpsc::channel(10);
    let mut out = out(&queue);
    let pod = serde_json::json!({"metadata": {"name": "web", "managedFields": [{"manager": "x"}]},
        "spec": {"containers": [{"env": [{"name": "DB_PASSWORD", "value": PLANTED}], "args": ["--token", PLANTED]}]}});
    for_each_line([pod.clone(), pod].into_iter().map(without_fields), "pods", &mut out).await;
    drop((out, queue));
    let text = drained(files).await.remove(0).text;
    assert_eq!(text.lines().count(), 2);
    assert!(
        !text.contains(PLANTED) && !text.contains("managedFields") && text.contains("\"web\""),
        "{text}"
    );
}

#[tokio::test]
async fn hosts_that_do_not_answer_are_named_inside() {
    // Nobody listens there: refused at once.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let text = format!(
        "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: a/b\n  ssh: {{port: {port}, passwd: hunter22}}\n  hosts: [{{ips: [127.0.0.1], roles: [master]}}, {{ips: [127.0.0.2], roles: [node]}}]\n"
    );
    let clusterfile = Clusterfile::parse(&text, "Clusterfile", std::path::Path::new("/")).unwrap();
    let (queue, files) = mpsc::channel(100);
    let options = options();
    let (parts, files) = tokio::join!(collect(&clusterfile, &options, queue), drained(files));
    assert_eq!(parts.len(), 3);
    for (part, name) in parts.iter().zip(["127.0.0.1", "127.0.0.2", "cluster"]) {
        assert_eq!(part.name, name);
        assert!(
            part.problem
                .as_ref()
                .is_some_and(|problem| problem.contains("127.0.0.")),
            "{part:?}"
        );
    }
    for path in [
        "hosts/127.0.0.2/not-reached.failed.txt",
        "cluster/not-reached.failed.txt",
        "installer/clusterfile.json",
    ] {
        assert!(
            files.iter().any(|file| file.path == path),
            "{path} is missing of {files:?}"
        );
    }
    assert!(files.iter().all(|file| !file.text.contains("hunter22")));
}

#[test]
fn names_of_logs_stay_in_the_bundle() {
    for (path, expected) in [
        (
            "/var/log/pods/kube-system_dns-x_1-2/dns/0.log",
            "pods/kube-system_dns-x/dns/0.log",
        ),
        ("/var/log/pods/kube-system_a_b/../../x.log", "pods/kube-system_a/x.log"),
        ("/var/log/pods/a b/\u{1b}c.log", "pods/a_b/_c.log"),
    ] {
        assert_eq!(asked::log_name(path), expected);
    }
}
