//! Images to carry that lie in a build context: built from a folder, or taken out of a layout or an archive.

use std::collections::BTreeSet;
use std::path::Path;

use clusterfile::Env;
use clusterfile::kubefile::ImageSource;
use oci::{Descriptor, Digest};

use crate::container::{ContainerRecipe, Workshop};
use crate::error::Error;
use crate::import::{Format, Wanted, import};
use crate::manifest::platform_text;
use crate::store::Store;
use crate::tree::{Entry, Kind};

/// Part of the key of what is remembered: changes when the same archive would give another manifest.
const FORMAT: &str = "imported/3";
const KIND: &str = "archives";

/// Puts an image into the store and describes its manifest. `pinned` is the digest in its name, if it has one. Names that ARG
/// declare are added to `declared`.
pub(crate) fn local(
    workshop: &Workshop<'_>,
    source: &ImageSource,
    from: Option<&str>,
    pinned: Option<&Digest>,
    build_args: &Env,
    declared: &mut BTreeSet<String>,
) -> Result<Descriptor, Error> {
    let (path, name, format) = match source {
        ImageSource::Folder(folder) => {
            let path = workshop.contexts.inside(from, folder)?;
            if !is_layout(&path) {
                let recipe = ContainerRecipe::read(&path, folder, build_args, workshop.platform)?;
                declared.extend(recipe.declared.iter().cloned());
                return workshop.build(&path, &recipe);
            }
            (folder, None, Format::Oci)
        }
        ImageSource::OciFolder { folder: path, name } | ImageSource::OciArchive { file: path, name } => {
            (path, name.as_deref(), Format::Oci)
        }
        ImageSource::DockerArchive { file: path, name } => (path, name.as_deref(), Format::Docker),
        ImageSource::Registry | ImageSource::Docker(_) => {
            let why = "an image of a registry is no file of a build context";
            return Err(Error::Refused(why.to_string()));
        }
    };
    let wanted = Wanted {
        name,
        pinned,
        platform: workshop.platform,
    };
    taken(workshop, from, path, format, wanted)
}

/// Whether a folder says that it is an OCI image layout.
pub(crate) fn is_layout(folder: &Path) -> bool {
    folder.join("oci-layout").is_file() && folder.join("index.json").is_file()
}

/// What an archive or layout gives; of an archive it is remembered by the archive's digest.
fn taken(
    workshop: &Workshop<'_>,
    from: Option<&str>,
    written: &str,
    format: Format,
    wanted: Wanted<'_>,
) -> Result<Descriptor, Error> {
    let store = workshop.store;
    let path = workshop.contexts.inside(from, written)?;
    let import = || import(store, &path, format, wanted, workshop.progress);
    if path.is_dir() {
        return import();
    }
    let walked = workshop.contexts.walk(from, &path)?;
    let [
        (
            _,
            Entry {
                kind: Kind::File { digest, .. },
                ..
            },
        ),
    ] = walked.as_slice()
    else {
        return Err(Error::path(written, "it is neither a file nor a folder"));
    };
    let (name, pinned, platform) = (wanted.name, wanted.pinned, platform_text(wanted.platform));
    let key = format!("{FORMAT}\n{digest}\n{format:?}\n{platform}\n{name:?}\n{pinned:?}");
    let key = Digest::of(key.as_bytes());
    store.cache_used(KIND, &key);
    let kept = store.cache_get::<Descriptor>(KIND, &key);
    if let Some(kept) = kept.filter(|kept| is_complete(store, kept)) {
        return Ok(kept);
    }
    let descriptor = import()?;
    store.cache_put(KIND, &key, &descriptor)?;
    Ok(descriptor)
}

fn is_complete(store: &Store, descriptor: &Descriptor) -> bool {
    let all = |blobs: Vec<Descriptor>| blobs.iter().all(|blob| store.blobs().has(&blob.digest, blob.size));
    store.blobs().has(&descriptor.digest, descriptor.size) && store.reachable(descriptor).is_ok_and(all)
}
