//! RBAC and certificate requests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::rules::{Errors, has, items, required, required_name, same, supported, text};
use super::{FieldError, names};

const GROUP: &str = "rbac.authorization.k8s.io";

/// A Role or ClusterRole.
pub(super) fn role(out: &mut Errors, r: &Value, namespaced: bool) {
    for (i, rule) in items(r, "rules").iter().enumerate() {
        let at = format!("rules[{i}]");
        let none = |field: &str| items(rule, field).is_empty();
        if none("verbs") {
            out.push(FieldError::required(
                format!("{at}.verbs"),
                "verbs must contain at least one value",
            ));
        }
        if !none("nonResourceURLs") {
            let at = format!("{at}.nonResourceURLs");
            if namespaced {
                out.push(FieldError::invalid(
                    at.clone(),
                    &rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|f| !none(f)) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                out.push(FieldError::invalid(at, &rule["nonResourceURLs"], why));
            }
            continue;
        }
        if none("apiGroups") {
            out.push(FieldError::required(
                format!("{at}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if none("resources") {
            out.push(FieldError::required(
                format!("{at}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

/// A RoleBinding or ClusterRoleBinding.
pub(super) fn binding(out: &mut Errors, b: &Value, namespaced: bool) {
    let role = &b["roleRef"];
    if text(role, "apiGroup") != GROUP {
        out.push(FieldError::not_supported(
            "roleRef.apiGroup",
            text(role, "apiGroup"),
            &[GROUP],
        ));
    }
    let kinds: &[&str] = if namespaced {
        &["ClusterRole", "Role"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&text(role, "kind")) {
        out.push(FieldError::not_supported("roleRef.kind", text(role, "kind"), kinds));
    }
    required_name(out, "roleRef.name".to_owned(), text(role, "name"), names::path_segment);
    for (i, s) in items(b, "subjects").iter().enumerate() {
        let at = format!("subjects[{i}]");
        required(out, s, &at, "name");
        let group = text(s, "apiGroup");
        match text(s, "kind") {
            "ServiceAccount" => {
                if !text(s, "name").is_empty() {
                    required_name(out, format!("{at}.name"), text(s, "name"), names::dns1123_subdomain);
                }
                if !group.is_empty() {
                    out.push(FieldError::not_supported(format!("{at}.apiGroup"), group, &[""]));
                }
                // In a RoleBinding it is the binding's own.
                if !namespaced {
                    required(out, s, &at, "namespace");
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    out.push(FieldError::not_supported(format!("{at}.apiGroup"), group, &[GROUP]));
                }
            }
            other => out.push(FieldError::not_supported(
                format!("{at}.kind"),
                other,
                &["Group", "ServiceAccount", "User"],
            )),
        }
    }
}

/// What a binding grants is settled when it is made.
pub(super) fn binding_kept(out: &mut Errors, new: &Value, old: &Value) {
    if !same(&new["roleRef"], &old["roleRef"]) {
        out.push(FieldError::invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
    }
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// A CertificateSigningRequest. Whether the request inside is a good one is its signer's question.
pub(super) fn certificate_request(out: &mut Errors, c: &Value) {
    let s = &c["spec"];
    if !is_pem_request(text(s, "request")) {
        let why = "PEM block type must be CERTIFICATE REQUEST";
        out.push(FieldError::invalid("spec.request", &s["request"], why));
    }
    let list = items(s, "usages");
    if list.is_empty() {
        out.push(FieldError::required("spec.usages", ""));
    }
    for (i, u) in list.iter().enumerate() {
        let usage = u.as_str().unwrap_or_default();
        if !USAGES.contains(&usage) {
            out.push(FieldError::not_supported(format!("spec.usages[{i}]"), usage, &USAGES));
        }
        if list[..i].contains(u) {
            out.push(FieldError::duplicate(format!("spec.usages[{i}]"), u));
        }
    }
    let signer = text(s, "signerName");
    match signer.split_once('/') {
        _ if signer.is_empty() => out.push(FieldError::required("spec.signerName", "")),
        Some((domain, path))
            if !path.is_empty() && domain.contains('.') && names::dns1123_subdomain(domain).is_empty() => {}
        _ => out.push(FieldError::invalid_text(
            "spec.signerName",
            signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        )),
    }
    if s["expirationSeconds"].as_i64().is_some_and(|n| n < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        out.push(FieldError::invalid(
            "spec.expirationSeconds",
            &s["expirationSeconds"],
            why,
        ));
    }
    conditions(out, c);
}

fn is_pem_request(encoded: &str) -> bool {
    let Ok(bytes) = STANDARD.decode(encoded) else {
        return false;
    };
    let pem = String::from_utf8_lossy(&bytes);
    ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"]
        .iter()
        .any(|t| pem.contains(&format!("-----BEGIN {t}-----")) && pem.contains(&format!("-----END {t}-----")))
}

fn conditions(out: &mut Errors, c: &Value) {
    let list = items(&c["status"], "conditions");
    let decided = |t: &str| list.iter().any(|c| text(c, "type") == t);
    for (i, condition) in list.iter().enumerate() {
        let at = format!("status.conditions[{i}]");
        required(out, condition, &at, "type");
        let fixed = matches!(text(condition, "type"), "Approved" | "Denied" | "Failed");
        match text(condition, "status") {
            "" => out.push(FieldError::required(format!("{at}.status"), "")),
            "True" => {}
            other if fixed => out.push(FieldError::not_supported(format!("{at}.status"), other, &["True"])),
            _ => supported(out, condition, &at, "status", &["False", "True", "Unknown"]),
        }
        if text(condition, "type") == "Denied" && decided("Approved") {
            let why = "Approved and Denied conditions are mutually exclusive";
            out.push(FieldError::invalid_text(format!("{at}.type"), "Denied", why));
        }
        if list[..i].iter().any(|c| text(c, "type") == text(condition, "type")) {
            out.push(FieldError::duplicate(format!("{at}.type"), &condition["type"]));
        }
    }
}

/// Through the status nobody decides: that is what approval is for.
pub(super) fn certificate_request_status(out: &mut Errors, new: &Value, old: &Value) {
    for decision in ["Approved", "Denied"] {
        let count = |c: &Value| {
            let list = items(&c["status"], "conditions").iter();
            list.filter(|x| text(x, "type") == decision).count()
        };
        if count(new) > count(old) {
            let why = format!("updates may not add a condition of type {decision:?}");
            out.push(FieldError::forbidden("status.conditions", why));
        }
    }
}

/// Decisions are not taken back, and a certificate is issued once.
pub(super) fn certificate_request_update(out: &mut Errors, new: &Value, old: &Value) {
    for decision in ["Approved", "Denied", "Failed"] {
        let has_it = |c: &Value| {
            items(&c["status"], "conditions")
                .iter()
                .any(|x| text(x, "type") == decision)
        };
        if has_it(old) && !has_it(new) {
            let why = format!("updates may not remove a condition of type {decision:?}");
            out.push(FieldError::forbidden("status.conditions", why));
        }
    }
    if has(&old["status"], "certificate") && !same(&new["status"]["certificate"], &old["status"]["certificate"]) {
        out.push(FieldError::forbidden(
            "status.certificate",
            "updates may not change or clear this field",
        ));
    }
    conditions(out, new);
}
