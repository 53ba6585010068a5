//! Layers: from changes to a tar+zstd blob and back to a list of entries.
//!
//! The blob is a function of the changes alone: sorted entries, mtime 0, owner 0, no extended attributes. So a layer
//! that was written once is found again by the digest of its changes, whatever instruction asked for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use oci::{Bounded, Descriptor, Digest, UNCOMPRESSED_SIZE, media_type};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use zstd::zstd_safe::{CCtx, CParameter};

use crate::digests::Stamp;
use crate::error::Error;
use crate::io::{self, EagerFile, HashReader, HashWriter};
use crate::progress::{Event, Progress};
use crate::store::Store;
use crate::tarball::{self, Item};
use crate::tree::{Change, Changes, Entry, Kind, Record, Source, WHITEOUT, normalize};

/// Part of every layer's key: changes when the same changes would give other bytes.
const FORMAT: &str = "tar+zstd-3/2\n";
const LEVEL: i32 = 3;
/// Multi-threaded zstd gives the same bytes for any number of workers from 1 on.
const WORKERS: u32 = 2;
/// What one worker takes at a time, in bytes. A part of the format; it decides how much memory compressing needs.
const JOB: u32 = 2 << 20;
/// Tar's unit, in bytes.
const BLOCK: u64 = 512;
const OPAQUE: &str = ".wh..wh..opq";
/// A layer with more entries is refused: they are kept in memory.
const MOST_ENTRIES: usize = 4_000_000;

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
}

/// Puts the layer of `changes` into the store, or finds it there.
pub(crate) fn store_layer(store: &Store, changes: &Changes, progress: &dyn Progress) -> Result<Layer, Error> {
    let key = changes.key(FORMAT)?;
    if let Some(layer) = remembered(store, &key, progress) {
        return Ok(layer);
    }
    let (file, layer) = compress(store, |compressor| {
        let mut builder = tar::Builder::new(compressor);
        let mut buffer = vec![0; io::CHUNK];
        for (path, change) in &changes.0 {
            append(&mut builder, path, change, &mut buffer)?;
        }
        let cannot = Error::io("cannot write a layer below", store.root());
        builder.finish().map_err(cannot)
    })?;
    let digest = layer.descriptor.digest.clone();
    store.adopt(file, &digest)?;
    store.cache_put("files", &digest, &changes.records().collect::<Vec<_>>())?;
    remember(store, &key, &layer, progress)?;
    Ok(layer)
}

/// Puts a layer that comes as an uncompressed archive into the store, if its digest is `diff_id`. Gives the layer that it
/// is, in the store or not.
pub(crate) fn compress_layer(
    store: &Store,
    diff_id: &Digest,
    archive: &mut impl Read,
    progress: &dyn Progress,
) -> Result<Layer, Error> {
    let key = Digest::of(format!("{FORMAT}{diff_id}").as_bytes());
    if let Some(layer) = remembered(store, &key, progress) {
        return Ok(layer);
    }
    let (file, layer) = compress(store, |compressor| {
        let copied = io::copy(archive, compressor);
        copied
            .map(drop)
            .map_err(Error::io("cannot compress a layer below", store.root()))
    })?;
    if layer.diff_id == *diff_id {
        store.adopt(file, &layer.descriptor.digest)?;
        remember(store, &key, &layer, progress)?;
    }
    Ok(layer)
}

/// The layer that was made for a key before, if the store still has it.
fn remembered(store: &Store, key: &Digest, progress: &dyn Progress) -> Option<Layer> {
    let layer = store.cache_get::<Layer>("layers", key)?;
    let (digest, size) = (layer.descriptor.digest.clone(), layer.descriptor.size);
    store.blobs().has(&digest, size).then(|| {
        progress.event(Event::Layer {
            digest,
            size,
            cached: true,
        });
        layer
    })
}

fn remember(store: &Store, key: &Digest, layer: &Layer, progress: &dyn Progress) -> Result<(), Error> {
    store.cache_put("layers", key, layer)?;
    progress.event(Event::Layer {
        digest: layer.descriptor.digest.clone(),
        size: layer.descriptor.size,
        cached: false,
    });
    Ok(())
}

