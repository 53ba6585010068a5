//! `installer tag`: one more name for an image.

use crate::{context::Context, failure::Exit};
use image::Store;

/// Flags of `tag`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The new name; an image that has it loses it
    #[arg(value_name = "NAME")]
    pub name: oci::Reference,
}

/// Gives the name.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let _in_use = store.hold()?;
    let index = store.resolve(&args.image)?;
    store.tag(&args.name, &index)?;
    context
        .out
        .note(format!("{} is {}", args.name.familiar(), index.digest));
    Ok(Exit::Done)
}
