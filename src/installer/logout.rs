//! `installer logout`: forgets a login.

use crate::{context::Context, failure::Exit, registry_args::RegistryArgs};
use anyhow::bail;
use image::{AuthFile, CredentialEnv, Credentials, registry_key};

/// Flags of `logout`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The registry, or a path in it, as it was given to `login`
    #[arg(value_name = "HOST[:PORT][/PATH]", required_unless_present = "all")]
    pub registry: Option<String>,
    /// Forget every login
    #[arg(long, conflicts_with = "registry")]
    pub all: bool,
    /// File of logins [default: ${XDG_CONFIG_HOME:-~/.config}/installer/auth.json]
    #[arg(long, env = "REGISTRY_AUTH_FILE", value_name = "FILE")]
    pub authfile: Option<std::path::PathBuf>,
}

/// Removes what `login` stored.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let registries = RegistryArgs {
        authfile: args.authfile.clone(),
        ..RegistryArgs::default()
    };
    let file = AuthFile::new(&registries.own_file());
    let keys = match &args.registry {
        Some(registry) => vec![registry_key(registry)?],
        None => file.keys()?,
    };
    for key in &keys {
        if !file.forget(key)? {
            bail!("{} has no login for {key}", file.path().display());
        }
        context.out.note(format!("the login for {key} is forgotten"));
        // Another tool's file still counts, and its owner may not expect that.
        if args.authfile.is_none() && CredentialEnv::of_process().files().login(key)?.is_some() {
            context.out.warn(format!(
                "there is another login for {key}, stored by docker, podman or for a shorter path"
            ));
        }
    }
    Ok(Exit::Done)
}
