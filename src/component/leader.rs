//! Leader election by a `coordination.k8s.io/v1` Lease, wire-compatible with client-go's: 15 s lease, 10 s to renew, a
//! try every 2 s.
//!
//! Two shortcuts make a lone control plane start at once. A released lease is taken as soon as its watch says so. And a
//! lease whose holder was bound to the same health address on the same host is taken without waiting: two processes
//! cannot hold one port, so that holder is dead.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::health::{Health, Server};
use crate::metrics::Metrics;
use crate::{ApiErrorExt, Error};

const LEASE: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
const NAMESPACE: &str = "kube-system";

/// One candidacy for one lease.
struct Election {
    api: Api<Lease>,
    name: &'static str,
    identity: String,
    seat: String,
    health: Arc<Health>,
    metrics: Metrics,
}

/// What to do about a lease that was just read.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Take,
    Wait,
}

/// A control plane component: it answers probes all the time, and works while it leads.
pub struct Candidate {
    /// Its name, which is that of its lease too.
    pub name: &'static str,
    /// Its client.
    pub client: Client,
    /// Where it answers probes.
    pub server: Server,
    /// What it counts.
    pub metrics: Metrics,
    /// Whether to wait for the lease before working.
    pub elect: bool,
}

impl Candidate {
    /// Calls `work` whenever this process leads, with a token that is cancelled when it must stop writing; until `stop`, then
    /// gives the lease back.
    pub async fn run<F, Fut>(self, stop: CancellationToken, work: F)
    where
        F: Fn(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (health, server_stop) = (Arc::new(Health::default()), CancellationToken::new());
        let addr = self.server.addr();
        let mut serving = JoinSet::new();
        serving.spawn(self.server.serve(
            Arc::clone(&health),
            self.metrics.clone(),
            self.client.clone(),
            server_stop.clone(),
        ));
        info!(%addr, "{} is up", self.name);
        if self.elect {
            let election = Election::new(&self.client, self.name, addr, health, self.metrics);
            election.lead(&stop, work).await;
        } else {
            work(stop).await;
        }
        server_stop.cancel();
    }
}

impl Election {
    async fn lead<F, Fut>(&self, stop: &CancellationToken, work: F)
    where
        F: Fn(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        while self.acquire(stop).await {
            let leading = stop.child_token();
            let working = tokio::spawn(work(leading.clone()));
            let held = self.hold(stop).await;
            leading.cancel();
            // Nothing of ours may write any more when somebody else may lead. What is left is a candidate like any other.
            let _ = working.await;
            match held {
                Ok(()) => self.release().await,
                Err(error) => warn!(%error, "waiting for the lease again"),
            }
        }
    }

