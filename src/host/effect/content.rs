//! Bytes of a file in a JSON header: text as text, everything else as base64, wiped from memory when dropped.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use zeroize::Zeroizing;

/// The content of a small file. `Debug` tells only its length.
#[derive(Clone, PartialEq)]
pub struct Content(Zeroizing<Vec<u8>>);

impl Content {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<T: Into<Vec<u8>>> From<T> for Content {
    fn from(bytes: T) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", oci::counted(self.0.len(), "byte"))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    Text(Zeroizing<String>),
    Binary { base64: Zeroizing<String> },
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Wire::Binary {
                base64: Zeroizing::new(STANDARD.encode(&*self.0)),
            }
            .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Wire::deserialize(deserializer)? {
            Wire::Text(text) => Ok(Self::from(text.as_bytes())),
            Wire::Binary { base64 } => STANDARD
                .decode(&*base64)
                .map(Self::from)
                .map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_binary_survive_the_wire() {
        for bytes in [&b""[..], b"text\n", b"\xff\x00binary", "\u{1F600}\"\\".as_bytes()] {
            let wire = serde_json::to_string(&Content::from(bytes)).unwrap();
            assert_eq!(serde_json::from_str::<Content>(&wire).unwrap().bytes(), bytes);
        }
        assert_eq!(format!("{:?}", Content::from("secret")), "<6 bytes>");
    }
}
