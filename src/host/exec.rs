//! Running a program for the client, with a limit, and with its children killed when nobody waits any more.

use std::{os::unix::process::ExitStatusExt as _, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use crate::{
    Error, Result,
    proto::{Exec, ExecResult, FaultKind},
    system::search_path,
};

/// Output kept of each stream.
const MAX_OUTPUT: usize = 1 << 20;

/// Kills the whole group when dropped: a cancelled request must not leave anything running.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

pub(crate) async fn run(exec: &Exec) -> Result<ExecResult> {
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
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program may end without reading.
            let _ = stdin.write_all(exec.stdin.as_bytes()).await;
        }
    };
    let finish = async { tokio::join!(feed, read(stdout), read(stderr), child.wait()) };
    match tokio::time::timeout(Duration::from_millis(exec.timeout_ms), finish).await {
        Ok(((), stdout, stderr, status)) => {
            group.0 = None;
            let status = status.map_err(Error::io(program))?;
            Ok(ExecResult {
                code: status.code().or(status.signal().map(|s| 128 + s)),
                timed_out: false,
                stdout,
                stderr,
            })
        }
        Err(_) => Ok(ExecResult {
            timed_out: true,
            ..ExecResult::default()
        }),
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

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = (&mut pipe).take(MAX_OUTPUT as u64).read_to_end(&mut kept).await;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&kept).into_owned()
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
        let cat = run(&exec(&["cat"], 5000)).await.unwrap();
        assert_eq!((cat.code, cat.stdout.as_str()), (Some(0), "in"));
        let late = run(&exec(&["sleep", "60"], 50)).await.unwrap();
        assert!(late.timed_out && late.code.is_none());
        let none = run(&exec(&["no-such-program"], 5000)).await.unwrap_err().to_string();
        assert!(none.contains("no program 'no-such-program'"), "{none}");
    }
}
