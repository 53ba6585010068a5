//! One container image from files of the build context: an OCI archive, a folder that is an OCI image layout, or a docker
//! archive. Archives of Docker 25 and later are OCI and docker archives at once: then it counts what the recipe says.
//!
//! Only what is chosen must be whole. Archives list images for other platforms and attestations that they do not hold.

use std::fs::File;
use std::path::Path;

use oci::{Bounded, Descriptor, Digest, Platform, REF_NAME, Reference};

use crate::archive::{known_entry_of, refused};
use crate::docker::{self, Formats};
use crate::error::Error;
use crate::load::Staged;
use crate::manifest::{self, Manifest, check_platform, choose, pin};
use crate::progress::{NoProgress, Progress};
use crate::referrers::is_artifact_entry;
use crate::store::Store;
use crate::unpack;

/// Annotation by which containerd keeps an image's full name in an archive, where the other one has only the tag.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// What a recipe says that a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// An OCI archive or folder: manifests keep their bytes.
    Oci,
    /// What `docker save` writes.
    Docker,
}

/// Which image of a file is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Its name in the file; none means the only one.
    pub(crate) name: Option<&'a str>,
    /// The digest of its manifest, or of the index through which it is found.
    pub(crate) pinned: Option<&'a Digest>,
    /// What it must run on; of an index the manifest for it is taken.
    pub(crate) platform: &'a Platform,
}

/// Takes one image into the store. The index through which it was found is remembered if that is pinned.
///
/// # Errors
/// [`Error::Archive`] with what is wrong with it.
pub(crate) fn import(
    store: &Store,
    from: &Path,
    format: Format,
    wanted: Wanted<'_>,
    progress: &dyn Progress,
) -> Result<Descriptor, Error> {
    if from.is_dir() {
        return take(store, Staged::open_folder(store, from)?, from, wanted);
    }
    let total = check_packing(from)?;
    let found = Formats::of(from)?;
    if !found.docker || (found.oci && format == Format::Oci) {
        return take(store, read_archive(store, from, total)?, from, wanted);
    }
    match wanted.pinned {
        None => docker::import(store, from, wanted.name, wanted.platform, progress),
        Some(digest) => {
            let instead = match found.oci {
                true => "the file is an OCI archive as well, so say oci-archive: instead of docker-archive:",
                false => {
                    "write the image as an OCI archive (`skopeo copy SOURCE oci-archive:FILE`, or `docker save` of Docker 25 or \
                     later) and say oci-archive:"
                }
            };
            let why = format!("a docker archive does not keep digests, so nothing in it is {digest}; {instead}");
            Err(refused(from, why))
        }
    }
}

/// The size of an archive that is not compressed.
///
/// # Errors
/// When it is compressed by what is not unpacked here.
fn check_packing(from: &Path) -> Result<Option<u64>, Error> {
    let cannot = |error| Error::io("cannot read", from)(error);
    let mut file = File::open(from).map_err(cannot)?;
    let mut begin = [0; 8];
    let read = unpack::read_up_to(&mut file, &mut begin).map_err(cannot)?;
    let begin = &begin[..read];
    let unknown = [(&b"BZh"[..], "bzip2"), (b"\xfd7zXZ", "xz"), (b"PK\x03\x04", "zip")];
    if let Some((_, program)) = unknown.iter().find(|(magic, _)| begin.starts_with(magic)) {
        let why = format!("it is compressed by {program}, and only gzip and zstd are unpacked here: unpack it first");
        return Err(refused(from, why));
    }
    let is_packed = begin.starts_with(docker::GZIP) || begin.starts_with(docker::ZSTD);
    Ok((!is_packed).then_some(file.metadata().map_err(cannot)?.len()))
}

/// Reads an OCI archive, compressed or not. `total` is the size of one that is not.
fn read_archive<'a>(store: &'a Store, from: &'a Path, total: Option<u64>) -> Result<Staged<'a>, Error> {
    let file = File::open(from).map_err(Error::io("cannot open", from))?;
    let damaged = |error: std::io::Error| refused(from, format!("it is damaged or no oci-archive: {error}"));
    let stream = docker::unpacked(file).map_err(damaged)?;
    let stream = Bounded::new(stream, unpack::most_bytes(from)?.max(total.unwrap_or(0)));
    Staged::read_archive(store, from, stream, total, known_entry_of, &NoProgress)
}

fn take(store: &Store, mut staged: Staged<'_>, from: &Path, wanted: Wanted<'_>) -> Result<Descriptor, Error> {
    let found = choose_image(&staged, from, wanted)?;
    let mut entry = Descriptor::new(found.media_type.clone(), found.digest.clone(), found.size);
    entry.platform = Some(wanted.platform.clone());
    if found.is_index() {
        entry = choose(&staged.json(&found)?, wanted.platform).map_err(|why| refused(from, why))?;
        if wanted.pinned == Some(&found.digest) {
            pin(&mut entry, staged.bytes(&found)?).map_err(|why| refused(from, why))?;
        }
    }
    staged.take(std::slice::from_ref(&entry), &NoProgress)?;
    staged.check_complete(&entry)?;
    if !found.is_index() {
        let manifest: Manifest = staged.json(&entry)?;
        check_platform(&staged.bytes(&manifest.config)?, wanted.platform).map_err(|why| refused(from, why))?;
    }
    staged.adopt(store)?;
    Ok(entry)
}

/// The entry of `index.json` that is wanted: by its name, or the only one, or the one with the pinned digest.
fn choose_image(staged: &Staged<'_>, from: &Path, wanted: Wanted<'_>) -> Result<Descriptor, Error> {
    let mut found = Vec::new();
    for entry in &staged.index.manifests {
        let fits = match wanted.name {
            Some(name) => names(entry).any(|known| is_same(known, name)),
            None => !manifest::is_carried(entry),
        };
        if fits && is_image(staged, entry)? {
            found.push(entry);
        }
    }
    if found.len() > 1
        && let Some(pinned) = found.iter().find(|entry| Some(&entry.digest) == wanted.pinned)
    {
        return Ok((*pinned).clone());
    }
    match found.as_slice() {
        [entry] => Ok((*entry).clone()),
        _ => {
            let known: Vec<&str> = staged
                .index
                .manifests
                .iter()
                .filter_map(|entry| names(entry).next())
                .collect();
            let reason = format!(
                "exactly one image must fit, here {}; it has: {}",
                match found.len() {
                    0 => "none does".to_owned(),
                    several => format!("{several} do"),
                },
                known.join(", ")
            );
            Err(refused(from, reason))
        }
    }
}

/// An entry's names, the fullest first.
fn names(entry: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = [CONTAINERD_NAME, REF_NAME].into_iter();
    annotations.filter_map(|name| entry.annotations.get(name).map(String::as_str))
}

fn is_same(known: &str, wanted: &str) -> bool {
    let full = |name: &str| name.parse::<Reference>().ok();
    known == wanted || full(known).is_some_and(|known| full(wanted) == Some(known))
}

/// Whether an entry is an image, not a document about one. What is not there can't be chosen anyway.
fn is_image(staged: &Staged<'_>, entry: &Descriptor) -> Result<bool, Error> {
    if !is_artifact_entry(entry) {
        return Ok(true);
    }
    Ok(staged.has(entry) && staged.json::<Manifest>(entry)?.subject.is_none())
}

#[cfg(test)]
mod tests;
