//! Cluster images: build, closure proof, local store, save and load, and the view that bootstrap works from.
//!
//! A cluster image is one OCI index (see `docs/kubefile.md`): a rootfs manifest for each platform and the manifest of
//! every container image the cluster will pull. Same inputs give the same bytes. Nothing here speaks to hosts.

mod archive;
mod build;
mod closure;
mod config;
mod container;
mod contents;
mod context;
mod error;
mod extract;
mod filesystem;
mod io;
mod layer;
mod manifest;
mod progress;
mod pull;
#[cfg(test)]
mod pull_tests;
mod referrers;
#[cfg(test)]
mod referrers_tests;
mod run;
mod store;
#[cfg(test)]
mod tests;
mod tree;
mod view;

pub use archive::{Loaded, load, save};
pub use build::{BuildOptions, Built, build};
pub use config::{AppMeta, ClusterConfig};
pub use error::{Error, MissingImage};
pub use layer::UNCOMPRESSED_SIZE;
pub use manifest::host_platform;
pub use progress::{Event, NoProgress, Progress};
pub use referrers::{Artifact, Attached, Document};
pub use store::{ImageSummary, Removed, Store};
pub use view::{Carried, ClusterImage, FileEntry, FileKind, Rootfs, VerifyReport};
