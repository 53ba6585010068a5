//! `installer version`.

use crate::{context::Context, failure::Exit, output::FormatArg};

/// Flags of `version`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print.
    #[command(flatten)]
    pub format: FormatArg,
}

/// Prints the version.
pub fn run(_args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    if context.out.is_json() {
        context
            .out
            .json(&serde_json::json!({"version": version, "arch": std::env::consts::ARCH}));
    } else {
        context.out.result(format!("installer {version}"));
    }
    Ok(Exit::Done)
}
