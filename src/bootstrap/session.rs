//! A host we talk to: one way to it, and `clusterd host` at its other end.
//!
//! `clusterd` is put on the host first when it is not there or is another one than ours. Nothing else is done to a host from here.

use crate::{
    Error, Result,
    bandwidth::Bandwidth,
    fan, reach,
    supply::{self, Place, Supply},
    way::{Connection, Way},
};
use clusterfile::Ssh;
use futures::FutureExt as _;
use host::{CLUSTERD, CLUSTERD_FILES, Client, DialError, Dialing, Hello, Redial};
use ssh::{Become, Command};
use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

pub use crate::reach::Access;
pub use ssh::Aliases;

/// A program that does not greet within this time is not ours.
const GREETING: Duration = Duration::from_secs(15);

/// How long a host that was lost is tried to be reached again while it gives signs of life: long enough for its
/// services to start.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where `clusterd` comes from when a host lacks it.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file on this machine.
    pub path: PathBuf,
    /// Its digest.
    pub digest: oci::Digest,
}

/// How `clusterd` was put on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Whether another host gave it.
    pub from_peer: bool,
    /// Its size.
    pub bytes: u64,
    /// How long it took, with the waiting for a host to get it from.
    pub took: Duration,
}

/// A host we talk to. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    /// Its address.
    pub ip: Ipv4Addr,
    /// How to connect to it again, for tunnels.
    pub config: Arc<Way>,
    /// The transport.
    pub connection: Connection,
    /// `clusterd host` there.
    pub client: Client,
    /// How one becomes root there.
    pub elevate: Become,
    /// How `clusterd` was put there just now. Absent: it was there.
    pub pushed: Option<Pushed>,
    /// What may be sent to all hosts together.
    pub bandwidth: Option<Bandwidth>,
}

/// Connects to a host of the Clusterfile, and says how one becomes root there.
///
/// # Errors
/// When the host cannot be reached or does not let us in.
pub async fn connect(ip: Ipv4Addr, ssh: &Ssh, access: &Access) -> Result<(Connection, Become)> {
    let way = Arc::new(reach::way(ip, ssh, access)?);
    let elevate = reach::elevate(ip, way.user(), ssh)?;
    Ok((Connection::open(way).await?, elevate))
}

impl Session {
    /// Connects, puts `program` there if what is there differs, and greets. Without a `program` whatever is there must do.
    ///
    /// # Errors
    /// When the host cannot be reached, does not let us in or become root, or cannot run `clusterd`.
    pub async fn open(ip: Ipv4Addr, ssh: &Ssh, access: &Access, program: Option<&Program>) -> Result<Self> {
        let supply = program.map(|program| Supply::new(program, 1, false));
        Self::supplied(ip, ssh, access, supply.as_ref().map(|supply| supply.place(0))).await
    }

    async fn supplied(ip: Ipv4Addr, ssh: &Ssh, access: &Access, place: Option<Place<'_>>) -> Result<Self> {
        let (connection, elevate) = connect(ip, ssh, access).await?;
        Self::greet(ip, connection, elevate, access, place).await
    }

    async fn greet(
        ip: Ipv4Addr,
        connection: Connection,
        elevate: Become,
        access: &Access,
        place: Option<Place<'_>>,
    ) -> Result<Self> {
        let mut started = match start(ip, &connection, &elevate).await {
            // Whoever says that it is not there has a shell that works.
            Err(error) if !matches!(error, Error::NoProgram { .. }) && !supply::is_lost(&error) => {
                connection.prove_shell().await?;
                Err(error)
            }
            started => started,
        };
        let mut pushed = None;
        if let Some(place) = place {
            let ours = |hello: &Hello| hello.digest.as_ref() == Some(&place.program().digest);
            started = match started {
                Ok((client, hello)) if ours(&hello) => Ok((client, hello)),
                // An error of the transport itself would only repeat.
                Err(error) if supply::is_lost(&error) => return Err(error),
                // Another program, or none that works.
                _ => {
                    pushed = Some(
                        place
                            .bring(ip, &connection, &elevate, access.bandwidth.as_ref())
                            .await?,
                    );
                    start(ip, &connection, &elevate).await
                }
            };
            if let Ok((client, hello)) = &started
                && ours(hello)
            {
                place.settle(ip, client);
            }
        }
        let (client, hello) = started?;
        if hello.uid != 0 {
            return Err(Error::on(
                ip,
                format!(
                    "user {} is not root there; set ssh.sudo: true, or log in as root",
                    connection.user()
                ),
            ));
        }
        Ok(Self {
            ip,
            config: Arc::clone(connection.way()),
            connection,
            client,
            elevate,
            pushed,
            bandwidth: access.bandwidth.clone(),
        })
    }

