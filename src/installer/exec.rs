//! `installer exec`: runs a program on hosts as root, each line of its output with the host's name.

use crate::{cluster_args::ClusterArgs, context::Context, failure::Exit, join::addresses, output::FormatArg};
use bootstrap::install;
use clusterfile::Role;
use std::time::Duration;

/// Flags of `exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer exec -- uptime
  installer exec --roles master -- kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes
  installer exec --nodes 10.0.0.7 -- sh -c 'df -h | tail -n +2'")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Addresses or ranges a-b; without it all hosts
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Hosts with one of these roles only
    #[arg(long, value_name = "ROLE", value_delimiter = ',', value_parser = ["master", "node"])]
    pub roles: Vec<String>,
    /// Longest time the program gets, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub timeout: u64,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    pub argv: Vec<String>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Runs the program.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let clusterfile = args.cluster.load(context)?;
    let nodes = addresses(&args.nodes)?;
    let role = |host: &clusterfile::Host| {
        let name = |role: &Role| if *role == Role::Master { "master" } else { "node" };
        args.roles.is_empty()
            || host
                .roles
                .iter()
                .any(|r| args.roles.iter().any(|wanted| wanted == name(r)))
    };
    let chosen = clusterfile
        .cluster
        .hosts
        .iter()
        .filter(|host| (nodes.is_empty() || nodes.contains(&host.ip)) && role(host));
    let targets: Vec<_> = chosen.map(|host| (host.ip, host.ssh.clone())).collect();
    anyhow::ensure!(
        !targets.is_empty(),
        "no host of {} is meant by --nodes and --roles",
        args.cluster.file.display()
    );
    let options = args.cluster.options(context, "exec", &clusterfile.cluster.name, None);
    let outputs = install::exec(&targets, &options, &args.argv, Duration::from_secs(args.timeout)).await;
    let mut good = true;
    for (ip, output) in outputs {
        let host = ip.to_string();
        match output {
            Ok(output) => {
                good &= output.success;
                print(context, &host, &output);
            }
            Err(error) => {
                good = false;
                context
                    .out
                    .json(&serde_json::json!({"event": "ran", "ok": false, "host": host, "error": error.to_string()}));
                context.out.error(&error.to_string());
            }
        }
    }
    Ok(if good { Exit::Done } else { Exit::Failed })
}

fn print(context: &Context, host: &str, output: &install::Ran) {
    context.out.json(
        &serde_json::json!({"event": "ran", "ok": output.success, "host": host, "ended": output.ended, "stdout": output.stdout, "stderr": output.stderr}),
    );
    for line in output.stdout.lines() {
        context.out.result(format!("{host} | {line}"));
    }
    for line in output.stderr.lines() {
        context.out.note(format!("{host} ! {line}"));
    }
    if !output.success {
        context.out.error(&format!("{host}: {}", output.ended));
    }
}
