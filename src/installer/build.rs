//! `installer build`: a Kubefile and its context become a cluster image in the store.

use crate::{context::Context, failure::Exit, output::FormatArg, progress::Task, registry_args::RegistryArgs, table};
use anyhow::{Context as _, bail};
use image::{BuildOptions, Event, Progress, PullOptions, Store};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Flags of `build`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the image
    #[arg(short, long, value_name = "NAME")]
    pub tag: oci::Reference,
    /// The recipe [default: CONTEXT/Kubefile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A value for ARG; may be repeated
    #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = pair)]
    pub build_args: Vec<(String, String)>,
    /// A folder for `COPY --from=NAME`; may be repeated
    #[arg(long = "build-context", value_name = "NAME=DIR", value_parser = pair)]
    pub build_contexts: Vec<(String, String)>,
    /// What the image is for, as os/architecture [default: this machine]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    pub platform: Option<oci::Platform>,
    /// Ask no registry: every image must be in the context, the base image, or another image of the store
    #[arg(long)]
    pub no_pull: bool,
    /// How to speak to registries.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// The folder COPY, CNI, APP and IMAGE read from
    #[arg(value_name = "CONTEXT")]
    pub context: PathBuf,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err("the form is NAME=VALUE".to_string()),
    }
}

/// `linux/amd64`.
pub fn platform(text: &str) -> Result<oci::Platform, String> {
    match text.split('/').collect::<Vec<_>>().as_slice() {
        ["linux", architecture] => Ok(oci::Platform {
            architecture: (*architecture).to_string(),
            os: "linux".to_string(),
            variant: None,
        }),
        _ => Err("the form is linux/ARCHITECTURE".to_string()),
    }
}

/// Builds, and prints the digest.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    if !args.context.is_dir() {
        bail!("the context {} is no folder", args.context.display());
    }
    let start = Instant::now();
    let store = Store::open(&context.store).context("cannot open the image store")?;
    let options = BuildOptions {
        kubefile: args.file.unwrap_or_else(|| args.context.join("Kubefile")),
        context: args.context,
        build_contexts: args
            .build_contexts
            .into_iter()
            .map(|(name, dir)| (name, dir.into()))
            .collect(),
        build_args: args.build_args.into_iter().collect::<BTreeMap<_, _>>(),
        platform: args.platform.unwrap_or_else(image::host_platform),
        pull: PullOptions {
            remote: args.registries.remote(),
            offline: args.no_pull,
        },
        tag: args.tag,
    };
    let show = Arc::new(Show {
        out: context.out.clone(),
        pulls: Mutex::default(),
    });
    let built = image::build(&store, options, show).await?;
    context.out.json(&serde_json::json!({"event": "built", "image": built}));
    let (size, time) = (table::size(built.size), table::time(start.elapsed()));
    context.out.note(format!(
        "{} carries {} images, {size}, built in {time}",
        built.reference.familiar(),
        built.carried
    ));
    context.out.result(built.digest.as_str());
    Ok(Exit::Done)
}

struct Show {
    out: crate::output::Output,
    /// Images on their way, with the bytes that have come.
    pulls: Mutex<HashMap<String, (Task, u64)>>,
}

impl Show {
    fn pulled(&self, image: String, done: u64, total: u64) {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        let (task, before) = pulls.entry(image).or_insert_with_key(|image| {
            let task = self.out.task(image);
            task.phase("pulling");
            task.total(total);
            (task, 0)
        });
        // Several blobs of an image come at once, and one may begin again.
        if done > *before {
            task.advance(done - *before);
            *before = done;
        }
        if done >= total {
            task.done(&format!("pulled, {}", table::size(total)));
        }
    }
}

impl Progress for Show {
    fn event(&self, event: Event) {
        match event {
            Event::Step { number, total, text } => self.out.note(format!("[{number:>2}/{total}] {text}")),
            Event::Output(line) => self.out.note(format!("        {line}")),
            Event::Layer {
                digest,
                size,
                cached: false,
            } => {
                self.out
                    .note(format!("        layer {} {}", digest.short(), table::size(size)));
            }
            Event::Pulled { image, done, total } => self.pulled(image, done, total),
            _ => {}
        }
    }
}
