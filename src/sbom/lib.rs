//! What is in a cluster image, as a software bill of materials: SPDX 2.3, JSON.
//!
//! ```text
//! image ──CONTAINS──▶ rootfs ──CONTAINS──▶ every file, with its digests
//!   │                    └────CONTAINS──▶ Debian packages ◀──GENERATED_FROM── the files that come from them
//!   └──CONTAINS──▶ carried container images, by digest ──CONTAINS──▶ the Debian packages they say they are made of
//! ```
//! Which file comes from which Debian package is remembered where images are made (`images/debian.sh`), in
//! `usr/share/installer/debian.json`. The same image gives the same bytes.

mod debian;
mod license;
#[cfg(test)]
mod rules;
pub mod spdx;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use image::{Carried, ClusterImage, FileKind};
use oci::Reference;

use debian::Provenance;
use license::Licenses;
use spdx::{
    Checksum, CreationInfo, Document, ExternalRef, File, NO_ASSERTION, Package, Relationship, VerificationCode, id,
    purl,
};

/// Where an image says which of its files come from Debian packages.
pub const DEBIAN: &str = "usr/share/installer/debian.json";

/// Why there is no bill of materials.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image can't be read.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The image's record of Debian packages is damaged.
    #[error("{place}: {why}")]
    Provenance {
        /// The file, and the image that has it.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// The layers have another content than their list says.
    #[error(
        "the file {path} of {image} has the digest {found} in its layer, but {listed} in the list of files; remove the store's cache folder"
    )]
    Changed {
        /// The file.
        path: String,
        /// The image.
        image: String,
        /// What was read.
        found: String,
        /// What was expected.
        listed: String,
    },
    /// The time is not between the years 1 and 9999.
    #[error("{0} seconds since 1970 is no time that SPDX can say")]
    Time(i64),
}

/// The bill of materials of an image that is known as `name`, as of `created` (seconds since 1970).
///
/// # Errors
/// When the image can't be read or contradicts itself.
pub fn document(image: &ClusterImage, name: Option<&Reference>, created: i64) -> Result<Document, Error> {
    let mut build = Build::default();
    let digest = &image.index.digest;
    let label = name.map_or_else(|| digest.to_string(), ToString::to_string);
    let cluster_image = image_package("Image", name, digest.hex(), Some(&label));
    let root = cluster_image.spdx_id.clone();
    build.relate(spdx::DOCUMENT_ID, "DESCRIBES", &root);
    build.packages.push(cluster_image);
    build.rootfs(image, &root)?;
    for carried in &image.carried {
        build.carried(image, carried, &root)?;
    }
    let mut packages = build.packages;
    packages.extend(build.debian.into_values());
    let (os, architecture) = (&image.platform.os, &image.platform.architecture);
    Ok(Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        spdx_id: spdx::DOCUMENT_ID,
        name: label,
        document_namespace: format!(
            "https://installer.internal/spdx/{}/{os}-{architecture}/{created}",
            digest.hex()
        ),
        creation_info: CreationInfo {
            created: spdx::time(created).ok_or(Error::Time(created))?,
            creators: vec![format!("Tool: installer-{}", env!("CARGO_PKG_VERSION"))],
        },
        packages,
        files: build.files,
        has_extracted_licensing_infos: build.licenses.extracted(),
        relationships: build.relationships.into_iter().collect(),
    })
}

#[derive(Default)]
struct Build {
    packages: Vec<Package>,
    /// By name, version and architecture: a package that is in several places is told once.
    debian: BTreeMap<(String, String, String), Package>,
    files: Vec<File>,
    relationships: BTreeSet<Relationship>,
    licenses: Licenses,
}

impl Build {
    fn relate(&mut self, element: &str, kind: &'static str, related: &str) {
        self.relationships.insert(Relationship {
            spdx_element_id: element.to_string(),
            relationship_type: kind,
            related_spdx_element: related.to_string(),
        });
    }

    fn rootfs(&mut self, image: &ClusterImage, root: &str) -> Result<(), Error> {
        let files = files(image)?;
        let rootfs = Package {
            name: "rootfs".to_string(),
            comment: Some("The files that every host of the cluster gets, below /opt/installer.".to_string()),
            primary_package_purpose: Some("FILE"),
            package_verification_code: Some(VerificationCode::of(&files)),
            files_analyzed: true,
            license_info_from_files: Some(vec![NO_ASSERTION.to_string()]),
            checksums: vec![Checksum::sha256(image.rootfs.manifest.digest.hex())],
            ..Package::new(id("Rootfs", &[]))
        };
        let rootfs_id = rootfs.spdx_id.clone();
        self.relate(root, "CONTAINS", &rootfs_id);
        self.packages.push(rootfs);
        for file in &files {
            self.relate(&rootfs_id, "CONTAINS", &file.spdx_id);
        }
        let by_path: BTreeMap<String, String> = files
            .iter()
            .map(|file| (file.file_name.clone(), file.spdx_id.clone()))
            .collect();
        self.files = files;
        let listed = image.list(DEBIAN)?;
        if listed.iter().any(|entry| entry.path == DEBIAN) {
            let place = format!("{DEBIAN} of the rootfs");
            let provenance = Provenance::parse(&image.read_file(DEBIAN)?, &place)?;
            for (package, origin) in self.debian_packages(&rootfs_id, provenance) {
                for path in origin {
                    // A later instruction of the Kubefile may have removed a file or put another in its place: then it's no file
                    // of the package any more, which cannot be told from here, so only what is gone is left out.
                    if let Some(file) = by_path.get(&format!("./{path}")) {
                        self.relate(file, "GENERATED_FROM", &package);
                    }
                }
            }
        }
        Ok(())
    }

