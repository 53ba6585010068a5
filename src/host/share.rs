//! Blobs from host to host, so that they leave the operator's machine once.
//!
//! ```text
//! host that lacks it ──TLS 1.3, the one certificate──▶ host that has it, or to which it is on its way
//!    Ask {token, blob, offset} ──▶
//!                              ◀── bytes as they are there … end, or why not
//! ```
//!
//! Key and certificate are made when serving begins, are never written, and are believed by their digest alone, which the operator
//! brings. The token is the operator's, for one host and one run. A blob that is arriving is given on as it grows, not verified;
//! whoever fetches it verifies it before it is visible, as always. The frames are those of [`crate::frame`].

use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

use crate::{
    Error, Result,
    proto::{Blob, Token},
    tls,
};

mod fetch;
mod give;

pub(crate) use fetch::fetch;
pub(crate) use give::Sharing;

/// While there is nothing to give on, an empty piece says that we are still there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// The largest head in bytes that hosts send each other.
const MAX_HEAD: usize = 8 << 10;

/// What a host asks of another, once per connection.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    token: Token,
    blob: Blob,
    offset: u64,
}

fn trouble(error: impl std::fmt::Display) -> Error {
    Error::failed(format!("TLS between hosts: {error}"))
}

/// A key and a certificate of its own, and the digest of that.
fn identity() -> Result<(rustls::ServerConfig, oci::Digest)> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(trouble)?;
    let certificate = rcgen::CertificateParams::default().self_signed(&key).map_err(trouble)?;
    let digest = oci::Digest::of(certificate.der());
    let der = zeroize::Zeroizing::new(key.serialize_der());
    let der = rustls_pki_types::PrivateKeyDer::Pkcs8(der.as_slice().into());
    let provider = tls::provider();
    let key = provider
        .key_provider
        .load_private_key(der.clone_key())
        .map_err(trouble)?;
    let certified = rustls::sign::CertifiedKey::new(vec![certificate.der().clone()], key);
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(trouble)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    Ok((config, digest))
}
