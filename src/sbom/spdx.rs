//! The parts of SPDX 2.3 that are written here, in its JSON form, with the spec's own names.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

/// The document's own id (clause 6.3).
pub const DOCUMENT_ID: &str = "SPDXRef-DOCUMENT";
/// What is said where nothing is known.
pub const NO_ASSERTION: &str = "NOASSERTION";

/// A whole document (clause 6).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// `SPDX-2.3`.
    pub spdx_version: &'static str,
    /// The licence of the document itself.
    pub data_license: &'static str,
    /// [`DOCUMENT_ID`].
    #[serde(rename = "SPDXID")]
    pub spdx_id: &'static str,
    /// The image's name.
    pub name: String,
    /// A URI that no other document has.
    pub document_namespace: String,
    /// When and by what it was made.
    pub creation_info: CreationInfo,
    /// Images, the rootfs, Debian packages.
    pub packages: Vec<Package>,
    /// The files of the rootfs.
    pub files: Vec<File>,
    /// Licences that SPDX's list doesn't have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub has_extracted_licensing_infos: Vec<ExtractedLicense>,
    /// How all these belong together.
    pub relationships: Vec<Relationship>,
}

/// Clauses 6.8 to 6.10.
#[derive(Debug, Clone, Serialize)]
pub struct CreationInfo {
    /// `YYYY-MM-DDThh:mm:ssZ`.
    pub created: String,
    /// `Tool: name-version`.
    pub creators: Vec<String>,
}

/// A package (clause 7).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// Its id.
    #[serde(rename = "SPDXID")]
    pub spdx_id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_info: Option<String>,
    /// Who distributes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supplier: Option<String>,
    /// Where it can be had.
    pub download_location: &'static str,
    /// Whether the document lists its files.
    pub files_analyzed: bool,
    /// A digest of all its files, where they are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package_verification_code: Option<VerificationCode>,
    /// Digests of the package.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checksums: Vec<Checksum>,
    /// What it was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_info: Option<String>,
    /// What we take its licence to be: nothing is concluded here.
    pub license_concluded: &'static str,
    /// What its files say, where they are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license_info_from_files: Option<Vec<String>>,
    /// What its authors or packagers say.
    pub license_declared: String,
    /// How that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license_comments: Option<String>,
    /// Not looked for.
    pub copyright_text: &'static str,
    /// Its names elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub external_refs: Vec<ExternalRef>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_package_purpose: Option<&'static str>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl Package {
    /// A package of which nothing is known.
    pub(crate) fn new(spdx_id: String) -> Package {
        Package {
            spdx_id,
            name: String::new(),
            version_info: None,
            supplier: None,
            download_location: NO_ASSERTION,
            files_analyzed: false,
            package_verification_code: None,
            checksums: Vec::new(),
            source_info: None,
            license_concluded: NO_ASSERTION,
            license_info_from_files: None,
            license_declared: NO_ASSERTION.to_string(),
            license_comments: None,
            copyright_text: NO_ASSERTION,
            external_refs: Vec::new(),
            primary_package_purpose: None,
            comment: None,
        }
    }

    pub(crate) fn named(self, name: String) -> Package {
        Package { name, ..self }
    }
}

/// Clause 7.9: SHA-1 over the sorted SHA-1s of all files.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationCode {
    /// 40 hexadecimal digits.
    pub package_verification_code_value: String,
}

impl VerificationCode {
    pub(crate) fn of(files: &[File]) -> VerificationCode {
        let of_file = |file: &File| {
            let sha1 = file.checksums.iter().find(|checksum| checksum.algorithm == "SHA1");
            sha1.map(|checksum| checksum.checksum_value.clone())
        };
        let mut all: Vec<String> = files.iter().filter_map(of_file).collect();
        all.sort_unstable();
        let code = digest(&SHA1_FOR_LEGACY_USE_ONLY, all.concat().as_bytes());
        VerificationCode {
            package_verification_code_value: hex::encode(code),
        }
    }
}

/// A file (clause 8).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// Its id.
    #[serde(rename = "SPDXID")]
    pub spdx_id: String,
    /// Its path, beginning with `./`.
    pub file_name: String,
    /// SHA-1 and SHA-256.
    pub checksums: Vec<Checksum>,
    /// Nothing is concluded.
    pub license_concluded: &'static str,
    /// Not looked for.
    pub license_info_in_files: [&'static str; 1],
    /// Not looked for.
    pub copyright_text: &'static str,
}

/// Clauses 7.10 and 8.4.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checksum {
    /// `SHA1` or `SHA256`.
    pub algorithm: &'static str,
    /// Hexadecimal digits.
    pub checksum_value: String,
}

