//! Reading a cluster image from outside: an archive, an archive in parts, a stream, or a folder.
//!
//! What is read is first put aside; only when every blob has its digest and nothing is missing does it become part of
//! the store, by renaming. What is refused leaves nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use oci::{BlobStore, Descriptor, Digest, Index, Layout, Reference};
use tempfile::TempPath;

use crate::archive::{DELTA, Delta, Entry, entry_of, refused};
use crate::error::Error;
use crate::io::{self, HashWriter};
use crate::manifest::{self, MAX_JSON, Manifest};
use crate::progress::{Event, Progress};
use crate::referrers::is_artifact_entry;
use crate::split::{Parts, PartsReader};
use crate::store::Store;
use crate::tarball;
use crate::verify::check_index;

/// Compressed files begin like this, and this unpacks them.
const COMPRESSIONS: [(&[u8], &str); 4] = [
    (&[0x1f, 0x8b], "gzip -dc"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd -dc"),
    (b"BZh", "bzip2 -dc"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz -dc"),
];

/// Says what an entry of an archive is by its name: none for one that is passed over, an error for one that spoils the archive.
type EntryOf = fn(&str, tar::EntryType) -> Result<Option<Entry>, String>;

/// What came in.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Loaded {
    /// The names its images now have in the store, with their index digests.
    pub images: Vec<(Reference, Digest)>,
    /// Blobs the store didn't have.
    pub new_blobs: usize,
    /// Their bytes.
    pub new_bytes: u64,
}

/// Reads images into the store: from an archive, a list of parts or the first of them, or a folder. `tag` names an image
/// that has no name of its own.
///
/// # Errors
/// [`Error::Archive`] with what is wrong with it; the store is then as before.
pub fn load(store: &Store, from: &Path, tag: Option<&Reference>, progress: &dyn Progress) -> Result<Loaded, Error> {
    let _in_use = store.hold()?;
    Staged::open(store, from, progress)?.finish(store, tag)
}

/// Reads images into the store from an archive that comes as a stream, called `name` in messages.
///
/// # Errors
/// As [`load`].
pub fn load_stream(
    store: &Store,
    stream: impl Read,
    name: &Path,
    tag: Option<&Reference>,
    progress: &dyn Progress,
) -> Result<Loaded, Error> {
    let _in_use = store.hold()?;
    Staged::read(store, name, stream, None, progress)?.finish(store, tag)
}

/// What came from outside, verified blob by blob, not yet part of the store.
pub(crate) struct Staged<'a> {
    store: &'a Store,
    from: &'a Path,
    pub(crate) index: Index,
    /// Size, and the file if the store lacks the blob.
    blobs: BTreeMap<Digest, (u64, Option<TempPath>)>,
    /// The folder that is read, if it is one.
    folder: Option<Layout>,
}

