//! The command line: global flags and the list of commands. A command's own flags are in its file.
//!
//! To add a command: a file with `Args` (clap) and `run(args, &Context) -> anyhow::Result<Exit>`, a variant here, an arm in
//! `main::run`. A command that can print JSON flattens [`FormatArg`] into its `Args` and gets an arm in [`Command::format`].

use crate::{
    apply, build, cert, check, completion, diff, drift, etcd, exec, gen_clusterfile, history, images, inspect, join,
    key, kubeconfig, load, login, logout, man, merge,
    output::{Format, FormatArg},
    plan, prune, pull, push, reset, rmi, run_image, save, sbom, sign, stage, status, support_bundle, tag, verify,
    version,
};
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
Examples:
  installer build -t local/native:dev -f rootfs/Kubefile rootfs   make a cluster image
  installer plan -f Clusterfile                                   what would be done
  installer apply -f Clusterfile                                  do it; run it again at any time
  installer check -f Clusterfile                                  prove that the cluster works
  installer run local/native:dev --masters 10.0.0.1               without a Clusterfile: it is written
  export KUBECONFIG=$(installer kubeconfig -f Clusterfile --out ~/.kube/demo)

Exit codes:
  0  done, or nothing to do        3  refused, by preflight or because a plan is outdated: nothing was changed
  1  failed                        4  the cluster does not pass its checks
  2  usage error; for `plan` and `drift`: there is something to do";

/// Build cluster images, and bring bare Linux hosts to a verified Kubernetes cluster that needs no internet.
#[derive(Debug, Parser)]
#[command(name = "installer", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Globals {
    /// Where cluster images are kept [default: ${XDG_DATA_HOME:-~/.local/share}/installer/store]
    #[arg(long, global = true, env = "INSTALLER_STORE", value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// File of known SSH host keys [default: ~/.ssh/known_hosts]
    #[arg(long, global = true, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
    /// Accept and remember the keys of hosts never seen before; a changed key is always refused
    #[arg(long, global = true)]
    pub accept_new_host_keys: bool,
    /// SSH configuration that may name hosts and jump hosts, or `none` [default: ~/.ssh/config if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
    /// How many hosts are worked on at once [default: as many as there are; connected to: 64]
    #[arg(long, global = true, value_name = "N")]
    pub concurrency: Option<std::num::NonZeroUsize>,
    /// Send at most this much a second to all hosts together, such as 10MiB or 100Mbit
    #[arg(long, global = true, value_name = "RATE")]
    pub bandwidth: Option<bootstrap::bandwidth::Rate>,
    /// Write the log of everything, without secrets, to this file [default: one of the last runs' in ${XDG_STATE_HOME:-~/.local/state}/installer/logs]
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub log_file: Option<PathBuf>,
    /// Show the log as well: -v what is done, -vv every step, -vvv everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only errors and results: no progress, no warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a cluster image from a Kubefile
    Build(build::Args),
    /// List the cluster images of the store
    Images(images::Args),
    /// Show what a cluster image holds and says about itself
    Inspect(inspect::Args),
    /// Show the steps that made a cluster image
    History(history::Args),
    /// Show what differs between two cluster images
    Diff(diff::Args),
    /// Make one cluster image of several
    Merge(merge::Args),
    /// Send a cluster image to a registry
    Push(push::Args),
    /// Fetch a cluster image from a registry
    Pull(pull::Args),
    /// Write a cluster image to a file, files, a folder or a pipe
    Save(save::Args),
    /// Read a cluster image from a file, files, a folder or a pipe
    Load(load::Args),
    /// Give an image one more name
    Tag(tag::Args),
    /// Remove images from the store
    Rmi(rmi::Args),
    /// Free what no image of the store needs
    Prune(prune::Args),
    /// Prove that an image is whole, carries all that it names, and who vouches for it
    Verify(verify::Args),
    /// Make keys to sign images with
    Key(key::Args),
    /// Vouch for a cluster image
    Sign(sign::Args),
    /// Tell what is in a cluster image, as SPDX
    Sbom(sbom::Args),
    /// Try and store a login for a registry
    Login(login::Args),
    /// Forget a login
    Logout(logout::Args),
    /// Show what an apply would do
    Plan(plan::Args),
    /// Bring what an apply will need to the hosts, and nothing more
    Stage(stage::Args),
    /// Make the cluster what the Clusterfile says
    Apply(apply::Args),
    /// Prove that the cluster works, from every node
    Check(check::Args),
    /// Show what each host has
    Status(status::Args),
    /// Show what somebody changed since the last apply
    Drift(drift::Args),
    /// Check and renew the cluster's certificates
    Cert(cert::Args),
    /// Save and restore all that the cluster stores
    Etcd(etcd::Args),
    /// Add hosts to the cluster
    Join(join::Args),
    /// Take hosts out of the cluster, or the cluster off its hosts
    Reset(reset::Args),
    /// Run a program on hosts
    Exec(exec::Args),
    /// Print or store the administrator's kubeconfig
    Kubeconfig(kubeconfig::Args),
    /// Bring up a cluster from an image and addresses, and write its Clusterfile
    Run(run_image::Args),
    /// Write the Clusterfile of a cluster that runs
    Gen(gen_clusterfile::Args),
    /// Collect what helps to find a fault, without secrets
    SupportBundle(support_bundle::Args),
    /// Print the version of this program
    Version(version::Args),
    /// Print a completion script for a shell
    Completion(completion::Args),
    /// Write manual pages
    Man(man::Args),
}

