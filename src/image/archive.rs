//! A cluster image as one file: an oci-archive (a tar of an OCI image layout), written and read as a stream.
//!
//! What is read is first put aside; only when every blob has its digest and nothing is missing does it become part of
//! the store. An archive that is refused leaves nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use oci::{Descriptor, Digest, Index, Platform, REF_NAME, Reference, media_type};
use tempfile::{NamedTempFile, TempPath};

use crate::error::Error;
use crate::io::{self, HashWriter};
use crate::manifest::{CONTENT, MAX_JSON, Manifest, ROOTFS, fits};
use crate::progress::{Event, Progress};
use crate::referrers::is_artifact_entry;
use crate::store::Store;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes an image of the store to `file`, replacing it in one step. Same image, same bytes.
///
/// # Errors
/// If the store doesn't have it, a blob is missing, or the file can't be written.
pub fn save(store: &Store, name: &str, file: &Path, progress: &dyn Progress) -> Result<u64, Error> {
    let _lock = store.lock_shared()?;
    let index = store.resolve(name)?;
    let mut entry = index.clone();
    if let Ok(reference) = name.parse::<Reference>() {
        entry.annotations.insert(REF_NAME.to_string(), reference.familiar());
    }
    let attached = store.attached(&index)?;
    let blobs = store.reachable(&index)?;
    let blobs = blobs.iter().chain(attached.iter().flat_map(|artifact| &artifact.blobs));
    let blobs: BTreeMap<_, _> = blobs.map(|blob| (blob.digest.clone(), blob.size)).collect();
    let total = blobs.values().sum();
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let cannot = |error| Error::io("cannot write", file)(error);
    let temporary = NamedTempFile::new_in(folder).map_err(cannot)?;
    let mut builder = tar::Builder::new(BufWriter::with_capacity(1 << 20, temporary));
    append(&mut builder, "oci-layout", LAYOUT.len() as u64, LAYOUT).map_err(cannot)?;
    let artifacts = attached.into_iter().map(|artifact| artifact.manifest);
    let list = Index {
        manifests: std::iter::once(entry).chain(artifacts).collect(),
        ..Index::default()
    };
    let list = serde_json::to_vec(&list).map_err(|source| oci::Error::Json {
        path: "index.json".into(),
        source,
    })?;
    append(&mut builder, "index.json", list.len() as u64, list.as_slice()).map_err(cannot)?;
    let mut done = 0;
    for (digest, size) in &blobs {
        if !store.blobs().has(digest, *size) {
            store.blobs().verify(digest, *size)?;
        }
        let blob = store.blobs().open(digest)?;
        append(&mut builder, &format!("blobs/sha256/{}", digest.hex()), *size, blob).map_err(cannot)?;
        done += size;
        progress.event(Event::Bytes { done, total });
    }
    let writer = builder.into_inner().map_err(cannot)?;
    let temporary = writer.into_inner().map_err(|error| cannot(error.into_error()))?;
    let size = temporary.as_file().metadata().map_err(cannot)?.len();
    temporary.as_file().sync_all().map_err(cannot)?;
    let path = temporary.into_temp_path();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&path, mode).map_err(cannot)?;
    path.persist(file).map_err(|error| cannot(error.error))?;
    Ok(size)
}

fn append(builder: &mut tar::Builder<impl Write>, path: &str, size: u64, content: impl Read) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o644);
    header.set_size(size);
    builder.append_data(
        &mut header,
        path,
        BufReader::with_capacity(io::CHUNK, content.take(size)),
    )
}

/// What an archive brought.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Loaded {
    /// The names its images now have in the store, with their index digests.
    pub images: Vec<(Reference, Digest)>,
    /// Blobs the store didn't have.
    pub new_blobs: usize,
    /// Their bytes.
    pub new_bytes: u64,
}

/// Reads an archive into the store. `tag` names an image that has no name of its own.
///
/// # Errors
/// [`Error::Archive`] with what is wrong with it; the store is then as before.
pub fn load(store: &Store, file: &Path, tag: Option<&Reference>, progress: &dyn Progress) -> Result<Loaded, Error> {
    let _lock = store.lock_shared()?;
    let staged = Staged::read(store, file, progress)?;
    let (mut images, mut artifacts) = (Vec::new(), Vec::new());
    for entry in &staged.index.manifests {
        if staged.is_artifact(entry)? {
            artifacts.push(entry.clone());
            continue;
        }
        let name = entry.reference().or_else(|| tag.cloned());
        let why = "it holds an image without a name; give one with --tag";
        images.push((name.ok_or_else(|| refused(file, why))?, entry.clone()));
        staged.check_cluster_image(entry)?;
    }
    if images.is_empty() {
        return Err(refused(file, "its index.json lists no image"));
    }
    let (new_blobs, new_bytes) = staged.adopt(store)?;
    for (reference, entry) in &images {
        store.tag(reference, entry)?;
    }
    for artifact in &artifacts {
        store.keep_artifact(artifact)?;
    }
    let images = images
        .into_iter()
        .map(|(reference, entry)| (reference, entry.digest))
        .collect();
    Ok(Loaded {
        images,
        new_blobs,
        new_bytes,
    })
}

