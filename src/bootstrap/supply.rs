//! Brings `clusterd` to the hosts that lack it: carries out what [`crate::handout`] says.
//!
//! ```text
//! operator ──SSH──▶ a host that has it: give your own file once, to who shows this token ──▶ port
//!          ──SSH──▶ the host that lacks it: bash fetches from there; sha256sum compares with the digest in its arguments; then it is in place
//! ```
//!
//! The digest comes over SSH and is compared before the file can be run, and the file is no secret: so between the hosts plain TCP will do.
//! Whatever goes wrong there, the host is sent to directly in the end.

use crate::{
    Error, Result,
    bandwidth::{Bandwidth, Throttled},
    board::Board,
    handout::{Ended, Handout},
    session::{Program, Pushed},
    spread::Source,
    swarm,
    way::Connection,
};
use flate2::{Compression, write::GzEncoder};
use host::{
    CLUSTERD, Client,
    proto::{GiveProgram, Token},
};
use ssh::{Become, Command, ExitStatus};
use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::{sync::OnceCell, time::timeout};

/// What bash does on a host that lacks `clusterd`.
const FETCH: &str = include_str!("fetch.sh");
/// So long nothing may change anywhere before one that waits for other hosts is sent to directly.
const STANDSTILL: Duration = Duration::from_secs(30);
/// Bytes a second that a host must get from another, at least; for the whole file with [`GRACE`].
const SLOWEST: u64 = 512 << 10;
/// What connecting, comparing and a busy host may take besides.
const GRACE: Duration = Duration::from_secs(30);
/// How much longer the host's own limit is waited for: then nothing goes on there when we go on.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// A host that has it.
struct Giver {
    ip: Ipv4Addr,
    client: Client,
}

/// See the head of this file.
pub struct Supply<'a> {
    program: &'a Program,
    board: Board<Handout>,
    /// A gzip of it, without a name, made when it is first sent. Absent: there is no place for it.
    packed: OnceCell<Option<Arc<File>>>,
    givers: Vec<OnceLock<Giver>>,
}

/// A host's place among those that are supplied. One that is dropped before it was [settled](Place::settle) has nothing to give.
pub(crate) struct Place<'a> {
    supply: &'a Supply<'a>,
    index: usize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.supply.board.change(|state| {
            let has = self.supply.givers[self.index].get().is_some();
            state.settle(self.index, has);
        });
    }
}

/// Why a host did not get it from another.
struct Refusal {
    how: Ended,
    error: Error,
}

impl<'a> Supply<'a> {
    /// What so many hosts shall have. With `peers` false, none fetches from another.
    pub fn new(program: &'a Program, hosts: usize, peers: bool) -> Self {
        Self {
            program,
            board: Board::new(Handout::new(hosts, peers)),
            packed: OnceCell::new(),
            givers: (0..hosts).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The place of one host.
    pub(crate) fn place(&self, index: usize) -> Place<'_> {
        Place { supply: self, index }
    }

    /// Waits until there is somebody to get it from.
    async fn turn(&self, index: usize) -> Source {
        let mut changed = self.board.changes();
        let mut patient = true;
        loop {
            changed.borrow_and_update();
            if let Some(source) = self.board.try_change(|state| state.next(index, patient)) {
                return source;
            }
            patient = timeout(STANDSTILL, changed.changed()).await.is_ok();
        }
    }
}

impl Place<'_> {
    /// What the host shall have.
    pub(crate) fn program(&self) -> &Program {
        self.supply.program
    }

    /// The host has it, and gives it to others from now on.
    pub(crate) fn settle(self, ip: Ipv4Addr, client: &Client) {
        let client = client.clone();
        let _ = self.supply.givers[self.index].set(Giver { ip, client });
    }

