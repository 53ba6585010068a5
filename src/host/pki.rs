//! Keys, certificates and kubeconfigs as text in, text out (RFC 5280; Kubernetes' «PKI certificates and requirements»).
//!
//! ECDSA P-256 throughout. Nothing here touches a file. Private keys stay in zeroizing strings.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use x509_parser::{
    extensions::GeneralName,
    pem::parse_x509_pem,
    prelude::{FromDer as _, X509Certificate},
};
use zeroize::Zeroizing;

use crate::{
    Error, Result,
    effect::{Kubeconfig, Subject, Usage},
};

/// Text of a PEM file; keys are wiped when dropped.
pub(crate) type Pem = Zeroizing<String>;

/// Clocks of hosts differ a little.
const BACKDATE: std::time::Duration = std::time::Duration::from_secs(300);

fn trouble(error: impl std::fmt::Display) -> Error {
    Error::invalid(format!("certificate: {error}"))
}

/// A new private key (PKCS #8).
pub(crate) fn new_key() -> Result<Pem> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(trouble)?;
    Ok(Zeroizing::new(key.serialize_pem()))
}

/// Why a text is no private key we can use.
pub(crate) fn check_key(key: &str) -> Result<(), String> {
    KeyPair::from_pem(key)
        .map(drop)
        .map_err(|_| "it is no private key that can be read".to_owned())
}

/// The public half (SubjectPublicKeyInfo PEM).
pub(crate) fn public_of(key: &str) -> Result<String, String> {
    KeyPair::from_pem(key)
        .map(|key| key.public_key_pem())
        .map_err(|_| "it is no private key that can be read".to_owned())
}

/// Why a certificate and a key do not belong together.
pub(crate) fn check_pair(cert: &str, key: &str) -> Result<(), String> {
    let key = KeyPair::from_pem(key).map_err(|_| "the key cannot be read".to_owned())?;
    let (_, pem) = parse_x509_pem(cert.as_bytes()).map_err(|_| "the certificate cannot be read".to_owned())?;
    let cert = pem
        .parse_x509()
        .map_err(|_| "the certificate cannot be read".to_owned())?;
    if cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw() {
        Ok(())
    } else {
        Err("the certificate is for another key".to_owned())
    }
}

fn params(subject: &Subject, days: u32) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    for organization in &subject.organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, subject.common_name.as_str());
    params.distinguished_name = name;
    for san in &subject.sans {
        params.subject_alt_names.push(match san.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(san.as_str().try_into().map_err(trouble)?),
        });
    }
    let now = std::time::SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + std::time::Duration::from_secs(u64::from(days) * 86_400)).into();
    Ok(params)
}

/// Octets of a serial number: at most 20 are allowed (RFC 5280, 4.1.2.2).
const SERIAL_LENGTH: usize = 16;

/// A number that no other certificate has. Without one the number would follow from the key, so that a certificate that is issued anew
/// for the same key could not be told from the one before.
fn serial_number() -> Result<SerialNumber> {
    let mut octets = [0; SERIAL_LENGTH];
    let random = crate::tls::provider().secure_random.fill(&mut octets);
    random.map_err(|_| Error::failed("the system gives no random numbers"))?;
    // It is positive, and none is shorter than the others.
    octets[0] = octets[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&octets))
}

