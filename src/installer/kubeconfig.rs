//! `installer kubeconfig`: the administrator's way into the cluster.

use crate::{cluster_args::ClusterArgs, context::Context, failure::Exit};
use anyhow::Context as _;
use bootstrap::kubeconfig;
use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Flags of `kubeconfig`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer kubeconfig > admin.conf
  export KUBECONFIG=$(installer kubeconfig --out ~/.kube/demo)
  installer kubeconfig --merge ~/.kube/config     and make it the current context

It is as powerful as root on the cluster: keep it secret.")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Write it to this file (mode 600) and print the file's name
    #[arg(long, value_name = "FILE", conflicts_with = "merge")]
    pub out: Option<PathBuf>,
    /// Lay it over this kubeconfig, whose other entries stay, and print the file's name
    #[arg(long, value_name = "FILE")]
    pub merge: Option<PathBuf>,
}

/// Fetches it from the first master.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let options = args
        .cluster
        .options(context, "kubeconfig", &clusterfile.cluster.name, None);
    let text = kubeconfig::fetch(&clusterfile, &options).await?;
    if let Some(path) = &args.merge {
        let old = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        write(
            path,
            &kubeconfig::merged(&old, &text).with_context(|| path.display().to_string())?,
        )?;
        context.out.result(path.display().to_string());
    } else if let Some(path) = &args.out {
        write(path, &text)?;
        context.out.result(path.display().to_string());
    } else {
        context.out.raw(&text);
    }
    Ok(Exit::Done)
}

/// Readable by its owner only, and whole or not at all.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(cannot)?;
    }
    let partial = path.with_extension(format!("part{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .with_context(cannot)?;
    file.write_all(text.as_bytes()).with_context(cannot)?;
    file.sync_all().with_context(cannot)?;
    std::fs::rename(&partial, path).with_context(cannot)
}
