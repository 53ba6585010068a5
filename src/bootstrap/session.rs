//! A host we talk to: one SSH connection, and `clusterd host` at its other end.
//!
//! `clusterd` is put on the host first when it is not there or is another one than ours. Nothing else is done to a host from here.

use crate::{Error, Result, fan};
use clusterfile::{Jump, Ssh};
use futures::FutureExt as _;
use host::{CLUSTERD, Client, Hello};
use ssh::{Auth, Become, Command, Connection, HostKeyPolicy};
use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

/// A program that does not greet within this time is not ours.
const GREETING: Duration = Duration::from_secs(15);

/// Where `clusterd` comes from when a host lacks it.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file on this machine.
    pub path: PathBuf,
    /// Its digest.
    pub digest: oci::Digest,
}

/// How hosts are reached, beyond what the Clusterfile says.
#[derive(Debug, Clone)]
pub struct Access {
    /// Files of known host keys; empty: the user's own.
    pub known_hosts: Vec<PathBuf>,
    /// Whether unknown host keys are accepted and remembered.
    pub accept_new_host_keys: bool,
}

/// A host we talk to. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    /// Its address.
    pub ip: Ipv4Addr,
    /// How to connect to it again, for tunnels.
    pub config: Arc<ssh::Config>,
    /// The transport.
    pub connection: Connection,
    /// `clusterd host` there.
    pub client: Client,
    /// How one becomes root there.
    pub elevate: Become,
    /// Whether we put `clusterd` there just now.
    pub pushed: bool,
}

/// The transport's configuration for a host of the Clusterfile.
///
/// # Errors
/// When a secret cannot be had, or a pinned key is malformed.
pub fn ssh_config(ip: Ipv4Addr, ssh: &Ssh, access: &Access) -> Result<ssh::Config> {
    let host = ip.to_string();
    let auth = auth(&host, ssh)?;
    let base = |name: &str, port: u16, user: &str| {
        let mut config = ssh::Config::new(name, user);
        config.port = port;
        config.auth = auth.clone();
        config.host_key = HostKeyPolicy {
            known_hosts: access.known_hosts.clone(),
            pinned: Vec::new(),
            accept_new: access.accept_new_host_keys,
        };
        config
    };
    let user = ssh.user.as_deref().unwrap_or("root");
    let jump_config = |jump: &Jump| {
        base(
            &jump.host,
            jump.port.unwrap_or(22),
            jump.user.as_deref().unwrap_or(user),
        )
    };
    let jump = ssh.proxy_jump.iter().flatten().fold(None, |outer, jump| {
        let mut config = jump_config(jump);
        config.jump = outer;
        Some(Box::new(config))
    });
    let mut config = base(&host, ssh.port.unwrap_or(22), user);
    config.jump = jump;
    let pin = |key: &String| {
        key.parse()
            .map_err(|e: String| Error::on(&host, format!("hostKey: {e}")))
    };
    config.host_key.pinned = ssh.host_key.iter().map(pin).collect::<Result<_>>()?;
    Ok(config)
}

/// Ways to authenticate: the key, then the agent, then the password; without any of them the usual key files.
fn auth(host: &str, ssh: &Ssh) -> Result<Vec<Auth>> {
    let secret = |source: &clusterfile::SecretSource| {
        let secret = source.resolve().map_err(|source| Error::Secret {
            host: host.to_owned(),
            source,
        })?;
        Ok::<_, Error>(secret.map(|secret| ssh::Secret::new(secret.expose())))
    };
    let mut auth = Vec::new();
    if let Some(path) = &ssh.pk {
        auth.push(Auth::KeyFile {
            path: path.clone(),
            certificate: ssh.certificate.clone(),
            passphrase: secret(&ssh.pk_passwd)?,
        });
    }
    if ssh.agent {
        auth.push(Auth::Agent(None));
        if ssh.pk.is_none() {
            auth.extend(usual_keys());
        }
    }
    if let Some(password) = secret(&ssh.passwd)? {
        auth.push(Auth::Password(password));
    }
    Ok(auth)
}

fn usual_keys() -> Vec<Auth> {
    let Some(home) = std::env::var_os("HOME").map(PathBuf::from) else {
        return Vec::new();
    };
    let paths = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|name| home.join(".ssh").join(name));
    let there = paths.into_iter().filter(|path| path.exists());
    let key = |path| Auth::KeyFile {
        path,
        certificate: None,
        passphrase: None,
    };
    there.map(key).collect()
}

