//! `installer images`: what the store holds.

use crate::{context::Context, document::DocumentArg, failure::Exit, table};
use image::Store;

/// Flags of `images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print.
    #[command(flatten)]
    pub format: DocumentArg,
}

/// Lists the cluster images.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let images = Store::open(&context.store)?.list()?;
    for image in &images {
        if let Some(problem) = &image.problem {
            context.out.warn(format!("{}: {problem}", image.name));
        }
    }
    if args.format.print(&context.out, &images)? {
        return Ok(Exit::Done);
    }
    let mut headers = vec!["NAME", "DIGEST", "PLATFORM", "IMAGES", "SIZE", "UNIQUE"];
    if args.format.is_wide() {
        headers.extend(["SHARED", "BLOBS", "CREATED"]);
    }
    headers.push("STORED");
    let mut list = table::Table::new(headers);
    for image in &images {
        let digest = match args.format.is_wide() {
            true => image.digest.as_str(),
            false => image.digest.short(),
        };
        let mut row = vec![
            image.name.clone(),
            digest.to_string(),
            image.platforms.join(","),
            image.carried.to_string(),
            table::size(image.size),
            table::size(image.unique),
        ];
        if args.format.is_wide() {
            row.push(table::size(image.shared));
            row.push(image.blobs.to_string());
            row.push(image.created.clone().unwrap_or_else(|| "unknown".to_string()));
        }
        row.push(stored(image.stored));
        list.row(row);
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