/// A CA's own certificate.
pub(crate) fn self_signed(key: &str, common_name: &str, days: u32) -> Result<String> {
    let key = KeyPair::from_pem(key).map_err(trouble)?;
    // kubeadm's CAs carry their name as DNS name too; TLS libraries want one.
    let subject = Subject {
        common_name: common_name.to_owned(),
        organizations: Vec::new(),
        sans: vec![common_name.to_owned()],
    };
    let mut params = params(&subject, days)?;
    params.serial_number = Some(serial_number()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    Ok(params.self_signed(&key).map_err(trouble)?.pem())
}

fn leaf(subject: &Subject, usage: Usage, days: u32) -> Result<CertificateParams> {
    let mut params = params(subject, days)?;
    params.serial_number = Some(serial_number()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = purposes(usage);
    Ok(params)
}

fn purposes(usage: Usage) -> Vec<ExtendedKeyUsagePurpose> {
    match usage {
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    }
}

/// A certificate for `key`, signed by a CA.
pub(crate) fn signed(key: &str, ca: &str, ca_key: &str, subject: &Subject, usage: Usage, days: u32) -> Result<String> {
    check_pair(ca, ca_key).map_err(|why| Error::invalid(format!("the CA: {why}")))?;
    let key = KeyPair::from_pem(key).map_err(trouble)?;
    let issuer = Issuer::from_ca_cert_pem(ca, KeyPair::from_pem(ca_key).map_err(trouble)?).map_err(trouble)?;
    Ok(leaf(subject, usage, days)?
        .signed_by(&key, &issuer)
        .map_err(trouble)?
        .pem())
}

/// A signing request (PKCS #10).
pub(crate) fn request(key: &str, subject: &Subject) -> Result<String> {
    let key = KeyPair::from_pem(key).map_err(trouble)?;
    params(subject, 1)?
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(trouble)
}

/// Signs a request: its key is taken (and was proven by its signature), its words are not.
pub(crate) fn sign_request(
    csr: &str,
    ca: &str,
    ca_key: &str,
    subject: &Subject,
    usage: Usage,
    days: u32,
) -> Result<String> {
    check_pair(ca, ca_key).map_err(|why| Error::invalid(format!("the CA: {why}")))?;
    let csr = CertificateSigningRequestParams::from_pem(csr).map_err(trouble)?;
    let issuer = Issuer::from_ca_cert_pem(ca, KeyPair::from_pem(ca_key).map_err(trouble)?).map_err(trouble)?;
    Ok(leaf(subject, usage, days)?
        .signed_by(&csr.public_key, &issuer)
        .map_err(trouble)?
        .pem())
}

/// When a certificate is too near to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// The time now.
    pub(crate) now: jiff::Timestamp,
    /// With fewer days left.
    pub(crate) days: u32,
}

/// Why a certificate has to be issued anew; `None`: it is fine.
pub(crate) fn why_reissue(
    cert: &str,
    key: &str,
    ca: &str,
    subject: &Subject,
    usage: Usage,
    ends: Ends,
) -> Option<String> {
    if let Err(why) = check_pair(cert, key) {
        return Some(why);
    }
    let (_, pem) = parse_x509_pem(cert.as_bytes()).ok()?;
    let cert = match pem.parse_x509() {
        Ok(cert) => cert,
        Err(_) => return Some("it cannot be read".to_owned()),
    };
    let Ok((_, ca_pem)) = parse_x509_pem(ca.as_bytes()) else {
        return Some("its CA cannot be read".to_owned());
    };
    let Ok((_, ca)) = X509Certificate::from_der(&ca_pem.contents) else {
        return Some("its CA cannot be read".to_owned());
    };
    if cert.verify_signature(Some(ca.public_key())).is_err() {
        return Some("it is signed by another CA".to_owned());
    }
    let left = (cert.validity().not_after.timestamp() - ends.now.as_second()) / 86_400;
    if left < i64::from(ends.days) {
        return Some(match left {
            ..0 => "it has ended".to_owned(),
            _ => format!("it ends in {}", oci::counted(left, "day")),
        });
    }
    differs(&cert, subject, usage)
}

fn differs(cert: &X509Certificate<'_>, subject: &Subject, usage: Usage) -> Option<String> {
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().unwrap_or_default().to_owned();
    let name: Vec<String> = cert.subject().iter_common_name().map(text).collect();
    let mut organizations: Vec<String> = cert.subject().iter_organization().map(text).collect();
    let mut wanted = subject.organizations.clone();
    organizations.sort();
    wanted.sort();
    if name != [subject.common_name.as_str()] || organizations != wanted {
        return Some("its subject differs".to_owned());
    }
    let mut sans: Vec<String> = cert
        .subject_alternative_name()
        .ok()
        .flatten()
        .map_or_else(Vec::new, |extension| {
            extension.value.general_names.iter().filter_map(san_text).collect()
        });
    let mut wanted: Vec<String> = subject
        .sans
        .iter()
        .map(|san| san.parse::<IpAddr>().map_or_else(|_| san.clone(), |ip| ip.to_string()))
        .collect();
    sans.sort();
    wanted.sort();
    if sans != wanted {
        return Some("its names and addresses differ".to_owned());
    }
    let purposes = cert
        .extended_key_usage()
        .ok()
        .flatten()
        .map(|e| (e.value.server_auth, e.value.client_auth))
        .unwrap_or_default();
    let wanted = (usage != Usage::Client, usage != Usage::Server);
    (purposes != wanted).then(|| "its usage differs".to_owned())
}

pub(crate) fn san_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// A kubeconfig (`v1 Config`). JSON is YAML, and every client reads it.
pub(crate) fn kubeconfig(config: &Kubeconfig, ca: &str, cert: Option<&str>, key: Option<&str>) -> Result<Pem> {
    let user = match (cert, key, &config.token) {
        (Some(cert), Some(key), _) => {
            format!(
                "    client-certificate-data: {}\n    client-key-data: {}\n",
                STANDARD.encode(cert),
                STANDARD.encode(key)
            )
        }
        (None, None, Some(token)) => format!("    token: {}\n", quoted(token)),
        _ => {
            return Err(Error::invalid(format!(
                "{}: give cert and key, or a token",
                config.path
            )));
        }
    };
    let (cluster, name) = (quoted(&config.cluster), quoted(&config.user));
    let context = quoted(&format!("{}@{}", config.user, config.cluster));
    Ok(Zeroizing::new(format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {cluster}\n  cluster:\n    certificate-authority-data: {}\n    server: {}\n\
         contexts:\n- name: {context}\n  context:\n    cluster: {cluster}\n    user: {name}\ncurrent-context: {context}\n\
         preferences: {{}}\nusers:\n- name: {name}\n  user:\n{user}",
        STANDARD.encode(ca),
        quoted(&config.server),
    )))
}

