//! What is special about CertificateSigningRequests: who asks is written down by the server, approving and signing need
//! rights on the signer.

use api::Kind;
use base64::Engine as _;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::admission::{Attributes, Operation};
use crate::app::App;
use crate::authn::{MASTERS, User};
use crate::authz::{self, Decision};
use crate::error::{ApiError, Result};

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";

/// Writes the asker into a new request.
pub fn stamp(kind: &Kind, value: &mut Value, user: &User) {
    if kind.plural != PLURAL || !value["spec"].is_object() {
        return;
    }
    value["spec"]["username"] = user.name.as_str().into();
    value["spec"]["groups"] = json!(user.groups);
    for (field, v) in [("uid", json!(user.uid)), ("extra", json!(user.extra))] {
        let empty = user.uid.is_empty() && field == "uid" || user.extra.is_empty() && field == "extra";
        if !empty {
            value["spec"][field] = v;
        } else if let Some(m) = value["spec"].as_object_mut() {
            m.remove(field);
        }
    }
}

/// Checks a write.
///
/// # Errors
/// 403.
pub(super) fn check(app: &App, user: &User, a: &Attributes<'_>, new: &Value) -> Result<()> {
    let signer = new["spec"]["signerName"].as_str().unwrap_or_default();
    let verb = match (a.operation, a.subresource) {
        (Operation::Create, _) => return subject(a, signer, new),
        (_, "approval") => "approve",
        (_, "status") if !new["status"]["certificate"].is_null() => "sign",
        _ => return Ok(()),
    };
    let domain = signer.split('/').next().unwrap_or_default();
    let allowed = [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let action = authz::Attributes {
            verb: verb.into(),
            resource_request: true,
            group: GROUP.into(),
            version: "v1".into(),
            resource: "signers".into(),
            name,
            ..authz::Attributes::default()
        };
        matches!(app.authz.decide(user, &action), Decision::Allow(_))
    });
    if allowed {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(ApiError::forbidden(GROUP, PLURAL, a.name, &why))
}

/// Nobody becomes a superuser by a client certificate of the API server.
fn subject(a: &Attributes<'_>, signer: &str, new: &Value) -> Result<()> {
    if signer != "kubernetes.io/kube-apiserver-client" {
        return Ok(());
    }
    let pem = base64::engine::general_purpose::STANDARD.decode(new["spec"]["request"].as_str().unwrap_or_default());
    // What cannot be read is refused by validation.
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(&pem.unwrap_or_default()) else {
        return Ok(());
    };
    let Ok((_, request)) = X509CertificationRequest::from_der(der.as_ref()) else {
        return Ok(());
    };
    let mut groups = request.certification_request_info.subject.iter_organization();
    if groups.any(|o| o.as_str() == Ok(MASTERS)) {
        let why = format!("use of {signer} signer with {MASTERS} group is not allowed");
        return Err(ApiError::forbidden(GROUP, PLURAL, a.name, &why));
    }
    Ok(())
}
