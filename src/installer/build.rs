//! `installer build`: a Kubefile and its context become a cluster image in the store.

use crate::{context::Context, failure::Exit, output::FormatArg, progress::Task, registry_args::RegistryArgs, table};
use anyhow::{Context as _, bail};
use image::{BuildOptions, Event, Progress, PullOptions, Store};
use oci::counted;
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
    /// A folder for `--from=NAME`; may be repeated
    #[arg(long = "build-context", value_name = "NAME=DIR", value_parser = pair)]
    pub build_contexts: Vec<(String, String)>,
    /// What the image is for, as os/architecture; several are joined by commas [default: this machine]
    #[arg(long, value_name = "PLATFORM", value_parser = platform, value_delimiter = ',')]
    pub platform: Vec<oci::Platform>,
    /// Ask no registry: every image must be in the context, the base image, or another image of the store
    #[arg(long)]
    pub no_pull: bool,
    /// How to speak to registries.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// The helm that renders charts [default: the one on PATH, else bin/helm of the rootfs]
    #[arg(long, value_name = "PROGRAM")]
    pub helm: Option<PathBuf>,
    /// The folder COPY, ADD, CNI, CSI, APP and IMAGE read from
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

/// Architectures that images are made for, in Go's names.
const ARCHITECTURES: [&str; 8] = ["amd64", "arm64", "arm", "386", "ppc64le", "riscv64", "s390x", "loong64"];

/// A platform as it is written everywhere: `linux/amd64`, `linux/arm/v7`.
pub fn platform(text: &str) -> Result<oci::Platform, String> {
    let (architecture, variant) = match text.split('/').collect::<Vec<_>>().as_slice() {
        ["linux", architecture] => (*architecture, None),
        ["linux", architecture, variant] if !variant.is_empty() => (*architecture, Some(*variant)),
        _ => return Err("the form is linux/ARCHITECTURE".to_string()),
    };
    // The kernel's names for the same.
    let architecture = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    if !ARCHITECTURES.contains(&architecture) {
        let hint = clusterfile::names::did_you_mean(architecture, ARCHITECTURES);
        return Err(format!(
            "unknown architecture {architecture:?}{hint} (known: {})",
            ARCHITECTURES.join(", ")
        ));
    }
    Ok(oci::Platform {
        architecture: architecture.to_string(),
        os: "linux".to_string(),
        // It says nothing: there is no other one.
        variant: variant
            .filter(|variant| (architecture, *variant) != ("arm64", "v8"))
            .map(str::to_string),
    })
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
        platforms: match args.platform.is_empty() {
            true => vec![image::host_platform()],
            false => args.platform,
        },
        helm: args.helm,
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
        "{} for {} carries {}, {size}, built in {time}",
        built.reference.familiar(),
        built.platforms.join(", "),
        counted(built.carried, "image")
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
            Event::Warning(text) => self.out.warn(text),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_named_as_everywhere() {
        for (text, expected) in [
            ("linux/amd64", Ok(("amd64", None))),
            ("linux/x86_64", Ok(("amd64", None))),
            ("linux/aarch64", Ok(("arm64", None))),
            ("linux/arm64/v8", Ok(("arm64", None))),
            ("linux/arm/v7", Ok(("arm", Some("v7")))),
            ("linux/amd46", Err("did you mean \"amd64\"?")),
            ("windows/amd64", Err("the form is linux/")),
            ("amd64", Err("the form is linux/")),
            ("linux/arm/", Err("the form is linux/")),
        ] {
            match (platform(text), expected) {
                (Ok(found), Ok((architecture, variant))) => {
                    assert_eq!(
                        (found.architecture.as_str(), found.variant.as_deref()),
                        (architecture, variant),
                        "{text}"
                    );
                }
                (Err(error), Err(why)) => assert!(error.contains(why), "{text}: {error}"),
                (found, expected) => panic!("{text}: {found:?}, expected {expected:?}"),
            }
        }
    }
}
