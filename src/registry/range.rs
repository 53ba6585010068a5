//! The `Range` header (RFC 9110, section 14): which bytes of a blob to send.
//!
//! Only what clients of registries use: one range of bytes. Several ranges, or a unit we do not know, are ignored as the RFC
//! allows, and the whole blob is sent.

/// What a `Range` header asks of a blob.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Wanted {
    /// The whole blob, status 200.
    Whole,
    /// These bytes, both ends included, status 206.
    Part {
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
    },
    /// Nothing of the blob lies in the range, status 416.
    Unsatisfiable,
}

/// Reads a `Range` header's value against a blob of `size` bytes.
pub fn wanted(header: Option<&str>, size: u64) -> Wanted {
    header.and_then(|value| parse(value, size)).unwrap_or(Wanted::Whole)
}

fn parse(value: &str, size: u64) -> Option<Wanted> {
    let (unit, spec) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (from, to) = spec.trim().split_once('-')?;
    let (from, to) = (from.trim(), to.trim());
    if from.is_empty() {
        let tail = number(to)?;
        return Some(match tail.min(size) {
            0 => Wanted::Unsatisfiable,
            length => Wanted::Part {
                first: size - length,
                last: size - 1,
            },
        });
    }
    let first = number(from)?;
    let last = if to.is_empty() { u64::MAX } else { number(to)? };
    if last < first {
        return None;
    }
    Some(if first >= size {
        Wanted::Unsatisfiable
    } else {
        Wanted::Part {
            first,
            last: last.min(size - 1),
        }
    })
}

/// Digits only: `u64::from_str` would take a sign too.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let part = |first, last| Wanted::Part { first, last };
        for (header, expected) in [
            (None, Wanted::Whole),
            (Some("bytes=0-"), part(0, 9)),
            (Some("bytes=0-0"), part(0, 0)),
            (Some("bytes=3-5"), part(3, 5)),
            (Some("bytes=3-99"), part(3, 9)),
            (Some("bytes=-4"), part(6, 9)),
            (Some("bytes=-40"), part(0, 9)),
            (Some("Bytes = 1-2"), part(1, 2)),
            (Some("bytes=10-"), Wanted::Unsatisfiable),
            (Some("bytes=-0"), Wanted::Unsatisfiable),
            (Some("bytes=5-3"), Wanted::Whole),
            (Some("bytes=0-1,3-4"), Wanted::Whole),
            (Some("lines=0-1"), Wanted::Whole),
            (Some("bytes=+1-2"), Wanted::Whole),
            (Some("bytes=a-"), Wanted::Whole),
            (Some("bytes"), Wanted::Whole),
        ] {
            assert_eq!(wanted(header, 10), expected, "{header:?}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_always_lies_inside_the_blob(header in "(bytes=)?[0-9,-]{0,24}", size in 0u64..1000) {
            if let Wanted::Part { first, last } = wanted(Some(&header), size) {
                prop_assert!(first <= last && last < size);
            }
        }
    }
}
