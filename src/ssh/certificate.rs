//! OpenSSH certificates (PROTOCOL.certkeys): the user's, offered with a key, and the host's, believed by its authority.
//!
//! Judging is pure: the time is given.

use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use russh::{
    SendError, Signer,
    keys::{
        Algorithm, Certificate, HashAlg, PrivateKey,
        agent::AgentIdentity,
        signature::Signer as _,
        ssh_encoding::Encode as _,
        ssh_key::{certificate::CertType, private::KeypairData, public::KeyData},
    },
};

use crate::known_hosts::glob;

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Where the certificate of a key lies unless it is said otherwise: `KEY-cert.pub`.
pub(crate) fn beside(key: &Path) -> PathBuf {
    let mut path = key.as_os_str().to_owned();
    path.push("-cert.pub");
    PathBuf::from(path)
}

/// The certificate in a file, if it can be offered with `key`.
///
/// # Errors
/// Why it cannot, in words.
pub(crate) fn load(path: &Path, key: &KeyData, now: u64) -> Result<Certificate, String> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => e.to_string(),
    })?;
    let certificate = Certificate::from_openssh(text.trim()).map_err(|_| "it is no OpenSSH certificate".to_owned())?;
    if certificate.public_key() != key {
        return Err("it is for another key".to_owned());
    }
    match user_fault(&certificate, now) {
        Some(fault) => Err(fault),
        None => Ok(certificate),
    }
}

/// Why no server would take a certificate from a user at the time `now`, as far as we can tell.
pub(crate) fn user_fault(certificate: &Certificate, now: u64) -> Option<String> {
    if certificate.cert_type() != CertType::User {
        return Some("it is a host's certificate, not a user's".to_owned());
    }
    out_of_time(certificate, now)
}

/// Why a certificate signed by a trusted authority does not prove that this is `host`.
pub(crate) fn host_fault(certificate: &Certificate, host: &str, now: u64) -> Option<String> {
    if certificate.cert_type() != CertType::Host {
        return Some("it is a user's certificate, not a host's".to_owned());
    }
    if let Some(fault) = out_of_time(certificate, now) {
        return Some(fault);
    }
    let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
    let weak = certificate.signature().algorithm() == Algorithm::Rsa { hash: None };
    if weak || certificate.validate_at(now, [&authority]).is_err() {
        return Some("its signature is wrong or too weak".to_owned());
    }
    let names = certificate.valid_principals();
    let host = host.to_ascii_lowercase();
    if !names.iter().any(|name| glob(&name.to_ascii_lowercase(), &host)) {
        let names = if names.is_empty() {
            "no name at all".to_owned()
        } else {
            names.join(", ")
        };
        return Some(format!("it is for {names}"));
    }
    // Hosts have no critical options; one we do not know must not be passed over.
    let option = certificate.critical_options().keys().next();
    option.map(|option| format!("it has the critical option {option}, which is unknown"))
}

fn out_of_time(certificate: &Certificate, now: u64) -> Option<String> {
    if now < certificate.valid_after() {
        return Some(format!(
            "it is not valid before {} from now",
            lapse(certificate.valid_after() - now)
        ));
    }
    (now >= certificate.valid_before()).then(|| {
        format!(
            "it has expired {} ago",
            lapse(now.saturating_sub(certificate.valid_before()))
        )
    })
}

/// A length of time in its largest unit.
fn lapse(seconds: u64) -> String {
    let units = [(86_400, "days"), (3_600, "hours"), (60, "minutes")];
    match units.iter().find(|(length, _)| seconds >= 2 * length) {
        Some((length, unit)) => format!("{} {unit}", seconds / length),
        None => format!("{seconds} s"),
    }
}

/// Signs with a key of ours. RSA keys sign with the hash the server takes, which a bare certificate does not carry.
pub(crate) struct Own<'a>(pub(crate) &'a PrivateKey);

/// A key of ours did not sign.
#[derive(Debug, thiserror::Error)]
#[error("the key did not sign")]
pub(crate) struct NotSigned;

impl From<SendError> for NotSigned {
    fn from(_: SendError) -> Self {
        Self
    }
}

