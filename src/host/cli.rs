//! `clusterd host --stdio`.

use std::sync::Arc;

use crate::{Error, Result, fsops::Root, give::Own, server, system::Real};

/// Arguments of `clusterd host`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Serve the host protocol on stdin and stdout until stdin closes
    #[arg(long, required = true)]
    pub stdio: bool,
}

/// Serves until the client closes our stdin, then ends what is under way.
///
/// # Errors
/// When stdin brings something else than the protocol.
pub async fn run(_args: Args) -> Result<()> {
    let own = tokio::task::spawn_blocking(Own::running).await.unwrap_or_default();
    server::serve(
        tokio::io::stdin(),
        tokio::io::stdout(),
        Root::real(),
        Arc::new(Real),
        own,
    )
    .await
    .map_err(Error::io("the host protocol on stdin and stdout"))
}
