//! Programs that keep logins: `docker-credential-NAME get`, which reads a registry's name and writes a login as JSON.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clusterfile::Secret;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::remote::Login;

/// How long a program may take: it may ask its user.
const PATIENCE: Duration = Duration::from_secs(30);
/// More output is not read, in bytes.
const LONGEST: u64 = 64 << 10;
/// The user's name that says: the secret is a token.
const TOKEN: &str = "<token>";
/// What every helper says that has no login.
const NOT_FOUND: &str = "credentials not found";
/// Docker Hub's name in the files of docker.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// Asks the program `docker-credential-<name>` for the login of a registry. `file` is the file that names it.
pub(super) fn login(name: &str, host: &str, file: &Path) -> Result<Option<Login>, Error> {
    // A path would run whatever lies there.
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(failed(name, host, file)("is no name of a program".to_string()));
    }
    login_by(&format!("docker-credential-{name}"), name, host, file, PATIENCE)
}

fn failed(name: &str, host: &str, file: &Path) -> impl Fn(String) -> Error {
    let said = format!(
        "cannot get the login of {host}: docker-credential-{name} (named by {})",
        file.display()
    );
    move |why| Error::Refused(format!("{said} {why}"))
}

/// The same by the program's path.
pub(super) fn login_by(
    program: &str,
    name: &str,
    host: &str,
    file: &Path,
    patience: Duration,
) -> Result<Option<Login>, Error> {
    let failed = failed(name, host, file);
    let server = if host == "docker.io" { DOCKER_HUB } else { host };
    let (status, output) = run(program, server, patience).map_err(&failed)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&output);
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        return match said.contains(NOT_FOUND) {
            true => Ok(None),
            false => Err(failed(format!("failed ({status}): {said}"))),
        };
    }
    // The parser's own words may hold a secret.
    let answer: Answer = serde_json::from_slice(&output).map_err(|_| failed("gave no login as JSON".to_string()))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN => Login::IdentityToken(answer.secret),
        _ => Login::Password {
            user: answer.username,
            password: answer.secret,
        },
    }))
}

type Output = Zeroizing<Vec<u8>>;

fn run(program: &str, input: &str, patience: Duration) -> Result<(ExitStatus, Output), String> {
    let end = Instant::now() + patience;
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let result = talk(&mut child, input, end);
    if result.is_err() {
        // It may have ended by itself; then there is nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

fn talk(child: &mut Child, input: &str, end: Instant) -> Result<(ExitStatus, Output), String> {
    let late = || "did not answer in time".to_string();
    if let Some(mut stdin) = child.stdin.take() {
        // A program that doesn't read is judged by what it writes.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stdout = child.stdout.take().ok_or("has no output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = Zeroizing::new(Vec::new());
        let read = stdout.take(LONGEST).read_to_end(&mut output);
        let _ = sender.send(read.map(|_| output));
    });
    let output = receiver.recv_timeout(end.saturating_duration_since(Instant::now()));
    let output = output
        .map_err(|_| late())?
        .map_err(|error| format!("cannot be read: {error}"))?;
    wait(child, end)
        .map_err(|error| format!("cannot be waited for: {error}"))?
        .ok_or_else(late)
        .map(|status| (status, output))
}

/// How the program ended; none if it still runs.
fn wait(child: &mut Child, end: Instant) -> std::io::Result<Option<ExitStatus>> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let left = end.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left))?;
    child.try_wait()
}
