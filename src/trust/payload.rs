//! What a signature says: a small JSON document in the manner of "simple signing" (containers/image,
//! `containers-signature.5.md`), whose bytes are what is signed.
//!
//! ```json
//! {"critical":{"identity":{"docker-reference":"docker.io/local/native:dev"},
//!              "image":{"docker-manifest-digest":"sha256:…"},
//!              "type":"installer cluster image signature"},
//!  "optional":{"creator":"installer 0.1.0","timestamp":1764000000}}
//! ```
//! Whatever is not understood in `critical` makes the signature worthless; in `optional` it is passed over.

use oci::{Digest, Reference};
use serde::{Deserialize, Serialize};

/// The one `type` we write and accept: bytes signed for another purpose are never taken for a signature of an image.
const TYPE: &str = "installer cluster image signature";

/// What a signature says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payload {
    /// The index digest it vouches for.
    pub digest: Digest,
    /// The name the signer knew the image by.
    pub reference: Option<Reference>,
    /// When it was signed, seconds since 1970, as the signer says.
    pub timestamp: Option<i64>,
    /// The program that signed, as it says.
    pub creator: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Critical,
    #[serde(default)]
    optional: Optional,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference", default, skip_serializing_if = "Option::is_none")]
    reference: Option<Reference>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

#[derive(Default, Serialize, Deserialize)]
struct Optional {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    creator: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp: Option<i64>,
}

impl Payload {
    /// The bytes to sign. The same payload gives the same bytes.
    ///
    /// # Errors
    /// Never in fact: the document has nothing JSON can't say.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Document {
            critical: Critical {
                identity: Identity {
                    reference: self.reference.clone(),
                },
                image: Image {
                    digest: self.digest.clone(),
                },
                kind: TYPE.to_string(),
            },
            optional: Optional {
                creator: self.creator.clone(),
                timestamp: self.timestamp,
            },
        })
    }

    /// Reads signed bytes.
    ///
    /// # Errors
    /// Says what is not as it should be.
    pub fn decode(bytes: &[u8]) -> Result<Payload, String> {
        let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if document.critical.kind != TYPE {
            return Err(format!("its type is {:?}, not {TYPE:?}", document.critical.kind));
        }
        Ok(Payload {
            digest: document.critical.image.digest,
            reference: document.critical.identity.reference,
            timestamp: document.optional.timestamp,
            creator: document.optional.creator,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload() -> Payload {
        Payload {
            digest: Digest::of(b"x"),
            reference: "local/x:1".parse().ok(),
            timestamp: Some(1_764_000_000),
            creator: Some("installer 0.1.0".into()),
        }
    }

    #[test]
    fn a_payload_has_the_documented_form() {
        let text = String::from_utf8(payload().encode().unwrap()).unwrap();
        assert_eq!(
            text,
            format!(
                "{{\"critical\":{{\"identity\":{{\"docker-reference\":\"docker.io/local/x:1\"}},\
                 \"image\":{{\"docker-manifest-digest\":\"{}\"}},\"type\":\"installer cluster image signature\"}},\
                 \"optional\":{{\"creator\":\"installer 0.1.0\",\"timestamp\":1764000000}}}}",
                Digest::of(b"x")
            )
        );
        assert_eq!(Payload::decode(text.as_bytes()).unwrap(), payload());
    }

    #[test]
    fn what_is_critical_and_unknown_is_refused_and_what_is_optional_is_not() {
        let text = String::from_utf8(payload().encode().unwrap()).unwrap();
        for (from, to, accepted) in [
            ("\"optional\":{", "\"optional\":{\"mood\":1,", true),
            (
                ",\"optional\":{\"creator\":\"installer 0.1.0\",\"timestamp\":1764000000}",
                "",
                true,
            ),
            ("\"identity\":{", "\"identity\":{\"mood\":1,", false),
            ("\"critical\":{", "\"critical\":{\"mood\":1,", false),
            ("installer cluster", "atomic container", false),
            (
                "\"docker-manifest-digest\":\"sha256:",
                "\"docker-manifest-digest\":\"sha512:",
                false,
            ),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert_eq!(Payload::decode(changed.as_bytes()).is_ok(), accepted, "{changed}");
        }
    }

    #[test]
    fn the_example_of_the_documentation_is_understood() {
        let text = include_str!("../../docs/signing.md");
        let example = text
            .split("```json")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .unwrap();
        let example = example.replace("sha256:…", Digest::of(b"x").as_str());
        assert_eq!(Payload::decode(example.as_bytes()).unwrap().digest, Digest::of(b"x"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Payload::decode(&bytes);
        }
    }
}
