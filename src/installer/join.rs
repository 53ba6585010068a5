//! `installer join`: adds hosts to a cluster, and to its Clusterfile if that is wanted.

use crate::{
    apply,
    cluster_args::{CareArgs, ClusterArgs, PreflightArgs},
    context::Context,
    failure::Exit,
    output::FormatArg,
    recording::ReportArg,
};
use anyhow::Context as _;
use bootstrap::install::OnFailure;
use clusterfile::{Host, Role};
use std::{net::Ipv4Addr, path::Path};

/// Flags of `join`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer join --nodes 10.0.0.7
  installer join -f prod.yaml --nodes 10.0.0.7-10.0.0.9,10.0.0.12
  installer join --nodes 10.0.0.7 --update-clusterfile    and write it into the Clusterfile

The hosts are reached as spec.ssh says. They have to be in the Clusterfile too: an apply without them offers to remove them, and a
reset of the cluster does not know them. --update-clusterfile adds them when they have joined, and keeps what else is in the file.")]
pub struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Addresses or ranges a-b of hosts that shall be nodes
    #[arg(long, required = true, value_name = "IP", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Add the hosts to the Clusterfile when they have joined; what else is in it stays, comments too
    #[arg(long)]
    pub update_clusterfile: bool,
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
        added.push(ip);
    }
    if args.update_clusterfile {
        // A file that cannot be extended is told before anything is changed.
        extended(&args.cluster.file, &added)?;
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
    if added.is_empty() {
        return Ok(exit);
    }
    let list: Vec<String> = added.iter().map(ToString::to_string).collect();
    let (list, file) = (list.join(", "), args.cluster.file.display());
    match exit {
        Exit::Done if args.update_clusterfile => {
            update(&args.cluster.file, &added)?;
            context.out.note(format!("{list} added to {file}"));
        }
        Exit::Done => context.out.note(format!(
            "add {list} to {file} to keep what it says true (join --update-clusterfile does it)"
        )),
        _ if args.update_clusterfile => context
            .out
            .note(format!("{file} is as it was: {list} are added when they have joined")),
        _ => {}
    }
    Ok(exit)
}

/// The Clusterfile's text with these hosts as nodes.
fn extended(file: &Path, nodes: &[Ipv4Addr]) -> anyhow::Result<String> {
    let cannot = || format!("cannot add the hosts to {}", file.display());
    let text = std::fs::read_to_string(file).with_context(cannot)?;
    let base = file.parent().unwrap_or(Path::new("."));
    clusterfile::add_nodes(&text, &file.display().to_string(), base, nodes).with_context(cannot)
}

/// Adds the hosts to the Clusterfile as it is now: the old or the new one is there, whole.
fn update(file: &Path, nodes: &[Ipv4Addr]) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    // Where it is a link, the link stays.
    let file = file.canonicalize().with_context(cannot)?;
    let text = extended(&file, nodes)?;
    let meta = file.metadata().with_context(cannot)?;
    crate::kubeconfig::write(&file, &text)?;
    std::fs::set_permissions(&file, meta.permissions()).with_context(cannot)?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_clusterfile_is_written_whole_with_its_mode_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("real"), dir.path().join("Clusterfile"));
        let text = "# ours\napiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {name: c}\nspec:\n  image: x:1\n  hosts:\n  - {ips: [10.0.0.1], roles: [master]} # first\n";
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        update(&link, &["10.0.0.7".parse().unwrap()]).unwrap();
        let expected = format!("{text}  - {{ips: [10.0.0.7], roles: [node]}}\n");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
