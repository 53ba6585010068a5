//! Writing a cluster image: one archive, an archive in parts, a stream, or a folder. Same image, same bytes.
//!
//! Blobs are copied as they are, compressed as they are, and hashed on their way: a damaged store makes no archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use oci::{Descriptor, Digest, Index, Layout, REF_NAME};
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::archive::{Base, DELTA, Delta, LAYOUT, Needed, rank};
use crate::error::Error;
use crate::io::{self, HashReader};
use crate::manifest;
use crate::progress::{Event, Progress};
use crate::split::{PartsWriter, folder_of, publish};
use crate::store::{InUse, Store};

/// Tar works in blocks of this size, in bytes.
const BLOCK: u64 = 512;

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Files, in the order in which they're to be read; a list of parts comes last. None for a stream.
    pub files: Vec<PathBuf>,
    /// Blobs written.
    pub blobs: usize,
    /// Bytes written, headers included; for a folder the bytes of blobs that it lacked.
    pub bytes: u64,
    /// Bytes of blobs left out because the base has them.
    pub left_out: u64,
}

/// An image about to be written. The store keeps its blobs until this is dropped.
pub struct Save<'a> {
    store: &'a Store,
    _in_use: InUse,
    index: Index,
    delta: Option<Delta>,
    /// In the order in which they're written.
    blobs: Vec<(Digest, u64)>,
    left_out: u64,
}

/// Writes an image of the store to the archive `file`, replacing it in one step; gives its size in bytes.
///
/// # Errors
/// If the store doesn't have it, a blob is missing or damaged, or the file can't be written.
pub fn save(store: &Store, name: &str, file: &Path, progress: &dyn Progress) -> Result<u64, Error> {
    Ok(Save::new(store, name, &[])?.to_file(file, progress)?.bytes)
}

impl<'a> Save<'a> {
    /// Prepares to write an image of the store, without what the images `since` have.
    ///
    /// # Errors
    /// If the store doesn't have one of them, or a document is missing or damaged.
    pub fn new(store: &'a Store, name: &str, since: &[String]) -> Result<Save<'a>, Error> {
        let in_use = store.hold()?;
        let (reference, index) = store.resolve_named(name)?;
        let mut entry = index.clone();
        let reference = reference.map(|reference| (REF_NAME.to_string(), reference.familiar()));
        entry.annotations.extend(reference);
        let attached = store.attached(&index)?;
        let mut all: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        let blobs = attached.iter().flat_map(|artifact| artifact.blobs.clone());
        all.extend(
            blobs
                .chain(store.reachable(&index)?)
                .map(|blob| (blob.digest.clone(), blob)),
        );
        let mut base = BTreeSet::new();
        let mut bases = Vec::new();
        for name in since {
            let index = store.resolve(name)?;
            let artifacts = store.attached(&index)?.into_iter().flat_map(|artifact| artifact.blobs);
            base.extend(artifacts.chain(store.reachable(&index)?).map(|blob| blob.digest));
            let (name, digest) = (name.clone(), index.digest);
            bases.push(Base { name, digest });
        }
        let (kept, sent): (Vec<_>, Vec<_>) = all.into_values().partition(|blob| base.contains(&blob.digest));
        let mut sent = sent;
        sent.sort_by_cached_key(|blob| (rank(blob), blob.digest.clone()));
        let needed = |blob: &Descriptor| Needed {
            digest: blob.digest.clone(),
            size: blob.size,
        };
        let needs: Vec<Needed> = kept.iter().map(needed).collect();
        let artifacts = attached.into_iter().map(|artifact| artifact.manifest);
        // A delta does not hold them whole.
        let carried = match since.is_empty() {
            true => manifest::listed_beside(&store.read_json(&index)?),
            false => Vec::new(),
        };
        Ok(Save {
            store,
            _in_use: in_use,
            index: Index {
                manifests: std::iter::once(entry).chain(artifacts).chain(carried).collect(),
                ..Index::default()
            },
            left_out: kept.iter().map(|blob| blob.size).sum(),
            delta: (!since.is_empty()).then_some(Delta { since: bases, needs }),
            blobs: sent.into_iter().map(|blob| (blob.digest, blob.size)).collect(),
        })
    }

    /// Bytes of the archive.
    ///
    /// # Errors
    /// Never in practice: when a small document can't be encoded.
    pub fn archive_size(&self) -> Result<u64, Error> {
        let heads = self.heads()?;
        let sizes = heads.iter().map(|(_, content)| content.len() as u64);
        let entries = sizes.chain(self.blobs.iter().map(|(_, size)| *size));
        let padded = entries.map(|size| BLOCK + size.div_ceil(BLOCK) * BLOCK);
        // Two blocks of zeros end an archive.
        Ok(padded.sum::<u64>() + 2 * BLOCK)
    }

    /// The small files in front of the blobs.
    fn heads(&self) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        let mut heads = vec![("oci-layout", LAYOUT.to_vec()), ("index.json", json(&self.index)?)];
        if let Some(delta) = &self.delta {
            heads.push((DELTA, json(delta)?));
        }
        Ok(heads)
    }

