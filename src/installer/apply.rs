//! `installer apply`: makes the cluster what the Clusterfile says. Also the way of `join`, which only adds hosts to the wish.

use crate::{
    cluster_args::{CareArgs, ClusterArgs, PreflightArgs, confirm},
    context::Context,
    failure::Exit,
    output::FormatArg,
    recording::ReportArg,
    report, table,
};
use bootstrap::{
    event::Event,
    install::{self, OnFailure, Prepared},
    plan::{Plan, PlanFile},
    reset,
    rolling::Care,
};
use clusterfile::Clusterfile;
use oci::counted;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Flags of `apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer apply                                       for ./Clusterfile
  installer apply -f prod.yaml --accept-new-host-keys   hosts never seen before
  installer apply --report apply.html                   a page with what was done, when and how fast
  installer apply -o json > events.jsonl                for programs
  installer apply --plan plan.json                      what that plan says, if all is still as it was then

It can be stopped and run again at any time. On a cluster that is as wished it does nothing.")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What preflight may pass over.
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// How careful it is with pods.
    #[command(flatten)]
    pub care: CareArgs,
    /// Remove nodes that are not in the Clusterfile without asking
    #[arg(short, long)]
    pub yes: bool,
    /// The report.
    #[command(flatten)]
    pub report: ReportArg,
    /// Do what this file of `plan --out` says; refused if anything has moved since
    #[arg(long = "plan", value_name = "FILE", conflicts_with = "plan_file")]
    pub plan: Option<PathBuf>,
    /// The same as `--plan FILE`
    #[arg(value_name = "PLAN")]
    pub plan_file: Option<PathBuf>,
    /// When it fails, undo what this run has changed on hosts
    #[arg(long)]
    pub rollback_on_failure: bool,
    /// Count and refuse what would leave the cluster's addresses while it runs; code 4 if anything would have
    #[arg(long, conflicts_with_all = ["plan", "plan_file"])]
    pub prove_airgap: bool,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Applies a Clusterfile.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let how = How {
        command: "apply",
        yes: args.yes,
        on_failure: if args.rollback_on_failure {
            OnFailure::RollBack
        } else {
            OnFailure::Keep
        },
        prove_airgap: args.prove_airgap,
        care: (&args.care).into(),
        plan: args.plan.as_deref().or(args.plan_file.as_deref()),
    };
    bring_up(&args.cluster, &args.preflight, context, &clusterfile, &how).await
}

/// How it is gone about.
pub struct How<'h> {
    /// The command, for whoever else wants to change the hosts.
    pub command: &'h str,
    /// Whether nodes are removed without asking.
    pub yes: bool,
    /// What becomes of what was done when it fails.
    pub on_failure: OnFailure,
    /// Whether hosts count and refuse what would leave the cluster's addresses.
    pub prove_airgap: bool,
    /// How careful it is with pods of hosts that change.
    pub care: Care,
    /// The file of the plan that is applied; absent: what is found is planned and applied.
    pub plan: Option<&'h Path>,
}

/// Looks, tells what there is to do, does it.
pub async fn bring_up(
    cluster: &ClusterArgs,
    preflight: &PreflightArgs,
    context: &Context,
    clusterfile: &Clusterfile,
    how: &How<'_>,
) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let out = &context.out;
    context.started(how.command, clusterfile);
    let file = how.plan.map(PlanFile::read).transpose()?;
    let options = install::Options {
        prove_airgap: how.prove_airgap,
        care: how.care,
        ..cluster.options(context, how.command, &clusterfile.cluster.name, Some(preflight))
    };
    let prepared = install::prepare(clusterfile, &options).await?;
    report::findings(context, &prepared.findings);
    let Some(plan) = &prepared.plan else {
        prepared.leave().await;
        return Ok(Exit::Refused);
    };
    if let Some(file) = &file
        && has_moved(context, file, &prepared)?
    {
        prepared.leave().await;
        return Ok(Exit::Refused);
    }
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
        return leaving(context, clusterfile, &options, &prepared, plan, how.yes).await;
    }
    out.note(report::summary(plan));
    let applied = prepared.apply(how.on_failure).await;
    out.finish();
    let proven = report::proof(out, prepared.proof());
    let timings = applied?;
    let total = start.elapsed();
    report::timings(context, &timings, total);
    context.observer.event(Event::Done {
        changes: timings.iter().map(|timing| timing.changes).sum(),
        took: total,
    });
    let leaving = leaving(context, clusterfile, &options, &prepared, plan, how.yes).await?;
    out.result(format!(
        "the cluster {} works: every probe passed. Next:\n  export KUBECONFIG=$(installer kubeconfig -f {} --out ~/.kube/{}) && kubectl get nodes",
        plan.cluster,
        cluster.file.display(),
        plan.cluster
    ));
    Ok(if leaving == Exit::Done { proven } else { leaving })
}

/// Whether anything is not as it was when the plan was made; all of it is told.
fn has_moved(context: &Context, file: &PlanFile, prepared: &Prepared) -> anyhow::Result<bool> {
    let Some(now) = prepared.file()? else {
        return Ok(true);
    };
    let moved = file.moved(&now);
    for one in &moved {
        context.observer.event(Event::Moved { moved: one.clone() });
        context.out.error(&one.to_string());
    }
    if !moved.is_empty() {
        context.out.note(format!(
            "the plan of {} does not fit any more; nothing was changed. Make it anew with installer plan --out",
            file.made
        ));
    }
    Ok(!moved.is_empty())
}

/// Nodes that are in the cluster but not in the Clusterfile: removed only when that is wanted.
async fn leaving(
    context: &Context,
    clusterfile: &Clusterfile,
    options: &install::Options,
    prepared: &Prepared,
    plan: &Plan,
    yes: bool,
) -> anyhow::Result<Exit> {
    let (renamed, gone): (Vec<_>, Vec<_>) = plan.leaving.iter().partition(|node| node.now.is_some());
    let nodes: Vec<_> = gone.iter().filter_map(|node| node.ip).collect();
    let renamed: Vec<String> = renamed.iter().map(|node| node.name.clone()).collect();
    if plan.leaving.is_empty() {
        return Ok(Exit::Done);
    }
    report::leaving(&context.out, plan);
    if nodes.is_empty() && renamed.is_empty() {
        let note = "a node without an address has no host to undo; kubectl delete node removes it";
        context.out.note(note);
        return Ok(Exit::Done);
    }
    let question = format!(
        "remove {}, not in the Clusterfile: drain, and undo everything on the host? Of hosts that are here under another name only the old node goes",
        counted(nodes.len() + renamed.len(), "node")
    );
    match confirm(context, &question, yes) {
        Ok(true) => {}
        Ok(false) => return Ok(Exit::Done),
        Err(_) => {
            context.out.note("they stay; run apply with --yes to remove them");
            return Ok(Exit::Done);
        }
    }
    let mut exit = Exit::Done;
    if !renamed.is_empty() {
        let removed = reset::forget(clusterfile, options, &renamed).await?;
        exit = crate::reset::print_removed(context, &removed);
    }
    if nodes.is_empty() {
        return Ok(exit);
    }
    let request = reset::Request {
        nodes,
        force: false,
        drain: Duration::from_secs(300),
        leave_unlisted: false,
    };
    let results = reset::reset(clusterfile, options, &request).await?;
    let left = request.nodes.iter().zip(&results).filter(|(_, result)| result.clean());
    let left: Vec<_> = left.map(|(ip, _)| *ip).collect();
    prepared.forget_names(&left).await;
    Ok(match crate::reset::print(context, &results) {
        Exit::Done => exit,
        other => other,
    })
}
