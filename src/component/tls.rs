//! The certificate of the health server: from files, which may be replaced while it runs, or self-signed and only in memory.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tls_files::{Reread, ServerFiles, provider};

use crate::Error;

/// Certificate and key for serving.
pub(crate) enum Serving {
    Files(Reread<ServerConfig>),
    SelfSigned(Arc<ServerConfig>),
}

impl Serving {
    /// From certificate and key; without them self-signed.
    pub(crate) fn new(files: Option<(&Path, &Path)>) -> Result<Self, Error> {
        let bad = |e: tls_files::Error| Error::Certificate(e.to_string());
        let Some((certificate, key)) = files else {
            let (chain, key) = self_signed()?;
            let config = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .and_then(|b| b.with_no_client_auth().with_single_cert(chain, key))
                .map_err(|e| Error::Certificate(e.to_string()))?;
            return Ok(Self::SelfSigned(Arc::new(config)));
        };
        let files = ServerFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            client_authority: None,
            protocols: &[],
        };
        Ok(Self::Files(files.follow().map_err(bad)?))
    }

    /// What the next connection is served with.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        match self {
            Self::Files(config) => config.current(),
            Self::SelfSigned(config) => Arc::clone(config),
        }
    }
}

fn self_signed() -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| Error::Certificate(e.to_string()))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}
