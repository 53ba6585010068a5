//! Signs approved requests with the cluster's CA, and deletes requests that nobody needs any more.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use component::patch::{Part, update};
use component::{ApiErrorExt, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tracing::info;

use crate::context::{Context, known};
use crate::csr::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, check, condition, is_issued, parse};
use crate::meta::{name, now, since};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks differ: a certificate is valid from a little before it was made.
const BACKDATE: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(600);

const DECIDED_KEPT: Duration = Duration::from_secs(3600);
const PENDING_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The CA that signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ends: SystemTime,
}

impl Authority {
    /// From certificate and private key in PEM.
    ///
    /// # Errors
    /// If either cannot be read.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Error> {
        let wrong = |e: &dyn std::fmt::Display| Error::Invalid(format!("cluster signing CA: {e}"));
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| wrong(&e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| wrong(&e))?;
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let key = KeyPair::from_pem(key).map_err(|e| wrong(&e))?;
        if !parsed.tbs_certificate.subject_pki.raw.ends_with(key.public_key_raw()) {
            return Err(Error::Invalid(
                "cluster signing CA: the key is not that of the certificate".into(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| wrong(&e))?;
        Ok(Self {
            issuer,
            ends: SystemTime::UNIX_EPOCH + Duration::from_secs(ends),
        })
    }

    /// Signs a request that has been checked, for `wanted` at most.
    fn sign(
        &self,
        pem: &[u8],
        signer: &str,
        usages: &[String],
        wanted: Option<Duration>,
        now: SystemTime,
    ) -> Result<String, String> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|e| e.to_string())?;
        let mut request = CertificateSigningRequestParams::from_der(&der).map_err(|e| e.to_string())?;
        let params = &mut request.params;
        let lifetime = wanted.unwrap_or(YEAR).clamp(SHORTEST, YEAR);
        if self.ends <= now {
            return Err("the cluster CA has expired".into());
        }
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + lifetime).min(self.ends).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(
            rand::random::<u128>().to_be_bytes().map(|b| b & 0x7f).to_vec(),
        ));
        params.key_usages = Vec::new();
        for usage in usages {
            match usage.as_str() {
                "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                _ => {}
            }
        }
        let purpose = if signer == KUBELET_SERVING {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        };
        params.extended_key_usages = vec![purpose];
        Ok(request.signed_by(&self.issuer).map_err(|e| e.to_string())?.pem())
    }
}

/// Starts the signer; it does nothing without `--cluster-signing-cert-file` and its key.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    if ctx.options.authority.is_none() {
        return Box::pin(async {});
    }
    let queue = ctx.queue("csr-signer");
    let add = Arc::clone(&queue);
    ctx.caches.requests.on_change(move |c| {
        if !c.is_deleted() && wants_signature(c.latest()) {
            add.add(ObjectKey::of(&**c.latest()));
        }
    });
    ctx.work(
        known!(ctx, requests),
        queue,
        2,
        Arc::clone(ctx),
        |ctx, key| async move { reconcile(&ctx, &key).await },
    )
}

fn wants_signature(csr: &CertificateSigningRequest) -> bool {
    let ours = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&csr.spec.signer_name.as_str());
    let approved = condition(csr, "Approved").is_some()
        && condition(csr, "Denied").is_none()
        && condition(csr, "Failed").is_none();
    ours && approved && !is_issued(csr)
}

async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    let Some(csr) = ctx.caches.requests.get_key(key).filter(|c| wants_signature(c)) else {
        return Ok(Requeue::Done);
    };
    let Some(authority) = &ctx.options.authority else {
        return Ok(Requeue::Done);
    };
    let (pem, usages) = (&csr.spec.request.0, csr.spec.usages.as_deref().unwrap_or_default());
    let wanted = csr
        .spec
        .expiration_seconds
        .and_then(|s| u64::try_from(s).ok())
        .map(Duration::from_secs);
    let signed = parse(pem)
        .and_then(|request| check(&csr.spec.signer_name, &request, usages))
        .and_then(|()| authority.sign(pem, &csr.spec.signer_name, usages, wanted, SystemTime::now()));
    let mut result = (*csr).clone();
    let status = result.status.get_or_insert_default();
    match signed {
        Ok(certificate) => {
            info!(csr = key.name, "signed");
            status.certificate = Some(ByteString(certificate.into_bytes()));
        }
        Err(why) => {
            info!(csr = key.name, why, "refused");
            status
                .conditions
                .get_or_insert_default()
                .push(CertificateSigningRequestCondition {
                    type_: "Failed".into(),
                    status: "True".into(),
                    reason: Some("SignerValidationFailure".into()),
                    message: Some(why),
                    last_update_time: Some(now()),
                    last_transition_time: Some(now()),
                });
        }
    }
    let api: Api<CertificateSigningRequest> = Api::all(ctx.client.clone());
    match update(&api, &*csr, &result, Part::Status).await {
        Ok(_) => Ok(Requeue::Done),
        Err(Error::Api(e)) if e.is_not_found() => Ok(Requeue::Done),
        Err(e) => Err(e),
    }
}