/// One layer is compressed at a time: that takes [`WORKERS`] threads anyway, and each more would cost some 30 MB. The context is kept,
/// because the allocator would not give back what another one takes.
static CONTEXT: Mutex<Option<CCtx<'static>>> = Mutex::new(None);

fn context() -> std::io::Result<CCtx<'static>> {
    let mut context = CCtx::try_create().ok_or(std::io::ErrorKind::OutOfMemory)?;
    for parameter in [
        CParameter::CompressionLevel(LEVEL),
        CParameter::NbWorkers(WORKERS),
        CParameter::JobSize(JOB),
    ] {
        let set = context.set_parameter(parameter);
        set.map_err(|code| std::io::Error::other(zstd::zstd_safe::get_error_name(code)))?;
    }
    Ok(context)
}

type Encoder<'c> = zstd::stream::Encoder<'c, HashWriter<EagerFile>>;

/// Takes a layer's archive and compresses it into a temporary file.
struct Compressor<'c>(HashWriter<BufWriter<Encoder<'c>>>);

/// Lets `write` write an archive, and compresses it.
fn compress(
    store: &Store,
    write: impl FnOnce(&mut Compressor<'_>) -> Result<(), Error>,
) -> Result<(NamedTempFile, Layer), Error> {
    let cannot = |error| Error::io("cannot write a layer below", store.root())(error);
    let mut kept = CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut context = kept.take().map_or_else(context, Ok).map_err(cannot)?;
    let file = HashWriter::new(EagerFile::new(store.temporary()?));
    let encoder = zstd::stream::Encoder::with_context(file, &mut context);
    // Headers are gathered; content comes in larger pieces, and passes by.
    let mut compressor = Compressor(HashWriter::new(BufWriter::with_capacity(64 << 10, encoder)));
    write(&mut compressor)?;
    let layer = compressor.finish().map_err(cannot)?;
    *kept = Some(context);
    Ok(layer)
}

impl Compressor<'_> {
    fn finish(self) -> std::io::Result<(NamedTempFile, Layer)> {
        let (buffered, diff_id, uncompressed) = self.0.finish();
        let encoder = buffered.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let (file, digest, size) = encoder.finish()?.finish();
        let mut descriptor = Descriptor::new(media_type::LAYER_ZSTD, digest, size);
        let uncompressed = (UNCOMPRESSED_SIZE.to_string(), uncompressed.to_string());
        descriptor.annotations.extend([uncompressed]);
        Ok((file.into_inner(), Layer { descriptor, diff_id }))
    }
}

impl Write for Compressor<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn append<W: Write>(
    builder: &mut tar::Builder<W>,
    path: &str,
    change: &Change,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    let cannot = Error::io("cannot archive", path);
    match change {
        Change::Remove => {
            let (parent, name) = path
                .rsplit_once('/')
                .map_or(("", path), |(parent, name)| (parent, name));
            let whiteout = if parent.is_empty() {
                format!("{WHITEOUT}{name}")
            } else {
                format!("{parent}/{WHITEOUT}{name}")
            };
            header.set_mode(0o644);
            header.set_entry_type(tar::EntryType::Regular);
            builder
                .append_data(&mut header, whiteout, std::io::empty())
                .map_err(cannot)
        }
        Change::Put(Entry { mode, kind: Kind::Dir }) => {
            header.set_mode(*mode);
            header.set_entry_type(tar::EntryType::Directory);
            builder
                .append_data(&mut header, format!("{path}/"), std::io::empty())
                .map_err(cannot)
        }
        Change::Put(Entry {
            kind: Kind::Link { target },
            ..
        }) => {
            header.set_mode(0o777);
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, path, target).map_err(cannot)
        }
        Change::Put(Entry {
            mode,
            kind: Kind::File { digest, size, source },
        }) => {
            header.set_mode(*mode);
            header.set_size(*size);
            header.set_entry_type(tar::EntryType::Regular);
            let Some(from) = source.file()? else {
                return Err(Error::path(path, "content of a lower layer can't be archived again"));
            };
            let stamp = match source {
                Source::Disk { stamp, .. } => *stamp,
                _ => None,
            };
            let file = File::open(&from).map_err(Error::io("cannot read", &from))?;
            // The header alone: with content the builder would read in small pieces.
            builder
                .append_data(&mut header, path, std::io::empty())
                .map_err(cannot)?;
            match append_content(builder.get_mut(), &file, *size, digest, stamp, buffer)
                .map_err(cannot_archive(&from))?
            {
                true => Ok(()),
                false => Err(Error::path(
                    from.display().to_string(),
                    "it changed while the image was built",
                )),
            }
        }
    }
}

