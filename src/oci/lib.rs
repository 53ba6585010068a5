//! What every room must agree on about OCI content: digests, references, descriptors, and the image layout on disk.
//!
//! The operator's store and each host's store are the same thing, an OCI image layout (image-spec, `image-layout.md`),
//! so that a blob keeps one name from the build to the pull. Nothing here opens a network connection or knows what a
//! cluster is.

mod blobs;
mod bounded;
mod copy;
mod counted;
mod descriptor;
mod digest;
mod eager;
mod layout;
mod reference;
#[cfg(test)]
mod wording_tests;

pub use blobs::{BlobStore, BlobWriter};
pub use bounded::{Bounded, UNCOMPRESSED_SIZE};
pub use copy::{PIECE, copy, copy_by};
pub use counted::counted;
pub use descriptor::{Descriptor, Index, Platform, media_type};
pub use digest::{Digest, Hasher};
pub use eager::Eager;
pub use layout::Layout;
pub use reference::Reference;

/// The annotation that gives a descriptor of an index its full reference (image-spec, `annotations.md`).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why OCI content was refused or could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no digest of the one algorithm we accept.
    #[error("{0:?} is not a digest: expected sha256: and 64 lowercase hexadecimal digits")]
    BadDigest(String),
    /// The text is no image reference; the second field says what is wrong with it.
    #[error("{0:?} is not an image reference: {1}")]
    BadReference(String, &'static str),
    /// The content does not have the digest or the size it was announced with.
    #[error("blob {digest} is corrupt: {what}")]
    Corrupt {
        /// The digest the content was announced with.
        digest: Digest,
        /// What differs.
        what: String,
    },
    /// A blob is named but not there.
    #[error("blob {0} is missing")]
    Missing(Digest),
    /// A JSON document of the layout could not be read.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: String,
        /// Why it could not be read.
        source: serde_json::Error,
    },
    /// A JSON document is larger than any honest one.
    #[error("{path}: {size} bytes is more than the {limit} bytes allowed")]
    TooLarge {
        /// The file or blob.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The largest accepted size in bytes.
        limit: u64,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.as_ref().display().to_string(),
            source,
        }
    }
}
