//! `installer plan`: what an apply would do, and how many bytes it would send.

use crate::{
    cluster_args::{ClusterArgs, PreflightArgs},
    context::Context,
    failure::Exit,
    output::FormatArg,
    report,
};
use bootstrap::install;
use std::path::PathBuf;

/// Flags of `plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer plan                          for ./Clusterfile
  installer plan --accept-new-host-keys   hosts never seen before
  installer plan -f prod.yaml --diff      with the differences of every file
  installer plan -o json | jq .hosts      for programs
  installer plan --out plan.json          then installer apply --plan plan.json, which does this and nothing else

Exit codes: 0 nothing to do, 2 something to do, 3 refused by preflight, 1 failed")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What preflight may pass over.
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// Show the differences of files
    #[arg(long)]
    pub diff: bool,
    /// Write the plan to a file as well, for `apply --plan`; it holds no secrets
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Looks, and prints what would be done.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let name = clusterfile.cluster.name.clone();
    let options = args.cluster.options(context, "plan", &name, Some(&args.preflight));
    let prepared = install::prepare(&clusterfile, &options).await?;
    report::findings(context, &prepared.findings);
    prepared.leave().await;
    let Some(plan) = &prepared.plan else {
        return Ok(Exit::Refused);
    };
    if let (Some(path), Some(file)) = (&args.out, prepared.file()?) {
        std::fs::write(path, file.to_json()?).map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display()))?;
    }
    if context.out.is_json() {
        context.out.json(plan);
    } else {
        report::plan(&context.out, plan, args.diff);
    }
    Ok(if plan.is_empty() { Exit::Done } else { Exit::Changes })
}
