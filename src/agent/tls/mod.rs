//! Certificates of the agent: its client certificate (by bootstrap token and CSR) and the HTTPS server's.

pub mod client;
pub mod serving;

use crate::error::{Error, Result};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::wait::await_condition;
use std::path::Path;
use std::time::Duration;

/// A certificate's life, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// From.
    pub from: i64,
    /// To.
    pub to: i64,
}

impl Life {
    /// Of the first certificate in a PEM text.
    pub fn of_pem(pem: &[u8]) -> Result<Life> {
        let bad = |e: String| Error::Certificate(e);
        let mut rest = pem;
        while !rest.is_empty() {
            let (block, n) = x509_parser::pem::Pem::read(std::io::Cursor::new(rest)).map_err(|e| bad(e.to_string()))?;
            rest = &rest[n..];
            if block.label == "CERTIFICATE" {
                let cert = block.parse_x509().map_err(|e| bad(e.to_string()))?;
                return Ok(Life {
                    from: cert.validity().not_before.timestamp(),
                    to: cert.validity().not_after.timestamp(),
                });
            }
        }
        Err(bad("there is no certificate in it".into()))
    }

    /// Whether it holds at a time.
    pub fn holds(self, now: i64) -> bool {
        self.from <= now && now < self.to
    }

    /// When to renew: between 70 and 90 % of the life, by `spread` (0 … 1).
    pub fn renew_at(self, spread: f64) -> i64 {
        let life = (self.to - self.from) as f64;
        self.from + (life * (0.7 + 0.2 * spread.clamp(0.0, 1.0))).round() as i64
    }
}

/// The time, seconds since 1970.
pub fn now() -> i64 {
    crate::observed::now() / crate::observed::SECOND
}

/// Writes a private file in one step.
pub fn write_private(path: &Path, text: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(Error::io("create", &temporary))?;
    file.write_all(text)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(Error::io("rename", path))
}

/// Stores certificate and key as `NAME-<time>.pem` and points `NAME-current.pem` at it.
pub fn store(dir: &Path, name: &str, certificate: &str, key: &str) -> Result<()> {
    let stamp = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
    let file = format!("{name}-{stamp}.pem");
    write_private(
        &dir.join(&file),
        format!("{}\n{key}", certificate.trim_end()).as_bytes(),
    )?;
    let (link, temporary) = (
        dir.join(format!("{name}-current.pem")),
        dir.join(format!("{name}-current.pem.new")),
    );
    let old = std::fs::read_link(&link).ok();
    let _ = std::fs::remove_file(&temporary);
    std::os::unix::fs::symlink(&file, &temporary).map_err(Error::io("link", &temporary))?;
    std::fs::rename(&temporary, &link).map_err(Error::io("rename", &link))?;
    if let Some(old) = old.filter(|o| o.as_os_str() != file.as_str()) {
        let _ = std::fs::remove_file(dir.join(old));
    }
    Ok(())
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Signer.
    pub signer: &'static str,
    /// `client auth` or `server auth`.
    pub usage: &'static str,
    /// Node name: CN is `system:node:NAME`, O is `system:nodes`.
    pub node: String,
    /// DNS names and addresses.
    pub names: Vec<String>,
}

fn request_pem(wish: &Wish, key: &rcgen::KeyPair) -> Result<String> {
    let bad = |e: rcgen::Error| Error::Certificate(e.to_string());
    // `new` tells addresses from names by itself.
    let mut params = rcgen::CertificateParams::new(wish.names.clone()).map_err(bad)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("system:node:{}", wish.node));
    params.serialize_request(key).and_then(|r| r.pem()).map_err(bad)
}

/// Asks for a certificate and waits until it is issued; the chain as PEM.
pub async fn request(client: kube::Client, wish: &Wish, key: &rcgen::KeyPair) -> Result<String> {
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".into()),
            ..Default::default()
        },
        spec: CertificateSigningRequestSpec {
            request: k8s_openapi::ByteString(request_pem(wish, key)?.into_bytes()),
            signer_name: wish.signer.into(),
            usages: Some(vec!["digital signature".into(), wish.usage.into()]),
            ..Default::default()
        },
        status: None,
    };
    let api: kube::Api<CertificateSigningRequest> = kube::Api::all(client);
    let made = api.create(&Default::default(), &csr).await?;
    let name = made.metadata.name.unwrap_or_default();
    tracing::info!(csr = name, signer = wish.signer, "waiting for the certificate");
    let decided = |c: Option<&CertificateSigningRequest>| {
        let Some(c) = c else { return true };
        let refused = |t: &str| {
            c.status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|x| x.type_ == t)
        };
        certificate(c).is_some() || refused("Denied") || refused("Failed")
    };
    let wait = await_condition(api.clone(), &name, decided);
    let answer = tokio::time::timeout(Duration::from_secs(900), wait)
        .await
        .map_err(|_| Error::Certificate(format!("request {name} was not approved and signed within 15 minutes")))?
        .map_err(|e| Error::Certificate(format!("waiting for request {name}: {e}")))?;
    match answer.as_ref().and_then(certificate) {
        Some(pem) => Ok(pem),
        None => Err(Error::Certificate(format!("request {name} was denied or deleted"))),
    }
}

fn certificate(c: &CertificateSigningRequest) -> Option<String> {
    let bytes = &c.status.as_ref()?.certificate.as_ref()?.0;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_lies_between_70_and_90_percent_of_the_life() {
        let life = Life { from: 1000, to: 2000 };
        assert_eq!((life.renew_at(0.0), life.renew_at(1.0)), (1700, 1900));
        assert!(life.holds(1000) && !life.holds(2000) && !life.holds(999));
    }

    #[test]
    fn requests_carry_the_nodes_identity() {
        let key = rcgen::KeyPair::generate().unwrap();
        let wish = Wish {
            signer: "s",
            usage: "client auth",
            node: "n1".into(),
            names: vec!["n1".into(), "10.0.0.1".into()],
        };
        let pem = request_pem(&wish, &key).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        use x509_parser::prelude::FromDer;
        let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents).unwrap();
        let subject = csr.certification_request_info.subject.to_string();
        assert!(
            subject.contains("O=system:nodes") && subject.contains("CN=system:node:n1"),
            "{subject}"
        );
    }

    #[test]
    fn a_stored_certificate_replaces_the_one_before() {
        let tmp = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        store(tmp.path(), "x", &made.cert.pem(), &made.signing_key.serialize_pem()).unwrap();
        let text = std::fs::read(tmp.path().join("x-current.pem")).unwrap();
        assert!(Life::of_pem(&text).unwrap().holds(now()));
    }
}
