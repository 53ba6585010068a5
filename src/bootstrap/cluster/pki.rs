//! Certificates that need two hosts: one where the key is, one where the authority is. Keys stay where they are made.

use crate::{
    Error, Result, effects, paths,
    phases::{Outcome, Phase},
    run::Run,
};
use futures::{FutureExt as _, future::BoxFuture};
use host::effect::Usage;
use std::sync::Arc;
use x509_parser::{extensions::ParsedExtension, prelude::*};

/// A certificate is renewed when less than this is left of its year.
const RENEW_BEFORE_SECONDS: i64 = 30 * 24 * 3600;
const CERT_LIMIT: u64 = 64 << 10;

/// Makes the first master's PKI and learns its authority.
pub fn make(run: Arc<Run>, phase: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let index = place.unwrap_or_default();
        let outcome = run.apply(phase, index).await?;
        let session = &run.sessions[index];
        let ca = session
            .client
            .read_file(paths::CA_CERT, CERT_LIMIT)
            .await
            .map_err(session.failed("reading the authority"))?;
        let ca = String::from_utf8_lossy(&ca).into_owned();
        run.learn(|learned| learned.ca = ca);
        Ok(outcome)
    }
    .boxed()
}

/// Brings the authority to a host, and has its node agent's serving certificate signed where it has none that is good.
pub fn trust(run: Arc<Run>, phase: &'static Phase, place: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let index = place.unwrap_or_default();
        if index != run.site.first_master() && !run.learned().kubelet_certs.contains_key(&run.site.seats[index].ip) {
            sign_serving(&run, index).await?;
        }
        run.apply(phase, index).await
    }
    .boxed()
}

async fn sign_serving(run: &Run, index: usize) -> Result<()> {
    let (seat, session) = (&run.site.seats[index], &run.sessions[index]);
    let signer = &run.sessions[run.site.first_master()];
    let subject = effects::serving_subject(seat);
    let request = session
        .client
        .create_csr(paths::KUBELET_KEY, subject.clone())
        .await
        .map_err(session.failed("making the node agent's key"))?;
    let cert = signer
        .client
        .sign_csr(paths::CA_CERT, paths::CA_KEY, request, subject, Usage::Server, 365)
        .await
        .map_err(signer.failed(format!("signing the certificate of {}", seat.name)))?;
    run.learn(|learned| {
        learned.kubelet_certs.insert(seat.ip, cert);
    });
    Ok(())
}

/// Whether a certificate that a host has is still what it should be: of this authority, for these names, and not near its end.
pub fn is_good(cert: &str, ca: &str, sans: &[String], now: i64) -> bool {
    let (Ok((_, cert)), Ok((_, ca))) = (parse_x509_pem(cert.as_bytes()), parse_x509_pem(ca.as_bytes())) else {
        return false;
    };
    let (Ok(cert), Ok(ca)) = (cert.parse_x509(), ca.parse_x509()) else {
        return false;
    };
    signed_by(&cert, &ca)
        && cert.validity().not_after.timestamp() - now > RENEW_BEFORE_SECONDS
        && has_names(&cert, sans)
}

/// By name and key identifier; the signature itself is checked by whoever connects.
fn signed_by(cert: &X509Certificate<'_>, ca: &X509Certificate<'_>) -> bool {
    let issuer_key = cert
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
            _ => None,
        });
    let own_key = ca
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
    cert.issuer() == ca.subject() && (issuer_key.is_none() || own_key.is_none() || issuer_key == own_key)
}

fn has_names(cert: &X509Certificate<'_>, sans: &[String]) -> bool {
    let Ok(Some(names)) = cert.subject_alternative_name() else {
        return sans.is_empty();
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
            .ok()
            .map(|b| std::net::Ipv4Addr::from(b).to_string()),
        _ => None,
    };
    let have: Vec<String> = names.value.general_names.iter().filter_map(text).collect();
    sans.iter().all(|wanted| have.contains(wanted))
}

/// Reads a small file of a host; one that is not there is none.
///
/// # Errors
/// When the host cannot read it.
pub async fn read_optional(session: &crate::session::Session, path: &str) -> Result<Option<String>> {
    match session.client.read_file(path, CERT_LIMIT).await {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error)
            if error
                .fault()
                .is_some_and(|fault| fault.kind == host::proto::FaultKind::NotFound) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::Host {
            host: session.ip.to_string(),
            doing: format!("reading {path}"),
            source: error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    fn authority() -> (String, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        (cert.pem(), Issuer::new(params, key))
    }

    #[test]
    fn a_certificate_is_good_for_its_authority_its_names_and_its_time() {
        let (ca, issuer) = authority();
        let (other, _) = authority();
        let mut params = CertificateParams::new(vec!["n1".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().pem();
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let now = 1_700_000_000;
        assert!(is_good(&cert, &ca, &names(&["n1", "10.0.0.1"]), now));
        assert!(
            !is_good(&cert, &other, &names(&["n1"]), now),
            "another authority of the same name"
        );
        assert!(!is_good(&cert, &ca, &names(&["n2"]), now));
        assert!(!is_good(&cert, &ca, &names(&["n1"]), i64::MAX / 2), "expired");
        assert!(!is_good("", &ca, &[], now));
    }
}
