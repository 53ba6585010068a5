//! What a certificate signing request asks for, and what each signer accepts. Pure.

use std::net::IpAddr;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

pub(crate) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub(crate) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(crate) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// The content of a PKCS #10 request that matters here. Its signature has been verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) ips: Vec<IpAddr>,
    /// How many names of other kinds (URI, e-mail, …) there are.
    pub(crate) other_names: usize,
    /// Whether the subject has parts other than one common name and at most one organization.
    pub(crate) odd_subject: bool,
}

/// Reads the request in PEM.
pub(crate) fn parse(pem: &[u8]) -> Result<Request, String> {
    let der =
        CertificateSigningRequestDer::from_pem_slice(pem).map_err(|e| format!("not a PEM certificate request: {e}"))?;
    // This verifies that the asker holds the private key.
    rcgen::CertificateSigningRequestParams::from_der(&der).map_err(|e| e.to_string())?;
    let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|e| e.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    let text =
        |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).map_err(|e| e.to_string());
    let organizations = subject.iter_organization().map(text).collect::<Result<Vec<_>, _>>()?;
    let names = subject.iter_common_name().map(text).collect::<Result<Vec<_>, _>>()?;
    let mut request = Request {
        odd_subject: names.len() != 1
            || organizations.len() > 1
            || subject.iter_attributes().count() != names.len() + organizations.len(),
        common_name: names.into_iter().next().unwrap_or_default(),
        organizations,
        ..Request::default()
    };
    for extension in parsed.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension {
            for name in &san.general_names {
                match name {
                    GeneralName::DNSName(name) => request.dns.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => request.ips.push(address(bytes)?),
                    _ => request.other_names += 1,
                }
            }
        }
    }
    Ok(request)
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .map_err(|_| "an address of neither 4 nor 16 bytes".to_owned())
}

fn usages_are(usages: &[String], purpose: &str) -> bool {
    let mut usages: Vec<&str> = usages.iter().map(String::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    let mut short = vec!["digital signature", purpose];
    let mut long = vec!["digital signature", "key encipherment", purpose];
    short.sort_unstable();
    long.sort_unstable();
    usages == short || usages == long
}

/// Whether `signer` may sign that request for those usages; if not, why.
pub(crate) fn check(signer: &str, request: &Request, usages: &[String]) -> Result<(), String> {
    let fail = |why: &str| Err(why.to_owned());
    if request.odd_subject {
        return fail("the subject must be one common name and at most one organization");
    }
    let is_node = request.organizations == [NODES] && request.common_name.starts_with(NODE_PREFIX);
    match signer {
        KUBELET_CLIENT | KUBELET_SERVING if !is_node => fail("subject must be O=system:nodes, CN=system:node:<name>"),
        KUBELET_CLIENT if !request.dns.is_empty() || !request.ips.is_empty() || request.other_names > 0 => {
            fail("subject alternative names are not allowed")
        }
        KUBELET_CLIENT if !usages_are(usages, "client auth") => fail("usages did not match those of a kubelet client"),
        KUBELET_SERVING if request.other_names > 0 => fail("only DNS names and IP addresses are allowed"),
        KUBELET_SERVING if request.dns.is_empty() && request.ips.is_empty() => {
            fail("at least one DNS name or IP address is required")
        }
        KUBELET_SERVING if !usages_are(usages, "server auth") => fail("usages did not match those of a kubelet server"),
        KUBELET_CLIENT | KUBELET_SERVING => Ok(()),
        CLIENT => {
            let allowed = ["digital signature", "key encipherment", "client auth"];
            if usages.iter().any(|u| !allowed.contains(&u.as_str())) || !usages.iter().any(|u| u == "client auth") {
                return fail("usages must be of a client: client auth, digital signature, key encipherment");
            }
            Ok(())
        }
        _ => fail("unknown signer"),
    }
}

/// The node that asks for a serving certificate, if the one who asks is that node itself.
pub(crate) fn serving_node<'a>(csr: &'a CertificateSigningRequest, request: &Request) -> Option<&'a str> {
    let user = csr.spec.username.as_deref()?;
    let node = user.strip_prefix(NODE_PREFIX)?;
    let member = csr.spec.groups.iter().flatten().any(|g| g == NODES);
    (member && request.common_name == user).then_some(node)
}

