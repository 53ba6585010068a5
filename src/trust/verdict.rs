//! Whether an image may be trusted: what its signatures are worth to those who hold certain public keys.
//!
//! One good signature by one trusted key is enough. Signatures that are worth nothing can be put beside an image by
//! anybody, so they never spoil a good one; without a good one, each is named with its fault.

use std::fmt;

use image::{Document, Store};
use oci::{Descriptor, Digest, Reference};

use crate::key::PublicKey;
use crate::payload::Payload;
use crate::signature::{ED25519_SIGNATURE, KEY_ID, PAYLOAD};
use crate::{Error, SIGNATURE};

/// A signature that holds.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Good {
    /// Its artifact.
    pub artifact: Digest,
    /// The key that signed.
    pub key: Digest,
    /// Where that key was read.
    pub origin: String,
    /// What it says.
    pub payload: Payload,
}

/// Why a signature is worth nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It was made by a key that is not trusted.
    #[error("signature {artifact} is by the key {key}, which is not one of the trusted ones")]
    OtherKey {
        /// Its artifact.
        artifact: Digest,
        /// The key it claims.
        key: String,
    },
    /// It does not verify: signature or payload were altered, or another key made it.
    #[error("signature {artifact} was altered: it does not verify with the key {key} ({origin}) that it names")]
    Altered {
        /// Its artifact.
        artifact: Digest,
        /// The key it claims.
        key: Digest,
        /// Where that key was read.
        origin: String,
    },
    /// It vouches for another image.
    #[error("signature {artifact} is for another image: it vouches for {names}")]
    OtherImage {
        /// Its artifact.
        artifact: Digest,
        /// The digest in its payload.
        names: Digest,
    },
    /// It is no signature as we write them.
    #[error("signature {artifact} is damaged: {why}")]
    Malformed {
        /// Its artifact.
        artifact: Digest,
        /// What is wrong with it.
        why: String,
    },
}

/// What the signatures of an image are worth.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The image.
    pub index: Digest,
    /// Signatures that hold, oldest first.
    pub good: Vec<Good>,
    /// The others.
    pub faults: Vec<Fault>,
}

/// No signature lets the image be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrusted {
    /// The image's index digest.
    pub index: Digest,
    /// The keys one of which must have signed, each with its origin.
    pub keys: Vec<String>,
    /// What is wrong with the signatures it has; empty if it has none.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.faults.is_empty() {
            write!(f, "{} has no signature", self.index)?;
        } else {
            write!(f, "{} has no good signature:", self.index)?;
            for fault in &self.faults {
                write!(f, "\n  {fault}")?;
            }
        }
        let by = match self.keys.as_slice() {
            [key] => format!("\nit must be signed by the key {key}"),
            keys => format!("\nit must be signed by one of the keys {}", keys.join(", ")),
        };
        f.write_str(&by)
    }
}

impl std::error::Error for Untrusted {}

/// Judges every signature of an image by the trusted `keys`.
///
/// # Errors
/// When the store is damaged; a damaged signature is only a fault.
pub fn check(store: &Store, index: &Descriptor, keys: &[PublicKey]) -> Result<Verdict, Error> {
    let (mut good, mut faults) = (Vec::new(), Vec::new());
    for artifact in store.referrers(index)? {
        if artifact.artifact_type.as_deref() != Some(SIGNATURE) {
            continue;
        }
        match judge(store, index, &artifact, keys) {
            Ok(signature) => good.push(signature),
            Err(fault) => faults.push(fault),
        }
    }
    good.sort_by_key(|good| (good.payload.timestamp, good.artifact.clone()));
    let index = index.digest.clone();
    Ok(Verdict { index, good, faults })
}

fn judge(store: &Store, index: &Descriptor, found: &Descriptor, keys: &[PublicKey]) -> Result<Good, Fault> {
    let artifact = || found.digest.clone();
    let malformed = |why: String| Fault::Malformed {
        artifact: artifact(),
        why,
    };
    let claimed = found.annotations.get(KEY_ID).cloned().unwrap_or_default();
    let Some(key) = keys.iter().find(|key| key.id().as_str() == claimed) else {
        let key = if claimed.is_empty() {
            "(none named)".to_string()
        } else {
            claimed
        };
        return Err(Fault::OtherKey {
            artifact: artifact(),
            key,
        });
    };
    let content = store
        .read_artifact(found)
        .map_err(|error| malformed(error.to_string()))?;
    let document = |media_type: &str| {
        let of_type = |document: &&Document| document.media_type == media_type;
        let mut matching = content.documents.iter().filter(of_type);
        match (matching.next(), matching.next()) {
            (Some(document), None) => Ok(document.bytes.as_slice()),
            _ => Err(malformed(format!(
                "it has not exactly one document of the type {media_type}"
            ))),
        }
    };
    let (bytes, signature) = (document(PAYLOAD)?, document(ED25519_SIGNATURE)?);
    if !key.verifies(bytes, signature) {
        return Err(Fault::Altered {
            artifact: artifact(),
            key: key.id().clone(),
            origin: key.origin().to_string(),
        });
    }
    // Only now: bytes that nobody vouches for are not parsed.
    let payload = Payload::decode(bytes).map_err(|why| malformed(format!("its payload: {why}")))?;
    if payload.digest != index.digest {
        return Err(Fault::OtherImage {
            artifact: artifact(),
            names: payload.digest,
        });
    }
    Ok(Good {
        artifact: artifact(),
        key: key.id().clone(),
        origin: key.origin().to_string(),
        payload,
    })
}

impl Verdict {
    /// The good signatures, of which there must be one.
    ///
    /// # Errors
    /// [`Untrusted`] with every fault.
    pub fn accept(self, keys: &[PublicKey]) -> Result<Vec<Good>, Box<Untrusted>> {
        if !self.good.is_empty() {
            return Ok(self.good);
        }
        let name = |key: &PublicKey| format!("{} ({})", key.id(), key.origin());
        Err(Box::new(Untrusted {
            index: self.index,
            keys: keys.iter().map(name).collect(),
            faults: self.faults,
        }))
    }

    /// Whether anything was tampered with, as opposed to merely not being signed by us.
    #[must_use]
    pub fn is_suspicious(&self) -> bool {
        self.faults.iter().any(|fault| !matches!(fault, Fault::OtherKey { .. }))
    }
}

/// What is worth saying though the image is trusted: that the signers knew it by another name only.
#[must_use]
pub fn other_name(good: &[Good], reference: &Reference) -> Option<String> {
    let names: Vec<&Reference> = good.iter().filter_map(|good| good.payload.reference.as_ref()).collect();
    if names.is_empty() || names.contains(&reference) {
        return None;
    }
    let names: Vec<String> = names.into_iter().map(ToString::to_string).collect();
    Some(format!("it was signed as {}, not as {reference}", names.join(", ")))
}
