//! `installer inspect`: all that an image says about itself.

use crate::{context::Context, failure::Exit};
use image::{ClusterImage, Store};

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Yaml, value_name = "FORMAT")]
    pub output: Format,
    /// List the files of the rootfs too
    #[arg(long)]
    pub files: bool,
    /// Read every blob and compare it with its digest
    #[arg(long)]
    pub verify: bool,
}

/// Formats of `inspect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// YAML
    Yaml,
    /// JSON
    Json,
}

/// Prints a description; fails if `--verify` finds damage.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let image = ClusterImage::open(&store, &args.image, &image::host_platform())?;
    let mut description = image.describe();
    if args.files {
        description["files"] = serde_json::to_value(image.list("")?)?;
    }
    let mut exit = Exit::Done;
    if args.verify {
        let report = image.verify(true);
        if !report.problems.is_empty() {
            exit = Exit::Failed;
        }
        for problem in &report.problems {
            context.out.warn(problem);
        }
        description["verified"] = serde_json::to_value(report)?;
    }
    context.out.raw(&match args.output {
        Format::Yaml => serde_saphyr::to_string(&description)?,
        Format::Json => serde_json::to_string_pretty(&description)? + "\n",
    });
    Ok(exit)
}
