//! Docker archives: what `docker save`, `podman save` and `skopeo copy … docker-archive:` write.
//!
//! `manifest.json` names a configuration and layers by their paths in the archive. The configuration is kept byte for
//! byte, so the image keeps its ID; layers are compressed as ours are, each compared with the digest that the
//! configuration gives it. The archive is read twice: its list of contents may be its last entry.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use oci::{Descriptor, Digest, Platform, Reference, media_type};
use serde::Deserialize;
use tar::EntryType;

use crate::archive::refused;
use crate::config::ImageConfig;
use crate::error::Error;
use crate::io;
use crate::layer::{Layer, compress_layer};
use crate::manifest::{MAX_JSON, Manifest, check_platform};
use crate::progress::Progress;
use crate::store::Store;
use crate::tarball;

/// More entries than this are no image's.
const MOST_ENTRIES: usize = 100_000;
/// More links than this in a row are a loop.
const LONGEST_CHAIN: usize = 16;
const LIST: &str = "manifest.json";
/// The list of an OCI archive.
const OCI_LIST: &str = "index.json";
pub(crate) const GZIP: &[u8] = &[0x1f, 0x8b];
pub(crate) const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// An image in `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    /// Null in archives of images without a name.
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What the first reading found.
#[derive(Default)]
struct Contents {
    list: Option<Vec<u8>>,
    /// Where links lead, and nothing for files.
    entries: BTreeMap<String, Option<String>>,
}

/// What a file is, told by its content. Newer docker archives are OCI archives as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Formats {
    pub(crate) docker: bool,
    pub(crate) oci: bool,
}

