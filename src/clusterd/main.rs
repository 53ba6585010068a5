//! `clusterd ROLE`: every program of a host and of the control plane, in one static file.
//!
//! This file only tells roles apart. A role's flags and its `run` are its crate's.

mod pause;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The programs of a cluster's hosts and of its control plane.
#[derive(Debug, Parser)]
#[command(name = "clusterd", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve the installer on stdin and stdout
    Host(host::Args),
    /// Serve container images, and take new ones
    Registry(Box<registry::Args>),
    /// Serve the Kubernetes API
    Apiserver(Box<apiserver::Args>),
    /// Choose nodes for pods
    Scheduler(Box<scheduler::Args>),
    /// Run controllers
    ControllerManager(Box<controllers::Args>),
    /// Run pods
    Agent(Box<agent::Args>),
    /// Give pods their network
    Network(network::cni::Args),
    /// Program services
    Proxy(network::proxy::Args),
    /// Resolve names of the cluster
    Dns(dns::Args),
    /// Lead to all API servers
    Lb(network::lb::Args),
    /// Hold a pod's namespaces open
    Pause,
}

fn main() -> ExitCode {
    let role = Cli::parse().role;
    let small = matches!(role, Role::Pause | Role::Lb(_) | Role::Network(_) | Role::Proxy(_));
    host::start::run(small, run(role))
}

async fn run(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Host(args) => host::run(args).await?,
        Role::Registry(args) => registry::run(*args).await?,
        Role::Apiserver(args) => apiserver::run(*args).await?,
        Role::Scheduler(args) => scheduler::run(*args).await?,
        Role::ControllerManager(args) => controllers::run(*args).await?,
        Role::Agent(args) => agent::run(*args).await?,
        Role::Network(args) => network::cni::run(args).await?,
        Role::Proxy(args) => network::proxy::run(args).await?,
        Role::Dns(args) => dns::run(args).await?,
        Role::Lb(args) => network::lb::run(args).await?,
        Role::Pause => pause::run().await?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_of_all_roles_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_reset_looks_for_what_pods_made_where_the_agent_notes_it() {
        let noted = format!("/var/lib/kubelet/{}", agent::MADE_BY_PODS);
        assert_eq!(host::MADE_BY_PODS, noted);
    }
}
