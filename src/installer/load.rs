//! `installer load`: cluster images from outside into the store, verified blob by blob.

use crate::{bar::Bar, context::Context, failure::Exit, output::FormatArg, table};
use anyhow::bail;
use image::{Loaded, Store};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

/// Flags of `load`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Archive, list of parts (FILE.sha256) or first part (FILE.000), or OCI folder; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub input: PathBuf,
    /// Name for an image that has none in the archive
    #[arg(short, long, value_name = "NAME")]
    pub tag: Option<oci::Reference>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Reads the images.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let from_stdin = args.input.as_os_str() == "-";
    if from_stdin && std::io::stdin().is_terminal() {
        bail!("standard input is a terminal: name a file with -i, or send an archive");
    }
    let store = Store::open(&context.store)?;
    let bar = Bar::new(&context.out, args.input.display().to_string());
    let loaded = tokio::task::spawn_blocking(move || {
        let loaded = read(&store, &args, from_stdin, &bar);
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

fn read(store: &Store, args: &Args, from_stdin: bool, bar: &Bar) -> Result<Loaded, image::Error> {
    let tag = args.tag.as_ref();
    match from_stdin {
        true => image::load_stream(store, std::io::stdin().lock(), Path::new("standard input"), tag, bar),
        false => image::load(store, &args.input, tag, bar),
    }
}