pub(crate) fn elevate(host: &str, ssh: &Ssh) -> Result<Become> {
    let user = ssh.user.as_deref().unwrap_or("root");
    if user == "root" || ssh.sudo == Some(false) {
        return Ok(Become::User);
    }
    let source = if ssh.sudo_passwd.is_none() {
        &ssh.passwd
    } else {
        &ssh.sudo_passwd
    };
    let secret = source.resolve().map_err(|source| Error::Secret {
        host: host.to_owned(),
        source,
    })?;
    Ok(Become::Root {
        password: secret.map(|secret| ssh::Secret::new(secret.expose())),
    })
}

impl Session {
    /// Connects, puts `program` there if what is there differs, and greets. Without a `program` whatever is there must do.
    ///
    /// # Errors
    /// When the host cannot be reached, does not let us in or become root, or cannot run `clusterd`.
    pub async fn open(ip: Ipv4Addr, ssh: &Ssh, access: &Access, program: Option<&Program>) -> Result<Self> {
        let config = ssh_config(ip, ssh, access)?;
        let elevate = elevate(&ip.to_string(), ssh)?;
        let connection = Connection::connect(&config).await?;
        let mut started = start(ip, &connection, &elevate).await;
        let mut pushed = false;
        if let Some(program) = program {
            started = match started {
                Ok((client, hello)) if hello.digest.as_ref() == Some(&program.digest) => Ok((client, hello)),
                // An error of the transport itself would only repeat.
                Err(error) if is_lasting(&error) => return Err(error),
                // Another program, or none that works.
                _ => {
                    push(ip, &connection, &elevate, program).await?;
                    pushed = true;
                    start(ip, &connection, &elevate).await
                }
            };
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
            config: Arc::new(config),
            connection,
            client,
            elevate,
            pushed,
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
        self.connection.exec(&run(&["rm", "-f", CLUSTERD])).await?;
        let folder = CLUSTERD.rsplit_once('/').map_or("/", |(folder, _)| folder);
        self.connection.exec(&run(&["rmdir", folder])).await?;
        Ok(())
    }

    /// For `map_err`: a protocol failure on this host while `doing`.
    pub fn failed(&self, doing: impl Into<String>) -> impl FnOnce(host::ClientError) -> Error {
        Error::host(self.ip, doing)
    }
}

/// Whether sending another program would not help.
fn is_lasting(error: &Error) -> bool {
    matches!(error, Error::Ssh(error) if matches!(**error, ssh::Error::Sudo { .. } | ssh::Error::Lost { .. }))
}

/// Starts `clusterd host` and greets it.
async fn start(ip: Ipv4Addr, connection: &Connection, elevate: &Become) -> Result<(Client, Hello)> {
    let command = Command::new([CLUSTERD, "host", "--stdio"]).elevate(elevate.clone());
    let process = connection.open_process(&command).await?;
    let status = process.status.clone();
    let client = Client::new(process.stdout, process.stdin);
    let greeting = tokio::time::timeout(GREETING, client.hello()).await;
    match greeting {
        Ok(Ok(hello)) => Ok((client, hello)),
        Ok(Err(source)) => {
            let stderr = status.stderr();
            let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            Err(match last {
                "" => Error::host(ip, format!("starting {CLUSTERD}"))(source),
                line if line.contains("not found") || line.contains("No such file") => {
                    Error::NoProgram { host: ip.to_string() }
                }
                line => Error::on(ip, format!("cannot run {CLUSTERD}: {line}")),
            })
        }
        Err(_) => Err(Error::on(
            ip,
            format!("{CLUSTERD} did not greet within {} s", GREETING.as_secs()),
        )),
    }
}

async fn push(ip: Ipv4Addr, connection: &Connection, elevate: &Become, program: &Program) -> Result<()> {
    tracing::info!(host = %ip, digest = program.digest.short(), "sending clusterd");
    let file = tokio::fs::File::open(&program.path)
        .await
        .map_err(|source| Error::Local {
            what: format!("cannot read {}", program.path.display()),
            source,
        })?;
    connection.upload(CLUSTERD, 0o755, file, elevate).await?;
    Ok(())
}

/// Connects to all hosts at once, bounded. The result is in the order of `hosts`.
pub async fn open_all(hosts: &[(Ipv4Addr, Ssh)], access: &Access, program: Option<&Program>) -> Vec<Result<Session>> {
    fan::all(
        hosts
            .iter()
            .map(|(ip, ssh)| Session::open(*ip, ssh, access, program).boxed())
            .collect(),
    )
    .await
}
