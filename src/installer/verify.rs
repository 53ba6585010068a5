//! `installer verify`: whether an image is whole, and who vouches for it.

use crate::{context::Context, failure::Exit, output::FormatArg, table};
use image::{ClusterImage, Store};
use std::path::PathBuf;
use trust::{Good, PublicKey};

/// Flags of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer verify local/native:dev                                every blob is there and has its digest
  installer verify local/native:dev --key ops.pub                  and ops vouches for it
  installer verify local/native:dev --key ops.pub --key qa.pub     and one of the two does

Exit codes: 0 all is well, 1 something is not")]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// A public key; one of those given must have signed the image
    #[arg(long = "key", value_name = "FILE")]
    pub keys: Vec<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Verifies, cheapest first, and stops at what is wrong.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let image = ClusterImage::open(&store, &args.image, &image::host_platform())?;
    let signatures = signatures(args, context, &image)?;
    let report = image.verify(true);
    anyhow::ensure!(
        report.problems.is_empty(),
        "image {} is damaged:\n  {}\nbuild, load or pull it again",
        args.image,
        report.problems.join("\n  ")
    );
    context.out.json(&serde_json::json!({
        "image": args.image, "digest": image.index.digest, "blobs": report.blobs, "bytes": report.bytes, "signatures": signatures,
    }));
    let (digest, size) = (&image.index.digest, table::size(report.bytes));
    context.out.result(format!(
        "{} {digest}: {} blobs, {size}, all with their digests",
        args.image, report.blobs
    ));
    for signature in &signatures {
        context.out.result(line(signature));
    }
    Ok(Exit::Done)
}

/// The good signatures by the keys that were given; there must be one if keys were.
fn signatures(args: &Args, context: &Context, image: &ClusterImage) -> anyhow::Result<Vec<Good>> {
    if args.keys.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<PublicKey> = args
        .keys
        .iter()
        .map(|path| PublicKey::read(path))
        .collect::<Result<_, _>>()?;
    let verdict = trust::check(image.store(), &image.index, &keys)?;
    let faults = verdict.faults.clone();
    let good = verdict
        .accept(&keys)
        .map_err(|untrusted| anyhow::anyhow!("image {}: {untrusted}", args.image))?;
    for fault in faults {
        // Anybody may sign, so signatures by others are nothing to be told of.
        if !matches!(fault, trust::Fault::OtherKey { .. }) {
            context.out.warn(fault.to_string());
        }
    }
    let name: Option<oci::Reference> = args.image.parse().ok();
    if let Some(text) = name.and_then(|name| trust::other_name(&good, &name)) {
        context.out.warn(format!("image {}: {text}", args.image));
    }
    Ok(good)
}

fn line(good: &Good) -> String {
    let time = good
        .payload
        .timestamp
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let when = time
        .map(|time| format!(" on {}", time.strftime("%Y-%m-%d %H:%M UTC")))
        .unwrap_or_default();
    let name = good
        .payload
        .reference
        .as_ref()
        .map(|name| format!(" as {name}"))
        .unwrap_or_default();
    format!("signed{name}{when} by {} ({})", good.origin, good.key)
}
