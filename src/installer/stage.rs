//! `installer stage`: brings what an apply will send to the hosts ahead of it, and changes nothing else there.

use crate::{
    cluster_args::{ClusterArgs, PreflightArgs},
    context::Context,
    failure::Exit,
    output::FormatArg,
    recording::ReportArg,
    report, table,
};
use bootstrap::{event::Event, install, plan::Plan};
use oci::counted;
use std::time::Instant;

/// Flags of `stage`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer stage                              for ./Clusterfile, with the image it names
  installer stage -f next.yaml --bandwidth 5MiB   during the day; apply -f next.yaml in the night

What the cluster runs goes on as it is. The next apply finds everything there and sends nothing; reset removes it. It can be stopped and
run again at any time.")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What preflight may pass over.
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// The report.
    #[command(flatten)]
    pub report: ReportArg,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Looks, and brings what is missing.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let clusterfile = args.cluster.load(context)?;
    context.started("stage", &clusterfile);
    let name = &clusterfile.cluster.name;
    let options = args.cluster.options(context, "stage", name, Some(&args.preflight));
    let prepared = install::prepare(&clusterfile, &options).await?;
    report::findings(context, &prepared.findings);
    let Some(plan) = &prepared.plan else {
        prepared.leave().await;
        return Ok(Exit::Refused);
    };
    if is_there(plan) {
        prepared.leave().await;
        let took = start.elapsed();
        context.observer.event(Event::Done { changes: 0, took });
        context.out.result(format!(
            "nothing to do: every host has what {} needs of it ({})",
            plan.image,
            table::time(took)
        ));
        return Ok(Exit::Done);
    }
    let lacking = plan.hosts.iter().filter(|host| host.blobs > 0).count();
    context.out.note(format!(
        "something of {} is lacking on {}: {} to send",
        plan.image,
        counted(lacking, "host"),
        table::size(plan.bytes())
    ));
    let staged = prepared.stage().await;
    context.out.finish();
    let timings = staged?;
    let took = start.elapsed();
    report::timings(context, &timings, took);
    context.observer.event(Event::Done {
        changes: timings.iter().map(|timing| timing.changes).sum(),
        took,
    });
    context.out.result(format!(
        "every host has what {} needs of it. Next:\n  installer apply -f {}",
        plan.image,
        args.cluster.file.display()
    ));
    Ok(Exit::Done)
}

/// Whether there is nothing to bring, to the hosts or to a registry of somebody else.
fn is_there(plan: &Plan) -> bool {
    plan.images.is_empty() && plan.hosts.iter().all(|host| host.blobs == 0)
}