impl Formats {
    /// # Errors
    /// When the file can't be read, or is no archive at all.
    pub(crate) fn of(file: &Path) -> Result<Formats, Error> {
        let mut found = Formats::default();
        visit(file, |path, _, _| {
            found.docker |= path == LIST;
            found.oci |= path == OCI_LIST;
            Ok(match found.docker && found.oci {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        Ok(found)
    }
}

/// Takes one container image out of a docker archive: the only one, or the one named `name`.
///
/// # Errors
/// [`Error::Archive`] with what is wrong with it; the store has at most unnamed blobs more then.
pub(crate) fn import(
    store: &Store,
    file: &Path,
    name: Option<&str>,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<Descriptor, Error> {
    let contents = Contents::read(file)?;
    let image = contents.image(file, name)?;
    let config_path = contents.follow(file, &image.config)?;
    let mut config = None;
    visit(file, |path, reader, size| {
        if path == config_path {
            config = Some(read_small(file, path, reader, size)?);
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let config = config.ok_or_else(|| refused(file, format!("{config_path} is missing")))?;
    let parsed: ImageConfig =
        serde_json::from_slice(&config).map_err(|error| refused(file, format!("{config_path}: {error}")))?;
    check_platform(&config, platform).map_err(|why| refused(file, why))?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        let (listed, known) = (image.layers.len(), diff_ids.len());
        return Err(refused(
            file,
            format!("it lists {}, its configuration {known}", oci::counted(listed, "layer")),
        ));
    }
    let mut wanted: BTreeMap<String, Digest> = BTreeMap::new();
    for (layer, diff_id) in image.layers.iter().zip(&diff_ids) {
        let path = contents.follow(file, layer)?;
        if wanted
            .insert(path, diff_id.clone())
            .is_some_and(|other| other != *diff_id)
        {
            return Err(refused(file, format!("{layer} is two different layers")));
        }
    }
    let layers = layers(store, file, &wanted, progress)?;
    let descriptors = diff_ids.iter().filter_map(|diff_id| layers.get(diff_id));
    let descriptors = descriptors.map(|layer| layer.descriptor.clone()).collect();
    let config = Descriptor::new(media_type::CONFIG, store.put(&config)?, config.len() as u64);
    let mut manifest = store.put_json(media_type::MANIFEST, &Manifest::new(config, descriptors))?;
    manifest.platform = Some(platform.clone());
    Ok(manifest)
}

/// The wanted layers by the digest of their content, put into the store.
fn layers(
    store: &Store,
    file: &Path,
    wanted: &BTreeMap<String, Digest>,
    progress: &dyn Progress,
) -> Result<BTreeMap<Digest, Layer>, Error> {
    let mut layers: BTreeMap<Digest, Layer> = BTreeMap::new();
    visit(file, |path, reader, _| {
        let Some(diff_id) = wanted.get(path).filter(|diff_id| !layers.contains_key(diff_id)) else {
            return Ok(ControlFlow::Continue(()));
        };
        let mut content = unpacked(reader).map_err(Error::io("cannot read", file))?;
        let layer = compress_layer(store, diff_id, &mut content, progress)?;
        if layer.diff_id != *diff_id {
            let found = &layer.diff_id;
            return Err(refused(
                file,
                format!("{path} is corrupt: it has the digest {found}, not {diff_id}"),
            ));
        }
        layers.insert(diff_id.clone(), layer);
        let all = wanted.values().all(|diff_id| layers.contains_key(diff_id));
        Ok(if all {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    match wanted.iter().find(|(_, diff_id)| !layers.contains_key(diff_id)) {
        Some((path, _)) => Err(refused(file, format!("the layer {path} is missing"))),
        None => Ok(layers),
    }
}

/// Unpacks what is packed with gzip or zstd.
pub(crate) fn unpacked<'r>(reader: impl Read + 'r) -> std::io::Result<Box<dyn Read + 'r>> {
    let mut reader = BufReader::with_capacity(io::CHUNK, reader);
    let begin = reader.fill_buf()?;
    Ok(if begin.starts_with(GZIP) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if begin.starts_with(ZSTD) {
        Box::new(zstd::stream::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

/// Calls `each` with path, content and size of every regular file of the archive.
fn visit(
    file: &Path,
    mut each: impl FnMut(&str, &mut dyn Read, u64) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    visit_all(file, |item, reader| match item.kind {
        EntryType::Regular | EntryType::Continuous => each(&plain(&item.path_text()), reader, item.size),
        _ => Ok(ControlFlow::Continue(())),
    })
}

fn visit_all(
    file: &Path,
    each: impl FnMut(tarball::Item, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let archive = File::open(file).map_err(Error::io("cannot open", file))?;
    let damaged = |error: std::io::Error| refused(file, format!("it is damaged or no archive of images: {error}"));
    tarball::visit(unpacked(archive).map_err(damaged)?, damaged, each)
}

fn plain(path: &str) -> String {
    path.strip_prefix("./").unwrap_or(path).to_string()
}

fn read_small(file: &Path, path: &str, reader: &mut dyn Read, size: u64) -> Result<Vec<u8>, Error> {
    if size > MAX_JSON {
        return Err(refused(file, format!("{path} has {size} bytes, more than {MAX_JSON}")));
    }
    let mut bytes = Vec::new();
    let damaged = |error: std::io::Error| refused(file, format!("{path}: {error}"));
    reader.take(MAX_JSON).read_to_end(&mut bytes).map_err(damaged)?;
    Ok(bytes)
}

impl Contents {
    fn read(file: &Path) -> Result<Contents, Error> {
        let mut contents = Contents::default();
        visit_all(file, |item, reader| {
            let path = plain(&item.path_text());
            let link = match item.kind {
                EntryType::Symlink | EntryType::Link => {
                    item.link.map(|link| String::from_utf8_lossy(&link).into_owned())
                }
                EntryType::Regular | EntryType::Continuous => None,
                _ => return Ok(ControlFlow::Continue(())),
            };
            // A hard link's target is a path from the archive's root.
            let link = match (item.kind, link) {
                (EntryType::Link, Some(target)) => Some(format!("/{}", plain(&target))),
                (_, link) => link,
            };
            if path == LIST && link.is_none() {
                contents.list = Some(read_small(file, LIST, reader, item.size)?);
            }
            if contents.entries.len() >= MOST_ENTRIES {
                return Err(refused(file, format!("it has more than {MOST_ENTRIES} entries")));
            }
            contents.entries.insert(path, link);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(contents)
    }

    /// The image that is wanted.
    fn image(&self, file: &Path, name: Option<&str>) -> Result<Listed, Error> {
        let is_oci = self.entries.contains_key("oci-layout");
        let hint = if is_oci {
            "; it is an OCI archive, say oci-archive:"
        } else {
            ""
        };
        let list = self
            .list
            .as_ref()
            .ok_or_else(|| refused(file, format!("it has no {LIST}{hint}")))?;
        let images: Vec<Listed> =
            serde_json::from_slice(list).map_err(|error| refused(file, format!("{LIST}: {error}")))?;
        let wanted: Option<Reference> = name.map(str::parse).transpose()?;
        let is_named = |tag: &String| tag.parse::<Reference>().ok() == wanted;
        let fits = |image: &&Listed| wanted.is_none() || image.repo_tags.iter().flatten().any(is_named);
        let found: Vec<&Listed> = images.iter().filter(fits).collect();
        match found.as_slice() {
            [image] => Ok((*image).clone()),
            _ => {
                let names: Vec<&str> = images
                    .iter()
                    .flat_map(|image| image.repo_tags.iter().flatten())
                    .map(String::as_str)
                    .collect();
                let reason = format!(
                    "exactly one image must fit, here {}; it has: {}",
                    match found.len() {
                        0 => "none does".to_owned(),
                        several => format!("{several} do"),
                    },
                    names.join(", ")
                );
                Err(refused(file, reason))
            }
        }
    }

    /// The regular file that a path leads to; old archives link equal layers to one.
    fn follow(&self, file: &Path, path: &str) -> Result<String, Error> {
        let mut path = plain(path);
        for _ in 0..LONGEST_CHAIN {
            match self.entries.get(&path) {
                None => return Err(refused(file, format!("{path} is missing"))),
                Some(None) => return Ok(path),
                Some(Some(target)) => {
                    let next = joined(&path, target);
                    path = next.ok_or_else(|| refused(file, format!("the link {path} leads out of the archive")))?;
                }
            }
        }
        Err(refused(file, format!("too many links at {path}")))
    }
}

/// Where a link at `path` leads; none if that is outside.
fn joined(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        parts.clear();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests;
