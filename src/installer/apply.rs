//! `installer apply`: makes the cluster what the Clusterfile says. Also the way of `join`, which only adds hosts to the wish.

use crate::{
    cluster_args::{ClusterArgs, PreflightArgs, confirm},
    context::Context,
    failure::Exit,
    output::FormatArg,
    recording::ReportArg,
    report, table,
};
use bootstrap::{event::Event, install, plan::Plan, reset};
use clusterfile::Clusterfile;
use std::time::{Duration, Instant};

/// Flags of `apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer apply                                       for ./Clusterfile
  installer apply -f prod.yaml --accept-new-host-keys   hosts never seen before
  installer apply --report apply.html                   a page with what was done, when and how fast
  installer apply -o json > events.jsonl                for programs

It can be stopped and run again at any time. On a cluster that is as wished it does nothing.")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What preflight may pass over.
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// Remove nodes that are not in the Clusterfile without asking
    #[arg(short, long)]
    pub yes: bool,
    /// The report.
    #[command(flatten)]
    pub report: ReportArg,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Applies a Clusterfile.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    bring_up(&args.cluster, &args.preflight, context, "apply", &clusterfile, args.yes).await
}

/// Looks, tells what there is to do, does it.
pub async fn bring_up(
    cluster: &ClusterArgs,
    preflight: &PreflightArgs,
    context: &Context,
    command: &str,
    clusterfile: &Clusterfile,
    yes: bool,
) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let out = &context.out;
    context.started(command, clusterfile);
    let options = cluster.options(context, command, &clusterfile.cluster.name, Some(preflight));
    let prepared = install::prepare(clusterfile, &options).await?;
    report::findings(context, &prepared.findings);
    let Some(plan) = &prepared.plan else {
        prepared.leave().await;
        return Ok(Exit::Refused);
    };
    context.observer.event(Event::Plan {
        plan: Box::new(plan.clone()),
    });
    if plan.is_empty() {
        let took = start.elapsed();
        context.observer.event(Event::Done { changes: 0, took });
        out.result(format!(
            "nothing to do: {} is as {} says ({})",
            plan.cluster,
            cluster.file.display(),
            table::time(start.elapsed())
        ));
        return leaving(context, clusterfile, &options, plan, yes).await;
    }
    out.note(report::summary(plan));
    let timings = prepared.apply().await?;
    out.finish();
    let total = start.elapsed();
    report::timings(context, &timings, total);
    context.observer.event(Event::Done {
        changes: timings.iter().map(|timing| timing.changes).sum(),
        took: total,
    });
    let leaving = leaving(context, clusterfile, &options, plan, yes).await?;
    out.result(format!(
        "the cluster {} works: every probe passed. Next:\n  export KUBECONFIG=$(installer kubeconfig -f {} --out ~/.kube/{}) && kubectl get nodes",
        plan.cluster,
        cluster.file.display(),
        plan.cluster
    ));
    Ok(leaving)
}

/// Nodes that are in the cluster but not in the Clusterfile: removed only when that is wanted.
async fn leaving(
    context: &Context,
    clusterfile: &Clusterfile,
    options: &install::Options,
    plan: &Plan,
    yes: bool,
) -> anyhow::Result<Exit> {
    let nodes: Vec<_> = plan.leaving.iter().filter_map(|node| node.ip).collect();
    if nodes.is_empty() {
        return Ok(Exit::Done);
    }
    report::leaving(&context.out, plan);
    let question = format!(
        "remove {} nodes that are not in the Clusterfile: drain them, and undo everything on them?",
        nodes.len()
    );
    match confirm(context, &question, yes) {
        Ok(true) => {}
        Ok(false) => return Ok(Exit::Done),
        Err(_) => {
            context.out.note("they stay; run apply with --yes to remove them");
            return Ok(Exit::Done);
        }
    }
    let request = reset::Request {
        nodes,
        force: false,
        drain: Duration::from_secs(300),
    };
    let results = reset::reset(clusterfile, options, &request).await?;
    Ok(crate::reset::print(context, &results))
}
