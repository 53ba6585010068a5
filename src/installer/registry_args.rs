//! Flags of every command that speaks to registries.

use image::{CredentialEnv, CredentialFiles, RemoteOptions};
use std::{path::PathBuf, sync::Arc};

/// Folders with certificates of single registries, as podman and docker have them.
const CERTS_DIRS: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// See the head of this file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RegistryArgs {
    /// A registry to be spoken to by plain HTTP; may be repeated
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    pub insecure_registries: Vec<String>,
    /// PEM file of a certificate authority to trust for registries; may be repeated
    #[arg(long = "registry-ca", value_name = "FILE")]
    pub registry_ca: Vec<PathBuf>,
    /// File of logins [default: ${XDG_CONFIG_HOME:-~/.config}/installer/auth.json, then podman's and docker's]
    #[arg(long, env = "REGISTRY_AUTH_FILE", value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

impl RegistryArgs {
    /// How to speak to registries.
    pub fn remote(&self) -> RemoteOptions {
        let files = match &self.authfile {
            Some(file) => CredentialFiles::only(file),
            None => CredentialEnv::of_process().files(),
        };
        RemoteOptions {
            insecure: self.insecure_registries.clone(),
            ca_files: self.registry_ca.clone(),
            certs_dirs: CERTS_DIRS.iter().map(PathBuf::from).collect(),
            credentials: Arc::new(files),
            ..RemoteOptions::default()
        }
    }

    /// The file that `login` writes.
    pub fn own_file(&self) -> PathBuf {
        self.authfile
            .clone()
            .unwrap_or_else(|| CredentialEnv::of_process().own_file())
    }
}
