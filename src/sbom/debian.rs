//! Where files that come from Debian packages say so: `debian.json`, as `images/debian.sh` writes it.

use serde::Deserialize;

use crate::Error;
use crate::spdx::{Checksum, ExternalRef, Package, id, purl};

/// The one form we know.
const FORMAT: &str = "installer.internal/debian-provenance/v1";

/// The record of one part of an image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Provenance {
    format: String,
    /// `debian-12`: `ID` and `VERSION_ID` of the machine's `os-release`.
    pub(crate) distribution: String,
    pub(crate) packages: Vec<DebianPackage>,
}

/// A package, and which of the part's files are made of its files.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DebianPackage {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
    source: String,
    source_version: String,
    /// The short names of its copyright file.
    pub(crate) licenses: Vec<String>,
    /// Digest of the `.deb`.
    sha256: String,
    pub(crate) files: Vec<FileOrigin>,
}

/// One file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileOrigin {
    /// Where it lies in the part.
    pub(crate) path: String,
    /// Where it lies in the package.
    #[serde(rename = "from")]
    _from: String,
}

impl Provenance {
    /// Reads the record; `place` says in messages where it lies.
    pub(crate) fn parse(bytes: &[u8], place: &str) -> Result<Provenance, Error> {
        let refused = |why: String| Error::Provenance {
            place: place.to_string(),
            why,
        };
        let record: Provenance = serde_json::from_slice(bytes).map_err(|error| refused(error.to_string()))?;
        if record.format != FORMAT {
            return Err(refused(format!(
                "its format is {:?}, only {FORMAT:?} is known",
                record.format
            )));
        }
        let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if let Some(package) = record.packages.iter().find(|package| !is_hex(&package.sha256)) {
            return Err(refused(format!(
                "the sha256 of {} is {:?}",
                package.name, package.sha256
            )));
        }
        Ok(record)
    }
}

impl DebianPackage {
    pub(crate) fn spdx(&self, distribution: &str, license_declared: String) -> Package {
        let vendor = distribution.split('-').next().unwrap_or_default();
        let qualifiers = [
            ("arch", self.architecture.clone()),
            ("distro", distribution.to_string()),
        ];
        let locator = purl("deb", &[vendor], &self.name, &self.version, &qualifiers);
        let spdx_id = id("Debian", &[&self.name, &self.version, &self.architecture]);
        Package {
            version_info: Some(self.version.clone()),
            supplier: (vendor == "debian").then(|| "Organization: Debian".to_string()),
            checksums: vec![Checksum::sha256(self.sha256.clone())],
            source_info: Some(format!(
                "built from the source package {} {}",
                self.source, self.source_version
            )),
            license_declared,
            license_comments: (!self.licenses.is_empty())
                .then(|| format!("from the package's copyright file: {}", self.licenses.join("; "))),
            external_refs: vec![ExternalRef::purl(locator)],
            primary_package_purpose: Some("LIBRARY").filter(|_| self.name.starts_with("lib")),
            ..Package::new(spdx_id).named(self.name.clone())
        }
    }
}