fn cannot_archive(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::io("cannot archive", path)
}

/// Writes a file's content and fills up the last block; false if the content is not what was hashed.
fn append_content(
    writer: &mut impl Write,
    file: &File,
    size: u64,
    digest: &Digest,
    stamp: Option<Stamp>,
    buffer: &mut [u8],
) -> std::io::Result<bool> {
    let stamp = match stamp {
        // The file is still the one that was hashed; once is enough if it stays so.
        Some(stamp) if Stamp::of_file(file)? == stamp => Some(stamp),
        _ => None,
    };
    let mut content = file.take(size);
    let (copied, unchanged) = match stamp {
        Some(stamp) => {
            let copied = io::copy_by(&mut content, writer, buffer)?;
            (copied, Stamp::of_file(file)? == stamp)
        }
        None => {
            let mut reader = HashReader::new(content);
            let copied = io::copy_by(&mut reader, writer, buffer)?;
            (copied, reader.finish().1 == *digest)
        }
    };
    let filled = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or_default();
    writer.write_all(&[0; BLOCK as usize][..filled])?;
    Ok(unchanged && copied == size)
}

/// The uncompressed archive of a layer blob, at most as large as the layer declares.
pub(crate) fn open_layer(store: &oci::BlobStore, descriptor: &Descriptor) -> Result<Box<dyn Read>, Error> {
    let file = store.open(&descriptor.digest)?;
    let cannot = Error::io("cannot read", store.path(&descriptor.digest));
    let reader: Box<dyn Read> = match descriptor.media_type.as_str() {
        kind if kind.ends_with("+zstd") => Box::new(zstd::stream::Decoder::new(file).map_err(cannot)?),
        kind if kind.ends_with("gzip") => Box::new(flate2::bufread::MultiGzDecoder::new(
            std::io::BufReader::with_capacity(io::CHUNK, file),
        )),
        _ => Box::new(std::io::BufReader::with_capacity(io::CHUNK, file)),
    };
    Ok(Box::new(Bounded::layer(reader, descriptor)))
}

/// What a layer in the store changes; remembered, so that a big layer is read only once.
pub(crate) fn layer_changes(store: &Store, descriptor: &Descriptor) -> Result<Changes, Error> {
    if let Some(records) = store.cache_get::<Vec<Record>>("files", &descriptor.digest) {
        return Ok(Changes::from_records(records, &descriptor.digest));
    }
    let records = read_records(store.blobs(), descriptor)?;
    store.cache_put("files", &descriptor.digest, &records)?;
    Ok(Changes::from_records(records, &descriptor.digest))
}

