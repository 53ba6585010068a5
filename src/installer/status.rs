//! `installer status`: what each host has.

use crate::{cluster_args::ClusterArgs, context::Context, failure::Exit, output::FormatArg, table::Table};
use bootstrap::{
    certs,
    status::{self, Found, HostStatus, Status},
};
use host::proto::RunNote;

/// Flags of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer status
  installer status -o json | jq '.hosts[] | {host, state}'

Exit codes: 0 everybody answered, 1 a host or the API server did not")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Looks at every host and the cluster.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let options = args.cluster.options(context, "status", &clusterfile.cluster.name, None);
    let status = status::look(&clusterfile, &options).await;
    context.out.finish();
    context.out.json(&status);
    if !context.out.is_json() {
        print(context, &status);
    }
    Ok(if status.complete() { Exit::Done } else { Exit::Failed })
}

fn print(context: &Context, status: &Status) {
    let out = &context.out;
    let mut table = Table::new([
        "HOST",
        "NAME",
        "ROLE",
        "STATE",
        "NODE",
        "KUBELET",
        "IMAGE",
        "DIGEST",
        "UNITS",
        "CERTIFICATES",
    ]);
    for host in &status.hosts {
        table.row(row(host));
    }
    out.table(&table);
    for host in &status.hosts {
        details(context, host);
    }
    for name in &status.others {
        out.result(format!(
            "node {name} is in the cluster, and no host of the Clusterfile that answers is called so"
        ));
    }
    if let Some(why) = &status.api {
        out.error(&format!("the API server: {why}"));
    }
}

fn row(host: &HostStatus) -> [String; 10] {
    let role = host.role.to_owned();
    let Some(found) = &host.found else {
        let unknown = || "?".to_owned();
        return [
            host.host.clone(),
            unknown(),
            role,
            "no answer".to_owned(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
        ];
    };
    let none = || "-".to_owned();
    let node = host.node.as_ref().map(|node| {
        let ready = if node.ready { "Ready" } else { "NotReady" };
        format!("{ready}{}", if node.cordoned { ", cordoned" } else { "" })
    });
    let active = found.units.iter().filter(|unit| unit.active == "active").count();
    let days = found
        .first_to_end
        .as_ref()
        .map(|cert| oci::counted(certs::days_left(cert, jiff::Timestamp::now()), "day"));
    [
        host.host.clone(),
        found.name.clone(),
        role,
        found.state.word().to_owned(),
        node.unwrap_or_else(none),
        host.node.as_ref().map_or_else(none, |node| node.kubelet.clone()),
        found.image.clone().unwrap_or_else(none),
        found
            .digest
            .as_ref()
            .map_or_else(none, |digest| digest.short().to_owned()),
        format!("{active}/{} active", found.units.len()),
        days.unwrap_or_else(none),
    ]
}

/// What does not fit into a row.
fn details(context: &Context, host: &HostStatus) {
    let out = &context.out;
    if let Some(error) = &host.error {
        out.error(error);
    }
    let Some(found) = &host.found else { return };
    if let Some(run) = &found.installed {
        out.result(format!("{}: installed {}", host.host, told(run)));
    }
    if let Some(run) = found.last.as_ref().filter(|_| found.last != found.installed) {
        out.result(format!("{}: last changed {}", host.host, told(run)));
    }
    if let Some(reason) = host.node.as_ref().and_then(|node| node.reason.as_ref()) {
        out.result(format!("{}: node is not Ready: {reason}", host.host));
    }
    troubles(context, host, found);
}

fn troubles(context: &Context, host: &HostStatus, found: &Found) {
    let good = |unit: &&bootstrap::status::UnitState| unit.active != "active" || unit.enabled != "enabled";
    for unit in found.units.iter().filter(good) {
        context.out.result(format!(
            "{}: {} is {}/{} ({}, {})",
            host.host, unit.name, unit.active, unit.sub, unit.load, unit.enabled
        ));
    }
    if !found.others.is_empty() {
        context.out.result(format!(
            "{}: has other clusters too: {}",
            host.host,
            found.others.join(", ")
        ));
    }
}

fn told(run: &RunNote) -> String {
    let at = |ms: i64| jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "?".to_owned(), |at| format!("{at:.0}"));
    let ended = match (run.ended, run.ended_ms) {
        (Some(how), Some(ms)) => format!("{} {}", how.word(), at(ms)),
        _ => "under way or interrupted".to_owned(),
    };
    format!("{} by {}: {ended}", at(run.mark.at_ms), run.mark.who)
}
