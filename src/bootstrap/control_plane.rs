//! Stopping and starting the control plane of a master: its manifests are taken from the node agent's folder and put back, through the
//! gate, so that the journal knows. A killed program leaves a master that the next apply repairs.

use crate::{Error, Result, cluster::api, paths, session::Session};
use host::{Effect, effect::File, proto::Condition};
use std::time::Duration;

/// How long the programs get to end.
const END: Duration = Duration::from_secs(120);
/// How long they get to answer again.
const START: Duration = Duration::from_secs(180);
/// Where they listen: etcd, its health, the API server, the controllers, the scheduler.
const PORTS: [u16; 5] = [2379, 2381, paths::API_PORT, 10257, 10259];

/// The static pods of a master as they were applied last.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlane(Vec<File>);

impl ControlPlane {
    /// Of what was applied to a host; nothing on hosts that are no masters.
    pub(crate) fn of(applied: &[Effect]) -> Option<Self> {
        let manifests: Vec<File> = applied
            .iter()
            .filter_map(|effect| match effect {
                Effect::File(file) if file.path.starts_with(paths::STATIC_PODS) => Some(file.clone()),
                _ => None,
            })
            .collect();
        (!manifests.is_empty()).then_some(Self(manifests))
    }

    /// Ends it, and waits until nobody listens any more.
    ///
    /// # Errors
    /// When it does not end in time.
    pub(crate) async fn stop(&self, session: &Session) -> Result<()> {
        let absent = self.0.iter().map(|file| Effect::Absent {
            path: file.path.clone(),
        });
        let stopped = session.client.apply(absent.collect()).await;
        stopped.map_err(session.failed("stopping the control plane"))?;
        for port in PORTS {
            let silent = Condition::NoTcp {
                address: format!("127.0.0.1:{port}"),
            };
            let waited = session.client.wait_for(silent, END).await;
            waited.map_err(session.failed("waiting for the end of the control plane"))?;
        }
        Ok(())
    }

    /// Starts it, and waits until its API server is ready.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub(crate) async fn start(&self, session: &Session) -> Result<()> {
        let files = self.0.iter().cloned().map(Effect::File);
        let started = session.client.apply(files.collect()).await;
        started.map_err(session.failed("starting the control plane"))?;
        api::wait_ready(session, START).await
    }

    /// Its name in what is told to people.
    pub(crate) fn titles(&self) -> Vec<String> {
        let title = |file: &File| {
            let name = file.path.rsplit('/').next().unwrap_or_default();
            format!("static pod {}", name.strip_suffix(".yaml").unwrap_or(name))
        };
        self.0.iter().map(title).collect()
    }
}

/// For hosts that remember nothing of what was applied.
pub(crate) fn unknown(session: &Session) -> Error {
    Error::on(
        session.ip,
        "it does not remember what was applied to it (that was an older version, or no apply ended well); run installer apply first",
    )
}
