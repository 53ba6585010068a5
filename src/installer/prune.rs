//! `installer prune`: frees what no image needs.

use crate::{bar::Bar, context::Context, document::DocumentArg, failure::Exit, table};
use image::{PruneOptions, Pruned, Store};

/// Flags of `prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be freed
    #[arg(long)]
    pub dry_run: bool,
    /// Read every blob too, and remove damaged ones, so that they can be pulled, loaded or built again, and images that can
    /// never be used
    #[arg(long)]
    pub damaged: bool,
    /// Forget what is remembered of layers too; the next build makes them again
    #[arg(long)]
    pub cache: bool,
    /// How to print.
    #[command(flatten)]
    pub format: DocumentArg,
}

/// Frees it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let options = PruneOptions {
        dry_run: args.dry_run,
        damaged: args.damaged,
        cache: args.cache,
    };
    let bar = Bar::new(&context.out, "prune");
    let pruned = tokio::task::spawn_blocking(move || {
        let pruned = store.prune(options, &bar);
        bar.end(pruned.is_ok());
        pruned
    })
    .await??;
    let verb = if args.dry_run { "would be removed" } else { "removed" };
    for image in &pruned.unusable {
        let (name, problem) = (&image.name, &image.problem);
        context
            .out
            .warn(format!("{name}: {verb}, it can never be used: {problem}"));
    }
    for blob in &pruned.damaged {
        let images = match blob.images.as_slice() {
            [] => "no image needs it".to_string(),
            images => format!("needed by {}: pull, load or build again", images.join(", ")),
        };
        context.out.warn(format!("{}; {images}", blob.problem));
    }
    if !args.format.print(&context.out, &pruned)? {
        context.out.table(&list(&pruned, args.format.is_wide()));
        let verb = if args.dry_run { "would be freed" } else { "freed" };
        context.out.result(format!("{} {verb}", table::size(pruned.bytes)));
    }
    Ok(Exit::Done)
}

fn list(pruned: &Pruned, wide: bool) -> table::Table {
    let mut list = table::Table::new(["WHAT", "COUNT", "SIZE"]);
    let blobs = [("blobs", &pruned.blobs), ("unfinished downloads", &pruned.partial)];
    for (what, blobs) in blobs {
        let size = blobs.iter().map(|blob| blob.size).sum();
        list.row([what.to_string(), blobs.len().to_string(), table::size(size)]);
        for blob in blobs.iter().filter(|_| wide) {
            list.row([format!("  {}", blob.digest), String::new(), table::size(blob.size)]);
        }
    }
    if !pruned.unusable.is_empty() {
        list.row([
            "unusable images".to_string(),
            pruned.unusable.len().to_string(),
            String::new(),
        ]);
    }
    let damaged = pruned.damaged.iter().map(|blob| blob.size).sum();
    list.row([
        "damaged blobs".to_string(),
        pruned.damaged.len().to_string(),
        table::size(damaged),
    ]);
    list.row([
        "temporary files".to_string(),
        String::new(),
        table::size(pruned.temporary),
    ]);
    list.row([
        "remembered layers".to_string(),
        String::new(),
        table::size(pruned.cache),
    ]);
    list
}
