//! `installer gen`: the Clusterfile of a cluster that runs.

use crate::{
    cluster_args::{access, read_aliases},
    context::Context,
    failure::Exit,
    ssh_args::{SshArgs, here},
};
use anyhow::{Context as _, ensure};
use bootstrap::{install::Options, recover};
use clusterfile::Clusterfile;
use std::{
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Flags of `gen`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  installer gen                                            of the cluster of KUBECONFIG
  installer gen --master 10.0.0.1 --out Clusterfile        asked over SSH
  installer gen --kubeconfig ~/.kube/demo | diff Clusterfile -

An installed cluster stores its Clusterfile without its secrets. This prints it, with hosts
that joined since; comments say which hosts are gone and where secrets have to be filled in.")]
pub struct Args {
    /// The cluster of this kubeconfig [default: $KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE", conflicts_with = "master")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long, value_name = "NAME", conflicts_with = "master")]
    pub context: Option<String>,
    /// Ask this master over SSH
    #[arg(long, value_name = "IP")]
    pub master: Option<Ipv4Addr>,
    /// How the master is reached.
    #[command(flatten)]
    pub ssh: SshArgs,
    /// Name of the cluster, if it has no stored Clusterfile or shall be called otherwise
    #[arg(long)]
    pub name: Option<String>,
    /// Write it to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Asks the cluster and prints what it says.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    ensure!(
        args.master.is_some() || args.ssh == SshArgs::default(),
        "flags that say how hosts are reached need --master IP: without it the cluster of a kubeconfig is asked"
    );
    if args.master.is_some() {
        read_aliases(context)?;
    }
    let found = match args.master {
        Some(master) => recover::by_master(master, &way(args, master)?, &options(context)).await?,
        None => recover::by_kubeconfig(args.kubeconfig.as_deref(), args.context.clone()).await?,
    };
    let text = recover::compose(&found, args.name.as_deref())?;
    let Some(path) = &args.out else {
        context.out.raw(&text);
        return Ok(Exit::Done);
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| {
            format!(
                "cannot write {}: --out takes a file that is not there yet",
                path.display()
            )
        })?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    context.out.result(path.display().to_string());
    Ok(Exit::Done)
}

/// The flags, read as a Clusterfile's `ssh` is, so that defaults are the same.
fn way(args: &Args, master: Ipv4Addr) -> anyhow::Result<clusterfile::Ssh> {
    let document = serde_json::json!({
        "apiVersion": "sealer.io/v2",
        "kind": "Cluster",
        "metadata": {"name": "any"},
        "spec": {
            "image": "any",
            "ssh": args.ssh.fields(&here()?),
            "hosts": [{"ips": [master.to_string()], "roles": ["master"]}],
        },
    });
    let clusterfile = Clusterfile::parse(&document.to_string(), "flags", Path::new("/"))?;
    Ok(clusterfile.cluster.ssh)
}

fn options(context: &Context) -> Options {
    Options {
        access: access(context),
        store: context.store.clone(),
        ignored: Vec::new(),
        prove_airgap: false,
        care: bootstrap::rolling::Care::default(),
        direct: false,
        observer: Arc::clone(&context.observer),
        who: "installer gen".to_owned(),
        launch_limit: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    #[test]
    fn a_master_is_reached_as_a_clusterfile_would() {
        let line = "installer gen --master 10.0.0.1 --user ann --passwd-env PW --port 2222";
        let Command::Gen(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("another command");
        };
        let ssh = way(&args, Ipv4Addr::new(10, 0, 0, 1)).unwrap();
        assert_eq!(
            (ssh.user.as_deref(), ssh.port, ssh.agent),
            (Some("ann"), Some(2222), false)
        );
    }
}
