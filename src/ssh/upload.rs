//! Putting one file on a host that has nothing but coreutils: how the first program of ours gets there.

use tokio::io::AsyncRead;

use crate::{Become, Command, Connection, Error, Output, Result, exec::Fed};

impl Connection {
    /// Streams `content` into the file `path` (absolute), with `mode`, making its folder. It appears at `path` only
    /// when it is whole; nothing of it is left otherwise.
    ///
    /// # Errors
    /// When reading `content` fails, or the host cannot write the file: with what it said.
    pub async fn upload(
        &self,
        path: &str,
        mode: u32,
        content: impl AsyncRead + Unpin,
        elevate: &Become,
    ) -> Result<u64> {
        let run = async |argv: &[&str]| {
            let what = format!("to put {path} there ({})", argv[0]);
            self.exec(&Command::new(argv.iter().copied()).elevate(elevate.clone()))
                .await?
                .ok(self.target(), &what)
        };
        let folder = path
            .rsplit_once('/')
            .map_or("/", |(folder, _)| if folder.is_empty() { "/" } else { folder });
        let part = format!("{path}.part");
        run(&["mkdir", "-p", folder]).await?;
        let written = self.write(&part, content, elevate).await;
        if matches!(&written, Err(error) if !error.is_passing()) {
            // On a file system that is full it would be in the way of whoever makes room there.
            let swept = run(&["rm", "-f", &part]).await;
            tracing::debug!(host = self.target(), ok = swept.is_ok(), "swept {part}");
        }
        let count = written?;
        run(&["chmod", &format!("{mode:o}"), &part]).await?;
        run(&["mv", "-f", &part, path]).await?;
        Ok(count)
    }

    async fn write(&self, part: &str, content: impl AsyncRead + Unpin, elevate: &Become) -> Result<u64> {
        // dd opens the file itself, so no shell redirection is needed, and root writes it where root is needed.
        let dd = Command::new(["dd", &format!("of={part}"), "bs=1M", "status=none"]).elevate(elevate.clone());
        let Fed { output, taken } = self.feed(&dd, content).await?;
        let taken = taken.map_err(|source| Error::Content {
            host: self.target().to_owned(),
            what: part.to_owned(),
            source,
        })?;
        if output.status.success() {
            return Ok(taken);
        }
        let reason = match output {
            Output { stderr, .. } if !stderr.is_empty() => stderr,
            output => format!("{}: {}", output.status, output.last_words()),
        };
        Err(Error::Refusal {
            host: self.target().to_owned(),
            what: format!("to write {part}"),
            reason,
        })
    }
}
