//! TLS for both sides: the server that clients reach, and the client that reaches kubelets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
pub use tls_files::Error as TlsError;
use tls_files::{Reread, ServerFiles, authorities, certificates, private_key, provider};

use crate::args::Args;

/// The server's configuration: client certificates are asked for, verified if shown, and never required.
///
/// # Errors
/// [`TlsError`] for unusable files.
pub fn server(args: &Args) -> Result<Reread<ServerConfig>, TlsError> {
    let files = ServerFiles {
        certificate: args.tls_cert_file.clone(),
        key: args.tls_private_key_file.clone(),
        client_authority: args.client_ca_file.clone(),
        protocols: &["h2", "http/1.1"],
    };
    files.follow()
}

/// The configuration of a client of kubelets, which follows its files.
///
/// # Errors
/// [`TlsError`] for unusable files.
pub fn kubelet_client(args: &Args) -> Result<Reread<ClientConfig>, TlsError> {
    let authority = args.kubelet_certificate_authority.clone();
    let identity = args
        .kubelet_client_certificate
        .clone()
        .zip(args.kubelet_client_key.clone());
    let mut paths: Vec<PathBuf> = authority.iter().cloned().collect();
    paths.extend(
        identity
            .iter()
            .flat_map(|(certificate, key)| [certificate.clone(), key.clone()]),
    );
    Reread::new(paths, move || {
        let identity = identity
            .as_ref()
            .map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        client(authority.as_deref(), identity)
    })
}

/// A client configuration; without an authority the server is not verified, which upstream does for kubelets (their
/// serving certificates may be self-signed) and for the `https:` form of the proxy subresources.
///
/// # Errors
/// [`TlsError`] for unusable files.
pub fn client(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match ca {
        Some(ca) => builder.with_root_certificates(authorities(ca)?),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider()))),
    };
    Ok(match identity {
        Some((cert, key_file)) => builder.with_client_auth_cert(certificates(cert)?, private_key(key_file)?)?,
        None => builder.with_no_client_auth(),
    })
}

/// Accepts any server certificate; signatures of the handshake are still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
