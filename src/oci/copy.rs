//! Copying and reading big content. `std::io::copy` moves small pieces as they come; here each write is a whole piece, so that no page of a file is begun
//! by one write and ended by the next (file systems fill it with zeros in between).

use std::io::{self, ErrorKind, Read, Write};

/// Size of the pieces, in bytes: a multiple of all page sizes.
pub const PIECE: usize = 256 << 10;

/// Copies everything; how many bytes that was.
///
/// # Errors
/// When reading or writing fails.
pub fn copy(reader: &mut (impl Read + ?Sized), writer: &mut (impl Write + ?Sized)) -> io::Result<u64> {
    copy_by(reader, writer, &mut vec![0; PIECE])
}

/// As [`copy`], in a buffer that is used again: making one costs more than reading a small file. Its size is that of the pieces.
///
/// # Errors
/// As [`copy`].
pub fn copy_by(
    reader: &mut (impl Read + ?Sized),
    writer: &mut (impl Write + ?Sized),
    buffer: &mut [u8],
) -> io::Result<u64> {
    let mut total = 0;
    loop {
        let filled = fill(reader, buffer)?;
        writer.write_all(&buffer[..filled])?;
        total += filled as u64;
        if filled < buffer.len() {
            return Ok(total);
        }
    }
}

/// Reads until the buffer is full or nothing more comes; how much that was.
fn fill(reader: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives a few bytes at a time, and is interrupted now and then.
    struct Drips<'a>(&'a [u8], usize);

    impl Read for Drips<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(ErrorKind::Interrupted.into());
            }
            let most = buffer.len().min(self.1 % 7 + 1);
            self.0.read(&mut buffer[..most])
        }
    }

    /// Remembers how large each write was.
    #[derive(Default)]
    struct Pieces(Vec<u8>, Vec<usize>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            self.1.push(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_in_drips_goes_on_in_whole_pieces(content in proptest::collection::vec(any::<u8>(), 0..200), size in 1_usize..40) {
            let mut written = Pieces::default();
            let copied = copy_by(&mut Drips(&content, 0), &mut written, &mut vec![0; size]).unwrap();
            prop_assert_eq!(copied, content.len() as u64);
            prop_assert_eq!(&written.0, &content);
            let whole = written.1.iter().filter(|length| **length == size).count();
            prop_assert_eq!(whole, content.len() / size);
        }
    }
}
