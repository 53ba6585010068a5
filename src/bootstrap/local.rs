//! This machine itself as a host: programs are started as children, files are written, ports are connected to. No SSH.
//!
//! Nothing here becomes root: the installer must be root already.

use crate::{Error, Result};
use ssh::{ExitStatus, Output};
use std::{
    collections::VecDeque,
    net::{Ipv4Addr, UdpSocket},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    fs,
    io::{self, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// How long the output of a program that has ended is still read: what it left running may hold it open for ever.
const LINGER: Duration = Duration::from_secs(5);
/// How much of a program's stderr is remembered, in bytes.
const STDERR_TAIL: usize = 64 << 10;

/// The last of what a program complained.
pub(crate) type Complaints = Arc<Mutex<VecDeque<u8>>>;

/// Refuses unless this machine is the host with the address `ip`, and we are root.
pub(crate) fn check(ip: Ipv4Addr) -> Result<()> {
    // Only an address of one's own can be listened on.
    if UdpSocket::bind((ip, 0)).is_err() {
        return Err(Error::on(
            ip,
            "ssh.connection is local, but no interface of this machine has that address: run the installer on the host itself, or reach it by SSH",
        ));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::on(
        ip,
        "ssh.connection is local, so this machine is the host, and that needs root: run the installer as root (sudo)",
    ))
}

/// The text so far.
pub(crate) fn complaints(tail: &Complaints) -> String {
    let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    let (a, b) = tail.as_slices();
    String::from_utf8_lossy(&[a, b].concat()).trim_end().to_owned()
}

fn spawn(host: &str, argv: &[String], set: impl FnOnce(&mut Command)) -> Result<Child> {
    let (program, arguments) = argv
        .split_first()
        .ok_or(Error::Interrupted("a command without a name"))?;
    let mut command = Command::new(program);
    // A group of its own, so that an interrupt on the terminal does not end it in the middle of a change.
    command
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    set(&mut command);
    command.spawn().map_err(|source| Error::Local {
        what: format!("{host}: cannot start {program}"),
        source,
    })
}

/// A program we talk to. It is not killed when its streams are dropped: it sees its stdin end.
pub(crate) fn start(host: &str, argv: &[String]) -> Result<(ChildStdin, ChildStdout, Complaints)> {
    let mut child = spawn(host, argv, |_| {})?;
    let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(mut stderr)) = streams else {
        return Err(Error::Interrupted("starting a program"));
    };
    let tail = Complaints::default();
    let into = Arc::clone(&tail);
    tokio::spawn(async move {
        let _ = keep_last(&mut stderr, &into).await;
        let _ = child.wait().await;
    });
    Ok((stdin, stdout, tail))
}

async fn keep_last(from: &mut (impl AsyncRead + Unpin), tail: &Complaints) -> io::Result<()> {
    let mut buffer = vec![0; 8 << 10];
    loop {
        let bytes = from.read(&mut buffer).await?;
        if bytes == 0 {
            return Ok(());
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&buffer[..bytes]);
        let excess = tail.len().saturating_sub(STDERR_TAIL);
        tail.drain(..excess);
    }
}

/// Keeps the first `limit` bytes, reads all.
async fn keep_first(mut from: impl AsyncRead + Unpin, limit: usize, kept: &mut Vec<u8>) {
    let _ = (&mut from).take(limit as u64).read_to_end(kept).await;
    let _ = io::copy(&mut from, &mut io::sink()).await;
}

/// Runs a program to its end, or kills it when its time is up.
pub(crate) async fn exec(host: &str, command: &ssh::Command) -> Result<Output> {
    let mut child = spawn(host, command.argv(), |command| {
        command.kill_on_drop(true);
    })?;
    let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) = streams else {
        return Err(Error::Interrupted("starting a program"));
    };
    let tail = Complaints::default();
    let run = async {
        let feed = async {
            // A program may end without reading its stdin: what it says counts, not that.
            let _ = stdin.write_all(command.input()).await;
            drop(stdin);
        };
        let mut kept = Vec::new();
        let ended = {
            let reading = async {
                tokio::join!(
                    feed,
                    keep_first(stdout, command.output_limit(), &mut kept),
                    keep_last(&mut stderr, &tail)
                )
            };
            tokio::pin!(reading);
            tokio::select! {
                ended = child.wait() => {
                    let _ = tokio::time::timeout(LINGER, reading).await;
                    ended
                }
                _ = &mut reading => child.wait().await,
            }
        };
        ended.map(|ended| (kept, ended))
    };
    let finished = match command.time_limit() {
        None => run.await,
        Some(limit) => tokio::time::timeout(limit, run).await.map_err(|_| Error::Timeout {
            what: format!("the end of {} on {host}", command.argv().join(" ")),
            seconds: limit.as_secs(),
            last: complaints(&tail),
        })?,
    };
    let (stdout, ended) = finished.map_err(|e| Error::on(host, format!("cannot wait for a program: {e}")))?;
    let status = match (ended.code().and_then(|code| u32::try_from(code).ok()), ended.signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal.to_string()),
        (None, None) => ExitStatus::Lost("it ended in an unknown way".to_owned()),
    };
    Ok(Output {
        status,
        stdout,
        stderr: complaints(&tail),
    })
}

/// Writes a file, making its folder. It appears at `path` only when it is whole.
pub(crate) async fn upload(path: &str, mode: u32, mut content: impl AsyncRead + Unpin) -> Result<u64> {
    let part = format!("{path}.part");
    let failed = |source| Error::Local {
        what: format!("cannot write {path}"),
        source,
    };
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder).await.map_err(failed)?;
    }
    // What an interrupted run left may have another mode.
    match fs::remove_file(&part).await {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&part)
        .await
        .map_err(failed)?;
    let copied = io::copy(&mut content, &mut file).await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    fs::rename(&part, path).await.map_err(failed)?;
    Ok(copied)
}