/// Takes one container image out of an archive: the only one, or the one named `name`.
pub(crate) fn import(store: &Store, file: &Path, name: Option<&str>, platform: &Platform) -> Result<Descriptor, Error> {
    let staged = Staged::read(store, file, &crate::progress::NoProgress)?;
    let named = |entry: &&Descriptor| name.is_none() || entry.annotations.get(REF_NAME).map(String::as_str) == name;
    let mut found = Vec::new();
    for entry in staged.index.manifests.iter().filter(named) {
        if !staged.is_artifact(entry)? {
            found.push(entry);
        }
    }
    let [entry] = found.as_slice() else {
        let names: Vec<_> = staged
            .index
            .manifests
            .iter()
            .filter_map(|e| e.annotations.get(REF_NAME))
            .cloned()
            .collect();
        let reason = format!(
            "{} images fit, exactly one must; it has: {}",
            found.len(),
            names.join(", ")
        );
        return Err(refused(file, reason));
    };
    let mut entry = (*entry).clone();
    staged.check_complete(&entry)?;
    if entry.is_index() {
        let list: Index = staged.json(&entry)?;
        let fitting = |e: &&Descriptor| e.platform.as_ref().is_some_and(|offered| fits(offered, platform));
        let inner = list.manifests.iter().find(fitting).cloned();
        entry = inner.ok_or_else(|| refused(file, "it has no image for the platform"))?;
    }
    staged.adopt(store)?;
    Ok(Descriptor {
        platform: Some(platform.clone()),
        annotations: BTreeMap::new(),
        ..entry
    })
}

fn refused(archive: &Path, reason: impl Into<String>) -> Error {
    Error::Archive {
        archive: archive.to_path_buf(),
        reason: reason.into(),
    }
}

/// An archive's content, verified blob by blob, not yet part of the store.
struct Staged<'a> {
    store: &'a Store,
    archive: &'a Path,
    index: Index,
    /// Size, and the file if the store lacks the blob.
    blobs: BTreeMap<Digest, (u64, Option<TempPath>)>,
}

