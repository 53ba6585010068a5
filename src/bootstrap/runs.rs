//! The two marks around what an apply does on hosts, and how it is undone when that is wanted.
//!
//! Each host keeps its own journal of the run ([`host::proto::Request::BeginRun`]). A host that had nothing of ours before is undone as a
//! whole, as a reset would; on the others the undoing ends where the run began.

use crate::{
    Result,
    event::Event,
    fan,
    install::each,
    reset,
    run::Run,
    session::{Access, Session},
};
use clusterfile::Ssh;
use futures::FutureExt as _;
use host::{
    Mode, Scope,
    proto::{RunEnd, RunMark},
};
use std::{fmt, net::Ipv4Addr, time::Duration};

/// How long pods get to leave a node that is taken out again.
const DRAIN: Duration = Duration::from_secs(30);

/// What became of a host whose run was undone.
#[derive(Debug, Clone)]
pub struct RolledBack {
    /// Its address.
    pub host: String,
    /// How many changes were undone.
    pub undone: usize,
    /// What could not be.
    pub failed: Vec<String>,
}

impl fmt::Display for RolledBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.failed.is_empty() {
            return write!(
                f,
                "{}: {} of this run undone",
                self.host,
                oci::counted(self.undone, "change")
            );
        }
        write!(f, "{}: not all changes of this run could be undone:", self.host)?;
        self.failed.iter().try_for_each(|why| write!(f, "\n    {why}"))
    }
}

/// The mark of a run on one host.
fn mark(run: &Run, index: usize, who: &str, at_ms: i64) -> RunMark {
    RunMark {
        who: who.to_owned(),
        at_ms,
        image: Some(run.site.image.reference.clone()),
        digest: Some(run.site.image.digest.clone()),
        role: Some(if run.site.seats[index].master { "master" } else { "node" }.to_owned()),
    }
}

/// Marks the beginning on every host; on which of them nothing of ours was before.
pub(crate) async fn begin(run: &Run, who: &str, revertible: bool) -> Result<Vec<bool>> {
    let at_ms = jiff::Timestamp::now().as_millisecond();
    let work = run.sessions.iter().enumerate().map(|(index, session)| {
        let mark = mark(run, index, who, at_ms);
        async move {
            let begun = session.client.begin_run(mark, revertible).await;
            begun.map_err(session.failed("noting that a run begins"))
        }
        .boxed()
    });
    fan::all_good(work.collect()).await
}

/// Marks the good end on every host.
pub(crate) async fn done(run: &Run) -> Result<()> {
    each(&run.sessions, |session| end(session, RunEnd::Done))
        .await
        .map(drop)
}

/// Marks the bad end wherever that can still be done; a host without the mark was interrupted, which is as true.
pub(crate) async fn failed(run: &Run) {
    let ends = run.sessions.iter().map(|session| end(session, RunEnd::Failed).boxed());
    for error in fan::all(ends.collect()).await.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "a run's end is not noted");
    }
}

async fn end(session: &Session, how: RunEnd) -> Result<()> {
    let ended = session.client.end_run(how).await;
    ended.map_err(session.failed("noting that a run ended"))
}

/// Undoes the run on every host; those that were `fresh` are undone as a whole.
pub(crate) async fn roll_back(
    run: &Run,
    fresh: &[bool],
    targets: &[(Ipv4Addr, Ssh)],
    access: &Access,
    who: &str,
) -> Vec<RolledBack> {
    let left = leave(run, fresh).await;
    let hosts = run.sessions.iter().zip(fresh).enumerate();
    let work = hosts.map(|(index, (session, fresh))| {
        let target = targets.iter().find(|(ip, _)| *ip == session.ip);
        async move {
            run.observer.event(Event::PhaseStarted {
                phase: "rollback",
                title: "undoing what this run changed",
                host: Some(run.host_name(index)),
            });
            let undone = undo(run, session, *fresh, target, access, who).await;
            let (undone, failed) = match undone {
                Ok(undone) => (undone.done.len(), undone.failed),
                Err(error) => (0, vec![error.to_string()]),
            };
            RolledBack {
                host: session.ip.to_string(),
                undone,
                failed,
            }
        }
        .boxed()
    });
    let undone: Vec<RolledBack> = fan::all(work.collect()).await;
    if let Some(cluster) = run.cluster.get().filter(|_| !left.is_empty()) {
        let bare = run.sessions.iter().zip(&undone).zip(fresh);
        let bare = bare.filter(|((_, host), fresh)| **fresh && host.failed.is_empty());
        let bare: Vec<Ipv4Addr> = bare.map(|((session, _), _)| session.ip).collect();
        reset::finish(cluster, left, &bare, &*run.observer).await;
    }
    undone
}

async fn undo(
    run: &Run,
    session: &Session,
    fresh: bool,
    target: Option<&(Ipv4Addr, Ssh)>,
    access: &Access,
    who: &str,
) -> Result<host::proto::Undone> {
    let session = match target {
        Some((_, ssh)) => &alive(session, ssh, access, &run.site.scope, who).await?,
        None => session,
    };
    let undone = if fresh {
        session.client.undo().await
    } else {
        session.client.undo_run().await
    };
    undone.map_err(session.failed("undoing this run"))
}

/// The session, or a new one with the host's lock if the connection is lost: it may have been that which failed.
pub(crate) async fn alive(session: &Session, ssh: &Ssh, access: &Access, scope: &Scope, who: &str) -> Result<Session> {
    if session.client.ping().await.is_ok() {
        return Ok(session.clone());
    }
    let again = Session::open(session.ip, ssh, access, None).await?;
    let mode = Mode::Write { who: who.to_owned() };
    let opened = again.client.open(scope, mode).await;
    opened.map_err(again.failed("taking the host's lock"))?;
    Ok(again)
}

/// Hosts that have just joined a cluster that was there before leave it again; nothing else knows that they go. Whose nodes these were.
async fn leave(run: &Run, fresh: &[bool]) -> reset::Left {
    let seats = &run.site.seats;
    let Some(cluster) = run.cluster.get().filter(|_| seats[run.site.first_master()].seen.joined) else {
        return reset::Left::new();
    };
    let ips: Vec<Ipv4Addr> = seats
        .iter()
        .zip(fresh)
        .filter(|(seat, fresh)| **fresh && !seat.seen.joined)
        .map(|(seat, _)| seat.ip)
        .collect();
    if ips.is_empty() {
        return reset::Left::new();
    }
    let patience = reset::Patience {
        drain: DRAIN,
        force: true,
    };
    let left = reset::drain::nodes(cluster, &ips, patience, &*run.observer).await;
    left.unwrap_or_else(|error| {
        run.observer.event(Event::Warning {
            host: None,
            message: format!("the nodes that had just joined could not be taken out of the cluster: {error}"),
        });
        reset::Left::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn what_was_undone_and_what_was_not_is_told_by_host() {
        let hosts = vec![
            RolledBack {
                host: "10.0.0.1".into(),
                undone: 7,
                failed: vec![],
            },
            RolledBack {
                host: "10.0.0.2".into(),
                undone: 0,
                failed: vec!["no route".into()],
            },
        ];
        let error = Error::RolledBack {
            source: Box::new(Error::Interrupted("a phase")),
            hosts,
        };
        assert_eq!(
            error.to_string(),
            "a phase was interrupted\n  10.0.0.1: 7 changes of this run undone\n  10.0.0.2: not all changes of this run could be undone:\n    no route\n\
             remove the cause and run installer apply again, or take such a host back altogether with installer reset --nodes"
        );
    }
}
