//! `installer verify`: proves that an image is whole, that nothing it needs is missing, and who vouches for it.

use crate::{bar::Bar, context::Context, failure::Exit, output::FormatArg, table};
use image::{Store, Verification};
use oci::counted;
use std::path::PathBuf;
use trust::{Good, PublicKey};

/// Flags of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every blob is read and compared with its digest; every image name in manifests, lists and the runtime's configuration is
looked up in the image's lock, and that is compared with what the image carries. With keys, one of them must have signed
the image. Ends with 1 if anything is wrong.

Examples:
  installer verify local/native:dev                                it is whole and carries all that it names
  installer verify local/native:dev --key ops.pub                  and ops vouches for it
  installer verify local/native:dev --key ops.pub --key qa.pub     and one of the two does")]
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

/// Verifies, and prints what was found.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
    let signatures = signatures(&args, context, &store)?;
    let bar = Bar::new(&context.out, &args.image);
    let name = args.image.clone();
    let found = tokio::task::spawn_blocking(move || {
        let found = image::verify(&store, &name, &bar);
        bar.end(found.as_ref().is_ok_and(Verification::is_good));
        found
    })
    .await??;
    if context.out.is_json() {
        context
            .out
            .json(&serde_json::json!({"event": "verified", "good": found.is_good(), "image": found, "signatures": signatures}));
    } else {
        text(&found, context);
        signatures
            .iter()
            .for_each(|signature| context.out.result(line(signature)));
    }
    Ok(if found.is_good() { Exit::Done } else { Exit::Failed })
}

fn text(found: &Verification, context: &Context) {
    let out = &context.out;
    let problems = found.platforms.iter().flat_map(|platform| {
        let text = |problem| format!("{}: {problem}", platform.platform);
        platform.problems.iter().map(text)
    });
    for platform in &found.platforms {
        platform
            .warnings
            .iter()
            .for_each(|warning| out.warn(format!("{}: {warning}", platform.platform)));
    }
    let problems: Vec<String> = found.problems.iter().cloned().chain(problems).collect();
    problems.iter().for_each(|problem| out.error(problem));
    let blobs = format!("{}, {}", counted(found.blobs, "blob"), table::size(found.bytes));
    if !problems.is_empty() {
        out.result(format!(
            "{} of {blobs}: {}",
            shown(found),
            counted(problems.len(), "problem")
        ));
        return;
    }
    for platform in &found.platforms {
        out.note(format!(
            "{}: {} named in files, {} carried, none missing",
            platform.platform,
            counted(platform.named, "image"),
            platform.carried
        ));
    }
    out.result(format!("{} is whole: {blobs}", shown(found)));
}

fn shown(found: &Verification) -> String {
    found.digest.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// The good signatures by the keys that were given; there must be one if keys were.
fn signatures(args: &Args, context: &Context, store: &Store) -> anyhow::Result<Vec<Good>> {
    if args.keys.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<PublicKey> = args
        .keys
        .iter()
        .map(|path| PublicKey::read(path))
        .collect::<Result<_, _>>()?;
    let index = store.resolve(&args.image)?;
    let verdict = trust::check(store, &index, &keys)?;
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
