//! Archives that ADD unpacks: tar, alone or compressed by gzip or zstd.
//!
//! An archive comes from anywhere, so nothing in it is believed: names with `..`, absolute names, names that lead through a link,
//! links out of the archive, devices, pipes and sockets are refused with the entry's name; what it unpacks to is bounded
//! by [`Limits`], in bytes and in entries; what the format makes a reader hold in memory is bounded by `tarball`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oci::{Bounded, Digest};
use tar::EntryType;

use crate::archive::refused;
use crate::digests;
use crate::error::Error;
use crate::io::{CHUNK, HashReader};
use crate::store::Store;
use crate::tarball::{self, Item};
use crate::tree::{Change, Record, Source, check_name, normalize};
use crate::walk::link_stays_inside;

/// Part of the key of what is remembered of an archive: changes when the same archive would give other entries.
const FORMAT: &str = "unpack/1\n";
const KIND: &str = "archives";

/// What an archive may unpack to.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Bytes of the archive without its compression.
    bytes: u64,
    entries: usize,
    /// Bytes of a path.
    path: usize,
}

impl Limits {
    /// For an archive of `size` bytes: real ones rarely shrink to a tenth; what shrinks to a hundredth of much is no real one.
    fn of(size: u64) -> Limits {
        Limits {
            bytes: size.saturating_mul(100).clamp(256 << 20, 64 << 30),
            entries: 1_000_000,
            path: 2048,
        }
    }
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Tar,
    Gzip,
    Zstd,
}

impl Packing {
    fn open(self, file: &Path) -> io::Result<Box<dyn Read>> {
        let file = BufReader::with_capacity(CHUNK, File::open(file)?);
        Ok(match self {
            Packing::Tar => Box::new(file),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Packing::Zstd => Box::new(zstd::stream::Decoder::with_buffer(file)?),
        })
    }
}

/// What kind of archive a file is, told by its content; none if it is no archive.
///
/// An archive of a kind that can't be unpacked is an error: copying it as it is would not be what was meant.
pub(crate) fn packing(file: &Path) -> Result<Option<Packing>, Error> {
    let cannot = |error| Error::io("cannot read", file)(error);
    let mut start = [0; 512];
    let read = read_up_to(&mut File::open(file).map_err(cannot)?, &mut start).map_err(cannot)?;
    let start = &start[..read];
    let unsupported = [
        (&b"\xfd7zXZ\0"[..], "xz"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
    ];
    if let Some((_, name)) = unsupported.iter().find(|(magic, _)| start.starts_with(magic)) {
        let why = format!(
            "{name} archives can't be unpacked; pack it anew with gzip or zstd, or take it as it is with COPY or ADD --unpack=false"
        );
        return Err(Error::path(file.display().to_string(), why));
    }
    let compressed = match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        _ => return Ok(is_tar(start).then_some(Packing::Tar)),
    };
    // A compressed file need not be an archive. One that can't even be begun will be refused when it is read as a whole.
    let mut inner = [0; 512];
    let read = compressed
        .open(file)
        .and_then(|mut reader| read_up_to(&mut reader, &mut inner))
        .unwrap_or(0);
    Ok(is_tar(&inner[..read]).then_some(compressed))
}

/// Fills the buffer as far as there is something; how far is the result.
pub(crate) fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether a block is the header of a tar archive: its checksum is right.
fn is_tar(block: &[u8]) -> bool {
    if block.len() != 512 || block[0] == 0 {
        return false;
    }
    let counted = |index: usize, byte: u8| if (148..156).contains(&index) { b' ' } else { byte };
    let sum: u32 = block.iter().enumerate().map(|(i, b)| u32::from(counted(i, *b))).sum();
    tar::Header::from_byte_slice(block)
        .cksum()
        .is_ok_and(|cksum| cksum == sum)
}

/// An archive whose entries are part of an image. It is unpacked when somebody needs a file of it.
#[derive(Debug)]
pub(crate) struct Unpacked {
    archive: PathBuf,
    packing: Packing,
    digest: Digest,
    store: Store,
    folder: OnceLock<tempfile::TempDir>,
}

impl PartialEq for Unpacked {
    fn eq(&self, other: &Unpacked) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Unpacked {}

impl Unpacked {
    /// An archive that has this digest.
    pub(crate) fn new(store: &Store, archive: &Path, packing: Packing, digest: Digest) -> Unpacked {
        Unpacked {
            archive: archive.to_path_buf(),
            packing,
            digest,
            store: store.clone(),
            folder: OnceLock::new(),
        }
    }

    /// What the archive holds, parents before children; remembered by its digest.
    pub(crate) fn records(&self) -> Result<Vec<Record>, Error> {
        let key = Digest::of(format!("{FORMAT}{}", self.digest).as_bytes());
        self.store.cache_used(KIND, &key);
        if let Some(records) = self.store.cache_get(KIND, &key) {
            return Ok(records);
        }
        let records = self.unpack()?;
        self.store.cache_put(KIND, &key, &records)?;
        Ok(records)
    }