    fn saved(&self, files: Vec<PathBuf>, bytes: u64) -> Saved {
        Saved {
            files,
            bytes,
            blobs: self.blobs.len(),
            left_out: self.left_out,
        }
    }

    /// Writes one archive. A file is replaced in one step; a device or pipe is written to.
    ///
    /// # Errors
    /// If a blob is missing or damaged, or the file can't be written.
    pub fn to_file(&self, file: &Path, progress: &dyn Progress) -> Result<Saved, Error> {
        let cannot = |error| Error::io("cannot write", file)(error);
        // What a symbolic link stands for is meant, not the link.
        let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
        let kind = fs::metadata(file).ok().map(|meta| meta.file_type());
        if kind.is_some_and(|kind| kind.is_dir()) {
            let why = "it is a folder; name a file, or write a folder with --format oci-dir";
            return Err(Error::path(file.display().to_string(), why));
        }
        if kind.is_some_and(|kind| kind.is_char_device() || kind.is_block_device() || kind.is_fifo()) {
            let device = OpenOptions::new().write(true).open(file).map_err(cannot)?;
            return self.to_stream(device, progress);
        }
        let temporary = NamedTempFile::new_in(folder_of(file)).map_err(cannot)?;
        let temporary = self.write(temporary, &cannot, progress)?;
        let bytes = temporary.as_file().metadata().map_err(cannot)?.len();
        publish(temporary, file)?;
        Ok(self.saved(vec![file.to_path_buf()], bytes))
    }

    /// Writes the archive as parts `BASE.000`, `BASE.001`, … of at most `part_size` bytes, and their list `BASE.sha256`.
    ///
    /// # Errors
    /// As [`Save::to_file`], or if there would be more than a thousand parts.
    pub fn to_parts(&self, base: &Path, part_size: u64, progress: &dyn Progress) -> Result<Saved, Error> {
        let total = self.archive_size()?;
        let parts = PartsWriter::new(base, part_size, total)?;
        let parts = self.write(parts, &|error| Error::io("cannot write", base)(error), progress)?;
        Ok(self.saved(parts.finish()?, total))
    }

    /// Writes the archive to a stream. What was written before an error is refused by whoever loads it.
    ///
    /// # Errors
    /// If a blob is missing or damaged, or the stream can't be written.
    pub fn to_stream(&self, stream: impl Write, progress: &dyn Progress) -> Result<Saved, Error> {
        let cannot = |error| Error::io("cannot write", "the stream")(error);
        self.write(stream, &cannot, progress)?.flush().map_err(cannot)?;
        Ok(self.saved(Vec::new(), self.archive_size()?))
    }

