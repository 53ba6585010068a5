//! Where a chunk belongs: the `Content-Range` of uploads, which is not that of RFC 9110. Pure.

use http::{HeaderMap, header};

use crate::answer::{Code, Refusal};

/// How many bytes the chunk has, if the client says so. `at` is where the upload stands.
///
/// # Errors
/// When the header is malformed, contradicts `Content-Length`, or does not begin at `at`.
pub fn length(headers: &HeaderMap, at: u64) -> Result<Option<u64>, Refusal> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let text = range.to_str().unwrap_or_default();
    let malformed = || {
        let message = "Content-Range of an upload is FIRST-LAST, both ends included";
        Refusal::new(Code::BlobUploadInvalid, message, text)
    };
    let (first, last) = parse(text).ok_or_else(malformed)?;
    if first != at {
        let detail = format!(
            "the upload has {}, the chunk begins at {first}",
            oci::counted(at, "byte")
        );
        return Err(Refusal::new(
            Code::BlobUploadOutOfOrder,
            "chunks come in order",
            &detail,
        ));
    }
    let length = (last - first).checked_add(1).ok_or_else(malformed)?;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    if announced.is_some_and(|announced| announced != length.to_string()) {
        let detail = format!("Content-Range {text}, Content-Length {}", announced.unwrap_or_default());
        return Err(Refusal::new(Code::SizeInvalid, "range and length differ", &detail));
    }
    Ok(Some(length))
}

/// `FIRST-LAST`; some clients write `bytes` before it and the size behind it, as in answers.
fn parse(text: &str) -> Option<(u64, u64)> {
    let text = text
        .strip_prefix("bytes")
        .map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let (range, _size) = text.split_once('/').unwrap_or((text, ""));
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// The `Range` of an upload with `size` bytes. The grammar has no way to say «none»; like other registries we say `0-0` then.
pub fn range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(range: Option<&str>, announced: Option<&str>, at: u64) -> Result<Option<u64>, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::CONTENT_RANGE, range), (header::CONTENT_LENGTH, announced)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        length(&headers, at).map_err(|refusal| refusal.code())
    }

    #[test]
    fn a_chunk_begins_where_the_upload_stands() {
        assert_eq!(check(None, Some("5"), 7), Ok(None));
        assert_eq!(check(Some("7-11"), Some("5"), 7), Ok(Some(5)));
        assert_eq!(check(Some("7-11"), None, 7), Ok(Some(5)));
        assert_eq!(check(Some("bytes 0-0/*"), None, 0), Ok(Some(1)));
        assert_eq!(check(Some("bytes=0-9"), Some("10"), 0), Ok(Some(10)));
        for out_of_order in ["0-4", "8-11"] {
            assert_eq!(check(Some(out_of_order), None, 7), Err(Code::BlobUploadOutOfOrder));
        }
    }

    #[test]
    fn a_range_that_contradicts_itself_is_refused() {
        assert_eq!(check(Some("0-9"), Some("11"), 0), Err(Code::SizeInvalid));
        for malformed in [
            "",
            "0",
            "-",
            "5-4",
            "0-",
            "a-b",
            "+0-1",
            "0-99999999999999999999",
            "0-18446744073709551615",
        ] {
            assert_eq!(
                check(Some(malformed), None, 0),
                Err(Code::BlobUploadInvalid),
                "{malformed}"
            );
        }
    }

    #[test]
    fn the_range_of_an_upload_ends_with_its_last_byte() {
        assert_eq!(
            (range(0), range(1), range(10)),
            ("0-0".into(), "0-0".into(), "0-9".into())
        );
    }
}