    /// The folder with the archive's content.
    pub(crate) fn folder(&self) -> Result<&Path, Error> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder.path());
        }
        self.unpack()?;
        let gone = || Error::path(self.archive.display().to_string(), "it could not be unpacked");
        self.folder.get().map(tempfile::TempDir::path).ok_or_else(gone)
    }

    fn unpack(&self) -> Result<Vec<Record>, Error> {
        let folder = self.store.work_folder()?;
        let records = unpack(&self.archive, self.packing, folder.path(), None)?;
        let found = digests::hash(&self.archive, &mut vec![0; CHUNK])?.digest;
        if found != self.digest {
            return Err(Error::path(
                self.archive.display().to_string(),
                "it changed while the image was built",
            ));
        }
        // Somebody else may have been faster; then this one is removed again.
        let _ = self.folder.set(folder);
        Ok(records)
    }
}

/// Unpacks into an empty folder, and says what is there now.
fn unpack(archive: &Path, packing: Packing, into: &Path, limits: Option<Limits>) -> Result<Vec<Record>, Error> {
    let mut unpacker = Unpacker {
        into,
        entries: BTreeMap::new(),
        limits: limits.map_or_else(|| limits_of(archive), Ok)?,
    };
    let bytes = unpacker.limits.bytes;
    visit_packed(archive, packing, bytes, |item, reader| {
        let name = item.path_text();
        unpacker.entry(&item, reader, &name).map_err(|error| match error {
            // The disk's fault is not the archive's.
            Error::Io { .. } => error,
            other => refused(archive, format!("the entry {:?}: {other}", shown(&name))),
        })?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(unpacker.entries.into_values().collect())
}

fn limits_of(archive: &Path) -> Result<Limits, Error> {
    let meta = archive.metadata().map_err(Error::io("cannot read", archive))?;
    Ok(Limits::of(meta.len()))
}

/// How many bytes an archive may have without its compression.
pub(crate) fn most_bytes(archive: &Path) -> Result<u64, Error> {
    Ok(limits_of(archive)?.bytes)
}

/// Calls `each` with every entry of an archive of any packing, as [`tarball::visit`] does.
pub(crate) fn visit(
    archive: &Path,
    each: impl FnMut(Item, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let packing = packing(archive)?.ok_or_else(|| refused(archive, "it is no tar archive"))?;
    visit_packed(archive, packing, limits_of(archive)?.bytes, each)
}

fn visit_packed(
    archive: &Path,
    packing: Packing,
    bytes: u64,
    mut each: impl FnMut(Item, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let reader = packing.open(archive).map_err(Error::io("cannot read", archive))?;
    let mut reader = Bounded::new(reader, bytes);
    let damaged = |error: io::Error| refused(archive, format!("it is damaged or no archive: {error}"));
    let mut broken_off = false;
    tarball::visit(&mut reader, damaged, |item, content| {
        let flow = each(item, content)?;
        broken_off = flow.is_break();
        Ok(flow)
    })?;
    if !broken_off {
        // What compressed it may have to say something at its very end.
        io::copy(&mut reader, &mut io::sink()).map_err(damaged)?;
    }
    Ok(())
}

/// A name cut so that a message stays readable.
fn shown(name: &str) -> String {
    name.chars().take(200).collect()
}

struct Unpacker<'a> {
    into: &'a Path,
    entries: BTreeMap<String, Record>,
    limits: Limits,
}

impl Unpacker<'_> {
    fn entry(&mut self, item: &Item, content: &mut dyn Read, name: &str) -> Result<(), Error> {
        let refuse = |why: &str| Err(Error::Refused(why.to_string()));
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return refuse("it leads out of the archive");
        }
        if std::str::from_utf8(&item.path).is_err() {
            return refuse("its name is not UTF-8");
        }
        if name.len() > self.limits.path {
            return refuse("its name is too long");
        }
        let path = normalize(name)?;
        check_name(&path).map_err(|_| Error::Refused("names that begin with .wh. mean a removal in a layer".into()))?;
        let (kind, mode) = (item.kind, item.mode);
        if path.is_empty() {
            return if kind.is_dir() {
                Ok(())
            } else {
                refuse("it has no name")
            };
        }
        self.parents(&path)?;
        let record = match kind {
            EntryType::Directory => return self.folder(&path, mode),
            EntryType::Regular | EntryType::Continuous => {
                self.make_room(&path)?;
                self.file(item, content, &path)?
            }
            EntryType::Symlink => {
                let target = link_name(item)?;
                if !link_stays_inside(&path, Path::new(&target)) {
                    return refuse(&format!(
                        "the symbolic link to {} leads out of the archive",
                        shown(&target)
                    ));
                }
                self.make_room(&path)?;
                let at = self.into.join(&path);
                std::os::unix::fs::symlink(&target, &at).map_err(Error::io("cannot write", &at))?;
                let path = path.clone();
                Record::Link { path, target }
            }
            EntryType::Link => self.hard_link(item, &path)?,
            other => {
                return refuse(&format!(
                    "it is of the type {other:?}; only files, folders and links are allowed"
                ));
            }
        };
        self.insert(path, record)
    }

    fn insert(&mut self, path: String, record: Record) -> Result<(), Error> {
        self.entries.insert(path, record);
        match self.entries.len() > self.limits.entries {
            true => Err(Error::Refused(format!(
                "the archive has more than {} entries",
                self.limits.entries
            ))),
            false => Ok(()),
        }
    }

    /// Makes the folders above, and sees that they are folders: then no name leads through a link.
    fn parents(&mut self, path: &str) -> Result<(), Error> {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.entries.get(parent) {
                Some(Record::Dir { .. }) => {}
                Some(_) => return Err(Error::Refused(format!("it leads through {parent}, which is no folder"))),
                None => self.folder(parent, 0o755)?,
            }
        }
        Ok(())
    }

    fn folder(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        match self.entries.get(path) {
            Some(Record::Dir { .. }) => {}
            Some(_) => return Err(Error::Refused("a file has this name already".into())),
            None => {
                // The mode is only recorded: a folder that may not be written to could not be filled.
                let at = self.into.join(path);
                fs::create_dir(&at).map_err(Error::io("cannot make", &at))?;
            }
        }
        let path = path.to_string();
        self.insert(path.clone(), Record::Dir { path, mode })
    }

    /// As with every unpacker, the last entry of a name counts; a folder is no mere entry, though.
    fn make_room(&mut self, path: &str) -> Result<(), Error> {
        match self.entries.get(path) {
            None => Ok(()),
            Some(Record::Dir { .. }) => Err(Error::Refused("a folder has this name already".into())),
            Some(_) => {
                let at = self.into.join(path);
                fs::remove_file(&at).map_err(Error::io("cannot replace", &at))
            }
        }
    }

    fn file(&self, item: &Item, content: &mut dyn Read, path: &str) -> Result<Record, Error> {
        let at = self.into.join(path);
        let (announced, mode) = (item.size, item.mode);
        let mut file = File::create_new(&at).map_err(Error::io("cannot write", &at))?;
        let mut reader = HashReader::new(content);
        crate::io::copy(&mut reader, &mut file).map_err(|error| match error.raw_os_error() {
            Some(_) => Error::io("cannot write", &at)(error),
            None => Error::Refused(error.to_string()),
        })?;
        let (_, digest, size) = reader.finish();
        if size != announced {
            return Err(Error::Refused(format!(
                "it is cut off after {size} of {}",
                oci::counted(announced, "byte")
            )));
        }
        let path = path.to_string();
        Ok(Record::File {
            path,
            mode,
            size,
            digest,
        })
    }

    /// A second name is a second file: layers here have no hard links.
    fn hard_link(&mut self, item: &Item, path: &str) -> Result<Record, Error> {
        let target = link_name(item)?;
        if target.starts_with('/') || target.split('/').any(|part| part == "..") {
            return Err(Error::Refused(format!(
                "the hard link to {} leads out of the archive",
                shown(&target)
            )));
        }
        let target = normalize(&target)?;
        let Some(Record::File { mode, size, digest, .. }) = self.entries.get(&target) else {
            let why = format!("the hard link to {} has no file before it", shown(&target));
            return Err(Error::Refused(why));
        };
        let (mode, size, digest) = (*mode, *size, digest.clone());
        if target != path {
            self.make_room(path)?;
            let at = self.into.join(path);
            fs::hard_link(self.into.join(&target), &at).map_err(Error::io("cannot write", &at))?;
        }
        let path = path.to_string();
        Ok(Record::File {
            path,
            mode,
            size,
            digest,
        })
    }
}

fn link_name(item: &Item) -> Result<String, Error> {
    let name = String::from_utf8(item.link.clone().unwrap_or_default());
    let name = name.map_err(|_| Error::Refused("the link's target is not UTF-8".into()))?;
    match name.is_empty() || name.contains('\0') {
        true => Err(Error::Refused("the link has no target".into())),
        false => Ok(name),
    }
}

/// The changes that lay an archive's content below a folder.
pub(crate) fn changes(archive: &std::sync::Arc<Unpacked>) -> Result<Vec<(String, Change)>, Error> {
    let source = |path: &str| Source::Archive(std::sync::Arc::clone(archive), path.to_string());
    let records = archive.records()?.into_iter();
    Ok(records.map(|record| record.change(source)).collect())
}

#[cfg(test)]
mod tests;
