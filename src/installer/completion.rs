//! `installer completion`: scripts that complete this command line in a shell.

use crate::{cli::Cli, failure::Exit};
use clap::CommandFactory;
use clap_complete::Shell;

/// Flags of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  source <(installer completion bash)")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    clap_complete::generate(args.shell, &mut Cli::command(), "installer", &mut std::io::stdout());
    Ok(Exit::Done)
}
