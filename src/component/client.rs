//! A client of the API server, from a kubeconfig or from the pod this runs in.

use std::path::Path;

use http::{HeaderName, HeaderValue};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::Error;

/// Connects as the current context of `kubeconfig` says; without one, as the pod's service account to
/// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`. `agent` is the `User-Agent` of every request.
///
/// No request is made here: an API server that is not up yet is no error.
///
/// # Errors
/// If the file or the service account cannot be read, the file is not a kubeconfig, or its certificates cannot be used.
pub async fn connect(kubeconfig: Option<&Path>, agent: &'static str) -> Result<Client, Error> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster()?,
    };
    config
        .headers
        .push((HeaderName::from_static("user-agent"), HeaderValue::from_static(agent)));
    Ok(Client::try_from(config)?)
}

async fn from_file(path: &Path) -> Result<Config, Error> {
    let wrap = |source| Error::Kubeconfig {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(path).map_err(wrap)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(wrap)
}
