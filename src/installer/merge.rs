//! `installer merge`: several cluster images become one.

use crate::{build, context::Context, failure::Exit, output::FormatArg, table};
use image::{MergeOptions, NoProgress, Store};
use oci::counted;

/// Flags of `merge`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or digests of the images
    #[arg(value_name = "IMAGE", required = true, num_args = 2..)]
    pub images: Vec<String>,
    /// Name of the new image
    #[arg(short, long, value_name = "NAME")]
    pub tag: oci::Reference,
    /// Which image wins where they contradict each other [default: none, they are refused]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub prefer: Option<Prefer>,
    /// Merge only this platform, as os/architecture; may be repeated [default: all]
    #[arg(long, value_name = "PLATFORM", value_parser = build::platform)]
    pub platform: Vec<oci::Platform>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Who wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Prefer {
    /// The image named first
    First,
    /// The image named last
    Last,
}

/// Merges, and prints the digest.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let options = MergeOptions {
        images: args.images,
        tag: args.tag,
        prefer: args.prefer.map(|prefer| match prefer {
            Prefer::First => image::Prefer::First,
            Prefer::Last => image::Prefer::Last,
        }),
        platforms: args.platform,
    };
    let merged = tokio::task::spawn_blocking(move || image::merge(&store, &options, &NoProgress)).await??;
    context.out.json(&merged);
    for conflict in &merged.decided {
        context.out.note(format!("decided: {conflict}"));
    }
    context.out.note(format!(
        "{} carries {}, {}",
        merged.reference.familiar(),
        counted(merged.carried, "image"),
        table::size(merged.size)
    ));
    context.out.result(merged.digest.as_str());
    Ok(Exit::Done)
}
