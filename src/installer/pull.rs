//! `installer pull`: a cluster image from a registry; only what the store lacks is fetched.

use crate::{bar::Bar, context::Context, failure::Exit, output::FormatArg, registry_args::RegistryArgs, table};
use image::Store;
use std::sync::Arc;

/// Flags of `pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the image in its registry
    #[arg(value_name = "IMAGE")]
    pub image: oci::Reference,
    /// Another name for it in the store
    #[arg(short, long, value_name = "NAME")]
    pub tag: Option<oci::Reference>,
    /// How to reach registries.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Fetches the image. Run again after a failure, it goes on where it stopped.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let remote = image::Remote::new(args.registry.remote())?;
    let bar = Arc::new(Bar::new(&context.out, args.image.familiar()));
    let pulled = image::pull(&store, &args.image, args.tag.as_ref(), &remote, bar.clone()).await;
    bar.end(pulled.is_ok());
    let pulled = pulled?;
    context.out.json(&pulled);
    let (name, new) = (pulled.reference.familiar(), table::size(pulled.new_bytes));
    let blobs = pulled.new_blobs;
    context
        .out
        .result(format!("{name} {} ({blobs} new blobs, {new})", pulled.digest));
    Ok(Exit::Done)
}
