//! `clusterd host --stdio`.

use std::sync::Arc;

use crate::{Error, Result, fsops::Root, give, server, system::Real};

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
    let digest = tokio::task::spawn_blocking(own_digest).await.ok().flatten();
    server::serve(
        tokio::io::stdin(),
        tokio::io::stdout(),
        Root::real(),
        Arc::new(Real),
        digest,
    )
    .await
    .map_err(Error::io("the host protocol on stdin and stdout"))
}

/// Digest of the running program's file, even when it has been replaced meanwhile.
fn own_digest() -> Option<oci::Digest> {
    let mut file = std::fs::File::open(give::OWN_FILE).ok()?;
    oci::Digest::of_reader(&mut file).ok().map(|(digest, _)| digest)
}
