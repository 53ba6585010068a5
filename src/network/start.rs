//! What the roles that follow the API server do when they start: a client, probes, and the wish to stop.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use component::{Error, client, probes, signal};
use tokio_util::sync::CancellationToken;

/// The connections of a role that has begun.
pub(crate) struct Started {
    /// Of the API server.
    pub(crate) client: kube::Client,
    /// What the probes show.
    pub(crate) health: Arc<Health>,
    /// Cancelled when the process is asked to stop.
    pub(crate) stop: CancellationToken,
}

/// Connects as `kubeconfig` says, or as the pod's service account, and answers probes at `address`: the paths in `ready`
/// tell the health, `/livez` and `/healthz` else that somebody answers. Until told otherwise the health is `why`.
///
/// # Errors
/// When signals cannot be received, no client can be made, or the address cannot be listened on.
pub(crate) async fn start(
    agent: &'static str,
    kubeconfig: Option<&Path>,
    address: SocketAddr,
    ready: &'static [&'static str],
    why: &str,
) -> Result<Started, Error> {
    let stop = signal::stop_token()?;
    let client = client::connect(kubeconfig, agent).await?;
    let health = Arc::new(Health::new(why));
    let shown = Arc::clone(&health);
    probes::serve(address, Arc::new(move |path| shown.answer(path, ready))).await?;
    Ok(Started { client, health, stop })
}

/// Whether a role has brought the kernel to what it must be, and else why not.
pub(crate) struct Health(Mutex<Result<(), String>>);

impl Health {
    /// Not good yet, and why.
    pub(crate) fn new(why: &str) -> Self {
        Self(Mutex::new(Err(why.to_owned())))
    }

    /// Sets it; whether that is news.
    pub(crate) fn set(&self, done: Result<(), String>) -> bool {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *shown != done;
        *shown = done;
        news
    }

    /// Whether the last try succeeded.
    pub(crate) fn is_good(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_ok()
    }

    fn answer(&self, path: &str, ready: &[&str]) -> Option<(bool, String)> {
        if !ready.contains(&path) {
            // Alive is who answers; what is missing may lie elsewhere and a restart would not mend it.
            return matches!(path, "/livez" | "/healthz").then(|| (true, "ok\n".to_owned()));
        }
        Some(match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(()) => (true, "ok\n".to_owned()),
            Err(why) => (false, format!("{why}\n")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_paths_of_readiness_tell_the_health() {
        let health = Health::new("not yet");
        let good = |path: &str| health.answer(path, &["/readyz"]).map(|(good, _)| good);
        let said = ["/livez", "/healthz", "/readyz", "/other"].map(good);
        assert_eq!(said, [Some(true), Some(true), Some(false), None]);
        assert!(health.set(Ok(())));
        assert!(!health.set(Ok(())));
        assert_eq!(health.answer("/readyz", &["/readyz"]), Some((true, "ok\n".to_owned())));
    }
}
