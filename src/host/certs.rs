//! The certificates of a cluster on a host: where they lie by convention, and what they say. Keys are not read.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use x509_parser::{certificate::X509Certificate, pem::Pem};

use crate::{
    fsops::{self, Root},
    pki::san_text,
    proto::CertificateInfo,
};

/// Folders, how deep they are looked through, and how the files' names end.
const FOLDERS: &[(&str, usize, &[&str])] = &[
    ("/etc/kubernetes/pki", 3, &[".crt"]),
    ("/etc/kubernetes", 1, &[".conf"]),
    ("/etc/installer/registry", 1, &[".crt"]),
    ("/var/lib/kubelet/pki", 1, &[".crt", ".pem"]),
];
/// Certificates are small.
const MAX_FILE: u64 = 1 << 20;
/// More than any cluster of ours has.
const MAX_FILES: usize = 500;
/// The certificate of a user in a kubeconfig, as every writer of them spells it.
const EMBEDDED: &str = "client-certificate-data:";

/// All of them, by path. What is no certificate is passed over.
pub(crate) fn all(root: &Root) -> Vec<CertificateInfo> {
    let mut files = Vec::new();
    for (folder, depth, endings) in FOLDERS {
        walk(root, folder, *depth, endings, &mut files);
    }
    files.sort();
    files.dedup();
    let read = |path: &String| {
        let bytes = root
            .path(path)
            .ok()
            .and_then(|at| fsops::read_small(&at, MAX_FILE).ok())??;
        Some(of_file(path, &zeroize::Zeroizing::new(bytes)))
    };
    files.iter().filter_map(read).flatten().collect()
}

fn walk(root: &Root, folder: &str, depth: usize, endings: &[&str], out: &mut Vec<String>) {
    let Ok(at) = root.path(folder) else { return };
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && depth > 1 {
            walk(root, &path, depth - 1, endings, out);
        } else if !is_dir && out.len() < MAX_FILES && endings.iter().any(|end| name.ends_with(end)) && !is_former(&name)
        {
            out.push(path);
        }
    }
}

/// The agent keeps the certificates it had before, by date.
fn is_former(name: &str) -> bool {
    name.ends_with(".pem") && !name.contains("-current")
}

/// The certificates in a file, each by itself.
fn of_file(path: &str, bytes: &[u8]) -> Vec<CertificateInfo> {
    if Path::new(path).extension().is_some_and(|ending| ending == "conf") {
        let text = String::from_utf8_lossy(bytes);
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(EMBEDDED));
        let decoded = lines.filter_map(|data| STANDARD.decode(data.trim().trim_matches('"')).ok());
        return decoded.flat_map(|pem| of_pem(path, &pem)).collect();
    }
    of_pem(path, bytes)
}

fn of_pem(path: &str, bytes: &[u8]) -> Vec<CertificateInfo> {
    let blocks = Pem::iter_from_buffer(bytes).filter_map(Result::ok);
    blocks
        .filter(|block| block.label == "CERTIFICATE")
        .filter_map(|block| Some(info(path, &block.parse_x509().ok()?)))
        .collect()
}

fn info(path: &str, cert: &X509Certificate<'_>) -> CertificateInfo {
    let names = cert.subject_alternative_name().ok().flatten();
    CertificateInfo {
        path: path.to_owned(),
        subject: name(cert.subject()),
        names: names
            .map(|names| names.value.general_names.iter().filter_map(san_text).collect())
            .unwrap_or_default(),
        issuer: name(cert.issuer()),
        authority: cert.is_ca(),
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
    }
}

fn name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().unwrap_or_default().to_owned();
    let common = name.iter_common_name().map(|part| format!("CN={}", text(part)));
    let organizations = name.iter_organization().map(|part| format!("O={}", text(part)));
    common.chain(organizations).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        effect::{Subject, Usage},
        pki,
    };

    #[test]
    fn certificates_are_found_where_clusters_keep_them_and_keys_are_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let at = dir.path().join(path);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, text).unwrap();
        };
        let ca_key = pki::new_key().unwrap();
        let ca = pki::self_signed(&ca_key, "kubernetes", 3650).unwrap();
        let key = pki::new_key().unwrap();
        let subject = Subject {
            common_name: "kubernetes-admin".into(),
            organizations: vec!["system:masters".into()],
            sans: vec!["m1".into(), "10.0.0.1".into()],
        };
        let cert = pki::signed(&key, &ca, &ca_key, &subject, Usage::Client, 10).unwrap();
        put("etc/kubernetes/pki/ca.crt", &ca);
        put("etc/kubernetes/pki/ca.key", &ca_key);
        put("etc/kubernetes/pki/etcd/server.crt", &cert);
        put("etc/kubernetes/pki/broken.crt", "none");
        put(
            "var/lib/kubelet/pki/kubelet-client-current.pem",
            &format!("{cert}{}", *key),
        );
        put("var/lib/kubelet/pki/kubelet-client-2026-01-01-00-00-00.pem", &cert);
        let conf = format!(
            "users:\n- user:\n    client-certificate-data: {}\n",
            STANDARD.encode(&cert)
        );
        put("etc/kubernetes/admin.conf", &conf);
        let found = all(&Root::at(dir.path()));
        let paths: Vec<&str> = found.iter().map(|cert| cert.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/etc/kubernetes/admin.conf",
                "/etc/kubernetes/pki/ca.crt",
                "/etc/kubernetes/pki/etcd/server.crt",
                "/var/lib/kubelet/pki/kubelet-client-current.pem"
            ]
        );
        assert!(found[1].authority && !found[2].authority);
        assert_eq!(found[2].subject, "CN=kubernetes-admin, O=system:masters");
        assert_eq!(
            (found[2].issuer.as_str(), &found[2].names),
            ("CN=kubernetes", &subject.sans)
        );
        let days = (found[0].not_after - jiff::Timestamp::now().as_second()) / 86_400;
        assert!((8..=10).contains(&days), "{days}");
        assert!(!serde_json::to_string(&found).unwrap().contains("PRIVATE"));
    }
}
