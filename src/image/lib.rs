//! Cluster images: build, closure proof, local store, save and load, and the view that bootstrap works from.
//!
//! A cluster image is one OCI index (see `docs/kubefile.md`): a rootfs manifest for each platform and the manifest of
//! every container image the cluster will pull. Same inputs give the same bytes. Nothing here speaks to hosts.

mod apps;
mod archive;
#[cfg(test)]
mod archive_tests;
mod build;
#[cfg(test)]
mod build_tests;
mod carried;
#[cfg(test)]
mod chart_tests;
mod closure;
mod commands;
mod config;
mod container;
mod contents;
mod context;
#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod crash_tests;
mod credentials;
mod describe;
mod diff;
mod digests;
mod docker;
#[cfg(test)]
mod docs_tests;
mod download;
mod error;
mod extract;
mod filesystem;
mod garbage;
mod helm;
mod ignore;
mod import;
mod io;
mod layer;
mod listing;
mod load;
mod lock;
mod manifest;
mod merge;
#[cfg(test)]
mod merge_tests;
mod mistakes;
#[cfg(test)]
mod platform_tests;
mod plugin;
mod progress;
mod proof;
#[cfg(test)]
mod proof_tests;
mod pull;
#[cfg(test)]
mod pull_contract_tests;
#[cfg(test)]
mod pull_tests;
mod recipe;
#[cfg(test)]
mod recipe_tests;
mod referrers;
#[cfg(test)]
mod referrers_tests;
#[cfg(test)]
mod registry_double;
mod remote;
mod review;
mod run;
mod save;
#[cfg(test)]
mod served_tests;
mod split;
mod store;
#[cfg(test)]
mod store_tests;
mod tarball;
#[cfg(test)]
mod tests;
mod transfer;
#[cfg(test)]
mod transfer_tests;
mod tree;
mod unpack;
mod verify;
mod view;
mod walk;

pub use build::{BuildOptions, Built, build};
pub use config::{AppKind, AppMeta, ClusterConfig};
pub use credentials::{AuthFile, CredentialEnv, CredentialFiles, registry_key};
pub use describe::{ArtifactDescription, CarriedDescription, Description, History, PlatformDescription, Step};
pub use diff::{Change, Difference, FileShape, PlatformDifference, diff};
pub use error::{Error, MissingImage};
pub use garbage::{Damaged, Freed, PruneOptions, Pruned, Removed, Unusable};
pub use helm::chart_values;
pub use io::LARGEST_TEXT;
pub use listing::ImageSummary;
pub use load::{Loaded, load, load_stream};
pub use lock::{Lock, Locked, Place};
pub use manifest::host_platform;
pub use merge::{Conflict, MergeOptions, Merged, Prefer, merge};
pub use oci::UNCOMPRESSED_SIZE;
pub use progress::{Event, NoProgress, Progress};
pub use pull::PullOptions;
pub use referrers::{Artifact, Attached, Document};
pub use remote::{
    Access, Anonymous, Credentials, Login, Remote, RemoteManifest, RemoteOptions, Repository, Retry, fallback_tag,
};
pub use save::{Save, Saved, save};
pub use store::{InUse, Store};
pub use transfer::{PulledImage, Pushed, pull, push, push_carried};
pub use verify::{PlatformVerification, Verification, verify};
pub use view::{Carried, ClusterImage, FileEntry, FileKind, Rootfs, VerifyReport};