/// The first name in the request that is not an address of the node.
pub(crate) fn foreign_name(request: &Request, node: &Node) -> Option<String> {
    let addresses: Vec<(&str, &str)> = node
        .status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten())
        .map(|a| (a.type_.as_str(), a.address.as_str()))
        .collect();
    let dns = |name: &str| {
        addresses
            .iter()
            .any(|(kind, a)| matches!(*kind, "Hostname" | "InternalDNS" | "ExternalDNS") && *a == name)
    };
    let ip = |ip: &IpAddr| {
        addresses
            .iter()
            .any(|(kind, a)| matches!(*kind, "InternalIP" | "ExternalIP") && a.parse() == Ok(*ip))
    };
    let foreign_dns = request.dns.iter().find(|n| !dns(n)).cloned();
    foreign_dns.or_else(|| request.ips.iter().find(|a| !ip(a)).map(IpAddr::to_string))
}

/// A condition by type.
pub(crate) fn condition<'a>(
    csr: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    csr.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
}

/// Neither approved nor denied nor failed.
pub(crate) fn is_pending(csr: &CertificateSigningRequest) -> bool {
    ["Approved", "Denied", "Failed"]
        .iter()
        .all(|kind| condition(csr, kind).is_none())
}

/// Whether a certificate has been issued.
pub(crate) fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status
        .as_ref()
        .and_then(|s| s.certificate.as_ref())
        .is_some_and(|c| !c.0.is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus};
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    /// A request in PEM for tests.
    pub(crate) fn pem(common_name: &str, organization: Option<&str>, names: &[&str]) -> String {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap()
    }

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| (*u).to_owned()).collect()
    }

    #[test]
    fn signers_accept_only_what_they_are_for() {
        let client = usages(&["digital signature", "client auth"]);
        let server = usages(&["key encipherment", "digital signature", "server auth"]);
        let node = pem("system:node:n1", Some("system:nodes"), &[]);
        let serving = pem("system:node:n1", Some("system:nodes"), &["n1", "10.0.0.1"]);
        let user = pem("jane", Some("dev"), &[]);
        for (signer, pem, usages, accepted) in [
            (KUBELET_CLIENT, &node, &client, true),
            (KUBELET_CLIENT, &node, &server, false),
            (KUBELET_CLIENT, &serving, &client, false),
            (KUBELET_CLIENT, &user, &client, false),
            (KUBELET_SERVING, &serving, &server, true),
            (KUBELET_SERVING, &node, &server, false),
            (KUBELET_SERVING, &serving, &client, false),
            (KUBELET_SERVING, &user, &server, false),
            (CLIENT, &user, &client, true),
            (CLIENT, &user, &server, false),
            ("example.com/other", &user, &client, false),
        ] {
            let request = parse(pem.as_bytes()).unwrap();
            assert_eq!(
                check(signer, &request, usages).is_ok(),
                accepted,
                "{signer} {request:?} {usages:?}"
            );
        }
    }

    #[test]
    fn a_serving_certificate_names_only_the_node_that_asks() {
        let request = parse(pem("system:node:n1", Some("system:nodes"), &["n1", "10.0.0.1"]).as_bytes()).unwrap();
        let address = |kind: &str, address: &str| NodeAddress {
            type_: kind.into(),
            address: address.into(),
        };
        let node = |addresses| Node {
            status: Some(NodeStatus {
                addresses: Some(addresses),
                ..NodeStatus::default()
            }),
            ..Node::default()
        };
        let full = node(vec![address("Hostname", "n1"), address("InternalIP", "10.0.0.1")]);
        assert_eq!(foreign_name(&request, &full), None);
        assert_eq!(
            foreign_name(&request, &node(vec![address("Hostname", "n1")])),
            Some("10.0.0.1".into())
        );
        let mut csr = CertificateSigningRequest::default();
        csr.spec.username = Some("system:node:n1".into());
        assert_eq!(serving_node(&csr, &request), None);
        csr.spec.groups = Some(vec!["system:nodes".into()]);
        assert_eq!(serving_node(&csr, &request), Some("n1"));
        csr.spec.username = Some("system:node:n2".into());
        assert_eq!(serving_node(&csr, &request), None);
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused() {
        let text = pem("jane", None, &[]);
        let mut der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .unwrap()
            .as_ref()
            .to_vec();
        let at = der.windows(4).position(|w| w == b"jane").unwrap();
        der[at] = b'J';
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(parse(forged.as_bytes()).is_err());
        assert!(parse(b"nonsense").is_err());
    }
}
