//! Reading tar archives of unknown origin: entry by entry, with a bound on everything that is kept in memory.
//!
//! Long names (GNU) and extended headers (PAX) are themselves entries, of any size a writer likes; a library that
//! resolves them reads them whole. Here they are bounded first.

use std::io::{self, Read};
use std::ops::ControlFlow;

use tar::EntryType;

use crate::error::Error;

/// Largest long name or extended header, in bytes.
const LARGEST_EXTENSION: u64 = 64 << 10;

/// One entry, its names resolved.
pub(crate) struct Item {
    /// The path as written, not checked.
    pub(crate) path: Vec<u8>,
    /// Where a link points.
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) kind: EntryType,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Bytes of content.
    pub(crate) size: u64,
}

impl Item {
    /// The path, where another name than the one written would be a fault.
    ///
    /// # Errors
    /// The name is not UTF-8.
    pub(crate) fn exact_path(&self) -> Result<String, Error> {
        match std::str::from_utf8(&self.path) {
            Ok(path) => Ok(path.to_string()),
            Err(_) => Err(Error::path(self.path_text(), "the name is not UTF-8")),
        }
    }

    /// The path for messages and for names that are compared with known ones.
    pub(crate) fn path_text(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// What extension entries say about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Calls `each` with every entry and its content, until the archive ends or `each` breaks off. `damaged` turns what is
/// wrong with the archive itself into an error.
pub(crate) fn visit(
    reader: impl Read,
    damaged: impl Fn(io::Error) -> Error,
    mut each: impl FnMut(Item, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let mut archive = tar::Archive::new(reader);
    let mut extensions = Extensions::default();
    for entry in archive.entries().map_err(&damaged)?.raw(true) {
        let mut entry = entry.map_err(&damaged)?;
        let kind = entry.header().entry_type();
        if extensions.read(kind, &mut entry).map_err(&damaged)? {
            continue;
        }
        let known = std::mem::take(&mut extensions);
        let size = entry.size();
        if known.size.is_some_and(|told| told != size) {
            let why = "an entry's two headers disagree about its size, or it has more than 8 GiB in PAX format";
            return Err(damaged(io::Error::other(why)));
        }
        let item = Item {
            path: known.path.unwrap_or_else(|| entry.header().path_bytes().into_owned()),
            link: known
                .link
                .or_else(|| entry.header().link_name_bytes().map(|name| name.into_owned())),
            mode: entry.header().mode().map_err(&damaged)? & 0o7777,
            kind,
            size,
        };
        if each(item, &mut entry)?.is_break() {
            break;
        }
    }
    Ok(())
}

impl Extensions {
    /// Takes an entry in if it describes the next one.
    fn read(&mut self, kind: EntryType, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<bool> {
        let wanted = kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions();
        if !wanted {
            // Global headers say nothing that matters here.
            return Ok(kind.is_pax_global_extensions());
        }
        if entry.size() > LARGEST_EXTENSION {
            let size = entry.size();
            return Err(io::Error::other(format!("a name or extended header of {size} bytes")));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if kind.is_pax_local_extensions() {
            return self.pax(&bytes).map(|()| true);
        }
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        match kind.is_gnu_longname() {
            true => self.path = Some(bytes),
            false => self.link = Some(bytes),
        }
        Ok(true)
    }

    fn pax(&mut self, bytes: &[u8]) -> io::Result<()> {
        for record in tar::PaxExtensions::new(bytes) {
            let record = record?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok());
                    self.size = Some(size.ok_or_else(|| io::Error::other("an extended header with a bad size"))?);
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(io::Error::other("sparse files are not supported"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(archive: &[u8]) -> Result<Vec<(String, u64, Vec<u8>)>, Error> {
        let mut found = Vec::new();
        visit(
            archive,
            |error| Error::io("cannot read", "x.tar")(error),
            |item, reader| {
                let mut content = Vec::new();
                reader.read_to_end(&mut content).unwrap();
                found.push((item.path_text(), item.size, content));
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok(found)
    }

    fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().unwrap()
    }

    fn header(kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    #[test]
    fn long_names_of_both_kinds_are_resolved() {
        let long = "d/".repeat(120) + "f";
        let bytes = archive(|builder| {
            builder
                .append_data(&mut header(EntryType::Regular, 1), &long, &b"x"[..])
                .unwrap();
            let records = [("path", long.as_bytes()), ("size", b"2"), ("comment", b"ignored")];
            builder.append_pax_extensions(records).unwrap();
            builder.append(&header(EntryType::Regular, 2), &b"yz"[..]).unwrap();
        });
        assert_eq!(
            read(&bytes).unwrap(),
            [(long.clone(), 1, b"x".to_vec()), (long, 2, b"yz".to_vec())]
        );
    }

    #[test]
    fn what_would_fill_the_memory_or_mislead_is_refused() {
        let huge = vec![b'a'; 100_000];
        let long = archive(|b| {
            b.append(&header(EntryType::GNULongName, huge.len() as u64), huge.as_slice())
                .unwrap()
        });
        let pax = archive(|b| {
            b.append(&header(EntryType::XHeader, huge.len() as u64), huge.as_slice())
                .unwrap()
        });
        let sizes = archive(|builder| {
            builder.append_pax_extensions([("size", &b"512"[..])]).unwrap();
            builder.append(&header(EntryType::Regular, 2), &b"yz"[..]).unwrap();
        });
        let sparse = archive(|builder| {
            builder
                .append_pax_extensions([("GNU.sparse.major", &b"1"[..])])
                .unwrap();
            builder.append(&header(EntryType::Regular, 2), &b"yz"[..]).unwrap();
        });
        for (bytes, expected) in [
            (long, "100000 bytes"),
            (pax, "100000 bytes"),
            (sizes, "disagree"),
            (sparse, "sparse"),
        ] {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
