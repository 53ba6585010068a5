//! `installer reset`: takes hosts out of the cluster, or the whole cluster off its hosts, and proves that nothing is left.

use crate::{
    cluster_args::{ClusterArgs, confirm},
    context::Context,
    failure::Exit,
    join::addresses,
    output::FormatArg,
    recording::ReportArg,
};
use bootstrap::{
    event::Event,
    reset::{self, HostReset, Request},
};
use std::time::Duration;

/// Flags of `reset`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer reset --nodes 10.0.0.7      drain one node, take it out, undo everything on it
  installer reset --yes                 the whole cluster, without asking
  installer reset --yes --force         although a host is dead")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Addresses or ranges a-b; without it the whole cluster
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Go on although a host cannot be reached, or a node cannot be drained
    #[arg(long)]
    pub force: bool,
    /// How long pods get to leave a node, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub drain_timeout: u64,
    /// The report.
    #[command(flatten)]
    pub report: ReportArg,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Resets hosts.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let name = &clusterfile.cluster.name;
    let nodes = addresses(&args.nodes)?;
    let what = if nodes.is_empty() {
        format!(
            "remove the whole cluster {name} and its data from {} hosts?",
            clusterfile.cluster.hosts.len()
        )
    } else {
        let list: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        format!(
            "drain {} and remove everything of the cluster {name} from it?",
            list.join(", ")
        )
    };
    if !confirm(context, &what, args.yes)? {
        context.out.note("nothing was done");
        return Ok(Exit::Failed);
    }
    context.started("reset", &clusterfile);
    let options = args.cluster.options(context, "reset", name, None);
    let request = Request {
        nodes,
        force: args.force,
        drain: Duration::from_secs(args.drain_timeout),
    };
    let results = reset::reset(&clusterfile, &options, &request).await?;
    context.out.finish();
    Ok(print(context, &results))
}

/// Prints what was undone and what is left.
pub fn print(context: &Context, results: &[HostReset]) -> Exit {
    let out = &context.out;
    for result in results {
        context.observer.event(Event::Reset { result: result.clone() });
        if let Some(reason) = &result.skipped {
            out.warn(format!("left out: {reason}"));
            continue;
        }
        let left = if result.left.is_empty() {
            "nothing is left"
        } else {
            "something is left"
        };
        out.result(format!("{}: {} changes undone, {left}", result.host, result.undone));
        for failure in &result.failed {
            out.error(&format!("{}: {failure}", result.host));
        }
        for left in &result.left {
            out.result(format!("  {} {} {}", left.kind, left.name, left.how));
        }
    }
    let good = results.iter().all(|result| result.clean());
    if good { Exit::Done } else { Exit::Failed }
}
