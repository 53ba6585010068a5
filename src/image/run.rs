//! RUN: a command on the build machine with the staging folder as its working directory.
//!
//! It isn't confined: it sees the machine's own programs and network, as a Makefile would. What is fixed is what would
//! otherwise leak into the image: environment, umask, time zone, locale.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clusterfile::Env;
use clusterfile::kubefile;

use crate::error::Error;
use crate::progress::{Event, Progress};

/// How many of the last printed lines an error shows.
const TAIL: usize = 20;
/// A printed line is cut here, in bytes.
const LINE_LIMIT: usize = 2000;
/// How long the output of a command that has ended is still read: what it left running may hold it open for ever.
const LINGER: Duration = Duration::from_secs(5);

/// Runs `command` in `folder`; `context` is told as `$CONTEXT`.
pub(crate) fn run(
    command: &kubefile::Command,
    folder: &Path,
    context: &Path,
    variables: &Env,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let mut shell = Command::new("/bin/sh");
    match command {
        kubefile::Command::Shell(line) => shell.arg("-euc").arg(format!("exec 2>&1; umask 022\n{line}")),
        kubefile::Command::Exec(words) => shell
            .args(["-euc", "exec 2>&1; umask 022\nexec \"$@\"", "sh"])
            .args(words),
    };
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    shell
        .current_dir(folder)
        .env_clear()
        .envs([
            ("PATH", path),
            ("TZ", "UTC"),
            ("LC_ALL", "C.UTF-8"),
            ("SOURCE_DATE_EPOCH", "0"),
        ])
        .envs(std::env::var_os("HOME").map(|home| ("HOME", home)))
        .envs(variables)
        .env("CONTEXT", context)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let child = shell.spawn().map_err(Error::io("cannot run", "/bin/sh"))?;
    let mut tail = VecDeque::new();
    let ended = watch(child, |line| {
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.clone());
        progress.event(Event::Output(line));
    });
    let status = ended.map_err(Error::io("cannot wait for", "/bin/sh"))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Command {
            status: status.to_string(),
            tail: tail.into(),
        }),
    }
}

/// What is seen of a command that runs.
enum Seen {
    Line(String),
    Ended(io::Result<ExitStatus>),
}

/// Tells every line until the command has ended; how it did.
fn watch(mut child: Child, mut each: impl FnMut(String)) -> io::Result<ExitStatus> {
    let (sender, seen) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        let sender = sender.clone();
        std::thread::spawn(move || read_lines(BufReader::new(output), |line| drop(sender.send(Seen::Line(line)))));
    }
    std::thread::spawn(move || drop(sender.send(Seen::Ended(child.wait()))));
    let status = loop {
        match seen.recv() {
            Ok(Seen::Line(line)) => each(line),
            Ok(Seen::Ended(status)) => break status,
            Err(mpsc::RecvError) => return Err(io::Error::other("nobody waits for it any more")),
        }
    };
    let until = Instant::now() + LINGER;
    while let Ok(Seen::Line(line)) = seen.recv_timeout(until.saturating_duration_since(Instant::now())) {
        each(line);
    }
    status
}

fn read_lines(mut reader: impl BufRead, mut each: impl FnMut(String)) {
    let mut line = Vec::new();
    while let Ok(read) = reader.read_until(b'\n', &mut line) {
        if read == 0 {
            break;
        }
        line.truncate(LINE_LIMIT);
        each(String::from_utf8_lossy(&line).trim_end().to_string());
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::NoProgress;

    #[test]
    fn a_failing_command_shows_its_last_lines_and_the_environment_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Env::from([("A".to_string(), "b".to_string())]);
        let shell = |line: &str| kubefile::Command::Shell(line.to_string());
        run(
            &shell("echo $A $TZ > out; umask >> out"),
            dir.path(),
            dir.path(),
            &variables,
            &NoProgress,
        )
        .unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("out")).unwrap(),
            "b UTC\n0022\n"
        );
        let error = run(
            &shell("echo why >&2; exit 3"),
            dir.path(),
            dir.path(),
            &variables,
            &NoProgress,
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "the command failed (exit status: 3)\n  why");
        let unset = run(&shell("echo $CARGO"), dir.path(), dir.path(), &variables, &NoProgress);
        assert!(
            unset.is_err(),
            "variables of the caller don't leak, and unset ones are errors"
        );
        let exec = kubefile::Command::Exec(vec!["touch".into(), "a b".into()]);
        run(&exec, dir.path(), dir.path(), &variables, &NoProgress).unwrap();
        assert!(dir.path().join("a b").exists());
    }

    #[test]
    fn a_command_that_leaves_something_running_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let line = kubefile::Command::Shell("sleep 1000 & echo $! > pid; echo done".to_string());
        run(&line, dir.path(), dir.path(), &Env::new(), &NoProgress).unwrap();
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let killed = Command::new("kill").arg(pid.trim()).status().unwrap();
        assert!(killed.success(), "it still runs");
    }
}
