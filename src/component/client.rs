//! From a kubeconfig file to a client.

use std::path::Path;

use http::{HeaderName, HeaderValue};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::Error;

/// Connects as the current context of `kubeconfig` says; `agent` is the `User-Agent` of every request.
///
/// No request is made here: an API server that is not up yet is no error.
///
/// # Errors
/// If the file cannot be read, is not a kubeconfig, or its certificates cannot be used.
pub async fn connect(kubeconfig: &Path, agent: &'static str) -> Result<Client, Error> {
    let wrap = |source| Error::Kubeconfig {
        path: kubeconfig.to_owned(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(kubeconfig).map_err(wrap)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(wrap)?;
    config
        .headers
        .push((HeaderName::from_static("user-agent"), HeaderValue::from_static(agent)));
    Ok(Client::try_from(config)?)
}
