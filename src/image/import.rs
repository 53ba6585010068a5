//! One container image from files of the build context: an OCI archive, a folder that is an OCI image layout, or a docker
//! archive. Which of them a file is, it says itself.

use std::path::Path;

use oci::{Descriptor, Digest, Platform, REF_NAME};

use crate::archive::refused;
use crate::docker;
use crate::error::Error;
use crate::load::Staged;
use crate::manifest::{self, Manifest, check_platform, choose, pin};
use crate::progress::{NoProgress, Progress};
use crate::store::Store;

/// Takes one image into the store: the only one, or the one named `name`; of an index the manifest for the platform. The
/// index is remembered if `pinned` is its digest.
///
/// # Errors
/// [`Error::Archive`] with what is wrong with it.
pub(crate) fn import(
    store: &Store,
    from: &Path,
    name: Option<&str>,
    pinned: Option<&Digest>,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<Descriptor, Error> {
    if from.is_file() && docker::is_archive(from)? {
        return docker::import(store, from, name, platform, progress);
    }
    let staged = Staged::open(store, from, &NoProgress)?;
    let found = choose_image(&staged, from, name)?;
    let mut entry = Descriptor::new(found.media_type.clone(), found.digest.clone(), found.size);
    entry.platform = Some(platform.clone());
    if found.is_index() {
        entry = choose(&staged.json(&found)?, platform).map_err(|why| refused(from, why))?;
        if pinned == Some(&found.digest) {
            pin(&mut entry, staged.bytes(&found)?).map_err(|why| refused(from, why))?;
        }
    }
    staged.check_complete(&entry)?;
    if !found.is_index() {
        let manifest: Manifest = staged.json(&entry)?;
        check_platform(&staged.bytes(&manifest.config)?, platform).map_err(|why| refused(from, why))?;
    }
    staged.adopt(store)?;
    Ok(entry)
}

fn choose_image(staged: &Staged<'_>, from: &Path, name: Option<&str>) -> Result<Descriptor, Error> {
    let named = |entry: &&Descriptor| match name {
        Some(_) => entry.annotations.get(REF_NAME).map(String::as_str) == name,
        None => !manifest::is_carried(entry),
    };
    let mut found = Vec::new();
    for entry in staged.index.manifests.iter().filter(named) {
        if !staged.is_artifact(entry)? {
            found.push(entry);
        }
    }
    match found.as_slice() {
        [entry] => Ok((*entry).clone()),
        _ => {
            let names = staged
                .index
                .manifests
                .iter()
                .filter_map(|entry| entry.annotations.get(REF_NAME));
            let names: Vec<_> = names.cloned().collect();
            let reason = format!(
                "{} images fit, exactly one must; it has: {}",
                found.len(),
                names.join(", ")
            );
            Err(refused(from, reason))
        }
    }
}

#[cfg(test)]
mod tests;