impl Signer for Own<'_> {
    type Error = NotSigned;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, NotSigned> {
        let signature = match self.0.key_data() {
            KeypairData::Rsa(pair) => (pair, hash).try_sign(&data),
            _ => self.0.try_sign(&data),
        };
        let encoded = signature.map_err(|_| NotSigned)?;
        let encoded = Vec::<u8>::try_from(encoded).map_err(|_| NotSigned)?;
        encoded.encode(&mut data).map_err(|_| NotSigned)?;
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::certificate::Builder;

    use super::*;

    const FROM: u64 = 1_000_000;
    const UNTIL: u64 = 2_000_000;

    fn key(seed: u8) -> PrivateKey {
        let pair = russh::keys::ssh_key::private::Ed25519Keypair::from_seed(&[seed; 32]);
        PrivateKey::from(pair)
    }

    fn certificate(kind: CertType, names: &[&str], option: Option<&str>) -> Certificate {
        let public = key(1);
        let mut builder = Builder::new(vec![7; 16], public.public_key(), FROM, UNTIL).unwrap();
        builder.cert_type(kind).unwrap();
        for name in names {
            builder.valid_principal(*name).unwrap();
        }
        if names.is_empty() {
            builder.all_principals_valid().unwrap();
        }
        if let Some(option) = option {
            builder.critical_option(option, "x").unwrap();
        }
        builder.sign(&key(2)).unwrap()
    }

    #[test]
    fn a_host_certificate_proves_its_names_in_its_time_and_nothing_else() {
        let good = certificate(CertType::Host, &["a.example", "*.b.example"], None);
        let table = [
            (&good, "a.example", FROM, None),
            (&good, "A.Example", UNTIL - 1, None),
            (&good, "x.b.example", FROM, None),
            (&good, "c.example", FROM, Some("it is for a.example, *.b.example")),
            (&good, "a.example", UNTIL, Some("expired 0 s ago")),
            (&good, "a.example", UNTIL + 86_400 * 9, Some("expired 9 days ago")),
            (
                &good,
                "a.example",
                FROM - 7_200,
                Some("not valid before 2 hours from now"),
            ),
            (
                &certificate(CertType::User, &["a"], None),
                "a",
                FROM,
                Some("a user's certificate"),
            ),
            (
                &certificate(CertType::Host, &[], None),
                "a",
                FROM,
                Some("no name at all"),
            ),
            (
                &certificate(CertType::Host, &["a"], Some("odd")),
                "a",
                FROM,
                Some("critical option odd"),
            ),
        ];
        for (certificate, host, now, expected) in table {
            let fault = host_fault(certificate, host, now);
            match expected {
                None => assert_eq!(fault, None, "{host} at {now}"),
                Some(text) => assert!(
                    fault.as_ref().is_some_and(|f| f.contains(text)),
                    "{host} at {now}: {fault:?}"
                ),
            }
        }
    }

    #[test]
    fn a_forged_host_certificate_is_refused() {
        let good = certificate(CertType::Host, &["a"], None).to_bytes().unwrap();
        let name = good.windows(5).position(|w| w == [0, 0, 0, 1, b'a']).unwrap();
        let mut forged = good.clone();
        forged[name + 4] = b'b';
        let forged = Certificate::from_bytes(&forged).unwrap();
        assert_eq!(forged.valid_principals(), ["b"]);
        assert!(host_fault(&forged, "b", FROM).is_some_and(|f| f.contains("signature")));
    }

    #[test]
    fn only_a_users_certificate_for_the_key_in_its_time_is_offered() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(&dir.path().join("id"));
        assert!(path.ends_with("id-cert.pub"));
        let ours = key(1).public_key().key_data().clone();
        assert_eq!(load(&path, &ours, FROM).unwrap_err(), "no such file");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(load(&path, &ours, FROM).unwrap_err().contains("no OpenSSH certificate"));
        let text = certificate(CertType::User, &["root"], None).to_openssh().unwrap();
        std::fs::write(&path, format!("{text}\n")).unwrap();
        assert!(load(&path, &ours, FROM).is_ok());
        assert!(load(&path, &ours, UNTIL).unwrap_err().contains("expired"));
        let other = key(3).public_key().key_data().clone();
        assert!(load(&path, &other, FROM).unwrap_err().contains("another key"));
        let text = certificate(CertType::Host, &["a"], None).to_openssh().unwrap();
        std::fs::write(&path, text).unwrap();
        assert!(load(&path, &ours, FROM).unwrap_err().contains("a host's certificate"));
    }
}