impl<'a> Staged<'a> {
    fn read(store: &'a Store, archive: &'a Path, progress: &dyn Progress) -> Result<Staged<'a>, Error> {
        let file = File::open(archive).map_err(Error::io("cannot open", archive))?;
        let total = file.metadata().map_err(Error::io("cannot read", archive))?.len();
        let damaged = |error: std::io::Error| refused(archive, format!("it is damaged or no oci-archive: {error}"));
        let mut tar = tar::Archive::new(BufReader::with_capacity(io::CHUNK, file));
        let mut staged = Staged {
            store,
            archive,
            index: Index::default(),
            blobs: BTreeMap::new(),
        };
        let (mut seen_index, mut seen_layout) = (false, false);
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let size = entry.size();
            if size > total.saturating_sub(entry.raw_file_position()) {
                return Err(refused(
                    archive,
                    format!("the entry {name:?} claims {size} bytes, more than the file has"),
                ));
            }
            match entry_of(&name, entry.header().entry_type()).map_err(|why| refused(archive, why))? {
                Entry::Folder => {}
                Entry::Layout => seen_layout = true,
                Entry::Index if seen_index => return Err(refused(archive, "it has two index.json")),
                Entry::Index => {
                    staged.index = staged.read_index(&mut entry, size)?;
                    seen_index = true;
                }
                Entry::Blob(digest) => staged.read_blob(&mut entry, digest, size)?,
            }
            progress.event(Event::Bytes {
                done: entry.raw_file_position() + size,
                total,
            });
        }
        if !seen_index || !seen_layout {
            let missing = if seen_index { "oci-layout" } else { "index.json" };
            return Err(refused(
                archive,
                format!("it has no {missing}: it is cut off or no oci-archive"),
            ));
        }
        Ok(staged)
    }

    fn read_index(&self, reader: &mut impl Read, size: u64) -> Result<Index, Error> {
        if size > MAX_JSON {
            return Err(refused(
                self.archive,
                format!("index.json has {size} bytes, more than {MAX_JSON}"),
            ));
        }
        let mut text = Vec::new();
        let damaged = |error| refused(self.archive, format!("index.json: {error}"));
        reader
            .read_to_end(&mut text)
            .map_err(|error| damaged(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))
    }

    fn read_blob(&mut self, reader: &mut impl Read, digest: Digest, size: u64) -> Result<(), Error> {
        let known = self.store.blobs().has(&digest, size);
        let damaged = |error: std::io::Error| refused(self.archive, format!("blob {digest}: {error}"));
        let (found, found_size, path) = if known {
            let (found, size) = io::digest(reader).map_err(damaged)?;
            (found, size, None)
        } else {
            let mut writer = HashWriter::new(self.store.temporary()?);
            io::copy(reader, &mut writer).map_err(damaged)?;
            let (file, found, size) = writer.finish();
            (found, size, Some(file.into_temp_path()))
        };
        if found_size != size {
            return Err(refused(
                self.archive,
                format!("blob {digest} is cut off after {found_size} of {size} bytes"),
            ));
        }
        if found != digest {
            return Err(refused(
                self.archive,
                format!("blob {digest} is corrupt: its content has the digest {found}"),
            ));
        }
        if self.blobs.insert(digest.clone(), (size, path)).is_some() {
            return Err(refused(self.archive, format!("it has blob {digest} twice")));
        }
        Ok(())
    }

    fn json<T: serde::de::DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, Error> {
        let bad = |why: String| refused(self.archive, format!("{}: {why}", descriptor.digest));
        if descriptor.size > MAX_JSON {
            return Err(bad(format!("a document of {} bytes is too large", descriptor.size)));
        }
        let bytes = match self.blobs.get(&descriptor.digest) {
            Some((_, Some(path))) => std::fs::read(path).map_err(Error::io("cannot read", path))?,
            _ => self.store.blobs().read(&descriptor.digest, MAX_JSON)?,
        };
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
    }

    /// Whether an entry is a document about an image, not an image.
    fn is_artifact(&self, entry: &Descriptor) -> Result<bool, Error> {
        if !is_artifact_entry(entry) {
            return Ok(false);
        }
        self.check_complete(entry)?;
        Ok(self.json::<Manifest>(entry)?.subject.is_some())
    }

    /// Everything below a descriptor is there, in the archive or in the store.
    fn check_complete(&self, descriptor: &Descriptor) -> Result<(), Error> {
        let size = self.blobs.get(&descriptor.digest).map(|(size, _)| *size);
        match size.or_else(|| self.store.blobs().size(&descriptor.digest)) {
            None => return Err(refused(self.archive, format!("blob {} is missing", descriptor.digest))),
            Some(size) if size != descriptor.size => {
                let reason = format!(
                    "blob {} has {size} bytes instead of {}",
                    descriptor.digest, descriptor.size
                );
                return Err(refused(self.archive, reason));
            }
            Some(_) => {}
        }
        if descriptor.is_index() {
            let index: Index = self.json(descriptor)?;
            index
                .manifests
                .iter()
                .try_for_each(|entry| self.check_complete(entry))?;
        } else if matches!(
            descriptor.media_type.as_str(),
            media_type::MANIFEST | media_type::DOCKER_MANIFEST
        ) {
            let manifest: Manifest = self.json(descriptor)?;
            std::iter::once(&manifest.config)
                .chain(&manifest.layers)
                .try_for_each(|blob| self.check_complete(blob))?;
        }
        Ok(())
    }

    fn check_cluster_image(&self, entry: &Descriptor) -> Result<(), Error> {
        self.check_complete(entry)?;
        let is_rootfs = |entry: &Descriptor| entry.annotations.get(CONTENT).is_some_and(|content| content == ROOTFS);
        if entry.is_index() {
            let index: Index = self.json(entry)?;
            if index.manifests.iter().any(is_rootfs) {
                return Ok(());
            }
        }
        Err(refused(
            self.archive,
            "it is a container image, not a cluster image (it has no rootfs)",
        ))
    }

    /// Moves the blobs into the store.
    fn adopt(self, store: &Store) -> Result<(usize, u64), Error> {
        let (mut count, mut bytes) = (0, 0);
        for (digest, (size, path)) in self.blobs {
            let Some(path) = path else { continue };
            store.adopt_path(path, &digest)?;
            count += 1;
            bytes += size;
        }
        Ok((count, bytes))
    }
}

/// What an archive may hold.
enum Entry {
    Folder,
    Layout,
    Index,
    Blob(Digest),
}

fn entry_of(name: &str, kind: tar::EntryType) -> Result<Entry, String> {
    let plain = name.strip_prefix("./").unwrap_or(name);
    if plain.starts_with('/') || plain.split('/').any(|part| part == "..") {
        return Err(format!("the entry {name:?} leads out of the archive"));
    }
    match kind {
        tar::EntryType::Directory if ["", "blobs/", "blobs", "blobs/sha256/", "blobs/sha256"].contains(&plain) => {
            Ok(Entry::Folder)
        }
        tar::EntryType::Regular => match plain {
            "oci-layout" => Ok(Entry::Layout),
            "index.json" => Ok(Entry::Index),
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
