//! `installer sbom`: what is in an image.

use crate::{context::Context, failure::Exit, sign::source_date_epoch};
use anyhow::Context as _;
use image::{ClusterImage, Store};
use oci::counted;
use std::path::PathBuf;

/// Flags of `sbom`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer sbom local/native:dev -o native.spdx.json
  installer sbom local/native:dev | jq -r '.packages[] | [.name, .versionInfo, .licenseDeclared] | @tsv'

The same image gives the same bytes: the time of creation is that of SOURCE_DATE_EPOCH, or 1970.")]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// File to write instead of standard output: SPDX 2.3, JSON
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Writes the bill of materials.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let (reference, _) = store.resolve_named(&args.image)?;
    let image = ClusterImage::open(&store, &args.image, &image::host_platform())?;
    let created = source_date_epoch()?.unwrap_or(0);
    let document = sbom::document(&image, reference.as_ref(), created)?;
    let text = serde_json::to_string_pretty(&document)? + "\n";
    match &args.output {
        None => context.out.raw(&text),
        Some(path) => {
            std::fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
            context.out.note(format!(
                "{}: {}, {}",
                path.display(),
                counted(document.packages.len(), "package"),
                counted(document.files.len(), "file")
            ));
        }
    }
    Ok(Exit::Done)
}
