//! Runs `nft`: the one way rules reach the kernel. Every call is one transaction: all of it takes effect, or nothing.

use std::{path::Path, process::Stdio};

use tokio::{io::AsyncWriteExt, process::Command};

/// Where the program lies: in our image as on Debian, or in the unpacked rootfs of a host.
const PLACES: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/opt/installer/bin/nft"];

/// Why rules were not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be run.
    #[error("nft cannot be run: {0}")]
    Run(#[from] std::io::Error),
    /// The rules were refused; none of them took effect.
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

/// Applies a script in one transaction.
pub async fn apply(script: &str) -> Result<(), Error> {
    run(&["-f", "-"], script).await
}

/// Whether a chain is there.
pub async fn has_chain(table: &str, chain: &str) -> Result<bool, Error> {
    match run(&["list", "chain", "ip", table, chain], "").await {
        Ok(()) => Ok(true),
        Err(Error::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A script that removes a table, whether it is there or not.
pub fn removal(table: &str) -> String {
    format!("add table ip {table}\ndelete table ip {table}\n")
}

async fn run(arguments: &[&str], input: &str) -> Result<(), Error> {
    let program = PLACES
        .into_iter()
        .find(|place| Path::new(place).exists())
        .unwrap_or("nft");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let write = async {
        if let Some(mut stdin) = stdin {
            // A refusal may come before all is read; then the exit status says why.
            _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Error::Refused(message.chars().take(2000).collect()))
}
