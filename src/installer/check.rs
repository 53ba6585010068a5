//! `installer check`: proves that the cluster works, from the API server and from every node.

use crate::{cluster_args::ClusterArgs, context::Context, failure::Exit, output::FormatArg, report};
use bootstrap::{check, install};
use clusterfile::Clusterfile;
use std::time::{Duration, Instant};

/// Flags of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer check
  installer check --timeout 0 -o json     as it is at this moment, for programs
  installer check -q -o json | jq -e 'select(.event == \"checked\") | .ok'

Exit codes: 0 all is well, 4 something is not, 1 it could not be checked")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How long to wait for what is not yet well, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub timeout: u64,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Checks the cluster.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let options: install::Options = args.cluster.options(context, "check", &clusterfile.cluster.name, None);
    context.started("check", &clusterfile);
    prove(context, &clusterfile, &options, Duration::from_secs(args.timeout)).await
}

/// Checks the cluster, waiting so long for what is not yet well; prints what was found, and gives the exit code for it.
pub async fn prove(
    context: &Context,
    clusterfile: &Clusterfile,
    options: &install::Options,
    patience: Duration,
) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let checks = check::run(clusterfile, options, patience).await?;
    context.out.finish();
    Ok(if report::checks(context, &checks, start.elapsed()) {
        Exit::Done
    } else {
        Exit::Unhealthy
    })
}
