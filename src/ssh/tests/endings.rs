//! Against a real OpenSSH server: programs and login shells that end before they have taken what is sent, or say what
//! nobody asked.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failing step fails the test

use std::{io::ErrorKind, time::Duration};

use ssh::{Become, Command, Error, ExitStatus};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

mod server;
use server::Server;

/// More than any window or buffer on the way takes.
fn endless() -> impl tokio::io::AsyncRead + Unpin {
    tokio::io::repeat(7).take(64 << 20)
}

/// Fails where something waits for ever.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("it ends")
}

#[tokio::test]
async fn what_a_program_said_counts_though_it_did_not_take_all() {
    let server = Server::start("").await;
    let connection = server.connect().await;
    let command = Command::new(["sh", "-c", "head -c 10 >/dev/null; echo why >&2; exit 3"]);
    let output = soon(connection.exec_with(&command, endless())).await.unwrap();
    assert_eq!((output.status, output.stderr.as_str()), (ExitStatus::Code(3), "why"));

    // Also who writes without looking at the end learns of it.
    let mut process = connection.open_process(&Command::new(["false"])).await.unwrap();
    let writing = async {
        loop {
            if let Err(error) = process.stdin.write_all(&[0; 64 << 10]).await {
                return error.kind();
            }
        }
    };
    assert_eq!(soon(writing).await, ErrorKind::BrokenPipe);
    soon(process.stdin.shutdown()).await.unwrap();
    assert_eq!(process.status.wait().await, ExitStatus::Code(1));
}

#[tokio::test]
async fn a_program_that_leaves_something_running_is_not_waited_for() {
    let server = Server::start("").await;
    let connection = server.connect().await;
    let command = Command::new(["sh", "-c", "sleep 1000 & echo $!"]);
    let output = soon(connection.exec(&command)).await.unwrap();
    let pid = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && connection.exec(&Command::new(["kill", pid.trim()])).await.is_ok());
}

#[tokio::test]
async fn a_file_system_that_takes_nothing_is_told_and_nothing_is_left_there() {
    let server = Server::start_with("", |dir| {
        let mounts = ["full size=1m", "fixed ro"].map(|mount| {
            let (name, option) = mount.split_once(' ').unwrap();
            let folder = dir.join(name);
            std::fs::create_dir(&folder).unwrap();
            format!("mount -t tmpfs -o {option} none {}\n", folder.display())
        });
        // Of all connections, since each has an sshd of its own.
        std::fs::write(dir.join("setup"), mounts.concat()).unwrap();
        String::new()
    })
    .await;
    let connection = server.connect().await;
    for (folder, expected) in [("full", "No space left on device"), ("fixed", "Read-only file system")] {
        let path = server.at(folder).join("program");
        let upload = connection.upload(path.to_str().unwrap(), 0o755, endless(), &Become::User);
        let error = soon(upload).await.unwrap_err();
        assert!(matches!(error, Error::Refusal { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains("program.part"), "{error}");
        let left = Command::new(["ls", "-A", server.at(folder).to_str().unwrap()]);
        assert_eq!(connection.exec(&left).await.unwrap().stdout, b"");
    }
}

#[tokio::test]
async fn a_login_shell_that_runs_nothing_is_told_with_what_it_says() {
    for (shell, said) in [("/usr/sbin/nologin", "not available"), ("/bin/false", "said nothing")] {
        let server = Server::with_shell(shell, &[]).await;
        let connection = server.connect().await;
        let output = soon(connection.exec_with(&Command::new(["cat"]), endless()))
            .await
            .unwrap();
        assert_eq!(output.status, ExitStatus::Code(1));
        let upload = connection.upload("/nonexistent/x", 0o755, endless(), &Become::User);
        soon(upload).await.unwrap_err();
        let error = soon(connection.prove_shell()).await.unwrap_err();
        assert!(matches!(error, Error::Shell { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(said) && error.contains("ssh.user"), "{error}");
    }
}

#[tokio::test]
async fn start_up_files_may_print_but_must_not_end_the_shell() {
    let server = Server::with_shell(
        "/bin/bash",
        &[(".bashrc", "echo hello from bashrc\n"), (".ssh/rc", "echo from rc\n")],
    )
    .await;
    let connection = server.connect().await;
    connection.prove_shell().await.unwrap();
    let output = connection.exec(&Command::new(["true"])).await.unwrap();
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("from rc"),
        "{output:?}"
    );

    let server = Server::with_shell("/bin/bash", &[(".bashrc", "echo go away >&2; exit 7\n")]).await;
    let error = server.connect().await.prove_shell().await.unwrap_err().to_string();
    assert!(error.contains("exit code 7") && error.contains("go away"), "{error}");
}

#[tokio::test]
async fn arguments_survive_a_login_shell_that_is_no_posix_shell() {
    let tricky = [
        "a b",
        "it's",
        "$HOME",
        "",
        "*",
        "x;y",
        "wow!",
        "a\nb",
        "back\\slash",
        "\\n",
        "50%",
        "~",
    ];
    for shell in ["/bin/sh", "/bin/bash", "/usr/bin/tcsh"] {
        assert!(
            std::path::Path::new(shell).exists(),
            "this test needs {shell}: make deps"
        );
        let server = Server::with_shell(shell, &[]).await;
        let connection = server.connect().await;
        let argv: Vec<&str> = ["printf", "%s|"].into_iter().chain(tricky).collect();
        let output = connection.exec(&Command::new(argv)).await.unwrap();
        let expected: String = tricky.iter().map(|word| format!("{word}|")).collect();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            expected,
            "{shell}: {}",
            output.stderr
        );
        let long = format!("#{}\nexit 5", "x!'\"$(y) ".repeat(800));
        let output = connection.exec(&Command::new(["sh", "-c", &long])).await.unwrap();
        assert_eq!(output.status, ExitStatus::Code(5), "{shell}: {}", output.stderr);
    }
}
