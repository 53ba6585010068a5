//! Runs the phases: each on each of its hosts as soon as what it needs is done ([`crate::order`]), all at once.

use crate::{
    Error, Result,
    cluster::Cluster,
    effects::Learned,
    event::{Event, Observer},
    fan,
    order::{Order, Place},
    phases::{On, Outcome, PHASES, Phase},
    push,
    rolling::Rolling,
    session::Session,
    site::Site,
    swarm::Swarm,
};
use futures::FutureExt as _;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// All that phases work with.
pub struct Run {
    /// The wish and the hosts.
    pub site: Site,
    /// Which hosts are worked on one after the other.
    pub rolling: Rolling,
    /// The hosts' connections, in the order of [`Site::seats`].
    pub sessions: Vec<Session>,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
    /// The blobs' place on this machine.
    pub blobs: oci::BlobStore,
    /// Who gives them to whom.
    pub swarm: Swarm,
    /// Keeps them there until the run ends, whoever removes images.
    pub in_use: image::InUse,
    /// The Clusterfile without its secrets, to be stored in the cluster.
    pub record: serde_json::Value,
    /// Whether the cluster already answers: what is then skipped is only the waiting.
    pub learned: Mutex<Learned>,
    /// How long launching an application, or a launch command, may take.
    pub launch_limit: Duration,
    /// Carried images that a registry of somebody else lacks, and the way there.
    pub push: Option<push::Push>,
    /// The way into the cluster, once there is one.
    pub cluster: tokio::sync::OnceCell<Cluster>,
}

impl Run {
    /// What is known by now.
    pub fn learned(&self) -> Learned {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what became known.
    pub fn learn(&self, note: impl FnOnce(&mut Learned)) {
        note(&mut self.learned.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Applies a phase's effects on a host.
    ///
    /// # Errors
    /// When they cannot be computed or one of them fails.
    pub async fn apply(&self, phase: &Phase, index: usize) -> Result<Outcome> {
        let Some(effects) = phase.effects else {
            return Ok(Outcome::default());
        };
        let effects = effects(&self.site, &self.site.seats[index], &self.learned())?;
        if effects.is_empty() {
            return Ok(Outcome::default());
        }
        let session = &self.sessions[index];
        let changes = session
            .client
            .apply(effects)
            .await
            .map_err(session.failed(phase.title))?;
        Ok(Outcome {
            changes: changes.iter().filter(|change| change.changed()).count(),
            ..Outcome::default()
        })
    }

    /// The way into the cluster.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn cluster(&self) -> Result<&Cluster> {
        self.cluster
            .get()
            .ok_or(Error::Interrupted("the way to the API server"))
    }

    /// Tells something about a host, or the cluster.
    pub fn note(&self, host: Option<usize>, message: impl Into<String>) {
        self.observer.event(Event::Note {
            host: host.map(|index| self.host_name(index)),
            message: message.into(),
        });
    }

    fn order(&self) -> Order<'_> {
        Order {
            site: &self.site,
            rolling: &self.rolling,
        }
    }

    /// How hosts are called in events.
    pub fn host_name(&self, index: usize) -> String {
        self.site.seats[index].name.clone()
    }
}

/// How long a phase took on a host, and what it did there.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timing {
    /// Name of the phase.
    pub phase: &'static str,
    /// The host; absent: the cluster.
    pub host: Option<String>,
    /// When it began, after the start of the run.
    #[serde(skip)]
    pub began: Duration,
    /// How long it took.
    #[serde(skip)]
    pub took: Duration,
    /// Things changed.
    pub changes: usize,
    /// Bytes that arrived.
    pub bytes: u64,
    /// How many of them came from other hosts.
    pub from_peers: u64,
}

type Signals = HashMap<Place, watch::Receiver<Option<bool>>>;

/// Runs every phase. Hosts do not hinder each other; what depends on a failed phase is left out.
///
/// # Errors
/// All that failed, merged; what was done stays done, and the next run goes on from there.
pub async fn all(run: &Arc<Run>) -> Result<Vec<Timing>> {
    only(run, |_| true).await
}