    /// Takes `clusterd` away again from a host that was only looked at. What else is in its folder stays, and the folder with it.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn remove_program(&self) -> Result<()> {
        let run = |argv: &[&str]| {
            Command::new(argv.iter().copied())
                .elevate(self.elevate.clone())
                .timeout(GREETING)
        };
        let files: Vec<&str> = ["rm", "-f"].into_iter().chain(CLUSTERD_FILES).collect();
        self.connection.exec(&run(&files)).await?;
        let folder = CLUSTERD.rsplit_once('/').map_or("/", |(folder, _)| folder);
        self.connection.exec(&run(&["rmdir", folder])).await?;
        Ok(())
    }

    /// For `map_err`: a protocol failure on this host while `doing`.
    pub fn failed(&self, doing: impl Into<String>) -> impl FnOnce(host::ClientError) -> Error {
        Error::host(self.ip, doing)
    }
}

fn serve(elevate: &Become) -> Command {
    Command::new([CLUSTERD, "host", "--stdio"]).elevate(elevate.clone())
}

/// How a client comes back to a host when the connection was lost.
fn redial(connection: &Connection, elevate: &Become) -> Redial {
    let (connection, command) = (connection.clone(), serve(elevate));
    let dial = move || -> Dialing {
        let (connection, command) = (connection.clone(), command.clone());
        Box::pin(async move {
            match connection.open_process(&command).await {
                Ok(process) => Ok((process.stdout, process.stdin)),
                Err(error) => Err(DialError {
                    lasting: !matches!(&error, Error::Ssh(error) if error.is_passing()),
                    message: error.to_string(),
                    silence: connection.silence().await,
                }),
            }
        })
    };
    Redial {
        dial: Box::new(dial),
        patience: PATIENCE,
    }
}

/// Starts `clusterd host` and greets it.
async fn start(ip: Ipv4Addr, connection: &Connection, elevate: &Become) -> Result<(Client, Hello)> {
    let process = connection
        .open_process(&serve(elevate))
        .await
        .map_err(|error| match error {
            Error::Local { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Error::NoProgram { host: ip.to_string() }
            }
            error => error,
        })?;
    let complaints = process.complaints();
    let client = Client::returning(process.stdout, process.stdin, redial(connection, elevate));
    let greeting = tokio::time::timeout(GREETING, client.hello()).await;
    match greeting {
        Ok(Ok(hello)) => Ok((client, hello)),
        Ok(Err(source)) => {
            let stderr = complaints();
            let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            Err(match last {
                "" => Error::host(ip, format!("starting {CLUSTERD}{}", printed(&client.preamble())))(source),
                line if line.contains("not found") || line.contains("No such file") => {
                    Error::NoProgram { host: ip.to_string() }
                }
                line => Error::on(
                    ip,
                    format!("cannot run {CLUSTERD}: {line}{}", printed(&client.preamble())),
                ),
            })
        }
        Err(_) => Err(Error::on(
            ip,
            format!(
                "{CLUSTERD} did not greet within {} s{}",
                GREETING.as_secs(),
                printed(&client.preamble())
            ),
        )),
    }
}

/// What came in place of the protocol, and where to look for who wrote it.
fn printed(preamble: &str) -> String {
    match ssh::plain(preamble).as_str() {
        "" => String::new(),
        text => format!(
            " (what came instead is {text:?}; look at the login's start-up files there: ~/.bashrc, ~/.ssh/rc, \
             /etc/ssh/sshrc, and at ForceCommand in sshd_config)"
        ),
    }
}

/// Connects to all hosts at once, bounded, and puts what is supplied on those that lack it; without a supply whatever is there must do. The result is
/// in the order of `hosts`, and that is the order of the supply's places.
pub async fn open_all(hosts: &[(Ipv4Addr, Ssh)], access: &Access, supply: Option<&Supply<'_>>) -> Vec<Result<Session>> {
    let open = |(index, (ip, ssh)): (usize, &(Ipv4Addr, Ssh))| {
        let (ip, ssh) = (*ip, ssh.clone());
        async move { Session::supplied(ip, &ssh, access, supply.map(|supply| supply.place(index))).await }.boxed()
    };
    fan::all(hosts.iter().enumerate().map(open).collect()).await
}
