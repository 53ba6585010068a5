//! Flags of commands that speak to registries.

use image::{Remote, RemoteOptions};
use std::path::PathBuf;
use std::sync::Arc;

/// See the head of this file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RegistryArgs {
    /// A registry to be spoken to by plain HTTP; may be repeated
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    pub insecure_registries: Vec<String>,
    /// PEM file with certificate authorities of registries, trusted besides the system's; may be repeated
    #[arg(long = "registry-ca", value_name = "FILE")]
    pub registry_cas: Vec<PathBuf>,
}

impl RegistryArgs {
    /// Prepares to speak to registries.
    ///
    /// # Errors
    /// When a file of certificates can't be read.
    pub fn remote(&self) -> anyhow::Result<Arc<Remote>> {
        Ok(Remote::new(RemoteOptions {
            insecure: self.insecure_registries.clone(),
            ca_files: self.registry_cas.clone(),
            ..RemoteOptions::default()
        })?)
    }
}
