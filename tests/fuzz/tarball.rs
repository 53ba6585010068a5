//! Tar archives from a fuzzer's bytes: with headers whose sums are right, so that what matters is reached.
//!
//! ```text
//! u8 kind │ name… 0 │ link… 0 │ u8 mode │ u16 length │ content          (big endian)
//! ```

use tar::EntryType;

use crate::Input;

const KINDS: [EntryType; 12] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Regular,
    EntryType::Char,
    EntryType::Fifo,
    EntryType::Continuous,
    EntryType::GNUSparse,
    EntryType::XHeader,
    EntryType::XGlobalHeader,
    EntryType::GNULongName,
];
const MODES: [u32; 8] = [0o644, 0o755, 0o600, 0, 0o4755, 0o1777, 0o444, 0o7777];
/// More entries than this find nothing new.
const MOST: usize = 40;

/// An archive of what the bytes say. `content` may put something else in the place of an entry's content.
pub(crate) fn build(
    input: &mut Input<'_>,
    mut name_and_content: impl FnMut(&[u8], &[u8]) -> (Vec<u8>, Vec<u8>),
) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for _ in 0..MOST {
        if input.0.is_empty() {
            break;
        }
        let kind = KINDS[usize::from(input.byte()) % KINDS.len()];
        let (name, link) = (input.until_zero(), input.until_zero());
        let mode = MODES[usize::from(input.byte()) % MODES.len()];
        let length = usize::from(input.byte()) << 8 | usize::from(input.byte());
        let (name, content) = name_and_content(name, input.take(length));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        // By hand: the library refuses to write what an attacker would.
        let fill = |field: &mut [u8], text: &[u8]| {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        };
        fill(&mut header.as_old_mut().name, &name);
        fill(&mut header.as_old_mut().linkname, link);
        header.set_cksum();
        builder
            .append(&header, content.as_slice())
            .expect("a vector takes everything");
    }
    builder.into_inner().expect("a vector takes everything")
}
