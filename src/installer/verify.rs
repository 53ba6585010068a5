//! `installer verify`: proves that an image is whole and that nothing it needs is missing.

use crate::{bar::Bar, context::Context, failure::Exit, output::FormatArg, table};
use image::{Store, Verification};

/// Flags of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every blob is read and compared with its digest; every image name in manifests, lists and the runtime's configuration is
looked up in the image's lock, and that is compared with what the image carries. Ends with 1 if anything is wrong.")]
pub struct Args {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Verifies, and prints what was found.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let store = Store::open(&context.store)?;
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
            .json(&serde_json::json!({"event": "verified", "good": found.is_good(), "image": found}));
    } else {
        text(&found, context);
    }
    Ok(if found.is_good() { Exit::Done } else { Exit::Failed })
}

fn text(found: &Verification, context: &Context) {
    let out = &context.out;
    let problems = found.platforms.iter().flat_map(|platform| {
        let text = |problem| format!("{}: {problem}", platform.platform);
        platform.problems.iter().map(text)
    });
    let problems: Vec<String> = found.problems.iter().cloned().chain(problems).collect();
    problems.iter().for_each(|problem| out.error(problem));
    let blobs = format!("{} blobs, {}", found.blobs, table::size(found.bytes));
    if !problems.is_empty() {
        out.result(format!("{} of {blobs}: {} problems", shown(found), problems.len()));
        return;
    }
    for platform in &found.platforms {
        out.note(format!(
            "{}: {} images named in files, {} carried, none missing",
            platform.platform, platform.named, platform.carried
        ));
    }
    out.result(format!("{} is whole: {blobs}", shown(found)));
}

fn shown(found: &Verification) -> String {
    found.digest.as_ref().map(ToString::to_string).unwrap_or_default()
}