impl<'a> Staged<'a> {
    fn new(store: &'a Store, from: &'a Path) -> Staged<'a> {
        Staged {
            store,
            from,
            index: Index::default(),
            blobs: BTreeMap::new(),
            folder: None,
        }
    }

    fn open(store: &'a Store, from: &'a Path, progress: &dyn Progress) -> Result<Staged<'a>, Error> {
        if from.is_dir() {
            return Staged::read_folder(store, from, progress);
        }
        if let Some(parts) = Parts::find(from)? {
            return Staged::read_parts(store, from, parts, progress);
        }
        let file = File::open(from).map_err(Error::io("cannot open", from))?;
        let meta = file.metadata().map_err(Error::io("cannot read", from))?;
        let total = meta.is_file().then_some(meta.len());
        Staged::read(store, from, file, total, progress)
    }

    fn read_parts(
        store: &'a Store,
        from: &'a Path,
        parts: Parts,
        progress: &dyn Progress,
    ) -> Result<Staged<'a>, Error> {
        let (list, total) = (parts.list.clone(), parts.size());
        let mut reader: PartsReader = parts.reader();
        let staged = Staged::read(store, from, &mut reader, Some(total), progress);
        // What follows the archive's end belongs to the last part's checksum, and a damaged part is why it looks wrong.
        let damaged = reader.damaged();
        if !damaged.is_empty() {
            return Err(refused(
                &list,
                format!("damaged, by their checksums: {}", damaged.join(", ")),
            ));
        }
        staged
    }

    fn read(
        store: &'a Store,
        from: &'a Path,
        stream: impl Read,
        total: Option<u64>,
        progress: &dyn Progress,
    ) -> Result<Staged<'a>, Error> {
        let damaged = |error: std::io::Error| refused(from, format!("it is damaged or no oci-archive: {error}"));
        let mut stream = BufReader::with_capacity(io::CHUNK, stream);
        let begin = stream.fill_buf().map_err(damaged)?;
        if let Some((_, unpack)) = COMPRESSIONS.iter().find(|(magic, _)| begin.starts_with(magic)) {
            let why = format!("it is compressed; unpack it on the way: {unpack} FILE | installer load -i -");
            return Err(refused(from, why));
        }
        let entry = |name: &str, kind| entry_of(name, kind).map(Some);
        Staged::read_archive(store, from, stream, total, entry, progress)
    }

    /// Reads an archive that is not compressed (any more). `entry_of` says what an entry is; none is passed over.
    pub(crate) fn read_archive(
        store: &'a Store,
        from: &'a Path,
        stream: impl Read,
        total: Option<u64>,
        entry_of: EntryOf,
        progress: &dyn Progress,
    ) -> Result<Staged<'a>, Error> {
        let mut staged = Staged::new(store, from);
        let damaged = |error: std::io::Error| refused(from, format!("it is damaged or no oci-archive: {error}"));
        let (mut seen_index, mut seen_layout) = (false, false);
        let mut done = 0;
        tarball::visit(stream, damaged, |item, reader| {
            let (name, size) = (item.path_text(), item.size);
            if let Some(total) = total
                && size > total.saturating_sub(done)
            {
                let why = format!("the entry {name:?} claims {size} bytes, more than the file has");
                return Err(refused(from, why));
            }
            match entry_of(&name, item.kind).map_err(|why| refused(from, why))? {
                None | Some(Entry::Folder | Entry::Docker) => {}
                Some(Entry::Layout) => seen_layout = true,
                Some(Entry::Index) if seen_index => return Err(refused(from, "it has two index.json")),
                Some(Entry::Index) => {
                    staged.index = staged.read_json("index.json", reader, size)?;
                    seen_index = true;
                }
                Some(Entry::Delta) => staged.check_delta(&staged.read_json(DELTA, reader, size)?)?,
                Some(Entry::Blob(digest)) => staged.read_blob(reader, digest, size)?,
            }
            done += size;
            let total = total.unwrap_or(0);
            progress.event(Event::Bytes { done, total });
            Ok(ControlFlow::Continue(()))
        })?;
        if !seen_index || !seen_layout {
            let missing = if seen_index { "oci-layout" } else { "index.json" };
            let why = format!("it has no {missing}: it is cut off or no oci-archive");
            return Err(refused(from, why));
        }
        Ok(staged)
    }

    /// Reads an OCI image layout; only what the store lacks, and only what its images need.
    fn read_folder(store: &'a Store, from: &'a Path, progress: &dyn Progress) -> Result<Staged<'a>, Error> {
        let mut staged = Staged::open_folder(store, from)?;
        let images = staged.index.manifests.iter();
        let images: Vec<Descriptor> = images.filter(|entry| !manifest::is_carried(entry)).cloned().collect();
        staged.take(&images, progress)?;
        Ok(staged)
    }

    /// Reads the list of an OCI image layout; [`Staged::take`] reads the images.
    pub(crate) fn open_folder(store: &'a Store, from: &'a Path) -> Result<Staged<'a>, Error> {
        let mut staged = Staged::new(store, from);
        let layout = Layout::open(from);
        for name in ["oci-layout", "index.json"] {
            if !from.join(name).is_file() {
                return Err(refused(
                    from,
                    format!("the folder has no {name}: it is no OCI image layout"),
                ));
            }
        }
        staged.index = layout.read_index()?;
        staged.folder = Some(layout);
        let delta = from.join(DELTA);
        if delta.is_file() {
            let file = File::open(&delta).map_err(Error::io("cannot open", &delta))?;
            let size = file.metadata().map_err(Error::io("cannot read", &delta))?.len();
            staged.check_delta(&staged.read_json(DELTA, &mut file.take(size), size)?)?;
        }
        Ok(staged)
    }

    /// Reads what images of a folder need and the store lacks; an archive has been read already.
    pub(crate) fn take(&mut self, images: &[Descriptor], progress: &dyn Progress) -> Result<(), Error> {
        let Some(layout) = self.folder.clone() else {
            return Ok(());
        };
        let mut wanted: BTreeMap<Digest, u64> = BTreeMap::new();
        for image in images {
            let blobs = manifest::reachable(image, &|document: &Descriptor| self.bytes(document));
            let blobs = blobs.map_err(|error| refused(self.from, error.to_string()))?;
            wanted.extend(blobs.into_iter().map(|blob| (blob.digest, blob.size)));
        }
        wanted.retain(|digest, size| !self.store.blobs().has(digest, *size));
        let total = wanted.values().sum();
        let mut done = 0;
        for (digest, size) in wanted {
            // A link to a device or pipe is no file, and has no size.
            if layout.blobs().size(&digest) != Some(size) {
                return Err(refused(
                    self.from,
                    format!("blob {digest} is missing or its size is not {size}"),
                ));
            }
            let file = layout.blobs().open(&digest)?;
            self.read_blob(&mut BufReader::with_capacity(io::CHUNK, file).take(size), digest, size)?;
            done += size;
            progress.event(Event::Bytes { done, total });
        }
        Ok(())
    }

    /// Reads one of the small documents beside the blobs.
    fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        reader: &mut dyn Read,
        size: u64,
    ) -> Result<T, Error> {
        if size > MAX_JSON {
            return Err(refused(
                self.from,
                format!("{name} has {size} bytes, more than {MAX_JSON}"),
            ));
        }
        let mut text = Vec::new();
        let damaged = |error: String| refused(self.from, format!("{name}: {error}"));
        reader
            .read_to_end(&mut text)
            .map_err(|error| damaged(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))
    }

    fn check_names(&self) -> Result<(), Error> {
        match manifest::ambiguous(&self.index.manifests) {
            Some(what) => Err(refused(self.from, format!("two images have one name: {what}"))),
            None => Ok(()),
        }
    }

    fn check_delta(&self, delta: &Delta) -> Result<(), Error> {
        let has = |digest: &Digest, size| self.store.blobs().has(digest, size);
        delta.lacks(has).map_or(Ok(()), |why| Err(refused(self.from, why)))
    }

    fn read_blob(&mut self, reader: &mut dyn Read, digest: Digest, size: u64) -> Result<(), Error> {
        let known = self.store.blobs().has(&digest, size);
        let damaged = |error: std::io::Error| refused(self.from, format!("blob {digest}: {error}"));
        let (found, found_size, path) = if known {
            let (found, size) = io::digest(reader).map_err(damaged)?;
            (found, size, None)
        } else {
            let mut writer = HashWriter::new(self.store.temporary()?);
            copy(reader, &mut writer, &damaged, self.store)?;
            let (file, found, size) = writer.finish();
            (found, size, Some(file.into_temp_path()))
        };
        if found_size != size {
            let why = format!(
                "blob {digest} is cut off after {found_size} of {}",
                oci::counted(size, "byte")
            );
            return Err(refused(self.from, why));
        }
        if found != digest {
            let why = format!("blob {digest} is corrupt: its content has the digest {found}");
            return Err(refused(self.from, why));
        }
        if self.blobs.insert(digest.clone(), (size, path)).is_some() {
            return Err(refused(self.from, format!("it has blob {digest} twice")));
        }
        Ok(())
    }

    pub(crate) fn bytes(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let large = |size: u64| {
            let why = format!("{}: a document of {size} bytes is too large", descriptor.digest);
            refused(self.from, why)
        };
        if descriptor.size > MAX_JSON {
            return Err(large(descriptor.size));
        }
        match self.blobs.get(&descriptor.digest) {
            Some((size, _)) if *size > MAX_JSON => Err(large(*size)),
            Some((_, Some(path))) => fs::read(path).map_err(Error::io("cannot read", path)),
            _ => {
                let blobs = self.in_folder(&descriptor.digest);
                Ok(blobs.unwrap_or(self.store.blobs()).read(&descriptor.digest, MAX_JSON)?)
            }
        }
    }

    /// The blobs of the folder that is read, if it has this one.
    fn in_folder(&self, digest: &Digest) -> Option<&BlobStore> {
        let blobs = self.folder.as_ref().map(Layout::blobs);
        blobs.filter(|blobs| blobs.size(digest).is_some())
    }

    /// Whether a document is there, in what came or in the store.
    pub(crate) fn has(&self, document: &Descriptor) -> bool {
        let digest = &document.digest;
        self.blobs.contains_key(digest) || self.in_folder(digest).is_some() || self.store.blobs().size(digest).is_some()
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, Error> {
        let bytes = self.bytes(descriptor)?;
        let bad = |error: serde_json::Error| refused(self.from, format!("{}: {error}", descriptor.digest));
        serde_json::from_slice(&bytes).map_err(bad)
    }

    /// Whether an entry is a document about an image, not an image.
    fn is_artifact(&self, entry: &Descriptor) -> Result<bool, Error> {
        if !is_artifact_entry(entry) {
            return Ok(false);
        }
        self.check_complete(entry)?;
        Ok(self.json::<Manifest>(entry)?.subject.is_some())
    }

    /// Everything below a descriptor is there, in what came or in the store.
    pub(crate) fn check_complete(&self, descriptor: &Descriptor) -> Result<(), Error> {
        let check = |blob: &Descriptor| {
            let size = self.blobs.get(&blob.digest).map(|(size, _)| *size);
            match size.or_else(|| self.store.blobs().size(&blob.digest)) {
                None => Err(refused(self.from, format!("blob {} is missing", blob.digest))),
                Some(size) if size != blob.size => {
                    let reason = format!(
                        "blob {} has {} instead of {}",
                        blob.digest,
                        oci::counted(size, "byte"),
                        blob.size
                    );
                    Err(refused(self.from, reason))
                }
                Some(_) => Ok(()),
            }
        };
        let read = |document: &Descriptor| {
            check(document)?;
            self.bytes(document)
        };
        let reachable = manifest::reachable(descriptor, &read).map_err(|error| match error {
            error @ Error::Archive { .. } => error,
            other => refused(self.from, other.to_string()),
        })?;
        reachable.iter().try_for_each(check)
    }

    fn check_cluster_image(&self, entry: &Descriptor) -> Result<(), Error> {
        self.check_complete(entry)?;
        let why = match entry.is_index() {
            true => manifest::check_cluster_index(&self.json(entry)?),
            false => Err("it is a container image, not a cluster image (it has no rootfs)".to_string()),
        };
        why.map_err(|why| refused(self.from, why))?;
        let problems = check_index(&self.json(entry)?, &|document| self.bytes(document))?;
        match problems.is_empty() {
            true => Ok(()),
            false => Err(refused(
                self.from,
                format!("its images are not what its lock says: {}", problems.join("; ")),
            )),
        }
    }

    /// Makes what came part of the store, after the last check.
    fn finish(self, store: &Store, tag: Option<&Reference>) -> Result<Loaded, Error> {
        self.check_names()?;
        let (mut images, mut artifacts) = (Vec::new(), Vec::new());
        // Carried images come with the cluster images they are listed beside.
        for entry in self.index.manifests.iter().filter(|entry| !manifest::is_carried(entry)) {
            if self.is_artifact(entry)? {
                artifacts.push(entry.clone());
                continue;
            }
            let name = entry.reference().or_else(|| tag.cloned());
            let why = "it holds an image without a name; give one with --tag";
            images.push((name.ok_or_else(|| refused(self.from, why))?, entry.clone()));
            self.check_cluster_image(entry)?;
        }
        let unnamed = images.iter().filter(|(_, entry)| entry.reference().is_none()).count();
        if unnamed > 1 {
            return Err(refused(
                self.from,
                "it holds several images without a name; one --tag can't name them all",
            ));
        }
        if images.is_empty() {
            return Err(refused(self.from, "its index.json lists no image"));
        }
        let (new_blobs, new_bytes) = self.adopt(store)?;
        for (reference, entry) in &images {
            store.tag(reference, entry)?;
        }
        for artifact in &artifacts {
            store.keep_artifact(artifact)?;
        }
        let images = images.into_iter().map(|(reference, entry)| (reference, entry.digest));
        Ok(Loaded {
            images: images.collect(),
            new_blobs,
            new_bytes,
        })
    }

    /// Moves the blobs into the store.
    pub(crate) fn adopt(self, store: &Store) -> Result<(usize, u64), Error> {
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

/// Copies a blob into a temporary file. What can't be read is the archive's fault, what can't be written is not.
fn copy(
    reader: &mut dyn Read,
    writer: &mut impl std::io::Write,
    damaged: &dyn Fn(std::io::Error) -> Error,
    store: &Store,
) -> Result<(), Error> {
    let mut buffer = vec![0; io::CHUNK];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                let written = writer.write_all(&buffer[..read]);
                written.map_err(Error::io("cannot write in", store.root().join("tmp")))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(error)),
        }
    }
}
