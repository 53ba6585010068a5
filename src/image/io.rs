//! Streams that hash and count what passes.

use std::io::{self, Read, Write};

use oci::{Digest, Eager, Hasher};
use tempfile::NamedTempFile;

use crate::error::Error;

/// Largest manifest, template or list that is read, in bytes.
pub const LARGEST_TEXT: u64 = 16 << 20;

pub(crate) use oci::{copy, copy_by};

/// Big content is read in pieces of this size.
pub(crate) const CHUNK: usize = oci::PIECE;

/// A writer that knows the digest and size of what went through it.
pub(crate) struct HashWriter<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> HashWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        HashWriter {
            inner,
            hasher: Hasher::default(),
            size: 0,
        }
    }

    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.size)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A file that the disk gets while it is still being written, so that syncing it at the end doesn't take long.
pub(crate) struct EagerFile {
    file: NamedTempFile,
    written: u64,
    eager: Eager,
}

impl EagerFile {
    pub(crate) fn new(file: NamedTempFile) -> EagerFile {
        EagerFile {
            file,
            written: 0,
            eager: Eager::default(),
        }
    }

    pub(crate) fn into_inner(self) -> NamedTempFile {
        self.file
    }
}

impl Write for EagerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        self.eager.grown(self.file.as_file(), self.written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A reader that knows the digest and size of what went through it.
pub(crate) struct HashReader<R> {
    inner: R,
    hasher: Hasher,
    size: u64,
}

impl<R: Read> HashReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        HashReader {
            inner,
            hasher: Hasher::default(),
            size: 0,
        }
    }

    pub(crate) fn finish(self) -> (R, Digest, u64) {
        (self.inner, self.hasher.finish(), self.size)
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.size += read as u64;
        Ok(read)
    }
}

/// A text of people, such as a manifest. `path` is its name in errors.
pub(crate) fn read_text(path: &str, reader: impl Read) -> Result<String, Error> {
    let mut text = String::new();
    let mut limited = reader.take(LARGEST_TEXT + 1);
    limited
        .read_to_string(&mut text)
        .map_err(Error::io("cannot read", path))?;
    match text.len() as u64 > LARGEST_TEXT {
        true => Err(Error::path(
            path,
            format!("a text of more than {} MiB is not read; split it", LARGEST_TEXT >> 20),
        )),
        false => Ok(text),
    }
}

/// Digest and size of everything in `reader`.
pub(crate) fn digest(reader: &mut (impl Read + ?Sized)) -> io::Result<(Digest, u64)> {
    Digest::of_reader(reader)
}

/// The same in a buffer that is used again: making one costs more than reading a small file.
pub(crate) fn digest_by(reader: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    let size = hasher.read(reader, buffer)?;
    Ok((hasher.finish(), size))
}
