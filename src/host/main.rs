//! `clusterd-host host`: the role `host` of `clusterd` alone. It is a small part of `clusterd`, and all that a bare host needs to be talked to;
//! so it is what is put on hosts first, one after the other, before many things can be sent to many hosts at once.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What the installer talks to on a host.
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
}

fn main() -> ExitCode {
    let Role::Host(args) = Cli::parse().role;
    host::start::run(false, host::run(args))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn its_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
