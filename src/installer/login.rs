//! `installer login`: a login for a registry, tried and stored for later builds and pulls.

use crate::{context::Context, failure::Exit, registry_args::RegistryArgs};
use anyhow::{Context as _, bail};
use clusterfile::Secret;
use image::{AuthFile, Credentials, Login, Remote, registry_key};
use std::{
    io::{IsTerminal, Read},
    sync::Arc,
};
use zeroize::Zeroizing;

/// A longer password is a mistake, in bytes.
const LONGEST: u64 = 64 << 10;

/// Flags of `login`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer login quay.io -u me                                     asks for the password
  installer login registry.corp:5000/team -u robot --password-stdin < token

The login is stored for its owner only (mode 0600), in the file format of docker and podman.")]
pub struct Args {
    /// The registry, or a path in it that has a login of its own
    #[arg(value_name = "HOST[:PORT][/PATH]")]
    pub registry: String,
    /// Name of the user
    #[arg(short, long, value_name = "USER")]
    pub username: String,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// How to speak to the registry.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// The one login that is tried.
struct Tried(Login);

impl Credentials for Tried {
    fn login(&self, _: &str) -> Result<Option<Login>, image::Error> {
        Ok(Some(self.0.clone()))
    }
}

/// Tries the login, and stores it if the registry takes it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let key = registry_key(&args.registry)?;
    let password = if args.password_stdin {
        from_stdin()?
    } else {
        ask(&args.username, &key)?
    };
    if password.expose().is_empty() {
        bail!("the password is empty");
    }
    let mut options = args.registries.remote();
    options.credentials = Arc::new(Tried(Login::Password {
        user: args.username.clone(),
        password: password.clone(),
    }));
    Remote::new(options)?.check_login(&key).await?;
    let file = AuthFile::new(&args.registries.own_file());
    file.store(&key, &args.username, &password)?;
    context.out.note(format!(
        "the login of {} for {key} is stored in {}",
        args.username,
        file.path().display()
    ));
    Ok(Exit::Done)
}

fn from_stdin() -> anyhow::Result<Secret> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin()
        .take(LONGEST)
        .read_to_string(&mut text)
        .context("cannot read the password from standard input")?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

fn ask(user: &str, registry: &str) -> anyhow::Result<Secret> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is no terminal: give the password with --password-stdin");
    }
    let terminal = console::Term::stderr();
    terminal.write_str(&format!("Password of {user} for {registry}: "))?;
    Ok(Secret::new(terminal.read_secure_line()?))
}
