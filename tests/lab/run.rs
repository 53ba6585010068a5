//! Running the machine's own tools.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a program that succeeded.
    ///
    /// # Errors
    /// When it did not, with all that it said.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 {
            return Ok(self.stdout);
        }
        bail!(
            "exit code {}: {}{}",
            self.code,
            self.stderr.trim_end(),
            self.stdout.trim_end()
        )
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    use std::os::unix::process::ExitStatusExt as _;
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    let code = out
        .status
        .code()
        .unwrap_or_else(|| 128 + out.status.signal().unwrap_or(0));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Output {
        code,
        stdout: text(out.stdout),
        stderr: text(out.stderr),
    })
}

/// Runs a command that must succeed.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    output(command)?.ok().with_context(|| shown)?;
    Ok(())
}

/// Runs `ip` with words separated by spaces.
pub(crate) fn ip(words: &str) -> Result<()> {
    check(Command::new("ip").args(words.split_whitespace()))
}