    /// Writes an OCI image layout, or adds to one: blobs it has are not written again.
    ///
    /// # Errors
    /// For a delta, which no other tool would understand; otherwise as [`Save::to_file`].
    pub fn to_folder(&self, folder: &Path, progress: &dyn Progress) -> Result<Saved, Error> {
        if self.delta.is_some() {
            let why = "an oci-dir gets only the blobs it lacks anyway: write to one that has the other image";
            return Err(Error::Refused(why.to_string()));
        }
        let layout = Layout::create(folder)?;
        let mut list = layout.read_index()?;
        let missing = |(digest, size): &&(Digest, u64)| !layout.blobs().has(digest, *size);
        let wanted: Vec<_> = self.blobs.iter().filter(missing).collect();
        let total = wanted.iter().map(|(_, size)| size).sum();
        let mut done = 0;
        for (digest, size) in &wanted {
            let mut writer = layout.blobs().writer(digest, *size, false)?;
            let mut file = self.store.blobs().open(digest)?;
            let mut buffer = vec![0; io::CHUNK];
            loop {
                let cannot = Error::io("cannot read", self.store.blobs().path(digest));
                let read = file.read(&mut buffer).map_err(cannot)?;
                if read == 0 {
                    break;
                }
                writer.write(&buffer[..read])?;
                done += read as u64;
                progress.event(Event::Bytes { done, total });
            }
            writer.commit()?;
        }
        layout.blobs().sync()?;
        let is_ours = |old: &Descriptor| {
            let ours = self.index.manifests.iter();
            ours.clone().any(|entry| match entry.annotations.get(REF_NAME) {
                Some(name) => old.annotations.get(REF_NAME) == Some(name),
                None => old == entry,
            })
        };
        list.manifests.retain(|old| !is_ours(old));
        list.manifests.extend(self.index.manifests.iter().cloned());
        layout.write_index(&list)?;
        Ok(Saved {
            blobs: wanted.len(),
            ..self.saved(vec![folder.to_path_buf()], total)
        })
    }

    fn write<W: Write>(
        &self,
        target: W,
        cannot: &dyn Fn(std::io::Error) -> Error,
        progress: &dyn Progress,
    ) -> Result<W, Error> {
        let mut builder = tar::Builder::new(BufWriter::with_capacity(1 << 20, target));
        for (name, content) in self.heads()? {
            append(&mut builder, name, content.len() as u64, content.as_slice()).map_err(cannot)?;
        }
        let total = self.blobs.iter().map(|(_, size)| size).sum();
        let mut done = 0;
        for (digest, size) in &self.blobs {
            let blob = self.open(digest, *size)?;
            let mut told = BufReader::with_capacity(io::CHUNK, blob);
            let mut reader = HashReader::new(&mut told);
            let counted = Counted {
                inner: &mut reader,
                tell: |bytes: u64| {
                    done += bytes;
                    progress.event(Event::Bytes { done, total });
                },
            };
            append(&mut builder, &format!("blobs/sha256/{}", digest.hex()), *size, counted).map_err(cannot)?;
            let (_, found, found_size) = reader.finish();
            if found != *digest || found_size != *size {
                let what = format!(
                    "its content in the store has {} and the digest {found}",
                    oci::counted(found_size, "byte")
                );
                let digest = digest.clone();
                return Err(oci::Error::Corrupt { digest, what }.into());
            }
        }
        let writer = builder.into_inner().map_err(cannot)?;
        writer.into_inner().map_err(|error| cannot(error.into_error()))
    }

    fn open(&self, digest: &Digest, size: u64) -> Result<File, Error> {
        if !self.store.blobs().has(digest, size) {
            self.store.blobs().verify(digest, size)?;
        }
        Ok(self.store.blobs().open(digest)?)
    }
}

/// Tells how much of a blob has passed.
struct Counted<R, F> {
    inner: R,
    tell: F,
}

impl<R: Read, F: FnMut(u64)> Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.tell)(read as u64);
        Ok(read)
    }
}

fn json(document: &impl Serialize) -> Result<Vec<u8>, Error> {
    let path = "index.json".to_string();
    Ok(serde_json::to_vec(document).map_err(|source| oci::Error::Json { path, source })?)
}

fn append(builder: &mut tar::Builder<impl Write>, path: &str, size: u64, content: impl Read) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o644);
    header.set_size(size);
    builder.append_data(&mut header, path, content.take(size))
}
