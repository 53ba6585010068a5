//! `installer cert`: when the cluster's certificates end, and having them signed anew.

use crate::{
    check,
    cluster_args::{ClusterArgs, confirm},
    context::Context,
    failure::Exit,
    join::addresses,
    output::FormatArg,
    table::Table,
};
use bootstrap::certs::{self, HostCertificates};
use host::proto::CertificateInfo;
use oci::counted;
use std::time::Duration;

/// How long the cluster may take to work again after a renewal.
const PATIENCE: Duration = Duration::from_secs(120);

/// Flags of `cert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done with certificates.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show every certificate of every host and when it ends
    Check(CheckArgs),
    /// Have certificates signed anew, one host after the other
    Renew(RenewArgs),
}

impl Command {
    /// How it was asked to print.
    pub fn format(&self) -> &FormatArg {
        match self {
            Self::Check(args) => &args.format,
            Self::Renew(args) => &args.format,
        }
    }
}

/// Flags of `cert check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 none ends within the days, 4 one does or has ended, 1 a host did not answer")]
pub struct CheckArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How many days must be left
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    pub days: u32,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Flags of `cert renew`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer cert renew --yes
  installer cert renew --nodes 10.0.0.7

Keys stay as they are. On each host what uses a certificate is restarted, and the next host comes when its node is Ready again; on
a master the control plane does not answer for some seconds. Authorities are not renewed.")]
pub struct RenewArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Addresses or ranges a-b; without it all hosts
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Checks or renews.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    match &args.command {
        Command::Check(args) => check_all(args, context).await,
        Command::Renew(args) => renew(args, context).await,
    }
}

async fn check_all(args: &CheckArgs, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let options = args
        .cluster
        .options(context, "cert check", &clusterfile.cluster.name, None);
    let hosts = certs::check(&clusterfile, &options).await;
    context.out.finish();
    let now = jiff::Timestamp::now();
    print(context, &hosts, now);
    let ends = |cert: &CertificateInfo| certs::days_left(cert, now) < i64::from(args.days);
    let ending = hosts
        .iter()
        .flat_map(|host| &host.certificates)
        .filter(|cert| ends(cert))
        .count();
    if ending > 0 {
        context.out.note(format!(
            "ended, or to end within {}: {}; installer cert renew has them signed anew",
            counted(args.days, "day"),
            counted(ending, "certificate")
        ));
    }
    Ok(match (hosts.iter().any(|host| host.error.is_some()), ending) {
        (true, _) => Exit::Failed,
        (false, 0) => Exit::Done,
        (false, _) => Exit::Unhealthy,
    })
}

fn print(context: &Context, hosts: &[HostCertificates], now: jiff::Timestamp) {
    let out = &context.out;
    let mut table = Table::new(["HOST", "FILE", "SUBJECT", "NAMES", "ISSUER", "EXPIRES", "DAYS"]);
    for host in hosts {
        if let Some(error) = &host.error {
            out.json(&serde_json::json!({"host": host.host, "error": error}));
            out.error(error);
        }
        for cert in &host.certificates {
            let days = certs::days_left(cert, now);
            let expires =
                jiff::Timestamp::from_second(cert.not_after).map_or_else(|_| "?".to_owned(), |at| at.to_string());
            out.json(
                &serde_json::json!({"host": host.host, "certificate": cert, "expires": expires, "daysLeft": days}),
            );
            table.row([
                host.host.clone(),
                cert.path.clone(),
                cert.subject.clone(),
                cert.names.join(","),
                cert.issuer.clone(),
                expires,
                days.to_string(),
            ]);
        }
    }
    out.table(&table);
}

async fn renew(args: &RenewArgs, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let nodes = addresses(&args.nodes)?;
    let question = "have certificates signed anew and restart what uses them, one host after the other?";
    if !confirm(context, question, args.yes)? {
        context.out.note("nothing was done");
        return Ok(Exit::Failed);
    }
    let options = args
        .cluster
        .options(context, "cert renew", &clusterfile.cluster.name, None);
    let renewed = certs::renew(&clusterfile, &options, &nodes).await?;
    context.out.finish();
    for host in &renewed {
        context
            .out
            .json(&serde_json::json!({"event": "renewed", "renewed": host}));
        context.out.result(format!(
            "{}: {} renewed; restarted {}",
            host.host,
            host.renewed.len(),
            if host.restarted.is_empty() {
                "nothing".to_owned()
            } else {
                host.restarted.join(", ")
            }
        ));
    }
    check::prove(context, &clusterfile, &options, PATIENCE).await
}
