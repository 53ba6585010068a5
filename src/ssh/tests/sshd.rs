//! Against a real OpenSSH server: commands, streams, files, and ways that lead nowhere.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failing step fails the test

use std::{fs, path::Path, time::Duration};

use ssh::{Become, Command, Connection, Error, ExitStatus};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

mod server;
use server::{Server, refused};

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

#[tokio::test]
async fn a_host_that_falls_silent_is_given_up_after_some_unanswered_signs_of_life() {
    let server = Server::start("").await;
    let mut config = server.config();
    config.keepalive_interval = Duration::from_millis(100);
    config.keepalive_max = 2;
    let connection = Connection::connect(&config).await.unwrap();
    // The sshd of this connection is somewhere above what it runs.
    let script = "p=$$; until grep -q '^Name:.sshd' /proc/$p/status; do p=$(sed -n 's/^PPid:.//p' /proc/$p/status); done; echo $p";
    let output = connection.exec(&Command::new(["sh", "-c", script])).await.unwrap();
    let pid = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let signal = |name: &str| {
        let status = std::process::Command::new("kill").args([name, &pid]).status();
        assert!(status.unwrap().success());
    };
    // A silent program is no reason to give up, as long as the host answers.
    let quiet = connection.exec(&Command::new(["sleep", "1"])).await.unwrap();
    assert!(quiet.status.success());
    signal("-STOP");
    let lost = tokio::time::timeout(Duration::from_secs(10), connection.exec(&Command::new(["true"]))).await;
    signal("-KILL");
    let error = lost.expect("the loss is noticed").unwrap_err();
    assert!(error.is_passing() && connection.is_closed(), "{error}");
    // It was silent for as long as it took to notice.
    let silent = connection.heard().expect("it has ended").elapsed();
    assert!(silent >= Duration::from_millis(300), "{silent:?}");

    let connection = Connection::connect(&config).await.unwrap();
    let goodbye = "kill -9 $(ps -o ppid= -p $$)";
    let _ = connection.exec(&Command::new(["sh", "-c", goodbye])).await;
    tokio::time::timeout(Duration::from_secs(10), async {
        while !connection.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a connection that is closed there ends here");
}
