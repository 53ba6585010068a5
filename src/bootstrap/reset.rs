//! Taking hosts out of a cluster, and clusters off hosts: nodes are drained and deleted, then each host's journal is played backwards.

mod clean;
pub(crate) mod drain;
pub(crate) mod names;
pub(crate) mod remove;
pub(crate) mod unlisted;

pub use remove::Removed;

use crate::{
    Error, Result,
    cluster::{self, Cluster},
    event::{Event, Observer},
    fan,
    install::Options,
    session::{self, Session},
    wish,
};
use clusterfile::{Clusterfile, Ssh};
use futures::FutureExt as _;
use host::{
    Mode,
    proto::{Leftover, Origin},
};
use serde::Serialize;
use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

/// How long an API server may take to answer before a node is taken away without asking it.
const ANSWER: Duration = Duration::from_secs(15);

/// What to reset.
#[derive(Debug, Clone)]
pub struct Request {
    /// These hosts only; none: the whole cluster.
    pub nodes: Vec<Ipv4Addr>,
    /// Go on when a host cannot be reached, a node cannot be drained, or something cannot be undone.
    pub force: bool,
    /// How long pods get to leave a node.
    pub drain: Duration,
    /// Reset the whole cluster although it has nodes that are not in the Clusterfile: they stay as they are, without a cluster.
    pub leave_unlisted: bool,
}

/// How patient taking nodes out of a cluster is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// How long pods get to leave a node.
    pub(crate) drain: Duration,
    /// Whether a node is taken out although its pods have not left it.
    pub(crate) force: bool,
}

/// What was done on one host.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostReset {
    /// The host.
    pub host: String,
    /// How many changes were undone.
    pub undone: usize,
    /// What could not be undone, and why.
    pub failed: Vec<String>,
    /// What differs from before the first change, and by whom.
    pub left: Vec<Leftover>,
    /// Why the host was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl HostReset {
    /// Whether nothing of ours is left.
    pub fn clean(&self) -> bool {
        self.failed.is_empty() && self.left_by_us().next().is_none() && self.skipped.is_none()
    }

    /// What is left of the installation, without what pods and others have changed since.
    pub fn left_by_us(&self) -> impl Iterator<Item = &Leftover> {
        self.left.iter().filter(|left| left.origin == Origin::Ours)
    }
}

/// Resets hosts or the whole cluster.
///
/// # Errors
/// When nothing was done because of something that `force` would pass over; what went wrong on hosts is in the result.
pub async fn reset(clusterfile: &Clusterfile, options: &Options, request: &Request) -> Result<Vec<HostReset>> {
    let targets = targets(clusterfile, request)?;
    let opened = session::open_all(&targets, &options.access, None).await;
    // A host on which nothing of ours is has nothing to be undone.
    let unreachable: Vec<&Error> = opened
        .iter()
        .filter_map(|opened| opened.as_ref().err())
        .filter(|e| !is_bare(e))
        .collect();
    if !unreachable.is_empty() && !request.force {
        let list: String = unreachable.iter().map(|e| format!("\n  {e}")).collect();
        return Err(Error::Wish(format!(
            "hosts cannot be reached; nothing was done. With --force the others are reset; reset --nodes IP --force-remove takes a host that is gone for good out of the cluster:{list}"
        )));
    }
    if request.nodes.is_empty() {
        unlisted::refuse(clusterfile, options, request, opened.iter().flatten()).await?;
    }
    let left = match request.nodes.is_empty() {
        true => None,
        false => leave(clusterfile, options, request, &targets).await?,
    };
    let work = targets.iter().zip(opened).map(|((ip, _), opened)| {
        async move {
            let host = ip.to_string();
            let result = match opened {
                Ok(session) => undo(&session, clusterfile, options, request.force).await,
                Err(error) => Err(error),
            };
            result.unwrap_or_else(|error| HostReset {
                host,
                undone: 0,
                failed: Vec::new(),
                left: Vec::new(),
                skipped: (!is_bare(&error)).then(|| error.to_string()),
            })
        }
        .boxed()
    });
    let results = fan::all(work.collect()).await;
    if let Some((cluster, left)) = left {
        let clean = targets.iter().zip(&results).filter(|(_, result)| result.clean());
        let clean: Vec<Ipv4Addr> = clean.map(|((ip, _), _)| *ip).collect();
        finish(&cluster, left, &clean, &*options.observer).await;
    }
    Ok(results)
}

/// Nodes that were taken out of a cluster, with the addresses of their hosts.
pub(crate) type Left = Vec<(String, Ipv4Addr)>;

/// What the cluster keeps of hosts on which nothing runs any more (`clean`) goes too: pods that are bound to their nodes, and a node that its
/// agent has registered again before it was stopped. Nobody else would end these pods before long.
pub(crate) async fn finish(cluster: &Cluster, left: Left, clean: &[Ipv4Addr], observer: &dyn Observer) {
    let known = remove::with_addresses(cluster, clean).await.unwrap_or_default();
    let nodes = left.into_iter().filter(|(_, ip)| clean.contains(ip));
    let names: BTreeSet<String> = nodes.chain(known).map(|(name, _)| name).collect();
    let names: Vec<String> = names.into_iter().collect();
    for removed in remove::nodes(cluster, &names).await {
        if let Some(failed) = removed.failed {
            observer.event(Event::Warning {
                host: Some(removed.node),
                message: format!("something of it is left in the cluster: {failed}"),
            });
        }
    }
}

/// Whether a host merely has no `clusterd`: it was reset already, or never installed.
fn is_bare(error: &Error) -> bool {
    matches!(error, Error::NoProgram { .. })
}