/// As [`all`], but only those phases that are `wanted`; what they need of others is believed to be there.
///
/// # Errors
/// As [`all`].
pub async fn only(run: &Arc<Run>, wanted: fn(&Phase) -> bool) -> Result<Vec<Timing>> {
    let wanted: Vec<&'static Phase> = PHASES.iter().filter(|phase| wanted(phase)).collect();
    let start = Instant::now();
    let mut senders = HashMap::new();
    let mut signals = Signals::new();
    let order = run.order();
    for phase in &wanted {
        for place in order.places(phase) {
            let (sender, receiver) = watch::channel(None);
            senders.insert((phase.name, place), sender);
            signals.insert((phase.name, place), receiver);
        }
    }
    let mut tasks = JoinSet::new();
    for phase in wanted {
        for place in order.places(phase) {
            let needed = order.needed(phase, place).into_iter();
            let needs = needed.filter_map(|key| signals.get(&key)).cloned().collect();
            let (Some(sender), run) = (senders.remove(&(phase.name, place)), Arc::clone(run)) else {
                continue;
            };
            tasks.spawn(async move {
                if !all_done(needs).await {
                    let _ = sender.send(Some(false));
                    return Ok(None);
                }
                let result = one(&run, phase, place, start).await;
                let _ = sender.send(Some(result.is_ok()));
                result.map(Some)
            });
        }
    }
    collect(tasks).await
}

async fn all_done(needs: Vec<watch::Receiver<Option<bool>>>) -> bool {
    for mut need in needs {
        let done = need
            .wait_for(Option::is_some)
            .await
            .is_ok_and(|done| *done == Some(true));
        if !done {
            return false;
        }
    }
    true
}

/// The hosts without which a phase cannot succeed: what it waits for may be something that such a host does by
/// itself, and its loss would not be noticed before that wait ends.
fn indispensable(phase: &Phase, place: Option<usize>, hosts: usize, first_master: usize) -> Vec<usize> {
    match place {
        Some(index) => vec![index],
        None if phase.on == On::External => Vec::new(),
        // They wait for every node.
        None if ["nodes", "verify"].contains(&phase.name) => (0..hosts).collect(),
        None => vec![first_master],
    }
}

/// Waits until a host that a phase cannot do without is lost for good.
async fn host_gone(run: &Run, phase: &Phase, place: Option<usize>) -> Error {
    let hosts = indispensable(phase, place, run.sessions.len(), run.site.first_master());
    let gone = hosts.into_iter().map(|index| {
        let session = &run.sessions[index];
        async move { session.failed(phase.title)(session.client.gone().await) }.boxed()
    });
    match gone.collect::<Vec<_>>() {
        none if none.is_empty() => std::future::pending().await,
        gone => futures::future::select_all(gone).await.0,
    }
}

async fn one(run: &Arc<Run>, phase: &'static Phase, place: Option<usize>, start: Instant) -> Result<Timing> {
    let host = place.map(|index| run.host_name(index));
    let _turn = if place.is_some() { fan::turn().await } else { None };
    let began = start.elapsed();
    run.observer.event(Event::PhaseStarted {
        phase: phase.name,
        title: phase.title,
        host: host.clone(),
    });
    let work = async {
        match (phase.work, place) {
            (Some(work), _) => work(Arc::clone(run), phase, place).await,
            (None, Some(index)) => run.apply(phase, index).await,
            (None, None) => Ok(Outcome::default()),
        }
    };
    let result = tokio::select! {
        result = work => result,
        error = host_gone(run, phase, place) => Err(error),
    };
    let took = start.elapsed() - began;
    match result {
        Ok(Outcome {
            changes,
            bytes,
            from_peers,
        }) => {
            run.observer.event(Event::PhaseDone {
                phase: phase.name,
                host: host.clone(),
                changes,
                bytes,
                from_peers,
                took,
            });
            Ok(Timing {
                phase: phase.name,
                host,
                began,
                took,
                changes,
                bytes,
                from_peers,
            })
        }
        Err(error) => {
            run.observer.event(Event::PhaseFailed {
                phase: phase.name,
                host,
                message: error.to_string(),
            });
            Err(error)
        }
    }
}

async fn collect(mut tasks: JoinSet<Result<Option<Timing>>>) -> Result<Vec<Timing>> {
    let mut timings = Vec::new();
    let mut errors = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok(Ok(timing)) => timings.extend(timing),
            Ok(Err(error)) => errors.push(error),
            Err(_) => errors.push(Error::Interrupted("a phase")),
        }
    }
    timings.sort_by_key(|timing| timing.began);
    match Error::merge(errors) {
        Some(error) => Err(error),
        None => Ok(timings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phases;

    #[test]
    fn who_is_lost_ends_what_waits_for_it_and_nothing_else() {
        let of = |name, place| indispensable(phases::named(name).unwrap(), place, 3, 1);
        assert_eq!(of("agent", Some(2)), [2]);
        assert_eq!(of("nodes", None), [0, 1, 2]);
        assert_eq!(of("verify", None), [0, 1, 2]);
        assert_eq!(of("manifests", None), [1]);
        assert_eq!(of("push", None), [0; 0]);
    }
}
