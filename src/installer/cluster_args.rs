//! What all commands about a cluster share: which Clusterfile, and how hosts are reached.

use crate::context::Context;
use anyhow::Context as _;
use bootstrap::{
    event::Event,
    install::Options,
    preflight,
    rolling::Care,
    session::{Access, Aliases},
};
use clusterfile::Clusterfile;
use std::{io::IsTerminal as _, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

/// Flags of every command about a cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct ClusterArgs {
    /// The Clusterfile; relative paths in it are relative to its folder
    #[arg(short = 'f', long = "file", default_value = "Clusterfile", value_name = "FILE")]
    pub file: PathBuf,
}

/// Flags of commands that look before they change something.
#[derive(Debug, Clone, clap::Args)]
pub struct PreflightArgs {
    /// Preflight checks whose findings shall not stop it, or `all`
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = known_check)]
    pub ignore_preflight: Vec<String>,
    /// Send every blob from this machine: no host fetches from another
    #[arg(long)]
    pub direct: bool,
    /// How long launching an application, or a launch command, may take
    #[arg(long, default_value_t = DEFAULT_LAUNCH.as_secs(), value_name = "SECONDS")]
    pub launch_timeout: u64,
}

/// Flags of commands that may restart what runs pods.
#[derive(Debug, Clone, clap::Args)]
pub struct CareArgs {
    /// How many nodes may be worked on at once when that restarts their agent or runtime; masters go one by one
    #[arg(long, default_value = "1", value_name = "N")]
    pub max_unavailable: NonZeroUsize,
    /// How long pods get to leave a node before it is changed
    #[arg(long, default_value_t = Care::default().patience.as_secs(), value_name = "SECONDS", conflicts_with = "no_drain")]
    pub drain_timeout: u64,
    /// Let pods stay on nodes that are changed
    #[arg(long)]
    pub no_drain: bool,
}

impl From<&CareArgs> for Care {
    fn from(args: &CareArgs) -> Self {
        Self {
            max_unavailable: args.max_unavailable,
            drain: !args.no_drain,
            patience: Duration::from_secs(args.drain_timeout),
        }
    }
}

/// How long launching something may take unless the user says otherwise.
const DEFAULT_LAUNCH: Duration = Duration::from_secs(600);

fn known_check(name: &str) -> Result<String, String> {
    if name == "all" || preflight::CHECKS.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "no such check; there are all, {}",
        preflight::CHECKS.join(", ")
    ))
}

impl ClusterArgs {
    /// Reads the Clusterfile and tells its warnings.
    pub fn load(&self, context: &Context) -> anyhow::Result<Clusterfile> {
        let clusterfile = Clusterfile::load(&self.file)?;
        context.log.know(&clusterfile);
        for warning in &clusterfile.warnings {
            context.observer.event(Event::Warning {
                host: None,
                message: warning.to_string(),
            });
        }
        read_aliases(context)?;
        Ok(clusterfile)
    }

    /// How `command` of `cluster` goes about it.
    pub fn options(
        &self,
        context: &Context,
        command: &str,
        cluster: &str,
        preflight: Option<&PreflightArgs>,
    ) -> Options {
        let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "someone".to_owned());
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Options {
            access: access(context),
            store: context.store.clone(),
            ignored: preflight.map(|args| args.ignore_preflight.clone()).unwrap_or_default(),
            prove_airgap: false,
            care: Care::default(),
            direct: preflight.is_some_and(|args| args.direct),
            launch_limit: preflight.map_or(DEFAULT_LAUNCH, |args| Duration::from_secs(args.launch_timeout)),
            observer: Arc::clone(&context.observer),
            who: format!(
                "installer {command} of {cluster} by {}@{}",
                variable("USER"),
                machine.trim()
            ),
        }
    }
}

/// How hosts are reached, beyond what a Clusterfile says; [`read_aliases`] comes before.
pub fn access(context: &Context) -> Access {
    Access {
        known_hosts: context.known_hosts.clone(),
        accept_new_host_keys: context.accept_new_host_keys,
        bandwidth: context.bandwidth.clone(),
        aliases: context.aliases.get().cloned().unwrap_or_default(),
    }
}

/// Reads the SSH configuration and tells what of it is passed over.
///
/// # Errors
/// When it cannot be read.
pub fn read_aliases(context: &Context) -> anyhow::Result<()> {
    let own = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ssh/config"));
    let path = match &context.ssh_config {
        Some(path) if path.as_os_str() == "none" => None,
        Some(path) => Some(path.clone()),
        None => own().filter(|path| path.exists()),
    };
    if let Some(path) = path {
        let (aliases, warnings) = Aliases::load(&path)?;
        for warning in warnings {
            context.out.warn(warning);
        }
        let _ = context.aliases.set(aliases);
    }
    Ok(())
}

/// Asks before something is taken away. Without a terminal to ask on, `--yes` is needed.
pub fn confirm(context: &Context, question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    anyhow::ensure!(
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !context.out.is_json(),
        "{question}\n  there is no terminal to confirm on: say --yes if that is what you want"
    );
    context.out.ask(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("cannot read your answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
