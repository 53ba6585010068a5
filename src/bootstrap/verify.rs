//! Whether the cluster works: not whether it was set up, but what its nodes and pods do now.
//!
//! From the API server: every expected node is Ready, every system pod and workload is. From every node itself: cluster DNS answers,
//! the API server's service address answers, a pod on another node answers, an image can be pulled from the private registry. From
//! every master: its API server serves the certificate that was written, under every name it shall have.
//! Nothing here changes anything.

mod certificate;
mod dns;
mod probes;
mod system;

pub(crate) use system::unready_because;

use crate::{
    Error, Result,
    cluster::Cluster,
    event::{Event, Observer},
    fan,
    phases::{Outcome, Phase},
    run::Run,
    session::Session,
    site::Site,
};
use futures::{FutureExt as _, future::BoxFuture};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// How long an apply waits for the cluster to work.
const PATIENCE: Duration = Duration::from_secs(180);

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What: `node`, `system-pods`, `dns`, `service`, `cross-node`, `registry`, `certificate`.
    pub check: &'static str,
    /// From where; absent: as the API server has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was seen, or what is wrong.
    pub detail: String,
}

impl Check {
    fn new(check: &'static str, host: Option<&str>, result: std::result::Result<String, String>) -> Self {
        let ok = result.is_ok();
        let (Ok(detail) | Err(detail)) = result;
        Self {
            check,
            host: host.map(str::to_owned),
            ok,
            detail,
        }
    }
}

/// Looks at everything, waiting at most `patience` for what is not yet so.
pub async fn look(
    site: &Site,
    sessions: &[Session],
    cluster: &Cluster,
    patience: Duration,
    observer: &dyn Observer,
) -> Vec<Check> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut system = system::System::new(&cluster.client);
    let mut checks = system::settle(site, &mut system, deadline, observer).await;
    let (pods, keep) = system.targets();
    let probes = site
        .seats
        .iter()
        .zip(sessions)
        .map(|(seat, session)| probes::from(site, seat, session, pods.clone(), deadline).boxed());
    let seen = tokio::select! {
        seen = fan::all(probes.collect()) => seen,
        never = keep => match never {},
    };
    checks.extend(seen.into_iter().flatten());
    for check in &checks {
        observer.event(Event::Check(check.clone()));
    }
    checks
}

/// The end of an apply.
pub fn phase(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let checks = look(&run.site, &run.sessions, run.cluster()?, PATIENCE, &*run.observer).await;
        let failed = checks.iter().filter(|check| !check.ok).map(|check| {
            let place = check.host.as_deref().unwrap_or("cluster");
            Error::on(place, format!("{}: {}", check.check, check.detail))
        });
        match Error::merge(failed.collect()) {
            Some(error) => Err(error),
            None => Ok(Outcome::default()),
        }
    }
    .boxed()
}
