//! The HTTPS server's certificate: given by files, or self-signed until the cluster has signed one. Exchanged while the
//! server runs.

use super::{Life, Wish, now, request, store};
use crate::api_client::Api;
use crate::backoff::Doubling;
use crate::error::{Error, Result};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// The current certificate.
#[derive(Debug)]
pub struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

impl Current {
    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(key);
    }
}

fn certified(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey> {
    let bad = |e: String| Error::Certificate(e);
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(e.to_string()))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map_err(|e| bad(e.to_string()))
}

/// What the serving certificate is made for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Given by the administrator.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Where ours are kept.
    pub pki: PathBuf,
    /// The node.
    pub node: String,
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// Ask the cluster.
    pub bootstrap: bool,
}

const NAME: &str = "kubelet-server";

impl Plan {
    /// The certificate to begin with, where the administrator gives none.
    pub fn first(&self) -> Result<Arc<Current>> {
        let key = match self.stored() {
            Some((key, _)) => key,
            None => self.self_signed()?,
        };
        Ok(Arc::new(Current(RwLock::new(Arc::new(key)))))
    }

    /// One that the cluster signed before, if it still holds.
    fn stored(&self) -> Option<(CertifiedKey, Life)> {
        if !self.bootstrap {
            return None;
        }
        let pem = std::fs::read(self.pki.join("kubelet-server-current.pem")).ok()?;
        let life = Life::of_pem(&pem).ok().filter(|l| l.holds(now()))?;
        Some((certified(&pem, &pem).ok()?, life))
    }

    fn self_signed(&self) -> Result<CertifiedKey> {
        let made =
            rcgen::generate_simple_self_signed(self.names.clone()).map_err(|e| Error::Certificate(e.to_string()))?;
        certified(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())
    }

    /// Gets and renews the cluster's certificate for ever. The Node must exist before: the signer checks its addresses.
    pub async fn keep(self, current: Arc<Current>, api: Api, mut registered: watch::Receiver<bool>) {
        if self.files.is_some() || !self.bootstrap {
            return std::future::pending().await;
        }
        let mut backoff = Doubling::new(Duration::from_secs(1), Duration::from_secs(300));
        let mut life = self.stored().map(|(_, l)| l);
        loop {
            if let Some(l) = life {
                let at = l.renew_at(rand::random::<f64>());
                while now() < at {
                    tokio::time::sleep(Duration::from_secs((at - now()).clamp(1, 3600).unsigned_abs())).await;
                }
            }
            if registered.wait_for(|r| *r).await.is_err() {
                return;
            }
            match self.renew(&current, &api).await {
                Ok(new) => {
                    backoff.reset();
                    life = Some(new);
                }
                Err(e) => {
                    tracing::warn!("serving certificate: {e}");
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn renew(&self, current: &Current, api: &Api) -> Result<Life> {
        let key = rcgen::KeyPair::generate().map_err(|e| Error::Certificate(e.to_string()))?;
        let wish = Wish {
            signer: "kubernetes.io/kubelet-serving",
            usage: "server auth",
            node: self.node.clone(),
            names: self.names.clone(),
        };
        let pem = request(api.client()?, &wish, &key).await?;
        let key = key.serialize_pem();
        store(&self.pki, NAME, &pem, &key)?;
        current.set(certified(pem.as_bytes(), key.as_bytes())?);
        tracing::info!("the serving certificate was issued");
        Life::of_pem(pem.as_bytes())
    }
}
