//! Whom the host believes that it speaks to over TLS where no authority says so.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// The cryptography that all of this program's TLS is done with.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Believes one certificate, or any; that the server has its key is proved by the handshake in both cases.
#[derive(Debug)]
pub(crate) struct Believing {
    only: Option<oci::Digest>,
    provider: Arc<CryptoProvider>,
}

impl Believing {
    /// Believes the certificate with this digest and no other.
    pub(crate) fn only(certificate: oci::Digest) -> Self {
        Self {
            only: Some(certificate),
            provider: provider(),
        }
    }

    /// For liveness checks of a server whose CA is not at hand: it says nothing about who answers.
    pub(crate) fn anyone() -> Self {
        Self {
            only: None,
            provider: provider(),
        }
    }
}

impl ServerCertVerifier for Believing {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self
            .only
            .as_ref()
            .is_none_or(|only| oci::Digest::of(end_entity) == *only)
        {
            return Ok(ServerCertVerified::assertion());
        }
        let why = "its certificate is not the one it was announced with".to_owned();
        Err(rustls::Error::General(why))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Who must be the one is spoken to in TLS 1.3 only.
        if self.only.is_some() {
            return Err(rustls::Error::General("TLS 1.2 is not spoken between hosts".to_owned()));
        }
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
