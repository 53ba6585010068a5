//! The cluster as its API server shows it, reached through a tunnel with the administrator's credentials, which stay in memory.

use crate::{Error, Result, paths, session::Session};
use kube::{Client, config::Kubeconfig};
use std::time::Duration;
use zeroize::Zeroizing;

pub mod api;
mod apply;
pub(crate) mod helm;
pub mod launch;
pub mod ledger;
pub mod manifest_check;
pub mod nodes;
pub mod objects;
pub(crate) mod ownership;
pub mod pki;
pub mod record;
mod rollout;
pub(crate) mod takeover;
mod token;
mod tunnel;
pub(crate) mod wait;

pub use apply::{Applied, Applier, title};
pub use tunnel::Tunnel;

/// Largest kubeconfig that is read from a host, in bytes.
const KUBECONFIG_LIMIT: u64 = 256 << 10;

/// The way into the cluster. It ends when this is dropped.
pub struct Cluster {
    /// An ordinary client, which asks again by itself when the server is busy.
    pub client: Client,
    /// One that is told at once that the server is busy, or that a budget forbids something: to the other both are one.
    pub impatient: Client,
    tunnel: Tunnel,
}

impl Cluster {
    /// Opens a tunnel to the API server of the master behind `session` and authenticates as the administrator. Whether the
    /// server answers is not asked.
    ///
    /// # Errors
    /// When the host has no administrator's kubeconfig or the tunnel cannot be opened.
    pub async fn open(session: &Session) -> Result<Self> {
        let text = admin_kubeconfig(session).await?;
        let tunnel = Tunnel::open(&session.config, "127.0.0.1", paths::API_PORT).await?;
        let server = format!("https://127.0.0.1:{}", tunnel.port());
        let mut config = config(session, &text, &server).await?;
        let client = made(session, config.clone())?;
        config.default_retry = false;
        let impatient = made(session, config)?;
        Ok(Self {
            client,
            impatient,
            tunnel,
        })
    }

    /// A cluster whose API server needs no way to it.
    #[cfg(test)]
    pub(crate) fn direct(client: Client) -> Self {
        Self {
            impatient: client.clone(),
            client,
            tunnel: Tunnel::none(),
        }
    }

    /// Where the tunnel listens on this machine.
    pub fn port(&self) -> u16 {
        self.tunnel.port()
    }
}

/// The administrator's kubeconfig as it lies on a master.
///
/// # Errors
/// When it cannot be read: the host is no master, or not yet.
pub async fn admin_kubeconfig(session: &Session) -> Result<Zeroizing<String>> {
    let doing = format!("reading {}", paths::ADMIN_CONF);
    let bytes = session
        .client
        .read_file(paths::ADMIN_CONF, KUBECONFIG_LIMIT)
        .await
        .map_err(session.failed(doing))?;
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| Error::on(session.ip, "its admin.conf is not text"))?;
    Ok(Zeroizing::new(text))
}

fn unusable(session: &Session, why: &dyn std::fmt::Display) -> Error {
    Error::on(session.ip, format!("its {} is not usable: {why}", paths::ADMIN_CONF))
}

fn made(session: &Session, config: kube::Config) -> Result<Client> {
    Client::try_from(config).map_err(|e| unusable(session, &e))
}

async fn config(session: &Session, kubeconfig: &str, server: &str) -> Result<kube::Config> {
    let bad = |e: &dyn std::fmt::Display| unusable(session, e);
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).map_err(|e| bad(&e))?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(|e| bad(&e))?;
    config.cluster_url = server.parse().map_err(|_| bad(&"the tunnel's address is no URL"))?;
    config.connect_timeout = Some(Duration::from_secs(10));
    // A watch that is silent is no failure, but a request that never answers is.
    config.read_timeout = Some(Duration::from_secs(295));
    Ok(config)
}
