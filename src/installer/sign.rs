//! `installer sign`: vouches for an image of the store.

use crate::{context::Context, failure::Exit, key::PassphraseArgs, output::FormatArg};
use anyhow::Context as _;
use clusterfile::Secret;
use image::Store;
use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};
use trust::{KeyFile, PrivateKey};

/// Flags of `sign`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer sign local/native:dev --key ops.key
  installer sign local/native:dev --key ops.key --passphrase-env OPS_PASSPHRASE

The signature covers the image's digest, and with it every byte of the image. It is kept beside the image and travels with it
(save, load, push, pull). Several keys may sign one image.")]
pub struct Args {
    /// Name or digest of the image; by name, the signature says the name too
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The private key, as written by `installer key generate` or OpenSSL
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Where the passphrase is.
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Signs.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let (reference, index) = store.resolve_named(&args.image)?;
    let key = open(args, context)?;
    let now = match source_date_epoch()? {
        Some(time) => time,
        None => i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?,
    };
    let creator = concat!("installer ", env!("CARGO_PKG_VERSION"));
    let signed = trust::sign(&store, (reference, &index), &key, now, creator)?;
    context.out.json(&serde_json::json!({
        "image": args.image, "digest": index.digest, "key": signed.key, "signature": signed.artifact, "already": signed.already,
    }));
    let what = if signed.already { "was signed already" } else { "signed" };
    context.out.result(format!(
        "{} {} {what} by the key {}",
        args.image, index.digest, signed.key
    ));
    Ok(Exit::Done)
}

fn open(args: &Args, context: &Context) -> anyhow::Result<PrivateKey> {
    let file = KeyFile::read(&args.key)?;
    let shown = args.key.display();
    if file.is_exposed() {
        context
            .out
            .warn(format!("others may read the private key {shown}: chmod 600 {shown}"));
    }
    let given = args.passphrase.read()?;
    let passphrase = match given {
        None if file.is_encrypted() => Some(
            context
                .out
                .ask_secret(&format!("passphrase of {shown}: "))
                .context("give it with --passphrase-file or --passphrase-env")?,
        ),
        given => given,
    };
    Ok(file.open(passphrase.as_ref().map(Secret::expose))?)
}

/// The time that reproducible work is to be done at (reproducible-builds.org, `SOURCE_DATE_EPOCH`), in seconds since 1970.
pub fn source_date_epoch() -> anyhow::Result<Option<i64>> {
    let Some(value) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(None);
    };
    let time = value.to_str().and_then(|text| text.parse().ok());
    let time = time.with_context(|| format!("SOURCE_DATE_EPOCH is {value:?}, not a number of seconds since 1970"))?;
    Ok(Some(time))
}