impl Checksum {
    pub(crate) fn sha1(hex: impl Into<String>) -> Checksum {
        Checksum {
            algorithm: "SHA1",
            checksum_value: hex.into(),
        }
    }

    pub(crate) fn sha256(hex: impl Into<String>) -> Checksum {
        Checksum {
            algorithm: "SHA256",
            checksum_value: hex.into(),
        }
    }
}

/// Clause 7.21.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalRef {
    /// `PACKAGE-MANAGER`.
    pub reference_category: &'static str,
    /// `purl`.
    pub reference_type: &'static str,
    /// The package URL.
    pub reference_locator: String,
}

impl ExternalRef {
    pub(crate) fn purl(locator: String) -> ExternalRef {
        ExternalRef {
            reference_category: "PACKAGE-MANAGER",
            reference_type: "purl",
            reference_locator: locator,
        }
    }
}

/// Clause 10: a licence that SPDX's list doesn't have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtractedLicense {
    /// `LicenseRef-…`.
    pub license_id: String,
    /// Its name.
    pub name: String,
    /// Its text, or where that is.
    pub extracted_text: String,
}

/// Clause 11.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Relationship {
    /// Whose relationship it is.
    pub spdx_element_id: String,
    /// Which.
    pub relationship_type: &'static str,
    /// To what.
    pub related_spdx_element: String,
}

/// `SPDXRef-KIND-…`: letters, digits, `.` and `-`. What cannot be said with those is told apart by a digest.
pub(crate) fn id(kind: &str, parts: &[&str]) -> String {
    let mut text = format!("SPDXRef-{kind}");
    let mut plain = true;
    for part in parts.iter().filter(|part| !part.is_empty()) {
        text.push('-');
        for c in part.chars() {
            let good = c.is_ascii_alphanumeric() || c == '.';
            plain &= good;
            text.push(if good { c } else { '-' });
        }
    }
    if !plain {
        let digest = oci::Digest::of(parts.join("\n").as_bytes());
        text.push('-');
        text.push_str(digest.short());
    }
    text
}

/// What a package URL takes as it is (purl-spec).
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A package URL; qualifiers are sorted by their names, as the purl-spec wants it.
pub(crate) fn purl(
    kind: &str,
    namespace: &[&str],
    name: &str,
    version: &str,
    qualifiers: &[(&'static str, String)],
) -> String {
    let encode = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
    let mut path: Vec<String> = namespace.iter().map(|part| encode(part)).collect();
    path.push(encode(name));
    let mut qualifiers: Vec<String> = qualifiers
        .iter()
        .map(|(key, value)| format!("{key}={}", encode(value).replace("%2F", "/")))
        .collect();
    qualifiers.sort_unstable();
    format!(
        "pkg:{kind}/{}@{}?{}",
        path.join("/"),
        encode(version),
        qualifiers.join("&")
    )
}

/// Seconds since 1970 as SPDX writes times.
pub(crate) fn time(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    let text = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    (text.len() == 20).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_allowed_letters_and_stay_apart() {
        assert_eq!(id("Rootfs", &[]), "SPDXRef-Rootfs");
        assert_eq!(id("File", &["a.txt"]), "SPDXRef-File-a.txt");
        let (one, two) = (id("File", &["a/b"]), id("File", &["a_b"]));
        assert!(one.starts_with("SPDXRef-File-a-b-") && one != two);
        assert_ne!(id("File", &["a-b"]), id("File", &["a", "b"]));
    }

    #[test]
    fn package_urls_are_encoded_and_sorted() {
        let text = purl(
            "deb",
            &["debian"],
            "libgmp10",
            "2:6.2.1+dfsg1",
            &[("distro", "debian-12".into()), ("arch", "amd64".into())],
        );
        assert_eq!(
            text,
            "pkg:deb/debian/libgmp10@2%3A6.2.1%2Bdfsg1?arch=amd64&distro=debian-12"
        );
        let text = purl(
            "oci",
            &[],
            "etcd",
            "sha256:ab",
            &[("repository_url", "sea.hub:5000/x/etcd".into())],
        );
        assert_eq!(text, "pkg:oci/etcd@sha256%3Aab?repository_url=sea.hub%3A5000/x/etcd");
    }

    #[test]
    fn times_are_written_as_spdx_wants_them() {
        assert_eq!(time(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(time(1_764_000_000).as_deref(), Some("2025-11-24T16:00:00Z"));
        assert_eq!(time(i64::MAX), None);
        assert_eq!(time(-100_000_000_000), None);
    }
}
