//! The form of a cluster image outside the store: an OCI image layout, as a folder or as a tar archive (oci-archive).
//!
//! An archive may be a delta: it lacks the blobs that another image has, and says so in a record of its own. `save.rs`
//! writes archives, `load.rs` reads them.

use std::path::Path;

use oci::{Descriptor, Digest, media_type};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The content of the file `oci-layout`.
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The record of a delta, beside `index.json`.
pub(crate) const DELTA: &str = "delta.json";

/// What a delta lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delta {
    /// The images that have it.
    pub(crate) since: Vec<Base>,
    /// The blobs, sorted.
    pub(crate) needs: Vec<Needed>,
}

/// An image that a delta was made against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    /// As it was named then.
    pub(crate) name: String,
    pub(crate) digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Needed {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Delta {
    /// Why the archive can't be used where only the blobs `has` are; none if it can.
    pub(crate) fn lacks(&self, has: impl Fn(&Digest, u64) -> bool) -> Option<String> {
        let missing: Vec<u64> = self
            .needs
            .iter()
            .filter(|needed| !has(&needed.digest, needed.size))
            .map(|needed| needed.size)
            .collect();
        if missing.is_empty() {
            return None;
        }
        let bases: Vec<String> = self
            .since
            .iter()
            .map(|base| format!("{} ({})", base.name, base.digest))
            .collect();
        Some(format!(
            "it holds only what is new since {}, and of the {} that it needs from there {} ({}) not in the \
             store; load or pull that first",
            bases.join(" and "),
            oci::counted(self.needs.len(), "blob"),
            match missing.len() {
                1 => "1 is".to_owned(),
                several => format!("{several} are"),
            },
            oci::counted(missing.iter().sum::<u64>(), "byte"),
        ))
    }
}

pub(crate) fn refused(archive: &Path, reason: impl Into<String>) -> Error {
    Error::Archive {
        archive: archive.to_path_buf(),
        reason: reason.into(),
    }
}

/// What an archive may hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder,
    Layout,
    Index,
    Delta,
    Blob(Digest),
    /// What Docker writes beside: the same images in its own words.
    Docker,
}

/// # Errors
/// Why it has no place there.
pub(crate) fn entry_of(name: &str, kind: tar::EntryType) -> Result<Entry, String> {
    let plain = plain_inside(name)?;
    match kind {
        tar::EntryType::Directory if ["", "blobs/", "blobs", "blobs/sha256/", "blobs/sha256"].contains(&plain) => {
            Ok(Entry::Folder)
        }
        tar::EntryType::Regular => match plain {
            "oci-layout" => Ok(Entry::Layout),
            "index.json" => Ok(Entry::Index),
            DELTA => Ok(Entry::Delta),
            "manifest.json" | "repositories" => Ok(Entry::Docker),
            _ => {
                let digest = plain
                    .strip_prefix("blobs/sha256/")
                    .and_then(|hex| format!("sha256:{hex}").parse().ok());
                digest
                    .map(Entry::Blob)
                    .ok_or_else(|| format!("the entry {name:?} has no place in an oci-archive"))
            }
        },
        tar::EntryType::Symlink | tar::EntryType::Link => Err(format!("the entry {name:?} is a link")),
        tar::EntryType::Directory => Err(format!("the folder {name:?} has no place in an oci-archive")),
        other => Err(format!(
            "the entry {name:?} is of the type {other:?}; only files and folders are allowed"
        )),
    }
}

/// The same for an archive that only one image is taken from: what is not understood is none of its files. None for that.
///
/// # Errors
/// For names that only a damaged or malicious archive has.
pub(crate) fn known_entry_of(name: &str, kind: tar::EntryType) -> Result<Option<Entry>, String> {
    plain_inside(name)?;
    Ok(entry_of(name, kind).ok())
}

/// An entry's name without what says nothing; it names something inside of the archive.
fn plain_inside(name: &str) -> Result<&str, String> {
    let plain = name.strip_prefix("./").unwrap_or(name);
    if plain.starts_with('/') || plain.split('/').any(|part| part == "..") {
        return Err(format!("the entry {name:?} leads out of the archive"));
    }
    if plain.starts_with("blobs/sha256/blobs/") {
        return Err(format!(
            "the entry {name:?} names its folder twice: what wrote the archive put blobs/sha256/ before a path that had it \
             already; write the image anew, for instance with `skopeo copy SOURCE oci-archive:FILE`"
        ));
    }
    Ok(plain)
}

/// Where a blob stands in an archive: documents first, so that a reader knows early what it gets.
pub(crate) fn rank(blob: &Descriptor) -> u8 {
    match blob.media_type.as_str() {
        _ if blob.is_index() => 0,
        media_type::MANIFEST | media_type::DOCKER_MANIFEST => 1,
        kind if kind.ends_with("+json") => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_names_its_base_and_how_much_of_it_is_missing() {
        let needed = |text: &str| Needed {
            digest: Digest::of(text.as_bytes()),
            size: 10,
        };
        let since = vec![Base {
            name: "local/x:1".into(),
            digest: Digest::of(b"index"),
        }];
        let needs = vec![needed("a"), needed("b"), needed("c")];
        let delta = Delta { since, needs };
        assert_eq!(delta.lacks(|_, _| true), None);
        let text = delta.lacks(|digest, _| *digest == Digest::of(b"a")).unwrap();
        assert!(text.contains("local/x:1 (sha256:"), "{text}");
        assert!(
            text.contains("of the 3 blobs that it needs from there 2 are (20 bytes) not in the store"),
            "{text}"
        );
    }
}
