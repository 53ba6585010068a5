//! `installer push`: a cluster image into a registry; only what that lacks is sent.

use crate::{bar::Bar, context::Context, failure::Exit, output::FormatArg, registry_args::RegistryArgs, table};
use anyhow::{Context as _, bail};
use image::Store;
use oci::counted;
use std::sync::Arc;

/// Flags of `push`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Its name in the registry [default: the same]
    #[arg(value_name = "DESTINATION")]
    pub destination: Option<oci::Reference>,
    /// A repository of the same registry that may have some of the blobs (team/base); may be repeated
    #[arg(long, value_name = "REPOSITORY")]
    pub mount_from: Vec<String>,
    /// How to reach registries.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Sends the image.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let destination = match args.destination {
        Some(destination) => destination,
        None => {
            let (name, _) = store.resolve_named(&args.image)?;
            name.context("an image given by its digest needs a DESTINATION")?
        }
    };
    for path in &args.mount_from {
        let inside = format!("{}/{path}", destination.domain()).parse::<oci::Reference>();
        if inside.ok().is_none_or(|reference| reference.path() != path) {
            bail!("--mount-from {path}: the form is a repository without registry and tag, such as team/base");
        }
    }
    let remote = image::Remote::new(args.registry.remote())?;
    let bar = Arc::new(Bar::new(&context.out, destination.familiar()));
    let pushed = image::push(
        &store,
        &args.image,
        &destination,
        &args.mount_from,
        &remote,
        bar.clone(),
    )
    .await;
    bar.end(pushed.is_ok());
    let pushed = pushed?;
    context.out.json(&pushed);
    context.out.note(format!(
        "{} sent in {}, {} there before, {} taken over from other repositories",
        table::size(pushed.bytes),
        counted(pushed.sent, "blob"),
        pushed.present,
        pushed.mounted
    ));
    context
        .out
        .result(format!("{}@{}", destination.repository(), pushed.digest));
    Ok(Exit::Done)
}