fn targets(clusterfile: &Clusterfile, request: &Request) -> Result<Vec<(Ipv4Addr, Ssh)>> {
    let hosts = &clusterfile.cluster.hosts;
    if request.nodes.is_empty() {
        return Ok(hosts.iter().map(|host| (host.ip, host.ssh.clone())).collect());
    }
    let masters: Vec<Ipv4Addr> = clusterfile.masters().map(|host| host.ip).collect();
    if let Some(master) = masters
        .iter()
        .find(|ip| request.nodes.contains(ip))
        .filter(|_| masters.len() == 1)
    {
        return Err(Error::Wish(format!(
            "{master} is the only master: without it there is no cluster. To remove the whole cluster leave out --nodes"
        )));
    }
    // A host that is no longer in the Clusterfile is reached as the cluster's hosts are by default.
    let ssh = |ip: &Ipv4Addr| {
        let host = hosts.iter().find(|host| host.ip == *ip);
        host.map_or_else(|| clusterfile.cluster.ssh.clone(), |host| host.ssh.clone())
    };
    Ok(request.nodes.iter().map(|ip| (*ip, ssh(ip))).collect())
}

/// Drains the nodes and takes them out of the cluster.
async fn leave(
    clusterfile: &Clusterfile,
    options: &Options,
    request: &Request,
    targets: &[(Ipv4Addr, Ssh)],
) -> Result<Option<(Cluster, Left)>> {
    let left = match open_cluster(clusterfile, options).await {
        Ok(cluster) => {
            let ips: Vec<Ipv4Addr> = targets.iter().map(|(ip, _)| *ip).collect();
            let patience = Patience {
                drain: request.drain,
                force: request.force,
            };
            let nodes = drain::nodes(&cluster, &ips, patience, &*options.observer).await;
            nodes.map(|nodes| Some((cluster, nodes)))
        }
        Err(error) => Err(error),
    };
    match left {
        Err(error) if request.force => {
            options.observer.event(Event::Warning {
                host: None,
                message: format!("nodes could not be drained: {error}"),
            });
            Ok(None)
        }
        other => other,
    }
}

/// Takes the nodes of hosts that are gone for good out of the cluster; the hosts are not asked, and keep what is on them.
///
/// # Errors
/// When the only master is meant, or the API server does not answer; what went wrong with a node is in the result.
pub async fn force_remove(clusterfile: &Clusterfile, options: &Options, hosts: &[Ipv4Addr]) -> Result<Vec<Removed>> {
    let request = Request {
        nodes: hosts.to_vec(),
        force: true,
        drain: Duration::ZERO,
        leave_unlisted: false,
    };
    targets(clusterfile, &request)?;
    let cluster = open_cluster(clusterfile, options).await?;
    let nodes = remove::with_addresses(&cluster, hosts).await?;
    let names: Vec<String> = nodes.into_iter().map(|(name, _)| name).collect();
    Ok(remove::nodes(&cluster, &names).await)
}

/// Takes nodes out of the cluster whose hosts have come back under other names.
///
/// # Errors
/// When the API server does not answer; what went wrong with a node is in the result.
pub async fn forget(clusterfile: &Clusterfile, options: &Options, names: &[String]) -> Result<Vec<Removed>> {
    let cluster = open_cluster(clusterfile, options).await?;
    Ok(remove::nodes(&cluster, names).await)
}

/// The way into the cluster through its first master.
///
/// # Errors
/// When the master or its API server cannot be reached.
pub(crate) async fn open_cluster(clusterfile: &Clusterfile, options: &Options) -> Result<Cluster> {
    let master = clusterfile
        .masters()
        .next()
        .ok_or_else(|| Error::Wish("the Clusterfile has no master".to_owned()))?;
    let session = Session::open(master.ip, &master.ssh, &options.access, None).await?;
    session
        .client
        .open(&wish::scope(clusterfile), Mode::Read)
        .await
        .map_err(session.failed("opening the host"))?;
    cluster::api::wait_ready(&session, ANSWER).await?;
    Cluster::open(&session).await
}

/// Stops what runs and plays the journal backwards, with the hooks before and after it.
async fn undo(session: &Session, clusterfile: &Clusterfile, options: &Options, force: bool) -> Result<HostReset> {
    let host = session.ip.to_string();
    let scope = wish::scope(clusterfile);
    let open = || async {
        let mode = Mode::Write {
            who: options.who.clone(),
        };
        session
            .client
            .open(&scope, mode)
            .await
            .map_err(session.failed("opening the host"))
    };
    open().await?;
    let cleaner = clean::Cleaner::new(session, clusterfile, &scope, options).await?;
    if let Err(error) = cleaner.before().await {
        if !force {
            return Err(error);
        }
        options.observer.event(Event::Warning {
            host: Some(host.clone()),
            message: error.to_string(),
        });
    }
    options.observer.event(Event::PhaseStarted {
        phase: "reset",
        title: "stopping what runs and undoing every change",
        host: Some(host.clone()),
    });
    let mut undone = session.client.undo().await.map_err(session.failed("undoing changes"))?;
    let count = undone.done.len();
    if undone.failed.is_empty() && cleaner.has_after() {
        // The journal is gone: what is put there for the hooks gets one of its own, which is played backwards too.
        open().await?;
        let ended = cleaner.after().await;
        let gone = cleaner.gone(&undone.left).await?;
        undone.left.retain(|left| !gone.contains(left));
        let again = session.client.undo().await.map_err(session.failed("undoing changes"))?;
        undone.failed = again.failed;
        undone.left.extend(again.left);
        undone.failed.extend(ended.err().map(|error| error.to_string()));
    }
    options.observer.event(Event::HostDone {
        host: host.clone(),
        message: format!("{} undone", oci::counted(count, "change")),
    });
    Ok(HostReset {
        host,
        undone: count,
        failed: undone.failed,
        left: undone.left,
        skipped: None,
    })
}
