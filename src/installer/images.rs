//! `installer images`: what the store holds.

use crate::{context::Context, failure::Exit, output::FormatArg, table};
use image::Store;

/// Flags of `images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Lists the cluster images.
pub fn run(_args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let images = Store::open(&context.store)?.list()?;
    let mut list = table::Table::new(["NAME", "DIGEST", "PLATFORM", "IMAGES", "SIZE", "STORED"]);
    for image in &images {
        context.out.json(image);
        list.row([
            image.name.clone(),
            image.digest.short().to_string(),
            image.platforms.join(","),
            image.carried.to_string(),
            table::size(image.size),
            stored(image.stored),
        ]);
    }
    context.out.table(&list);
    Ok(Exit::Done)
}

fn stored(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or_else(String::new, |time| time.strftime("%Y-%m-%d %H:%M").to_string())
}
