//! `installer rmi`: names go, and with them the blobs that no other image needs.

use crate::{context::Context, failure::Exit, table};
use image::Store;
use oci::counted;

/// Flags of `rmi`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or digests of the images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Removes images.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    for image in &args.images {
        let removed = store.remove(image)?;
        context.out.note(match removed.later {
            true => format!("{image}: removed; the store is in use, `installer prune` frees its blobs afterwards"),
            false => format!(
                "{image}: {} removed, {} freed",
                counted(removed.blobs, "blob"),
                table::size(removed.bytes)
            ),
        });
    }
    Ok(Exit::Done)
}
