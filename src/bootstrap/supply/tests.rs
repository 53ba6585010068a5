//! The script that fetches and unpacks, on this machine.

use super::*;
use std::{
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::PermissionsExt as _,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

const TOKEN: &str = "open sesame";

/// Content that no shell could hold in a variable.
fn content() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 256) as u8).collect()
}

/// Gives `content` to whoever says the token, as often as asked.
async fn giver(content: Vec<u8>) -> SocketAddrV4 {
    giver_to("open sesame\n", content).await
}

async fn giver_to(word: &'static str, content: Vec<u8>) -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = vec![0; word.len()];
            if stream.read_exact(&mut line).await.is_ok() && line == word.as_bytes() {
                // Whoever has enough hangs up.
                let _ = stream.write_all(&content).await;
            }
        }
    });
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// A folder with what every host has, and gzip or not.
fn tools(gzip: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let all = "bash chmod head mkdir mv rm sha256sum tee timeout gzip";
    for tool in all.split(' ').filter(|tool| gzip || *tool != "gzip") {
        std::os::unix::fs::symlink(format!("/usr/bin/{tool}"), dir.path().join(tool)).unwrap();
    }
    dir
}

/// What the script does on a host with gzip or without: its code, and what it says.
async fn taken(from: Option<SocketAddrV4>, stdin: &[u8], to: &Path, gzip: bool) -> (Option<i32>, String) {
    let content = content();
    let wanted = Wanted {
        digest: &oci::Digest::of(&content),
        size: content.len() as u64,
    };
    let command = fetching(from, &wanted, to.to_str().unwrap());
    let tools = tools(gzip);
    let mut child = tokio::process::Command::new(&command.argv()[0])
        .args(&command.argv()[1..])
        .env("PATH", tools.path())
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever wants no more hangs up.
    let _ = child.stdin.take().unwrap().write_all(stdin).await;
    let output = child.wait_with_output().await.unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

async fn fetched(from: SocketAddrV4, token: &str, to: &Path, gzip: bool) -> (Option<i32>, String) {
    taken(Some(from), format!("{token}\n").as_bytes(), to, gzip).await
}

/// A gzip of some bytes, as it is sent from here.
fn packed(content: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let mut packed = Vec::new();
    let mut made = pack(file.path()).unwrap();
    made.rewind().unwrap();
    made.read_to_end(&mut packed).unwrap();
    packed
}

fn names(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn a_shell_fetches_the_file_whole_and_it_can_be_run() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("new/clusterd");
    assert_eq!(fetched(giver(content()).await, TOKEN, &to, false).await.0, Some(0));
    assert!(std::fs::read(&to).unwrap() == content());
    assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(names(to.parent().unwrap()), 1);
}

#[tokio::test]
async fn what_comes_compressed_is_compared_as_it_shall_be_and_kept_as_it_came() {
    let (good, mut other) = (packed(&content()), content());
    other[70_000] ^= 1;
    let other = packed(&other);
    for sent in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("clusterd");
        let bring = async |gzip: &[u8]| match sent {
            true => taken(None, gzip, &to, true).await.0,
            false => {
                let from = giver_to("open sesame gzip\n", gzip.to_vec()).await;
                fetched(from, TOKEN, &to, true).await.0
            }
        };
        assert_eq!(bring(&good).await, Some(0));
        assert!(std::fs::read(&to).unwrap() == content());
        let kept = to.with_extension("gz");
        assert!(std::fs::read(&kept).unwrap() == good, "for the next one");
        std::fs::remove_file(&kept).unwrap();
        std::fs::remove_file(&to).unwrap();
        for bad in [&good[..good.len() / 2], &other] {
            assert_eq!(bring(bad).await, Some(1));
            assert_eq!(names(dir.path()), 0, "nothing is left");
        }
    }
}

#[tokio::test]
async fn what_is_not_what_was_to_come_never_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("clusterd");
    std::fs::write(&to, "from before").unwrap();
    let mut wrong = content();
    wrong[70_000] ^= 1;
    let closed = {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, free.local_addr().unwrap().port())
    };
    for (from, token, why) in [
        (giver(wrong).await, TOKEN, "not what was to come"),
        (
            giver(content()[..299_999].to_vec()).await,
            TOKEN,
            "not what was to come",
        ),
        (giver(content()).await, "open barley", "not what was to come"),
        (closed, TOKEN, "cannot be connected to"),
    ] {
        let (code, said) = fetched(from, token, &to, false).await;
        assert!(code == Some(1) && said.contains(why), "{code:?}: {said}");
        assert_eq!(std::fs::read(&to).unwrap(), b"from before");
        assert!(!to.with_extension("part").exists());
    }
    // Of one that never ends, no more is taken than there should be.
    let endless = [content(), content()].concat();
    assert_eq!(fetched(giver(endless).await, TOKEN, &to, false).await.0, Some(0));
}

/// What the script does where its folder is a file system mounted so: its code, and what it says.
async fn mounted(option: &str, from: Option<SocketAddrV4>, stdin: &[u8]) -> (Option<i32>, String) {
    let (dir, content) = (tempfile::tempdir().unwrap(), content());
    let to = dir.path().join("clusterd");
    let wanted = Wanted {
        digest: &oci::Digest::of(&content),
        size: content.len() as u64,
    };
    let script = "mount -t tmpfs -o \"$0\" none \"$1\"; folder=$1; shift; code=0
        \"$@\" || code=$?; ls -A \"$folder\" >&2; exit $code";
    let mut child = tokio::process::Command::new("unshare")
        .args(["-m", "sh", "-ec", script, option])
        .arg(dir.path())
        .args(fetching(from, &wanted, to.to_str().unwrap()).argv())
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin).await;
    let output = child.wait_with_output().await.unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[tokio::test]
async fn who_cannot_write_says_so_blames_nobody_else_and_keeps_nothing() {
    for (option, why) in [("size=64k", "No space left on device"), ("ro", "Read-only file system")] {
        let from = giver_to("open sesame gzip\n", packed(&content())).await;
        let token = format!("{TOKEN}\n");
        for (from, stdin) in [(Some(from), token.as_bytes()), (None, &packed(&content()))] {
            let (code, said) = mounted(option, from, stdin).await;
            assert!(code == Some(127) && said.contains(why), "{code:?}: {said}");
            assert!(
                !said.ends_with("clusterd\n") && !said.ends_with(".part\n"),
                "nothing is left: {said}"
            );
        }
    }
}

#[tokio::test]
async fn a_host_without_the_tools_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("clusterd");
    // What is sent is compressed always.
    assert_eq!(taken(None, &packed(&content()), &to, false).await.0, Some(127));
    assert_eq!(names(dir.path()), 0);
    let status = tokio::process::Command::new("/bin/bash")
        .args(["-c", FETCH, "fetch", "127.0.0.1", "1", "1", "0", "/nonexistent/x"])
        .env("PATH", dir.path())
        .stderr(std::process::Stdio::null())
        .status();
    assert_eq!(status.await.unwrap().code(), Some(127));
}