    fn carried(&mut self, image: &ClusterImage, carried: &Carried, root: &str) -> Result<(), Error> {
        let reference = &carried.reference;
        let package = image_package("Carried", Some(reference), carried.manifest.digest.hex(), None);
        let own = package.spdx_id.clone();
        self.relate(root, "CONTAINS", &own);
        self.packages.push(package);
        if let Some(bytes) = image.carried_file(carried, DEBIAN)? {
            let place = format!("{DEBIAN} of {reference}");
            self.debian_packages(&own, Provenance::parse(&bytes, &place)?);
        }
        Ok(())
    }

    /// Tells packages as part of `whole`; gives their ids with the paths of their files.
    fn debian_packages(&mut self, whole: &str, provenance: Provenance) -> Vec<(String, Vec<String>)> {
        let mut origins = Vec::new();
        for package in provenance.packages {
            let declared = self.licenses.expression(&package.name, &package.licenses);
            let told = package.spdx(&provenance.distribution, declared);
            let spdx_id = told.spdx_id.clone();
            self.relate(whole, "CONTAINS", &spdx_id);
            origins.push((spdx_id, package.files.into_iter().map(|file| file.path).collect()));
            self.debian
                .entry((package.name, package.version, package.architecture))
                .or_insert(told);
        }
        origins
    }
}

/// A cluster image or container image as a package.
fn image_package(kind: &str, reference: Option<&Reference>, hex: &str, label: Option<&str>) -> Package {
    let name = match (reference, label) {
        (Some(reference), _) => reference.repository(),
        (None, Some(label)) => label.to_string(),
        (None, None) => hex.to_string(),
    };
    let external_refs = reference.map(|reference| {
        let last = reference.path().rsplit('/').next().unwrap_or_default();
        let mut qualifiers = vec![("repository_url", reference.repository())];
        qualifiers.extend(reference.tag().map(|tag| ("tag", tag.to_string())));
        ExternalRef::purl(purl("oci", &[], last, &format!("sha256:{hex}"), &qualifiers))
    });
    Package {
        version_info: reference.and_then(Reference::tag).map(str::to_string),
        checksums: vec![Checksum::sha256(hex)],
        primary_package_purpose: Some("CONTAINER"),
        external_refs: external_refs.into_iter().collect(),
        ..Package::new(id(
            kind,
            &[
                &name,
                reference.and_then(Reference::tag).unwrap_or_default(),
                &hex[..12],
            ],
        ))
        .named(name)
    }
}

/// Every regular file of the rootfs with its digests, sorted by path.
fn files(image: &ClusterImage) -> Result<Vec<File>, Error> {
    let mut listed = BTreeMap::new();
    for entry in image.list("")? {
        if let FileKind::File { digest, .. } = entry.kind {
            listed.insert(entry.path, digest);
        }
    }
    let mut found = BTreeMap::new();
    image.read_files(&mut |path, reader| {
        found.insert(
            path.to_string(),
            hashes(reader).map_err(|source| image::Error::Io {
                what: "cannot read",
                path: path.into(),
                source,
            })?,
        );
        Ok(())
    })?;
    let mut files = Vec::new();
    for (path, digest) in listed {
        let (sha1, sha256) = found.remove(&path).unwrap_or_default();
        if sha256 != digest.hex() {
            return Err(Error::Changed {
                path,
                image: image.index.digest.to_string(),
                found: sha256,
                listed: digest.hex().to_string(),
            });
        }
        files.push(File {
            spdx_id: id("File", &[&path]),
            file_name: format!("./{path}"),
            checksums: vec![Checksum::sha1(sha1), Checksum::sha256(sha256)],
            license_concluded: NO_ASSERTION,
            license_info_in_files: [NO_ASSERTION],
            copyright_text: NO_ASSERTION,
        });
    }
    Ok(files)
}

/// SHA-1, which SPDX demands for files, and SHA-256, in hexadecimal digits.
fn hashes(reader: &mut dyn Read) -> std::io::Result<(String, String)> {
    let (mut sha1, mut sha256) = (Context::new(&SHA1_FOR_LEGACY_USE_ONLY), Context::new(&SHA256));
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((hex::encode(sha1.finish()), hex::encode(sha256.finish()))),
            Ok(read) => {
                sha1.update(&buffer[..read]);
                sha256.update(&buffer[..read]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
