//! Putting one file on a host that has nothing but coreutils: how the first program of ours gets there.

use tokio::io::{AsyncRead, AsyncWriteExt as _};

use crate::{Become, Command, Connection, Error, Result, connection::PIECE, process::read_bounded};

impl Connection {
    /// Streams `content` into the file `path` (absolute), with `mode`, making its folder. It appears at `path` only when it is whole.
    ///
    /// # Errors
    /// When reading `content` fails, or the host cannot write the file: with what it said.
    pub async fn upload(
        &self,
        path: &str,
        mode: u32,
        mut content: impl AsyncRead + Unpin,
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
        // dd opens the file itself, so no shell redirection is needed, and root writes it where root is needed.
        let dd = Command::new(["dd", &format!("of={part}"), "bs=1M", "status=none"]).elevate(elevate.clone());
        let mut process = self.open_process(&dd).await?;
        let copied = async {
            let copied = tokio::io::copy_buf(
                &mut tokio::io::BufReader::with_capacity(PIECE, &mut content),
                &mut process.stdin,
            )
            .await;
            let closed = process.stdin.shutdown().await;
            copied.and_then(|n| closed.map(|()| n))
        };
        let (copied, _, status) = tokio::join!(copied, read_bounded(process.stdout, 1024), process.status.wait());
        if !status.success() {
            let said = process.status.stderr();
            let reason = if said.is_empty() { status.to_string() } else { said };
            return Err(Error::Refusal {
                host: self.target().to_owned(),
                what: format!("to write {part}"),
                reason,
            });
        }
        let copied = copied.map_err(|e| Error::Lost {
            host: self.target().to_owned(),
            reason: format!("{e}, while sending {path}"),
        })?;
        run(&["chmod", &format!("{mode:o}"), &part]).await?;
        run(&["mv", "-f", &part, path]).await?;
        Ok(copied)
    }
}
