//! The one process runner, and what is asked of systemd through it.

use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    Error, Result,
    proto::{FaultKind, UnitStatus},
};

/// Longest any of our own tool calls may take.
const TOOL_LIMIT: Duration = Duration::from_secs(150);
/// How long the output of a program that has ended is still read: what it left running may hold it open for ever.
const LINGER: Duration = Duration::from_secs(5);
/// Output kept of each stream.
const MAX_OUTPUT: u64 = 1 << 20;

/// How a program ended.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// stdout.
    pub stdout: String,
    /// stderr.
    pub stderr: String,
}

/// Runs programs; a stand-in in tests.
pub trait System: Send + Sync {
    /// Runs the vector to its end.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    fn run(&self, argv: &[&str]) -> io::Result<Ran>;
}

/// The host's own programs.
#[derive(Debug, Default)]
pub struct Real;

impl System for Real {
    fn run(&self, argv: &[&str]) -> io::Result<Ran> {
        run(argv, "", TOOL_LIMIT)
    }
}

pub(crate) fn run(argv: &[&str], stdin: &str, limit: Duration) -> io::Result<Ran> {
    let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("empty command"))?;
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .env("PATH", search_path())
        .env("SYSTEMD_COLORS", "0")
        .stdin(if stdin.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        let text = stdin.to_owned();
        std::thread::spawn(move || pipe.write_all(text.as_bytes()));
    }
    let out = child.stdout.take().map(collect);
    let err = child.stderr.take().map(collect);
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > limit {
            if let Some(group) = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.wait();
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{program} took longer than {} s", limit.as_secs()),
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let until = Instant::now() + LINGER;
    let told = |pieces: Option<mpsc::Receiver<Vec<u8>>>| pieces.map_or_else(String::new, |pieces| text(&pieces, until));
    Ok(Ran {
        code: status.code().unwrap_or(-1),
        stdout: told(out),
        stderr: told(err),
    })
}

/// Reads all in a thread of its own.
fn collect(mut pipe: impl io::Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        let mut left = MAX_OUTPUT;
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let kept = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= kept as u64;
            // Of a program nobody looks at any more it is read on, so that it does not wait for us.
            let _ = sender.send(buffer[..kept].to_vec());
        }
    });
    pieces
}

/// What was read, and is until then or the end.
fn text(pieces: &mpsc::Receiver<Vec<u8>>, until: Instant) -> String {
    let mut all = Vec::new();
    while let Ok(piece) = pieces.recv_timeout(until.saturating_duration_since(Instant::now())) {
        all.extend(piece);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Where programs are looked for: ours first, then the usual places, whatever the login's PATH is.
pub(crate) fn search_path() -> String {
    format!(
        "{}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        crate::CURRENT
    )
}

/// Runs a tool that must succeed.
pub(crate) fn must(system: &dyn System, argv: &[&str]) -> Result<String> {
    let line = argv.join(" ");
    let ran = system.run(argv).map_err(|e| match e.kind() {
        io::ErrorKind::TimedOut => Error::new(FaultKind::Timeout, e.to_string()),
        _ => Error::new(FaultKind::System, format!("{line}: {e}")),
    })?;
    if ran.code == 0 {
        return Ok(ran.stdout);
    }
    let said = if ran.stderr.trim().is_empty() {
        ran.stdout.trim()
    } else {
        ran.stderr.trim()
    };
    Err(Error::failed(format!("{line} ended with {}: {said}", ran.code)))
}

const PROPERTIES: &str = "LoadState,ActiveState,SubState,UnitFileState,MainPID,NRestarts,NeedDaemonReload,\
                          ActiveEnterTimestampMonotonic,StateChangeTimestampMonotonic";

/// A unit as systemd shows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) unit: UnitStatus,
    /// Its file changed since systemd read it.
    pub(crate) stale: bool,
    /// When its state last changed, in microseconds since 1970: unlike the start this moves with a reload.
    pub(crate) changed_us: u64,
}

/// Asks systemd about a unit.
pub(crate) fn unit_status(system: &dyn System, name: &str, lines: u32) -> Result<Shown> {
    let text = must(
        system,
        &["systemctl", "show", "--no-pager", "-p", PROPERTIES, "--", name],
    )?;
    let Shown {
        mut unit,
        mut stale,
        mut changed_us,
    } = Shown::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "LoadState" => unit.load = value.to_owned(),
            "ActiveState" => unit.active = value.to_owned(),
            "SubState" => unit.sub = value.to_owned(),
            "UnitFileState" => unit.enabled = value.to_owned(),
            "MainPID" => unit.pid = value.parse().unwrap_or(0),
            "NRestarts" => unit.restarts = value.parse().unwrap_or(0),
            "ActiveEnterTimestampMonotonic" => unit.active_since_us = value.parse().map_or(0, to_wall_clock),
            "StateChangeTimestampMonotonic" => changed_us = value.parse().map_or(0, to_wall_clock),
            "NeedDaemonReload" => stale = value == "yes",
            _ => {}
        }
    }
    if lines > 0 {
        unit.log = unit_log(system, name, lines);
    }
    Ok(Shown {
        unit,
        stale,
        changed_us,
    })
}

/// The last lines of a unit's journal; empty where there is no journald.
pub(crate) fn unit_log(system: &dyn System, name: &str, lines: u32) -> Vec<String> {
    let argv = [
        "journalctl",
        "-u",
        name,
        "-n",
        &lines.to_string(),
        "--no-pager",
        "-o",
        "cat",
        "-q",
    ];
    system
        .run(&argv)
        .map(|ran| ran.stdout.lines().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// systemd tells microseconds of the monotonic clock; files have wall-clock times.
fn to_wall_clock(monotonic_us: u64) -> u64 {
    if monotonic_us == 0 {
        return 0;
    }
    let us = |clock| {
        let t = rustix::time::clock_gettime(clock);
        u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1000
    };
    let (wall, monotonic) = (
        us(rustix::time::ClockId::Realtime),
        us(rustix::time::ClockId::Monotonic),
    );
    (wall + monotonic_us).saturating_sub(monotonic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_leaves_something_running_is_not_waited_for() {
        let script = "sleep 1000 & echo $!; echo why >&2; exit 3";
        let ran = run(&["sh", "-c", script], "", TOOL_LIMIT).unwrap();
        let pid = ran.stdout.trim().to_owned();
        assert_eq!((ran.code, ran.stderr.as_str()), (3, "why\n"));
        assert_eq!(run(&["kill", &pid], "", TOOL_LIMIT).unwrap().code, 0, "it still runs");
    }

    #[test]
    fn what_is_kept_of_a_program_that_writes_much_has_a_bound() {
        let ran = run(&["head", "-c", "3000000", "/dev/zero"], "", TOOL_LIMIT).unwrap();
        assert_eq!((ran.code, ran.stdout.len() as u64), (0, MAX_OUTPUT));
    }
}
