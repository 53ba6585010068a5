//! Running a program to its end, feeding it meanwhile.
//!
//! A program may end before it has read what it is fed; what it says counts then. One with which nothing happens is
//! given up.

use std::{io, time::Duration};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader},
    time::timeout,
};

use crate::{
    Command, Connection, Error, Output, Process, Result,
    activity::Activity,
    elevate::{self, Method},
    process::{ExitStatus, ProcessWriter, read_bounded},
};

/// How much of a file is read at once, in bytes.
const PIECE: usize = 256 << 10;
/// How long a program without a time limit of its own may take nothing, say nothing and not end.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A program that ran to its end, and what it was fed.
pub(crate) struct Fed {
    pub(crate) output: Output,
    /// How many bytes it took. An error is one of reading on this machine.
    pub(crate) taken: io::Result<u64>,
}

impl Connection {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started, root cannot be had, or its time is up; without a time limit, when nothing happens
    /// for a minute. A program that fails is not an error here: see [`Output::ok`].
    pub async fn exec(&self, command: &Command) -> Result<Output> {
        let method = self.method(&command.elevate).await?;
        let fed = self.run(command, &method, &command.stdin[..]).await?;
        Ok(self.judge(command, &method, fed)?.output)
    }

    /// As [`Self::exec`], with `content` as stdin. It ends where `content` ends or cannot be read; whether all came
    /// is the program's business.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub async fn exec_with(&self, command: &Command, content: impl AsyncRead + Unpin) -> Result<Output> {
        Ok(self.feed(command, content).await?.output)
    }

    /// As [`Self::exec_with`], and tells what became of `content`.
    pub(crate) async fn feed(&self, command: &Command, content: impl AsyncRead + Unpin) -> Result<Fed> {
        let method = self.method(&command.elevate).await?;
        let content = BufReader::with_capacity(PIECE, content);
        let fed = self.run(command, &method, content).await?;
        self.judge(command, &method, fed)
    }

    /// Runs a command to its end as `method` says. That sudo refuses is no error here.
    pub(crate) async fn exec_as(&self, command: &Command, method: &Method) -> Result<Output> {
        Ok(self.run(command, method, &command.stdin[..]).await?.output)
    }

    /// An error if it was sudo that ended, and not the program.
    fn judge(&self, command: &Command, method: &Method, fed: Fed) -> Result<Fed> {
        match elevate::refusal(method, &fed.output) {
            Some(reason) => Err(self.no_root(&command.argv, reason)),
            None => Ok(fed),
        }
    }

    async fn run(&self, command: &Command, method: &Method, content: impl AsyncBufRead + Unpin) -> Result<Fed> {
        let run = async {
            let process = self.start(&command.argv, method).await?;
            let activity = process.activity();
            let end = to_end(process, &activity, content, command.max_output);
            match command.timeout {
                Some(_) => Ok(end.await),
                None => tokio::select! {
                    fed = end => Ok(fed),
                    () = activity.stalled(STALL_TIMEOUT) => {
                        Err(self.late("waiting for a program that does nothing", STALL_TIMEOUT))
                    }
                },
            }
        };
        let fed = match command.timeout {
            None => run.await?,
            Some(limit) => timeout(limit, run)
                .await
                .map_err(|_| self.late("running a command", limit))??,
        };
        match &fed.output.status {
            // Then it is we who ended it.
            ExitStatus::Lost(reason) if !elevate::asked_again(&fed.output.stderr) => Err(Error::Lost {
                host: self.target().to_owned(),
                reason: reason.clone(),
            }),
            _ => Ok(fed),
        }
    }
}

async fn to_end(process: Process, activity: &Activity, content: impl AsyncBufRead + Unpin, max_output: usize) -> Fed {
    let Process {
        stdin,
        stdout,
        mut status,
        ..
    } = process;
    let (taken, stdout, exit) = tokio::join!(
        pour(content, stdin, activity),
        read_bounded(stdout, max_output),
        status.wait()
    );
    let output = Output {
        status: exit,
        stdout,
        stderr: status.stderr(),
    };
    Fed { output, taken }
}

/// Feeds a program until the content or the program ends.
async fn pour(
    mut content: impl AsyncBufRead + Unpin,
    mut stdin: ProcessWriter,
    activity: &Activity,
) -> io::Result<u64> {
    let mut taken = 0;
    let result = loop {
        activity.pause();
        let read = content.fill_buf().await;
        activity.note();
        let piece = match read {
            Ok(piece) if !piece.is_empty() => piece,
            Ok(_) => break Ok(taken),
            Err(error) => break Err(error),
        };
        match stdin.write(piece).await {
            Ok(count) => {
                content.consume(count);
                taken += count as u64;
            }
            // It takes no more: what it says and how it ends tell why.
            Err(_) => break Ok(taken),
        }
    };
    activity.note();
    let _ = stdin.shutdown().await;
    result
}
