//! `installer etcd`: a snapshot of all that the cluster stores, and going back to one.

use crate::{
    check,
    cluster_args::{ClusterArgs, confirm},
    context::Context,
    failure::Exit,
    output::FormatArg,
    table::size,
};
use bootstrap::etcd;
use std::{path::PathBuf, time::Duration};

/// How long the cluster may take to work again after a restore.
const PATIENCE: Duration = Duration::from_secs(180);

/// Flags of `etcd`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done with etcd's data.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Take a snapshot into a file; all secrets of the cluster are in it
    Snapshot(SnapshotArgs),
    /// Make the cluster what it was when a snapshot was taken
    Restore(RestoreArgs),
}

impl Command {
    /// How it was asked to print.
    pub fn format(&self) -> &FormatArg {
        match self {
            Self::Snapshot(args) => &args.format,
            Self::Restore(args) => &args.format,
        }
    }
}

/// Flags of `etcd snapshot`.
#[derive(Debug, clap::Args)]
pub struct SnapshotArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The file to be written; it must not exist yet
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Flags of `etcd restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What happened in the cluster since the snapshot is forgotten. The data from before stays on the master, and is put back if the
control plane does not come up.")]
pub struct RestoreArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The snapshot
    #[arg(value_name = "FILE")]
    pub snapshot: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Takes a snapshot or goes back to one.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    match &args.command {
        Command::Snapshot(args) => snapshot(args, context).await,
        Command::Restore(args) => restore(args, context).await,
    }
}

async fn snapshot(args: &SnapshotArgs, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let options = args
        .cluster
        .options(context, "etcd snapshot", &clusterfile.cluster.name, None);
    let taken = etcd::snapshot(&clusterfile, &options, &args.out).await?;
    context.out.finish();
    context
        .out
        .json(&serde_json::json!({"event": "snapshot", "file": args.out, "snapshot": taken}));
    context.out.result(format!(
        "{}: {}, {}",
        args.out.display(),
        size(taken.bytes),
        taken.digest
    ));
    Ok(Exit::Done)
}

async fn restore(args: &RestoreArgs, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let name = &clusterfile.cluster.name;
    let question = format!(
        "make the cluster {name} what it was when {} was taken, and forget what happened since?",
        args.snapshot.display()
    );
    if !confirm(context, &question, args.yes)? {
        context.out.note("nothing was done");
        return Ok(Exit::Failed);
    }
    let options = args.cluster.options(context, "etcd restore", name, None);
    let restored = etcd::restore(&clusterfile, &options, &args.snapshot).await?;
    context
        .out
        .json(&serde_json::json!({"event": "restored", "restored": restored}));
    context.out.note(format!(
        "the data from before lies on the master in {}",
        restored.before
    ));
    check::prove(context, &clusterfile, &options, PATIENCE).await
}