    /// Puts it on the host.
    ///
    /// # Errors
    /// When it cannot be read, or the host cannot be sent to.
    pub(crate) async fn bring(
        &self,
        ip: Ipv4Addr,
        connection: &Connection,
        elevate: &Become,
        bandwidth: Option<&Bandwidth>,
    ) -> Result<Pushed> {
        let began = Instant::now();
        let size = tokio::fs::metadata(&self.program().path).await;
        let size = size.map_err(|source| unreadable(self.program(), source))?.len();
        let pushed = |from_peer| Pushed {
            from_peer,
            bytes: size,
            took: began.elapsed(),
        };
        if connection.is_local() {
            // What goes there leaves nothing.
            self.supply.board.change(|state| state.alone(self.index));
        }
        let target = Target {
            ip,
            connection,
            elevate,
        };
        let wanted = Wanted {
            digest: &self.program().digest,
            size,
        };
        loop {
            let source = self.supply.turn(self.index).await;
            let Some(giver) = self.giver(source) else {
                let sent = self.supply.send(&target, &wanted, bandwidth).await;
                let how = if sent.is_ok() { Ended::Got } else { Ended::Refused };
                self.supply.board.change(|state| state.ended(self.index, how));
                return sent.map(|()| pushed(false));
            };
            let fetched = fetch(&target, &wanted, giver).await;
            let how = match &fetched {
                Ok(()) => Ended::Got,
                Err(refusal) if is_lost(&refusal.error) => Ended::Lost,
                Err(refusal) => refusal.how,
            };
            self.supply.board.change(|state| state.ended(self.index, how));
            match fetched {
                Ok(()) => return Ok(pushed(true)),
                Err(refusal) if how == Ended::Lost => return Err(refusal.error),
                Err(refusal) => {
                    tracing::info!(host = %ip, source = %giver.ip, error = %refusal.error, "clusterd did not come from another host");
                }
            }
        }
    }

    fn giver(&self, source: Source) -> Option<&Giver> {
        match source {
            Source::Operator => None,
            Source::Host(giver) => self.supply.givers[giver].get(),
        }
    }
}

/// Whether the host itself cannot be talked to: putting a program there would fail as well.
pub(crate) fn is_lost(error: &Error) -> bool {
    use ssh::Error::{Lost, Shell, Sudo};
    matches!(error, Error::Ssh(error) if matches!(**error, Sudo { .. } | Lost { .. } | Shell { .. }))
}

/// Whether nothing happened there any more: another way to send would wait for as long.
fn is_stalled(error: &Error) -> bool {
    matches!(error, Error::Ssh(error) if matches!(**error, ssh::Error::Timeout { .. }))
}

/// How long a host may take to get so many bytes from another.
fn limit(size: u64) -> Duration {
    GRACE + Duration::from_secs(size.div_ceil(SLOWEST))
}

/// A host that lacks it.
struct Target<'a> {
    ip: Ipv4Addr,
    connection: &'a Connection,
    elevate: &'a Become,
}

/// What shall come.
struct Wanted<'a> {
    digest: &'a oci::Digest,
    size: u64,
}

