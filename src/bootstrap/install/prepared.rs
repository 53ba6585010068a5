//! What is known once all hosts were looked at, and what can be done then.

use super::{each, leave_bare};
use crate::{
    Error, Result,
    airgap::{self, Proof},
    cluster::Cluster,
    event::Event,
    fan, phases, plan,
    plan::Plan,
    preflight::Finding,
    reset, rolling,
    run::{self, Run, Timing},
    runs,
    session::{Access, Session},
    site::Site,
};
use futures::FutureExt as _;
use host::Mode;
use std::{
    net::Ipv4Addr,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// A site that was looked at: what is wrong with it, and what there is to do.
pub struct Prepared {
    /// What preflight found; [`crate::preflight::refuses`] tells whether it stops us.
    pub findings: Vec<Finding>,
    /// What there is to do. Absent when preflight stops us.
    pub plan: Option<Plan>,
    /// How long looking took.
    pub took: Duration,
    pub(super) run: Arc<Run>,
    pub(super) proof: OnceLock<Vec<Proof>>,
    pub(super) who: String,
    pub(super) targets: Vec<(Ipv4Addr, clusterfile::Ssh)>,
    pub(super) access: Access,
}

/// What becomes of what an apply has changed when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It stays, and the next apply goes on from there.
    Keep,
    /// What this run changed on hosts is undone. What it changed in the cluster stays.
    RollBack,
}

impl Prepared {
    /// The plan as a file, together with what decided it. Absent when preflight stops us.
    ///
    /// # Errors
    /// Never for plans that can be printed.
    pub fn file(&self) -> Result<Option<plan::PlanFile>> {
        let plan = self.plan.as_ref();
        plan.map(|plan| plan::PlanFile::new(plan, &self.run.site.seats, &self.run.record))
            .transpose()
    }

    /// Does what the plan says.
    ///
    /// # Errors
    /// All that failed. What was done stays, and the next apply goes on from there; or, if that was asked for, what this run has changed
    /// on hosts is undone.
    pub async fn apply(&self, on_failure: OnFailure) -> Result<Vec<Timing>> {
        self.take_hosts().await?;
        let revertible = on_failure == OnFailure::RollBack;
        let fresh = runs::begin(&self.run, &self.who, revertible).await?;
        let ran = run::all(&self.run).await;
        let _ = self.proof.set(airgap::end(&self.run).await);
        let timings = match ran {
            Ok(timings) => timings,
            Err(error) if revertible => return Err(self.roll_back(error, &fresh).await),
            Err(error) => {
                rolling::work::tell_held(&self.run).await;
                runs::failed(&self.run).await;
                return Err(error);
            }
        };
        runs::done(&self.run).await?;
        self.tell_done("done");
        Ok(timings)
    }

    /// Brings what an apply would have to send, and does nothing else: the next apply has only to use it.
    ///
    /// # Errors
    /// All that failed. What has arrived stays.
    pub async fn stage(&self) -> Result<Vec<Timing>> {
        self.take_hosts().await?;
        let timings = run::only(&self.run, phases::is_transport).await?;
        self.tell_done("staged");
        Ok(timings)
    }

    /// From here on the hosts are ours alone. Before, nothing of ours may be seen on them: it would look like a leftover.
    async fn take_hosts(&self) -> Result<()> {
        let mode = Mode::Write { who: self.who.clone() };
        let scope = &self.run.site.scope;
        each(&self.run.sessions, |session| {
            let mode = mode.clone();
            async move {
                let opened = session.client.open(scope, mode).await;
                opened.map_err(session.failed("taking the host's lock"))
            }
        })
        .await?;
        self.tell_pushed();
        Ok(())
    }

    fn tell_done(&self, message: &str) {
        for index in 0..self.run.site.seats.len() {
            self.run.observer.event(Event::HostDone {
                host: self.run.host_name(index),
                message: message.to_owned(),
            });
        }
    }

    fn tell_pushed(&self) {
        for (index, session) in self.run.sessions.iter().enumerate() {
            if let Some(pushed) = session.pushed {
                self.run.observer.event(Event::Program {
                    host: self.run.host_name(index),
                    bytes: pushed.bytes,
                    from_peers: if pushed.from_peer { pushed.bytes } else { 0 },
                    took: pushed.took,
                });
            }
        }
    }

    /// What this run changed on hosts is undone; the error tells on which.
    async fn roll_back(&self, error: Error, fresh: &[bool]) -> Error {
        let hosts = runs::roll_back(&self.run, fresh, &self.targets, &self.access, &self.who).await;
        rolling::work::let_all_go(&self.run).await;
        Error::RolledBack {
            source: Box::new(error),
            hosts,
        }
    }

    /// Leaves hosts on which nothing of ours is as they were found: what was put there to look at them goes.
    pub async fn leave(&self) {
        let bare = |session: &Session| {
            let seat = self.run.site.seats.iter().find(|seat| seat.ip == session.ip);
            session.pushed.is_some() && seat.is_some_and(|seat| seat.facts.installed.is_empty())
        };
        leave_bare(&self.run.sessions, bare).await;
    }

    /// Takes the names of nodes that have left out of the hosts' `/etc/hosts`. A host where that fails is told; the next apply does it.
    pub async fn forget_names(&self, gone: &[Ipv4Addr]) {
        let scope = &self.run.site.scope;
        let sessions = self.run.sessions.iter();
        let work = sessions.map(|session| reset::names::forget(session, scope, &self.who, gone).boxed());
        for (index, forgot) in fan::all(work.collect()).await.into_iter().enumerate() {
            if let Err(error) = forgot {
                self.run.observer.event(Event::Warning {
                    host: Some(self.run.host_name(index)),
                    message: format!(
                        "its /etc/hosts still has the names of nodes that left; the next apply takes them out: {error}"
                    ),
                });
            }
        }
    }

    /// What each host counted, if this run had to prove that the cluster needs nothing from elsewhere and has ended.
    pub fn proof(&self) -> &[Proof] {
        self.proof.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// Wish and hosts.
    pub fn site(&self) -> &Site {
        &self.run.site
    }

    /// The hosts' connections, in the order of the site's seats.
    pub fn sessions(&self) -> &[Session] {
        &self.run.sessions
    }

    /// The way into the cluster, if it was there or has come up.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.run.cluster.get()
    }
}
