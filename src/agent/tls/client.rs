//! The client certificate: taken from the kubeconfig if it has a valid one, otherwise asked for with the bootstrap
//! kubeconfig; renewed in time. Everyone else just gets a new client when there is one.

use super::{Life, Wish, now, request, store, write_private};
use crate::api_client::{Client, Provider, from_kubeconfig};
use crate::args::Args;
use crate::backoff::Doubling;
use crate::error::{Error, Result};
use kube::config::Kubeconfig;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files of the client's identity.
#[derive(Debug, Clone)]
pub struct Files {
    kubeconfig: PathBuf,
    bootstrap: Option<PathBuf>,
    pki: PathBuf,
}

impl Files {
    /// From the flags.
    pub fn of(args: &Args) -> Files {
        let pki = args.cert_dir.clone().unwrap_or_else(|| args.root_dir.join("pki"));
        Files {
            kubeconfig: args
                .kubeconfig
                .clone()
                .unwrap_or_else(|| args.root_dir.join("kubeconfig")),
            bootstrap: args.bootstrap_kubeconfig.clone(),
            pki,
        }
    }

    fn current(&self) -> PathBuf {
        self.pki.join("kubelet-client-current.pem")
    }
}

const NAME: &str = "kubelet-client";

/// Provides clients for ever.
pub async fn run(rotate: bool, node: String, files: Files, provider: Provider) {
    let mut backoff = Doubling::api();
    let mut said = String::new();
    loop {
        match obtain(&node, &files).await {
            Ok(client) => {
                backoff.reset();
                let valid = Life::of_pem(&std::fs::read(files.current()).unwrap_or_default()).ok();
                provider.send_replace(Some(client.clone()));
                renew_forever(rotate, &node, &files, &provider, client, valid).await;
            }
            Err(e) => {
                // The same trouble is said once, not at every try.
                let text = e.to_string();
                if text != said {
                    tracing::warn!("no client for the API server yet: {text}");
                    said = text;
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// Whether a kubeconfig exists and its client certificate (if it has one) is valid.
fn usable(path: &Path) -> Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let bad = |message: String| Error::Config {
        origin: path.display().to_string(),
        message,
    };
    let config = Kubeconfig::read_from(path).map_err(|e| bad(e.to_string()))?;
    let Some(user) = config.auth_infos.first().and_then(|a| a.auth_info.as_ref()) else {
        return Ok(true);
    };
    let pem = match (&user.client_certificate_data, &user.client_certificate) {
        (Some(data), _) => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD
                .decode(data)
                .map_err(|e| bad(e.to_string()))?
        }
        (None, Some(file)) => match std::fs::read(file) {
            Ok(pem) => pem,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io("read", file)(e)),
        },
        (None, None) => return Ok(true),
    };
    Ok(Life::of_pem(&pem).is_ok_and(|l| l.holds(now())))
}

async fn obtain(node: &str, files: &Files) -> Result<Client> {
    if usable(&files.kubeconfig)? {
        return from_kubeconfig(&files.kubeconfig).await;
    }
    let Some(bootstrap) = &files.bootstrap else {
        return Err(Error::Config {
            origin: files.kubeconfig.display().to_string(),
            message: "missing, or its client certificate is not valid".into(),
        });
    };
    let client = from_kubeconfig(bootstrap).await?;
    let key = persistent_key(files)?;
    let pem = request(client.inner(), &wish(node), &key).await?;
    store(&files.pki, NAME, &pem, &key.serialize_pem())?;
    let _ = std::fs::remove_file(pending(files));
    write_kubeconfig(bootstrap, files)?;
    tracing::info!("the client certificate was issued");
    from_kubeconfig(&files.kubeconfig).await
}

fn wish(node: &str) -> Wish {
    Wish {
        signer: "kubernetes.io/kube-apiserver-client-kubelet",
        usage: "client auth",
        node: node.to_owned(),
        names: vec![],
    }
}

fn pending(files: &Files) -> PathBuf {
    files.pki.join("kubelet-client.key.tmp")
}

/// The key outlives a crash between asking and getting.
fn persistent_key(files: &Files) -> Result<rcgen::KeyPair> {
    let path = pending(files);
    if let Some(key) = std::fs::read_to_string(&path)
        .ok()
        .and_then(|t| rcgen::KeyPair::from_pem(&t).ok())
    {
        return Ok(key);
    }
    let key = rcgen::KeyPair::generate().map_err(|e| Error::Certificate(e.to_string()))?;
    write_private(&path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

/// The bootstrap kubeconfig's cluster with the new identity.
fn write_kubeconfig(bootstrap: &Path, files: &Files) -> Result<()> {
    let bad = |message: String| Error::Config {
        origin: bootstrap.display().to_string(),
        message,
    };
    let source = Kubeconfig::read_from(bootstrap).map_err(|e| bad(e.to_string()))?;
    let current = source.current_context.as_deref();
    let context = source
        .contexts
        .iter()
        .find(|c| Some(c.name.as_str()) == current)
        .and_then(|c| c.context.as_ref());
    let wanted = context.map(|c| c.cluster.as_str());
    let cluster = source
        .clusters
        .iter()
        .find(|c| wanted.is_none() || Some(c.name.as_str()) == wanted)
        .and_then(|c| c.cluster.as_ref());
    let cluster = cluster.ok_or_else(|| bad("it names no cluster".into()))?;
    let pem = files.current().display().to_string();
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "contexts": [{"name": "default-context", "context": {"cluster": "default-cluster", "user": "default-auth", "namespace": "default"}}],
        "current-context": "default-context",
        "users": [{"name": "default-auth", "user": {"client-certificate": pem, "client-key": pem}}],
    });
    let text = serde_saphyr::to_string(&value).map_err(|e| bad(e.to_string()))?;
    write_private(&files.kubeconfig, text.as_bytes())
}

/// Renews while that is ours to do; returns when the identity has to be obtained afresh.
async fn renew_forever(
    rotate: bool,
    node: &str,
    files: &Files,
    provider: &Provider,
    mut client: Client,
    mut valid: Option<Life>,
) {
    let mut backoff = Doubling::new(Duration::from_secs(5), Duration::from_secs(300));
    loop {
        let (Some(life), true) = (valid, rotate) else {
            // A certificate that somebody else put there is somebody else's to renew.
            return std::future::pending().await;
        };
        let at = life.renew_at(rand::random::<f64>());
        let wait = Duration::from_secs((at - now()).max(0).unsigned_abs()).min(Duration::from_secs(3600));
        tokio::time::sleep(wait).await;
        if now() < at {
            continue;
        }
        match renew(node, files, &client).await {
            Ok((new, life)) => {
                backoff.reset();
                client = new.clone();
                valid = Some(life);
                provider.send_replace(Some(new));
            }
            Err(e) => {
                tracing::warn!("the client certificate was not renewed: {e}");
                if now() >= life.to {
                    return;
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

async fn renew(node: &str, files: &Files, client: &Client) -> Result<(Client, Life)> {
    let key = rcgen::KeyPair::generate().map_err(|e| Error::Certificate(e.to_string()))?;
    let pem = request(client.inner(), &wish(node), &key).await?;
    store(&files.pki, NAME, &pem, &key.serialize_pem())?;
    Ok((from_kubeconfig(&files.kubeconfig).await?, Life::of_pem(pem.as_bytes())?))
}
