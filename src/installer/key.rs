//! `installer key`: keys that images are signed with.

use crate::{context::Context, failure::Exit, output::FormatArg};
use clusterfile::{Secret, SecretSource};
use std::path::PathBuf;
use trust::PrivateKey;

/// Flags of `key`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done with keys.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a new Ed25519 key: NAME.key, which only you may read, and NAME.pub for those who verify
    Generate(Generate),
}

/// Flags of `key generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer key generate --out ops                              ops.key and ops.pub
  installer key generate --out ops --passphrase                 asks for a passphrase that protects ops.key
  installer key generate --out ops --passphrase-file secret.txt the same without a terminal

The files are PEM (PKCS#8), as OpenSSL writes and reads them.")]
pub struct Generate {
    /// Name of the files, without .key and .pub
    #[arg(long, default_value = "installer", value_name = "NAME")]
    pub out: PathBuf,
    /// Ask for a passphrase that protects the private key
    #[arg(long, conflicts_with_all = ["passphrase_file", "passphrase_env"])]
    pub passphrase: bool,
    /// Where the passphrase is.
    #[command(flatten)]
    pub source: PassphraseArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Where a private key's passphrase is, if not in the operator's head.
#[derive(Debug, Clone, clap::Args)]
pub struct PassphraseArgs {
    /// File whose first line is the private key's passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_env")]
    pub passphrase_file: Option<PathBuf>,
    /// Environment variable that holds the private key's passphrase
    #[arg(long, value_name = "NAME")]
    pub passphrase_env: Option<String>,
}

impl PassphraseArgs {
    /// The passphrase, if one of the flags was given.
    pub fn read(&self) -> anyhow::Result<Option<Secret>> {
        let source = match (&self.passphrase_file, &self.passphrase_env) {
            (Some(path), _) => SecretSource::File(path.clone()),
            (None, Some(name)) => SecretSource::Env(name.clone()),
            (None, None) => SecretSource::None,
        };
        Ok(source.resolve()?)
    }
}

impl Command {
    /// How this command was asked to print.
    pub fn format(&self) -> &FormatArg {
        match self {
            Command::Generate(args) => &args.format,
        }
    }
}

/// Does it.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    match &args.command {
        Command::Generate(args) => generate(args, context),
    }
}

fn generate(args: &Generate, context: &Context) -> anyhow::Result<Exit> {
    let passphrase = match args.source.read()? {
        None if args.passphrase => Some(new_passphrase(context)?),
        given => given,
    };
    let empty = passphrase
        .as_ref()
        .is_some_and(|passphrase| passphrase.expose().is_empty());
    anyhow::ensure!(
        !empty,
        "an empty passphrase protects nothing; leave it out if that is what you want"
    );
    let key = PrivateKey::generate()?;
    let (private, public) = trust::write_pair(&key, passphrase.as_ref().map(Secret::expose), &args.out)?;
    let id = key.public("").id().clone();
    let (private, public) = (private.display().to_string(), public.display().to_string());
    context
        .out
        .json(&serde_json::json!({"key": id, "private": private, "public": public}));
    context
        .out
        .result(format!("{private}  sign with it; whoever has it can sign as you"));
    context.out.result(format!("{public}  give it to those who verify"));
    context.out.result(format!("key {id}"));
    if passphrase.is_none() {
        context.out.note(format!(
            "{private} is not protected by a passphrase, only by its mode 0600"
        ));
    }
    Ok(Exit::Done)
}

fn new_passphrase(context: &Context) -> anyhow::Result<Secret> {
    let passphrase = context.out.ask_secret("passphrase for the new key: ")?;
    let again = context.out.ask_secret("the same again: ")?;
    anyhow::ensure!(passphrase == again, "the two passphrases differ");
    Ok(passphrase)
}
