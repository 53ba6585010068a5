//! Who vouches for a cluster image: keys, signatures, and the judgement whether an image may be used.
//!
//! ```text
//! index digest ─▶ payload (JSON: digest, name, time) ─▶ Ed25519 ─▶ artifact in the store, its subject the index
//! ```
//! A cluster image is content-addressed, so a signature over the index digest covers every byte of it. Signatures are OCI
//! artifacts beside the image (`image::Store::attach`): they travel with it and any OCI tool can fetch them; the files
//! inside can be verified with nothing but OpenSSL (`docs/signing.md`).
//!
//! Nothing here talks to the network, to a terminal, or to hosts.

mod key;
mod payload;
mod signature;
#[cfg(test)]
mod tests;
mod verdict;

pub use key::{KeyError, KeyFile, PrivateKey, PublicKey, write_pair};
pub use payload::Payload;
pub use signature::{Signed, sign};
pub use verdict::{Fault, Good, Untrusted, Verdict, check, other_name};

/// Artifact type of a signature's manifest.
pub const SIGNATURE: &str = "application/vnd.installer.signature.v1";

/// Why an image could not be signed or its signatures not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No signature lets the image be trusted.
    #[error(transparent)]
    Untrusted(#[from] Box<Untrusted>),
}