impl Command {
    /// How this command was asked to print.
    pub fn format(&self) -> Format {
        let arg: Option<&FormatArg> = match self {
            Command::Version(args) => Some(&args.format),
            Command::Plan(args) => Some(&args.format),
            Command::Stage(args) => Some(&args.format),
            Command::Apply(args) => Some(&args.format),
            Command::Check(args) => Some(&args.format),
            Command::Status(args) => Some(&args.format),
            Command::Drift(args) => Some(&args.format),
            Command::Cert(args) => Some(args.command.format()),
            Command::Etcd(args) => Some(args.command.format()),
            Command::Join(args) => Some(&args.format),
            Command::Reset(args) => Some(&args.format),
            Command::Exec(args) => Some(&args.format),
            Command::Build(args) => Some(&args.format),
            Command::Load(args) => Some(&args.format),
            Command::Push(args) => Some(&args.format),
            Command::Pull(args) => Some(&args.format),
            Command::Merge(args) => Some(&args.format),
            Command::Images(args) => return args.format.format(),
            Command::Inspect(args) => return args.format.format(),
            Command::History(args) => return args.format.format(),
            Command::Diff(args) => return args.format.format(),
            Command::Prune(args) => return args.format.format(),
            Command::Save(_) | Command::Tag(_) | Command::Rmi(_) => None,
            Command::Verify(args) => Some(&args.format),
            Command::Login(_) | Command::Logout(_) => None,
            Command::Key(args) => Some(args.command.format()),
            Command::Sign(args) => Some(&args.format),
            Command::Sbom(_) => None,
            Command::Run(args) => Some(&args.format),
            Command::Completion(_) | Command::Kubeconfig(_) | Command::Man(_) => None,
            Command::Gen(_) | Command::SupportBundle(_) => None,
        };
        arg.map_or(Format::Text, |arg| arg.output)
    }

    /// Where the report is wanted.
    pub fn report(&self) -> Option<&Path> {
        let arg = match self {
            Command::Stage(args) => &args.report,
            Command::Apply(args) => &args.report,
            Command::Join(args) => &args.report,
            Command::Reset(args) => &args.report,
            Command::Run(args) => &args.report,
            _ => return None,
        };
        arg.report.as_deref()
    }

    /// The name under which the log of a run is kept; none for commands that only look at this machine.
    pub fn logged(&self) -> Option<&'static str> {
        Some(match self {
            Command::Build(_) => "build",
            Command::Push(_) => "push",
            Command::Pull(_) => "pull",
            Command::Load(_) => "load",
            Command::Save(_) => "save",
            Command::Merge(_) => "merge",
            Command::Prune(_) => "prune",
            Command::Plan(_) => "plan",
            Command::Apply(_) => "apply",
            Command::Check(_) => "check",
            Command::Join(_) => "join",
            Command::Reset(_) => "reset",
            Command::Run(_) => "run",
            Command::Cert(_) => "cert",
            Command::Etcd(_) => "etcd",
            Command::Exec(_) => "exec",
            Command::Kubeconfig(_) => "kubeconfig",
            Command::Gen(_) => "gen",
            Command::SupportBundle(_) => "support-bundle",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
