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
    reset::{self, HostReset, Removed, Request},
};
use host::proto::{Leftover, Origin};
use oci::counted;
use std::time::Duration;

/// Differences of a host that are not ours and are printed; the host's owner may have installed a whole distribution since.
const MAX_THEIRS: usize = 20;

/// Flags of `reset`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer reset --nodes 10.0.0.7      drain one node, take it out, undo everything on it
  installer reset --yes                 the whole cluster, without asking
  installer reset --yes --force         although a host is dead
  installer reset --nodes 10.0.0.7 --force-remove    the host is gone for good: only the cluster forgets it")]
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
    /// The hosts of --nodes are gone for good: delete their nodes and pods from the cluster, and do not ask the hosts
    #[arg(long, requires = "nodes", conflicts_with = "force")]
    pub force_remove: bool,
    /// Reset the whole cluster although it has nodes that are not in the Clusterfile, and leave these as they are
    #[arg(long, conflicts_with = "nodes")]
    pub leave_unlisted: bool,
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
    let list: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let what = if args.force_remove {
        format!(
            "delete the {} of {} with all pods from the cluster {name}, without touching the {}?",
            if list.len() == 1 { "node" } else { "nodes" },
            list.join(", "),
            if list.len() == 1 { "host" } else { "hosts" }
        )
    } else if nodes.is_empty() {
        format!(
            "remove the whole cluster {name} and its data from {}?",
            counted(clusterfile.cluster.hosts.len(), "host")
        )
    } else {
        format!(
            "drain {} and remove everything of the cluster {name} from {}?",
            list.join(", "),
            if list.len() == 1 { "it" } else { "them" }
        )
    };
    if !confirm(context, &what, args.yes)? {
        context.out.note("nothing was done");
        return Ok(Exit::Failed);
    }
    context.started("reset", &clusterfile);
    let options = args.cluster.options(context, "reset", name, None);
    if args.force_remove {
        let removed = reset::force_remove(&clusterfile, &options, &nodes).await?;
        context.out.finish();
        if removed.is_empty() {
            context
                .out
                .result(format!("the cluster {name} has no node at {}", list.join(", ")));
        }
        return Ok(print_removed(context, &removed));
    }
    let request = Request {
        nodes,
        force: args.force,
        drain: Duration::from_secs(args.drain_timeout),
        leave_unlisted: args.leave_unlisted,
    };
    let results = reset::reset(&clusterfile, &options, &request).await?;
    context.out.finish();
    Ok(print(context, &results))
}

/// Prints which nodes were taken out of the cluster.
pub fn print_removed(context: &Context, removed: &[Removed]) -> Exit {
    let out = &context.out;
    for one in removed {
        context.observer.event(Event::Removed { removed: one.clone() });
        match &one.failed {
            None => out.result(format!(
                "node {} is out of the cluster with {}",
                one.node,
                counted(one.pods, "pod")
            )),
            Some(why) => out.error(&format!("node {}: {why}", one.node)),
        }
    }
    if removed.iter().all(|one| one.failed.is_none()) {
        Exit::Done
    } else {
        Exit::Failed
    }
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
        let left = match result.left_by_us().next() {
            None => "nothing is left",
            Some(_) => "something is left",
        };
        out.result(format!(
            "{}: {} undone, {left}",
            result.host,
            counted(result.undone, "change")
        ));
        for failure in &result.failed {
            out.error(&format!("{}: {failure}", result.host));
        }
        for line in left_lines(result) {
            out.result(format!("  {line}"));
        }
    }
    let good = results.iter().all(|result| result.clean());
    if good { Exit::Done } else { Exit::Failed }
}

/// What differs from before the first change: all that is ours, and as much of the rest as can be read.
fn left_lines(result: &HostReset) -> Vec<String> {
    let theirs = result.left.iter().filter(|left| left.origin != Origin::Ours);
    let more = theirs.clone().count().saturating_sub(MAX_THEIRS);
    let mut lines: Vec<String> = result
        .left_by_us()
        .chain(theirs.take(MAX_THEIRS))
        .map(describe)
        .collect();
    if more > 0 {
        lines.push(format!("and {more} more by pods and others (-o json names them all)"));
    }
    lines
}

/// A difference for people, with whose it is unless it is ours.
pub fn describe(left: &Leftover) -> String {
    let by = match left.origin {
        Origin::Ours => "",
        Origin::Pods => " by a pod: it stays",
        Origin::Others => " by somebody else: it stays",
    };
    format!("{} {} {}{by}", left.kind, left.name, left.how)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(origins: &[Origin]) -> HostReset {
        let left = origins.iter().enumerate().map(|(n, origin)| Leftover {
            kind: "file".into(),
            name: format!("/x/{n}"),
            how: "added".into(),
            origin: *origin,
        });
        HostReset {
            host: "192.0.2.11".into(),
            undone: 3,
            failed: Vec::new(),
            left: left.collect(),
            skipped: None,
        }
    }

    #[test]
    fn what_is_not_ours_is_told_and_is_no_failure() {
        assert!(result(&[]).clean());
        let others = result(&[Origin::Others, Origin::Pods]);
        assert!(others.clean());
        assert_eq!(
            left_lines(&others),
            [
                "file /x/0 added by somebody else: it stays",
                "file /x/1 added by a pod: it stays"
            ]
        );
        let ours = result(&[Origin::Others, Origin::Ours]);
        assert!(!ours.clean());
        assert_eq!(left_lines(&ours)[0], "file /x/1 added");
        let many = left_lines(&result(&[Origin::Others; MAX_THEIRS + 3]));
        assert_eq!(many.len(), MAX_THEIRS + 1);
        assert_eq!(
            many[MAX_THEIRS],
            "and 3 more by pods and others (-o json names them all)"
        );
    }
}