/// Starts the cleaner.
pub(crate) fn clean(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("csr-cleaner");
    let add = Arc::clone(&queue);
    ctx.caches.requests.on_change(move |c| {
        if !c.is_deleted() {
            add.add_after(ObjectKey::of(&**c.latest()), Duration::from_secs(1));
        }
    });
    ctx.work(
        known!(ctx, requests),
        queue,
        1,
        Arc::clone(ctx),
        |ctx, key| async move { expire(&ctx, &key).await },
    )
}

/// How much longer a request is kept.
fn left(csr: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let created = csr.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let decided = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let decided = decided.filter_map(|c| c.last_update_time.as_ref()).map(|t| t.0).max();
    let pending = condition(csr, "Approved").is_none()
        && condition(csr, "Denied").is_none()
        && condition(csr, "Failed").is_none();
    let (from, kept) = if pending {
        (created, PENDING_KEPT)
    } else {
        (decided.unwrap_or(created), DECIDED_KEPT)
    };
    kept.saturating_sub(since(from, now))
}

async fn expire(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    let Some(csr) = ctx.caches.requests.get_key(key) else {
        return Ok(Requeue::Done);
    };
    let left = left(&csr, Timestamp::now());
    if !left.is_zero() {
        return Ok(Requeue::After(left));
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: csr.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match Api::<CertificateSigningRequest>::all(ctx.client.clone())
        .delete(name(&csr.metadata), &params)
        .await
    {
        Ok(_) => Ok(Requeue::Done),
        Err(e) if e.is_not_found() || e.is_conflict() => Ok(Requeue::Done),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csr::tests::pem;
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rcgen::{BasicConstraints, CertificateParams};

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority::from_pem(&certificate, &key.serialize_pem()).unwrap()
    }

    #[test]
    fn a_certificate_says_what_was_asked_for_and_ends_in_time() {
        let usages = ["digital signature".to_owned(), "server auth".to_owned()];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let request = pem("system:node:n1", Some("system:nodes"), &["n1", "10.0.0.1"]);
        for (wanted, expected) in [
            (None, YEAR),
            (Some(7200), Duration::from_secs(7200)),
            (Some(1), SHORTEST),
            (Some(u64::MAX / 2), YEAR),
        ] {
            let wanted = wanted.map(Duration::from_secs);
            let signed = authority()
                .sign(request.as_bytes(), KUBELET_SERVING, &usages, wanted, now)
                .unwrap();
            let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert_eq!(
                parsed.validity().not_after.timestamp(),
                1_800_000_000 + i64::try_from(expected.as_secs()).unwrap()
            );
            assert!(!parsed.is_ca());
            assert!(parsed.extended_key_usage().unwrap().unwrap().value.server_auth);
            assert_eq!(
                parsed
                    .subject_alternative_name()
                    .unwrap()
                    .unwrap()
                    .value
                    .general_names
                    .len(),
                2
            );
            assert!(parsed.subject().to_string().contains("system:node:n1"));
        }
    }

    #[test]
    fn a_key_of_another_ca_is_refused() {
        let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let certificate = CertificateParams::default().self_signed(&one).unwrap().pem();
        assert!(Authority::from_pem(&certificate, &two.serialize_pem()).is_err());
    }

    #[test]
    fn requests_are_kept_an_hour_after_the_decision_and_a_day_without() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.creation_timestamp = Some(Time(at(0)));
        assert_eq!(left(&csr, at(3600)), Duration::from_secs(23 * 3600));
        let approved = CertificateSigningRequestCondition {
            type_: "Approved".into(),
            last_update_time: Some(Time(at(100))),
            ..CertificateSigningRequestCondition::default()
        };
        csr.status = Some(CertificateSigningRequestStatus {
            conditions: Some(vec![approved]),
            certificate: None,
        });
        assert_eq!(left(&csr, at(3600)), Duration::from_secs(100));
        assert_eq!(left(&csr, at(9999)), Duration::ZERO);
    }
}
