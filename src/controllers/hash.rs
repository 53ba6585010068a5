//! The short, readable hashes that name ReplicaSets and ControllerRevisions after their template.

use component::Error;
use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Letters and digits that form no words and are not mistaken for each other.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template, different for each count of collisions.
///
/// # Errors
/// If the template cannot be encoded.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> Result<String, Error> {
    let mut bytes = serde_json::to_vec(template)?;
    if let Some(collisions) = collisions {
        bytes.extend_from_slice(&collisions.to_le_bytes());
    }
    Ok(readable(&fnv32a(&bytes).to_string()))
}

/// Each character replaced by one of a safe alphabet.
fn readable(text: &str) -> String {
    text.bytes()
        .map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()]))
        .collect()
}

fn fnv32a(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(fnv32a(b""), 0x811c_9dc5);
        assert_eq!(fnv32a(b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn collisions_change_the_name() {
        let template = PodTemplateSpec::default();
        let names: Vec<_> = [None, Some(0), Some(1)]
            .iter()
            .map(|c| template_hash(&template, *c).unwrap())
            .collect();
        assert!(names[0] != names[1] && names[1] != names[2]);
        assert!(names.iter().all(|n| n.bytes().all(|b| ALPHABET.contains(&b))));
    }
}
