//! TLS configurations from PEM files that are replaced while the program runs: a renewed certificate, key or authority is
//! used for the next connection, without a restart.
//!
//! Deliberately absent: issuing certificates, and listening.

mod reread;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use reread::Reread;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A TLS file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Unreadable, or no PEM.
    #[error("cannot read {path}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key don't go together, or the algorithm is not supported.
    #[error("unusable certificate or key: {0}")]
    Rustls(#[from] rustls::Error),
    /// The client authority is not usable.
    #[error("unusable client authority: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The cryptography that all configurations of the workspace use.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// All certificates of a PEM file.
///
/// # Errors
/// [`Error::Pem`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| Error::Pem {
            path: path.to_owned(),
            source,
        })
}

/// The private key of a PEM file.
///
/// # Errors
/// [`Error::Pem`].
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| Error::Pem {
        path: path.to_owned(),
        source,
    })
}

/// The authorities of a PEM file.
///
/// # Errors
/// [`Error`] for an unusable file.
pub fn authorities(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

/// A server's configuration up to its certificate. Client certificates are asked for where there is a file of their
/// authorities, verified if shown, and never required.
///
/// # Errors
/// [`Error`] for an unusable file.
pub fn server_builder(client_authority: Option<&Path>) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(match client_authority {
        Some(file) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities(file)?, provider());
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
        None => builder.with_no_client_auth(),
    })
}

/// The files of a server.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Key of the certificate.
    pub key: PathBuf,
    /// Authorities of client certificates, as for [`server_builder`].
    pub client_authority: Option<PathBuf>,
    /// Protocols above TLS, the preferred one first.
    pub protocols: &'static [&'static str],
}

impl ServerFiles {
    /// The configuration that the files give now.
    ///
    /// # Errors
    /// [`Error`] for unusable files.
    pub fn config(&self) -> Result<ServerConfig, Error> {
        let builder = server_builder(self.client_authority.as_deref())?;
        let mut config = builder.with_single_cert(certificates(&self.certificate)?, private_key(&self.key)?)?;
        config.alpn_protocols = self.protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// The configuration that follows the files.
    ///
    /// # Errors
    /// [`Error`] for files that are unusable now; later such files leave the configuration as it is.
    pub fn follow(self) -> Result<Reread<ServerConfig>, Error> {
        let mut paths = vec![self.certificate.clone(), self.key.clone()];
        paths.extend(self.client_authority.clone());
        Reread::new(paths, move || self.config())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(dir.join("tls.crt"), made.cert.pem()).unwrap();
        made
    }

    #[test]
    fn a_certificate_and_key_that_do_not_go_together_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let files = ServerFiles {
            certificate: dir.path().join("tls.crt"),
            key: dir.path().join("tls.key"),
            client_authority: None,
            protocols: &["h2"],
        };
        let first = write(dir.path(), "one");
        std::fs::write(&files.key, first.signing_key.serialize_pem()).unwrap();
        let key = files.key.clone();
        let config = files.follow().unwrap();
        let before = config.current();
        assert_eq!(before.alpn_protocols, [b"h2".to_vec()]);
        let second = write(dir.path(), "another");
        assert!(Arc::ptr_eq(&before, &config.current()));
        std::fs::write(&key, second.signing_key.serialize_pem()).unwrap();
        assert!(!Arc::ptr_eq(&before, &config.current()));
    }
}