/// What the host that lacks it runs: it fetches from there, or takes what is sent.
fn fetching(from: Option<SocketAddrV4>, wanted: &Wanted<'_>, to: &str) -> Command {
    let (address, port) = match from {
        Some(from) => (from.ip().to_string(), from.port().to_string()),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let (seconds, size) = (limit(wanted.size).as_secs().to_string(), wanted.size.to_string());
    // Only of other hosts there is a choice.
    let patience = from.map(|_| ["timeout", "-k", "5", &seconds]);
    let script = [
        "bash",
        "-c",
        FETCH,
        "fetch",
        &address,
        &port,
        &size,
        wanted.digest.hex(),
        to,
    ];
    Command::new(patience.into_iter().flatten().chain(script)).max_output(4 << 10)
}

async fn fetch(to: &Target<'_>, wanted: &Wanted<'_>, giver: &Giver) -> Result<(), Refusal> {
    let refused = |error| Refusal {
        how: Ended::Refused,
        error,
    };
    tracing::info!(host = %to.ip, source = %giver.ip, digest = wanted.digest.short(), "fetching clusterd");
    let token = swarm::random_text();
    let wish = GiveProgram {
        address: giver.ip,
        token: Token::new(token.clone()),
        timeout_ms: u64::try_from(limit(wanted.size).as_millis()).unwrap_or(u64::MAX),
    };
    let given = giver.client.give_program(wish).await;
    let ears = given.map_err(|e| refused(Error::host(giver.ip, "giving clusterd to another host")(e)))?;
    let from = SocketAddrV4::new(giver.ip, ears.ports.first().copied().unwrap_or_default());
    let command = fetching(Some(from), wanted, CLUSTERD)
        .stdin(format!("{}\n", *token))
        .elevate(to.elevate.clone())
        .timeout(limit(wanted.size) + LAST_WORDS);
    let ran = to.connection.exec(&command).await;
    if let Err(error) = ears.end().await {
        tracing::debug!(source = %giver.ip, %error, "giving clusterd");
    }
    let output = ran.map_err(refused)?;
    let how = match output.status {
        ExitStatus::Code(0) => return Ok(()),
        ExitStatus::Code(126 | 127) => Ended::Unable,
        _ => Ended::Refused,
    };
    let error = Error::on(
        to.ip,
        format!("fetching clusterd: {}: {}", output.status, said(&output)),
    );
    Err(Refusal { how, error })
}

fn unreadable(program: &Program, source: std::io::Error) -> Error {
    Error::Local {
        what: format!("cannot read {}", program.path.display()),
        source,
    }
}

impl Supply<'_> {
    /// Sends it from here: compressed, unless the host cannot take it so.
    async fn send(&self, to: &Target<'_>, wanted: &Wanted<'_>, bandwidth: Option<&Bandwidth>) -> Result<()> {
        let program = self.program;
        tracing::info!(host = %to.ip, digest = program.digest.short(), "sending clusterd");
        if !to.connection.is_local()
            && let Some(packed) = self.packed().await
        {
            match send_packed(to, &packed, wanted, bandwidth).await {
                Ok(()) => return Ok(()),
                Err(error) if is_lost(&error) || is_stalled(&error) => return Err(error),
                Err(error) => tracing::info!(host = %to.ip, %error, "clusterd is sent as it is"),
            }
        }
        let file = tokio::fs::File::open(&program.path).await;
        let content = Throttled::new(file.map_err(|source| unreadable(program, source))?, bandwidth);
        to.connection.upload(CLUSTERD, 0o755, content, to.elevate).await?;
        Ok(())
    }

    async fn packed(&self) -> Option<Arc<File>> {
        let make = async || {
            let path = self.program.path.clone();
            let made = tokio::task::spawn_blocking(move || pack(&path)).await;
            match made.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(file) => Some(Arc::new(file)),
                Err(error) => {
                    tracing::info!(%error, "clusterd is not compressed");
                    None
                }
            }
        };
        self.packed.get_or_init(make).await.clone()
    }
}

/// A gzip of a file.
fn pack(path: &Path) -> io::Result<File> {
    let mut packed = GzEncoder::new(tempfile::tempfile()?, Compression::default());
    oci::copy(&mut File::open(path)?, &mut packed)?;
    packed.finish()
}

async fn send_packed(to: &Target<'_>, packed: &File, wanted: &Wanted<'_>, bandwidth: Option<&Bandwidth>) -> Result<()> {
    // Opened anew, it is read from its beginning whoever else reads it.
    let own = format!("/proc/self/fd/{}", packed.as_raw_fd());
    let file = tokio::fs::File::open(own).await.map_err(|source| Error::Local {
        what: "cannot read the gzip of clusterd".to_owned(),
        source,
    })?;
    let content = Throttled::new(file, bandwidth);
    let command = fetching(None, wanted, CLUSTERD).elevate(to.elevate.clone());
    let output = to.connection.exec_with(&command, content).await?;
    match &output.status {
        ExitStatus::Code(0) => Ok(()),
        status => Err(Error::on(
            to.ip,
            format!("unpacking clusterd: {status}: {}", said(&output)),
        )),
    }
}

/// What bash said, where it said something on stderr; else whoever ran in its place.
fn said(output: &ssh::Output) -> String {
    match ssh::plain(&output.stderr) {
        said if said.is_empty() => output.last_words(),
        said => said,
    }
}

#[cfg(test)]
mod tests;