    /// A candidate for the lease `name` in `kube-system`; `addr` is where this process serves its health.
    pub fn new(
        client: &Client,
        name: &'static str,
        addr: std::net::SocketAddr,
        health: Arc<Health>,
        metrics: Metrics,
    ) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let seat = format!("{host}_{addr}_");
        let identity = format!("{seat}{}", uuid::Uuid::new_v4());
        Self {
            api: Api::namespaced(client.clone(), NAMESPACE),
            name,
            identity,
            seat,
            health,
            metrics,
        }
    }

    /// Waits until this process leads. `false` if `stop` came first.
    pub async fn acquire(&self, stop: &CancellationToken) -> bool {
        let mut seen: Option<(Option<String>, Instant)> = None;
        let mut pause = Duration::from_millis(50);
        loop {
            let tried = tokio::select! {
                () = stop.cancelled() => return false,
                tried = tokio::time::timeout(RENEW_DEADLINE, self.attempt(&mut seen)) => tried,
            };
            match tried {
                Ok(Ok(true)) => {
                    info!(lease = self.name, "leading");
                    self.mark(true);
                    return true;
                }
                Ok(Ok(false)) => {
                    pause = Duration::from_millis(50);
                    tokio::select! {
                        () = stop.cancelled() => return false,
                        () = self.released() => {}
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
                Ok(Err(error)) => {
                    debug!(lease = self.name, %error, "cannot read or take the lease");
                    tokio::select! {
                        () = stop.cancelled() => return false,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(RETRY);
                }
                Err(_) => warn!(lease = self.name, "the API server does not answer"),
            }
        }
    }

    /// Renews until `stop` (then the lease is released) or until it cannot be renewed in time.
    ///
    /// # Errors
    /// [`Error::LeadershipLost`]: the caller must stop writing at once.
    pub async fn hold(&self, stop: &CancellationToken) -> Result<(), Error> {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            let mut seen = None;
            match tokio::time::timeout(left, self.attempt(&mut seen)).await {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    self.mark(true);
                    continue;
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) if renewed.elapsed() < RENEW_DEADLINE => {
                    debug!(lease = self.name, %error, "cannot renew");
                    continue;
                }
                _ => {}
            }
            self.mark(false);
            return Err(Error::LeadershipLost(self.name.to_owned()));
        }
    }

    /// Gives the lease back, so that the next candidate need not wait for its end.
    pub async fn release(&self) {
        self.mark(false);
        let given = tokio::time::timeout(RETRY, async {
            let mut lease = self.api.get(self.name).await?;
            let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                let now = MicroTime(Timestamp::now());
                spec.renew_time = Some(now.clone());
                spec.acquire_time = Some(now);
                self.api.replace(self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        })
        .await;
        if !matches!(given, Ok(Ok(()))) {
            debug!(lease = self.name, "could not release the lease; it will expire");
        }
    }

    fn mark(&self, leading: bool) {
        self.health.renewed(leading.then(Timestamp::now));
        self.metrics.set_leading(leading);
    }

    /// One try to take or renew; `seen` is when the present record was first seen here.
    async fn attempt(&self, seen: &mut Option<(Option<String>, Instant)>) -> Result<bool, Error> {
        let Some(mut lease) = self.api.get_opt(self.name).await? else {
            return self.create().await;
        };
        let version = lease.metadata.resource_version.clone();
        let age = match seen {
            Some((known, since)) if *known == version => since.elapsed(),
            _ => {
                *seen = Some((version, Instant::now()));
                Duration::ZERO
            }
        };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if verdict(spec, &self.identity, &self.seat, age) == Verdict::Wait {
            return Ok(false);
        }
        self.fill(spec);
        match self.api.replace(self.name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_conflict() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    async fn create(&self) -> Result<bool, Error> {
        let mut lease = Lease::default();
        lease.metadata.name = Some(self.name.to_owned());
        self.fill(lease.spec.get_or_insert_with(LeaseSpec::default));
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_already_exists() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn fill(&self, spec: &mut LeaseSpec) {
        let now = MicroTime(Timestamp::now());
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            let changes = spec.lease_transitions.unwrap_or(0);
            spec.lease_transitions = Some(changes + i32::from(spec.holder_identity.is_some()));
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(LEASE.as_secs()).ok();
        spec.renew_time = Some(now);
    }

    /// Ends when the lease has no holder any more.
    async fn released(&self) {
        let mut changes = pin!(watch_object(self.api.clone(), self.name));
        while let Some(change) = changes.next().await {
            match change {
                Ok(None) => return,
                Ok(Some(lease))
                    if lease
                        .spec
                        .as_ref()
                        .is_none_or(|s| s.holder_identity.as_deref().is_none_or(str::is_empty)) =>
                {
                    return;
                }
                Ok(Some(_)) => {}
                Err(_) => std::future::pending().await,
            }
        }
    }
}

/// `age`: how long this very record has been known here. Clocks of other hosts are never trusted.
fn verdict(spec: &LeaseSpec, identity: &str, seat: &str, age: Duration) -> Verdict {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let duration = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    if holder.is_empty() || holder == identity || holder.starts_with(seat) || age >= duration {
        Verdict::Take
    } else {
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_free_own_expired_or_dead_holders_leases_are_taken() {
        let seat = "m1_127.0.0.1:10257_";
        for (holder, age, expected) in [
            (None, 0, Verdict::Take),
            (Some(""), 0, Verdict::Take),
            (Some("m1_127.0.0.1:10257_me"), 0, Verdict::Take),
            (Some("m1_127.0.0.1:10257_former"), 0, Verdict::Take),
            (Some("m10_127.0.0.1:10257_x"), 0, Verdict::Wait),
            (Some("m2_127.0.0.1:10257_x"), 14, Verdict::Wait),
            (Some("m2_127.0.0.1:10257_x"), 15, Verdict::Take),
            (Some("other"), 3, Verdict::Wait),
        ] {
            let spec = LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(15),
                ..LeaseSpec::default()
            };
            let verdict = verdict(&spec, "m1_127.0.0.1:10257_me", seat, Duration::from_secs(age));
            assert_eq!(verdict, expected, "{holder:?} {age}");
        }
    }
}
