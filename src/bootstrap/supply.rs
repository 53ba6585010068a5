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
    handout::{Ended, Handout},
    session::Program,
    spread::Source,
    swarm,
    way::Connection,
};
use host::{
    CLUSTERD, Client,
    proto::{GiveProgram, Token},
};
use ssh::{Become, Command, ExitStatus};
use std::{
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

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
    state: Mutex<Handout>,
    changed: watch::Sender<u64>,
    givers: Vec<OnceLock<Giver>>,
}

/// A host's place among those that are supplied. One that is dropped before it was [settled](Place::settle) has nothing to give.
pub(crate) struct Place<'a> {
    supply: &'a Supply<'a>,
    index: usize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.supply.change(|state| {
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
            state: Mutex::new(Handout::new(hosts, peers)),
            changed: watch::Sender::default(),
            givers: (0..hosts).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The place of one host.
    pub(crate) fn place(&self, index: usize) -> Place<'_> {
        Place { supply: self, index }
    }

    fn state(&self) -> MutexGuard<'_, Handout> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Handout) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
        result
    }

    /// Waits until there is somebody to get it from.
    async fn turn(&self, index: usize) -> Source {
        let mut changed = self.changed.subscribe();
        let mut patient = true;
        loop {
            changed.borrow_and_update();
            let next = self.state().next(index, patient);
            if let Some(source) = next {
                self.change(|_| ());
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

    /// Puts it on the host; whether it came from another one.
    ///
    /// # Errors
    /// When it cannot be read, or the host cannot be sent to.
    pub(crate) async fn bring(
        &self,
        ip: Ipv4Addr,
        connection: &Connection,
        elevate: &Become,
        bandwidth: Option<&Bandwidth>,
    ) -> Result<bool> {
        if connection.is_local() {
            // What goes there leaves nothing.
            self.supply.change(|state| state.alone(self.index));
        }
        loop {
            let source = self.supply.turn(self.index).await;
            let Some(giver) = self.giver(source) else {
                let sent = send(ip, connection, elevate, self.program(), bandwidth).await;
                let how = if sent.is_ok() { Ended::Got } else { Ended::Refused };
                self.supply.change(|state| state.ended(self.index, how));
                return sent.map(|()| false);
            };
            let fetched = fetch(ip, connection, elevate, self.program(), giver).await;
            let how = match &fetched {
                Ok(()) => Ended::Got,
                Err(refusal) if is_lost(&refusal.error) => Ended::Lost,
                Err(refusal) => refusal.how,
            };
            self.supply.change(|state| state.ended(self.index, how));
            match fetched {
                Ok(()) => return Ok(true),
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
    matches!(error, Error::Ssh(error) if matches!(**error, ssh::Error::Sudo { .. } | ssh::Error::Lost { .. }))
}

/// How long a host may take to get so many bytes from another.
fn limit(size: u64) -> Duration {
    GRACE + Duration::from_secs(size.div_ceil(SLOWEST))
}

/// What the host that lacks it runs, and reads.
fn fetching(giver: Ipv4Addr, port: u16, program: &Program, size: u64, token: &str) -> Command {
    let seconds = limit(size).as_secs().to_string();
    let (port, size) = (port.to_string(), size.to_string());
    let argv = [
        "timeout",
        "-k",
        "5",
        &seconds,
        "bash",
        "-c",
        FETCH,
        "fetch",
        &giver.to_string(),
        &port,
        &size,
        program.digest.hex(),
        CLUSTERD,
    ];
    Command::new(argv).stdin(format!("{token}\n")).max_output(4 << 10)
}

async fn fetch(
    ip: Ipv4Addr,
    connection: &Connection,
    elevate: &Become,
    program: &Program,
    giver: &Giver,
) -> Result<(), Refusal> {
    let refused = |error| Refusal {
        how: Ended::Refused,
        error,
    };
    let meta = tokio::fs::metadata(&program.path).await;
    let size = meta.map_err(|source| refused(unreadable(program, source)))?.len();
    tracing::info!(host = %ip, source = %giver.ip, digest = program.digest.short(), "fetching clusterd");
    let token = swarm::random_text();
    let wish = GiveProgram {
        address: giver.ip,
        token: Token::new(token.clone()),
        timeout_ms: u64::try_from(limit(size).as_millis()).unwrap_or(u64::MAX),
    };
    let given = giver.client.give_program(wish).await;
    let ears = given.map_err(|e| refused(Error::host(giver.ip, "giving clusterd to another host")(e)))?;
    let port = ears.ports.first().copied().unwrap_or_default();
    let command = fetching(giver.ip, port, program, size, &token)
        .elevate(elevate.clone())
        .timeout(limit(size) + LAST_WORDS);
    let ran = connection.exec(&command).await;
    if let Err(error) = ears.end().await {
        tracing::debug!(source = %giver.ip, %error, "giving clusterd");
    }
    let output = ran.map_err(refused)?;
    let how = match output.status {
        ExitStatus::Code(0) => return Ok(()),
        ExitStatus::Code(126 | 127) => Ended::Unable,
        _ => Ended::Refused,
    };
    let error = Error::on(ip, format!("fetching clusterd: {}: {}", output.status, output.stderr));
    Err(Refusal { how, error })
}

fn unreadable(program: &Program, source: std::io::Error) -> Error {
    Error::Local {
        what: format!("cannot read {}", program.path.display()),
        source,
    }
}

async fn send(
    ip: Ipv4Addr,
    connection: &Connection,
    elevate: &Become,
    program: &Program,
    bandwidth: Option<&Bandwidth>,
) -> Result<()> {
    tracing::info!(host = %ip, digest = program.digest.short(), "sending clusterd");
    let file = tokio::fs::File::open(&program.path).await;
    let content = Throttled::new(file.map_err(|source| unreadable(program, source))?, bandwidth);
    connection.upload(CLUSTERD, 0o755, content, elevate).await?;
    Ok(())
}
