//! `installer drift`: what somebody changed since the last apply.

use crate::{cluster_args::ClusterArgs, context::Context, failure::Exit, output::FormatArg};
use bootstrap::drift::{self, Drift, HostDrift};

/// Flags of `drift`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer drift
  installer drift --diff                  with what would bring each file back
  installer drift -o json                 for programs

What is compared with is what was applied last, whatever the Clusterfile says by now. An apply mends it.

Exit codes: 0 nothing differs, 2 something differs, 1 a host or the API server could not be asked")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Show what would bring files back
    #[arg(long)]
    pub diff: bool,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Asks every host and the cluster.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let options = args.cluster.options(context, "drift", &clusterfile.cluster.name, None);
    let drift = drift::look(&clusterfile, &options).await;
    context.out.finish();
    context.out.json(&drift);
    if !context.out.is_json() {
        print(context, &drift, args.diff);
    }
    Ok(match (drift.complete(), drift.any()) {
        (false, _) => Exit::Failed,
        (true, true) => Exit::Changes,
        (true, false) => Exit::Done,
    })
}

fn print(context: &Context, drift: &Drift, diff: bool) {
    let out = &context.out;
    for host in &drift.hosts {
        print_host(context, host, diff);
    }
    for object in &drift.objects {
        let how = if object.gone {
            "it is gone".to_owned()
        } else {
            object.fields.join(", ")
        };
        out.result(format!("  ~ {}: {how}", object.object));
    }
    if let Some(why) = &drift.api {
        out.error(&format!("the API server: {why}"));
    }
    if drift.any() {
        out.result("installer apply mends it");
    } else if drift.complete() {
        out.result("nothing differs from what was applied last");
    }
}

fn print_host(context: &Context, host: &HostDrift, diff: bool) {
    let out = &context.out;
    if let Some(error) = &host.error {
        out.error(error);
    }
    if host.report.items.is_empty() {
        return;
    }
    out.result(format!("{}:", host.host));
    for item in &host.report.items {
        out.result(format!("  ~ {}: {}", item.what, item.detail));
        for line in item.diff.iter().filter(|_| diff).flat_map(|text| text.lines()) {
            out.result(format!("      {line}"));
        }
    }
}
