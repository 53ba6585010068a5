//! The connection to the API server as the rest of the agent sees it: there may be none yet (static pods run without),
//! and it is exchanged when the client certificate is renewed.

use crate::error::{Error, Result};
use std::path::Path;
use tokio::sync::watch;

/// A handle to the current client.
#[derive(Debug, Clone)]
pub struct Api(watch::Receiver<Option<Client>>);

/// A `kube` client that can be printed.
#[derive(Clone)]
pub struct Client(kube::Client);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// The side that provides clients.
pub type Provider = watch::Sender<Option<Client>>;

impl Api {
    /// A handle without a client, and its provider.
    pub fn new() -> (Provider, Api) {
        let (provider, receiver) = watch::channel(None);
        (provider, Api(receiver))
    }

    /// The current client.
    pub fn client(&self) -> Result<kube::Client> {
        self.0.borrow().as_ref().map(|c| c.0.clone()).ok_or(Error::NoApi)
    }

    /// Waits until there is a client.
    pub async fn wait(&mut self) -> kube::Client {
        loop {
            if let Some(c) = self.0.borrow_and_update().as_ref() {
                return c.0.clone();
            }
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the client is another one than at the last look.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Longest wait for one answer of the API server: a connection that silently died must not hold anything up for ever.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Runs one exchange with the API server within the limit.
pub async fn limited<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Other(format!(
            "the API server did not answer within {} s",
            LIMIT.as_secs()
        ))),
    }
}

/// Makes a client from a kubeconfig file.
pub async fn from_kubeconfig(path: &Path) -> Result<Client> {
    let bad = |message: String| Error::Config {
        origin: path.display().to_string(),
        message,
    };
    let config = kube::config::Kubeconfig::read_from(path).map_err(|e| bad(e.to_string()))?;
    from_config(config).await.map_err(bad)
}

async fn from_config(config: kube::config::Kubeconfig) -> Result<Client, String> {
    let mut config = kube::Config::from_custom_kubeconfig(config, &Default::default())
        .await
        .map_err(|e| e.to_string())?;
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    kube::Client::try_from(config).map(Client).map_err(|e| e.to_string())
}

impl Client {
    /// The client itself.
    pub fn inner(&self) -> kube::Client {
        self.0.clone()
    }
}
