//! Identities in client certificates: the common name is the user, organisations are its groups.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AUTHENTICATED, User};

/// The user a verified certificate names; `None` without a common name.
pub fn user_of_certificate(der: &CertificateDer<'_>) -> Option<User> {
    let (_, cert) = X509Certificate::from_der(der.as_ref()).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> = cert
        .subject()
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .collect();
    groups.push(AUTHENTICATED.into());
    let mut user = User {
        name,
        groups,
        ..User::default()
    };
    use sha2::Digest as _;
    let id = format!("X509SHA256={}", hex::encode(sha2::Sha256::digest(der.as_ref())));
    user.extra
        .insert("authentication.kubernetes.io/credential-id".into(), vec![id]);
    Some(user)
}