/// A JSON string is a YAML string that means nothing else.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            common_name: "system:node:a".into(),
            organizations: vec!["system:nodes".into()],
            sans: vec!["a".into(), "10.0.0.1".into(), "fd00::1".into()],
        }
    }

    #[test]
    fn a_certificate_is_issued_anew_only_for_a_reason() {
        let ca_key = new_key().unwrap();
        let ca = self_signed(&ca_key, "kubernetes", 3650).unwrap();
        let other = self_signed(&ca_key, "kubernetes", 3650).unwrap();
        let (foreign_key, key) = (new_key().unwrap(), new_key().unwrap());
        let foreign = self_signed(&foreign_key, "kubernetes", 3650).unwrap();
        let cert = signed(&key, &ca, &ca_key, &subject(), Usage::Server, 365).unwrap();
        let now = jiff::Timestamp::now();
        let in_days = |d: i64| now + jiff::SignedDuration::from_hours(24 * d);
        let why = |key: &str, ca: &str, s: &Subject, u, now| why_reissue(&cert, key, ca, s, u, Ends { now, days: 30 });
        assert_eq!(why(&key, &ca, &subject(), Usage::Server, now), None);
        assert_eq!(
            why(&key, &other, &subject(), Usage::Server, in_days(330)),
            None,
            "same CA key, other certificate"
        );
        let san = Subject {
            sans: vec!["a".into()],
            ..subject()
        };
        let table = [
            (why(&foreign_key, &ca, &subject(), Usage::Server, now), "another key"),
            (why(&key, &foreign, &subject(), Usage::Server, now), "another CA"),
            (why(&key, &ca, &san, Usage::Server, now), "names and addresses"),
            (
                why(
                    &key,
                    &ca,
                    &Subject {
                        common_name: "b".into(),
                        ..subject()
                    },
                    Usage::Server,
                    now,
                ),
                "subject",
            ),
            (
                why(
                    &key,
                    &ca,
                    &Subject {
                        organizations: vec![],
                        ..subject()
                    },
                    Usage::Server,
                    now,
                ),
                "subject",
            ),
            (why(&key, &ca, &subject(), Usage::Both, now), "usage"),
            (why(&key, &ca, &subject(), Usage::Server, in_days(336)), "it ends in"),
        ];
        for (found, expected) in table {
            assert!(
                found.as_deref().is_some_and(|w| w.contains(expected)),
                "{found:?} / {expected}"
            );
        }
    }

    #[test]
    fn each_certificate_has_a_number_of_its_own_also_with_the_same_key() {
        let (ca_key, key) = (new_key().unwrap(), new_key().unwrap());
        let ca = || self_signed(&ca_key, "kubernetes", 3650).unwrap();
        let authority = ca();
        let csr = request(&key, &subject()).unwrap();
        let cert = || signed(&key, &authority, &ca_key, &subject(), Usage::Server, 365).unwrap();
        let of_request = || sign_request(&csr, &authority, &ca_key, &subject(), Usage::Server, 365).unwrap();
        let issued = [ca(), ca(), cert(), cert(), of_request(), of_request()];
        let mut numbers: Vec<Vec<u8>> = issued
            .iter()
            .map(|text| {
                let (_, pem) = parse_x509_pem(text.as_bytes()).unwrap();
                let number = pem.parse_x509().unwrap().raw_serial().to_vec();
                assert!(
                    number.len() <= 20 && number[0] & 0x80 == 0 && number[0] != 0,
                    "{number:?}"
                );
                number
            })
            .collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), issued.len());
    }

    #[test]
    fn a_request_is_signed_for_whom_the_ca_says_not_for_whom_it_says() {
        let (ca_key, key) = (new_key().unwrap(), new_key().unwrap());
        let ca = self_signed(&ca_key, "kubernetes", 10).unwrap();
        let csr = request(
            &key,
            &Subject {
                common_name: "admin".into(),
                organizations: vec!["system:masters".into()],
                sans: vec![],
            },
        )
        .unwrap();
        let cert = sign_request(&csr, &ca, &ca_key, &subject(), Usage::Client, 365).unwrap();
        assert_eq!(
            why_reissue(
                &cert,
                &key,
                &ca,
                &subject(),
                Usage::Client,
                Ends {
                    now: jiff::Timestamp::now(),
                    days: 30
                }
            ),
            None
        );
    }

    #[test]
    fn a_kubeconfig_embeds_what_it_is_given() {
        let config = Kubeconfig {
            path: "/x".into(),
            server: "https://10.0.0.1:6443".into(),
            ca: String::new(),
            cluster: "demo".into(),
            user: "admin".into(),
            cert: None,
            key: None,
            token: None,
        };
        let text = kubeconfig(&config, "CA", Some("CERT"), Some("KEY")).unwrap();
        for part in [
            "certificate-authority-data: Q0E=",
            "server: \"https://10.0.0.1:6443\"",
            "client-key-data: S0VZ",
            "current-context: \"admin@demo\"",
        ] {
            assert!(text.contains(part), "{part}\n{}", *text);
        }
        assert!(kubeconfig(&config, "CA", None, None).is_err());
    }
}