/// Reads a layer blob's entries, hashing every file.
pub(crate) fn read_records(blobs: &oci::BlobStore, descriptor: &Descriptor) -> Result<Vec<Record>, Error> {
    let cannot = |error| Error::io("cannot read the layer", blobs.path(&descriptor.digest))(error);
    let mut records = Vec::new();
    tarball::visit(open_layer(blobs, descriptor)?, cannot, |item, reader| {
        let path = normalize(&item.exact_path()?)?;
        records.extend(record(&item, path, reader).map_err(cannot)?);
        if records.len() > MOST_ENTRIES {
            let digest = descriptor.digest.clone();
            let what = format!("it has more than {MOST_ENTRIES} entries");
            return Err(oci::Error::Corrupt { digest, what }.into());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    check_consistent(&records)?;
    Ok(records)
}

/// A layer says one thing about each path: only then does everybody who lays it over others, here or on a host, come to the same tree.
fn check_consistent(records: &[Record]) -> Result<(), Error> {
    let mut seen: BTreeMap<&str, &Record> = BTreeMap::new();
    for record in records {
        let path = record.path();
        match (seen.insert(path, record), record) {
            (None, _) | (Some(Record::Dir { .. }), Record::Dir { .. }) => {}
            _ => return Err(Error::path(path, "the layer has it twice")),
        }
        let below = format!("{path}/");
        let first_below = || seen.range(below.as_str()..).next();
        if matches!(record, Record::Remove { .. }) && first_below().is_some_and(|(path, _)| path.starts_with(&below)) {
            return Err(Error::path(path, "the layer takes away what it brings itself"));
        }
    }
    for path in seen.keys() {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let is_no_folder = |at: &&str| matches!(seen.get(at), Some(Record::File { .. } | Record::Link { .. }));
        if let Some(at) = above.into_iter().find(is_no_folder) {
            return Err(Error::path(*path, format!("{at} is no folder in the same layer")));
        }
    }
    Ok(())
}

fn record(item: &Item, path: String, reader: &mut dyn Read) -> std::io::Result<Option<Record>> {
    let mode = item.mode;
    let name = path.rsplit('/').next().unwrap_or_default();
    let refused = |what: &str| Err(std::io::Error::other(format!("{path}: {what}")));
    Ok(match item.kind {
        _ if path.is_empty() => None,
        _ if name == OPAQUE => return refused("opaque folders are not supported"),
        _ if name.starts_with(WHITEOUT) => {
            let hidden = name[WHITEOUT.len()..].to_string();
            let path = crate::tree::parent_of(&path).map_or(hidden.clone(), |parent| format!("{parent}/{hidden}"));
            Some(Record::Remove { path })
        }
        tar::EntryType::Directory => Some(Record::Dir { path, mode }),
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            let (digest, size) = io::digest(reader)?;
            Some(Record::File {
                path,
                mode,
                size,
                digest,
            })
        }
        tar::EntryType::Symlink => {
            let target = item.link.clone().unwrap_or_default();
            match String::from_utf8(target) {
                Ok(target) => Some(Record::Link { path, target }),
                Err(_) => return refused("where the link points is not UTF-8"),
            }
        }
        _ => return refused("only files, folders and symbolic links are allowed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_same_whatever_was_made_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let text: Vec<u8> = (0..600_000_u32)
            .flat_map(|n| (n % 7919).to_string().into_bytes())
            .collect();
        let noise = crate::transfer_tests::noise(5_000_000);
        let layer = |bytes: &[u8]| {
            let made = compress(&store, |compressor| {
                compressor.write_all(bytes).unwrap();
                Ok(())
            });
            made.unwrap().1
        };
        let (first, other) = (layer(&text), layer(noise.as_bytes()));
        for _ in 0..2 {
            assert_eq!((layer(&text), layer(noise.as_bytes())), (first.clone(), other.clone()));
        }
    }

    fn records(texts: &[&str]) -> Vec<Record> {
        let record = |text: &&str| {
            let path = text[1..].to_string();
            match text.as_bytes()[0] {
                b'd' => Record::Dir { path, mode: 0o755 },
                b'l' => Record::Link {
                    path,
                    target: "x".into(),
                },
                b'-' => Record::Remove { path },
                _ => Record::File {
                    path,
                    mode: 0o644,
                    size: 0,
                    digest: Digest::of(b""),
                },
            }
        };
        texts.iter().map(record).collect()
    }

    #[test]
    fn a_layer_that_contradicts_itself_is_refused() {
        for (texts, expected) in [
            (&["da", "fa/b", "da", "la/c", "-a/d"][..], None),
            (&["-a", "da", "fa/b"], Some("a: the layer has it twice")),
            (&["-a", "fa/b"], None),
            (&["fa/b", "-a"], Some("a: the layer takes away what it brings itself")),
            (&["fa", "fa"], Some("a: the layer has it twice")),
            (&["da", "fa"], Some("a: the layer has it twice")),
            (&["fa/b", "fa"], Some("a/b: a is no folder in the same layer")),
            (&["la", "fa/b"], Some("a/b: a is no folder in the same layer")),
            (&["fa", "fa.b", "fab"], None),
        ] {
            let found = check_consistent(&records(texts)).err().map(|error| error.to_string());
            assert_eq!(found.as_deref(), expected, "{texts:?}");
        }
    }
}
