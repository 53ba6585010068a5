//! Running a program for the client, with a limit, and with its children killed when nobody waits any more.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::{BufMut as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::mpsc,
};

use crate::{
    Error, Result,
    frame::{Frame, Kind},
    proto::{Exec, ExecResult, FaultKind, Stream},
    system::search_path,
};

/// Output kept of each stream.
const MAX_OUTPUT: usize = 1 << 20;
/// Output told at once, in bytes.
const PIECE: usize = 16 << 10;
/// How long output of a program that has ended is still read.
const LINGER: Duration = Duration::from_secs(1);

/// Kills the whole group when dropped: a cancelled request must not leave anything running.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Who is told a program's output while it runs.
pub(crate) struct Told {
    /// The request it belongs to.
    pub(crate) id: u32,
    /// Where frames go.
    pub(crate) out: mpsc::Sender<Frame>,
}

pub(crate) async fn run(exec: &Exec, told: Option<&Told>) -> Result<ExecResult> {
    let Some((program, args)) = exec.argv.split_first() else {
        return Err(Error::invalid("the command is empty"));
    };
    let mut child = Command::new(find(program))
        .args(args)
        .env("PATH", search_path())
        .envs(&exec.env)
        .current_dir(exec.cwd.as_deref().unwrap_or("/"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                FaultKind::NotFound,
                format!("there is no program '{program}' on this host"),
            ),
            _ => Error::io(program)(e),
        })?;
    let mut group = Group(
        child
            .id()
            .and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)),
    );
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let limit = Duration::from_millis(exec.timeout_ms);
    let ended = tokio::time::timeout(limit, finish(&mut child, exec, told, [&mut stdout, &mut stderr])).await;
    let Ok(status) = ended else {
        return Ok(ExecResult {
            timed_out: true,
            ..ExecResult::default()
        });
    };
    group.0 = None;
    let status = status.map_err(Error::io(program))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(ExecResult {
        code: status.code().or(status.signal().map(|s| 128 + s)),
        timed_out: false,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

/// Feeds and reads the program until it ends.
async fn finish(
    child: &mut Child,
    exec: &Exec,
    told: Option<&Told>,
    [stdout, stderr]: [&mut Vec<u8>; 2],
) -> std::io::Result<ExitStatus> {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program may end without reading.
            let _ = stdin.write_all(exec.stdin.as_bytes()).await;
        }
    };
    let reading = async {
        tokio::join!(
            feed,
            read(out, Stream::Stdout, told, stdout),
            read(err, Stream::Stderr, told, stderr)
        )
    };
    tokio::pin!(reading);
    tokio::select! {
        status = child.wait() => {
            // What it left running in the background may hold the pipes open for ever; only what is in them is waited for.
            let _ = tokio::time::timeout(LINGER, reading).await;
            status
        }
        _ = &mut reading => child.wait().await,
    }
}

/// Rust looks programs up in our own PATH, not in the child's.
fn find(program: &str) -> std::path::PathBuf {
    if program.contains('/') {
        return program.into();
    }
    search_path()
        .split(':')
        .map(|folder| std::path::Path::new(folder).join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| program.into())
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, stream: Stream, told: Option<&Told>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let Some(told) = told else {
        let _ = (&mut pipe).take(MAX_OUTPUT as u64).read_to_end(kept).await;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
        return;
    };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        buffer.put_u8(stream as u8);
        if !matches!(pipe.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
        // When nobody hears any more this program is about to be killed.
        let frame = Frame::new(Kind::Data, told.id, buffer.split().freeze());
        if told.out.send(frame).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(argv: &[&str], timeout_ms: u64) -> Exec {
        Exec {
            argv: argv.iter().map(|&s| s.to_owned()).collect(),
            stdin: "in".into(),
            timeout_ms,
            ..Exec::default()
        }
    }

    #[tokio::test]
    async fn programs_end_by_themselves_by_the_limit_or_not_at_all() {
        let cat = run(&exec(&["cat"], 5000), None).await.unwrap();
        assert_eq!((cat.code, cat.stdout.as_str()), (Some(0), "in"));
        let late = run(&exec(&["sleep", "60"], 50), None).await.unwrap();
        assert!(late.timed_out && late.code.is_none());
        let none = run(&exec(&["no-such-program"], 5000), None)
            .await
            .unwrap_err()
            .to_string();
        assert!(none.contains("no program 'no-such-program'"), "{none}");
    }
    #[tokio::test]
    async fn a_program_that_leaves_something_running_is_not_waited_for() {
        let begun = std::time::Instant::now();
        let left = run(&exec(&["sh", "-c", "sleep 20 & echo left"], 15_000), None)
            .await
            .unwrap();
        assert_eq!((left.code, left.stdout.as_str()), (Some(0), "left\n"));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
