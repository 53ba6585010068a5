//! A bound on what comes out of a compressed layer: a few bytes may stand for as many as an attacker likes.

use crate::Descriptor;
use std::io::{self, Read};

/// Annotation of a layer's descriptor: the size of its tar archive in bytes.
pub const UNCOMPRESSED_SIZE: &str = "installer.internal/uncompressed-size";

/// No layer has more bytes than this when it is unpacked, whatever it declares.
const LARGEST_LAYER: u64 = 64 << 30;

/// A reader that fails when more comes than was declared.
#[derive(Debug)]
pub struct Bounded<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Bounded<R> {
    /// Bounds the unpacked content of `layer` by what its descriptor declares ([`UNCOMPRESSED_SIZE`]), and by 64 GiB in any
    /// case.
    pub fn layer(inner: R, layer: &Descriptor) -> Self {
        let declared = layer
            .annotations
            .get(UNCOMPRESSED_SIZE)
            .and_then(|size| size.parse().ok());
        Self::new(inner, declared.unwrap_or(LARGEST_LAYER).min(LARGEST_LAYER))
    }

    /// Bounds any content, in bytes.
    pub fn new(inner: R, limit: u64) -> Self {
        Self {
            inner,
            left: limit,
            limit,
        }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            return match self.inner.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::other(format!(
                    "it unpacks to more than the {} bytes it may have",
                    self.limit
                ))),
            };
        }
        let size = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.inner.read(&mut buffer[..size])?;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(declared: Option<&str>) -> Descriptor {
        let mut layer = Descriptor::of("x", b"");
        layer.annotations = declared
            .map(|size| (UNCOMPRESSED_SIZE.to_owned(), size.to_owned()))
            .into_iter()
            .collect();
        layer
    }

    #[test]
    fn what_was_declared_passes_and_one_byte_more_does_not() {
        for (declared, content, good) in [
            (Some("5"), "12345", true),
            (Some("5"), "123", true),
            (Some("5"), "123456", false),
            (Some("0"), "", true),
            (Some("0"), "1", false),
            (None, "123", true),
            (Some("many"), "123", true),
        ] {
            let mut text = String::new();
            let result = Bounded::layer(content.as_bytes(), &layer(declared)).read_to_string(&mut text);
            assert_eq!(result.is_ok(), good, "{declared:?} {content}");
        }
    }

    #[test]
    fn nobody_may_declare_more_than_the_ceiling() {
        assert_eq!(
            Bounded::layer(io::empty(), &layer(Some("18446744073709551615"))).limit,
            LARGEST_LAYER
        );
    }
}
