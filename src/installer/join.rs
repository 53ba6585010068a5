//! `installer join`: adds hosts to a cluster. The Clusterfile stays as it is; add the hosts to it as well to keep them.

use crate::{
    apply,
    cluster_args::{CareArgs, ClusterArgs, PreflightArgs},
    context::Context,
    failure::Exit,
    output::FormatArg,
    recording::ReportArg,
};
use bootstrap::install::OnFailure;
use clusterfile::{Host, Role};
use std::net::Ipv4Addr;

/// Flags of `join`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer join --nodes 10.0.0.7
  installer join -f prod.yaml --nodes 10.0.0.7-10.0.0.9,10.0.0.12

The hosts are reached as spec.ssh says. Add them to the Clusterfile too: an apply without them would offer to remove them.")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Addresses or ranges a-b of hosts that shall be nodes
    #[arg(long, required = true, value_name = "IP", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// What preflight may pass over.
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// How careful it is with pods.
    #[command(flatten)]
    pub care: CareArgs,
    /// The report.
    #[command(flatten)]
    pub report: ReportArg,
    /// When it fails, undo what this run has changed on hosts
    #[arg(long)]
    pub rollback_on_failure: bool,
    /// Count and refuse what would leave the cluster's addresses while it runs; code 4 if anything would have
    #[arg(long)]
    pub prove_airgap: bool,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Adds hosts.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let mut clusterfile = args.cluster.load(context)?;
    let mut added = Vec::new();
    for ip in addresses(&args.nodes)? {
        if clusterfile.cluster.hosts.iter().any(|host| host.ip == ip) {
            context
                .out
                .note(format!("{ip} is in {} already", args.cluster.file.display()));
            continue;
        }
        clusterfile.cluster.hosts.push(Host {
            ip,
            roles: vec![Role::Node],
            labels: Default::default(),
            taints: Vec::new(),
            env: clusterfile.cluster.env.clone(),
            ssh: clusterfile.cluster.ssh.clone(),
        });
        added.push(ip.to_string());
    }
    let how = apply::How {
        command: "join",
        yes: false,
        on_failure: if args.rollback_on_failure {
            OnFailure::RollBack
        } else {
            OnFailure::Keep
        },
        prove_airgap: args.prove_airgap,
        care: (&args.care).into(),
        plan: None,
    };
    let exit = apply::bring_up(&args.cluster, &args.preflight, context, &clusterfile, &how).await?;
    if exit == Exit::Done && !added.is_empty() {
        context.out.note(format!(
            "add {} to {} to keep what it says true",
            added.join(", "),
            args.cluster.file.display()
        ));
    }
    Ok(exit)
}

/// Addresses and ranges, each address once.
pub fn addresses(texts: &[String]) -> anyhow::Result<Vec<Ipv4Addr>> {
    let mut addresses = Vec::new();
    for text in texts {
        for ip in clusterfile::expand_range(text)? {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
    }
    Ok(addresses)
}
