//! `installer load`: a cluster image from a file into the store, verified blob by blob.

use crate::{context::Context, failure::Exit, output::FormatArg, save::Bar, table};
use image::Store;
use std::path::PathBuf;

/// Flags of `load`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to read, as written by `installer save`
    #[arg(short, long, value_name = "FILE")]
    pub input: PathBuf,
    /// Name for an image that has none in the archive
    #[arg(short, long, value_name = "NAME")]
    pub tag: Option<oci::Reference>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Reads the archive.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let bar = Bar::new(context.out.task(args.input.display().to_string()));
    let loaded = tokio::task::spawn_blocking(move || {
        let loaded = image::load(&store, &args.input, args.tag.as_ref(), &bar);
        bar.end(loaded.is_ok());
        loaded
    })
    .await??;
    context.out.json(&loaded);
    for (reference, digest) in &loaded.images {
        let (name, new) = (reference.familiar(), table::size(loaded.new_bytes));
        context
            .out
            .result(format!("{name} {digest} ({} new blobs, {new})", loaded.new_blobs));
    }
    Ok(Exit::Done)
}
