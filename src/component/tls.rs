//! The certificate of the health server: from files, or self-signed and only in memory.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::Error;

/// Certificate and key for serving.
pub(crate) fn server_config(files: Option<(&Path, &Path)>) -> Result<Arc<ServerConfig>, Error> {
    let (chain, key) = match files {
        Some((cert, key)) => from_files(cert, key)?,
        None => self_signed()?,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|b| b.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| Error::Certificate(e.to_string()))?;
    Ok(Arc::new(config))
}

fn from_files(cert: &Path, key: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let wrap = |path: &Path, e: rustls_pki_types::pem::Error| Error::Certificate(format!("{}: {e}", path.display()));
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrap(cert, e))?;
    Ok((chain, PrivateKeyDer::from_pem_file(key).map_err(|e| wrap(key, e))?))
}

fn self_signed() -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| Error::Certificate(e.to_string()))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}
