//! `installer status`: what each host has, as the host itself and the API server tell it. Nothing is changed, no cluster image is needed,
//! and a host that does not answer hinders no other.

use crate::{
    Error, Result,
    cluster::nodes,
    fan,
    install::{self, Options},
    paths, reset,
    session::{self, Session},
    wish,
};
use clusterfile::Clusterfile;
use futures::{FutureExt as _, future::BoxFuture};
use host::{
    Facts, Mode, Scope,
    facts::Query,
    proto::{CertificateInfo, JournalSummary, RunEnd, RunNote},
};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use serde::Serialize;
use std::{collections::BTreeMap, net::Ipv4Addr};

/// See the head of this file.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Name of the cluster.
    pub cluster: String,
    /// Host by host, in the order of the Clusterfile.
    pub hosts: Vec<HostStatus>,
    /// Nodes of the cluster that are not in the Clusterfile.
    pub others: Vec<String>,
    /// Why the API server did not answer, if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
}

impl Status {
    /// Whether everybody answered.
    pub fn complete(&self) -> bool {
        self.api.is_none() && self.hosts.iter().all(|host| host.error.is_none())
    }
}

/// One host.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Its address.
    pub host: String,
    /// `master` or `node`, as the Clusterfile says.
    pub role: &'static str,
    /// Why it did not answer, if it did not. All that follows is unknown then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it has, if it answered.
    #[serde(flatten)]
    pub found: Option<Found>,
    /// Its node, if the API server knows one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeStatus>,
}

/// What a host has.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// Its own name.
    pub name: String,
    /// How far it is.
    pub state: State,
    /// The cluster image that was brought last, and its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// See above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<oci::Digest>,
    /// The rootfs in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<String>,
    /// The run that installed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installed: Option<RunNote>,
    /// The last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<RunNote>,
    /// Other clusters on this host.
    pub others: Vec<String>,
    /// Units of ours that are there.
    pub units: Vec<UnitState>,
    /// The certificate that ends first, authorities' own included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_to_end: Option<CertificateInfo>,
}

/// How far an installation on a host is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing of the cluster is there.
    #[default]
    Absent,
    /// What an apply needs was brought there, and nothing was done with it.
    Staged,
    /// The last run ended well.
    Whole,
    /// A run is under way, or was interrupted.
    HalfApplied,
    /// The last run failed; the next one goes on from there.
    Failed,
    /// A reset was begun and not finished.
    Undoing,
}

impl State {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Absent => "nothing installed",
            Self::Staged => "staged",
            Self::Whole => "whole",
            Self::HalfApplied => "half-applied",
            Self::Failed => "half-applied (failed)",
            Self::Undoing => "being reset",
        }
    }
}

/// How far an installation is, by its journal.
pub fn state(journal: &JournalSummary) -> State {
    let last = journal.last.as_ref();
    match last.map(|run| run.ended) {
        _ if journal.undoing => State::Undoing,
        _ if !journal.exists || journal.entries.is_empty() => State::Absent,
        Some(None) => State::HalfApplied,
        Some(Some(RunEnd::Failed)) => State::Failed,
        Some(Some(RunEnd::Done | RunEnd::PartDone | RunEnd::Undone)) => State::Whole,
        None => State::Staged,
    }
}

/// A unit as systemd shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitState {
    /// Its name.
    pub name: String,
    /// `loaded`, `masked`, ….
    pub load: String,
    /// `active`, `failed`, ….
    pub active: String,
    /// `running`, `auto-restart`, ….
    pub sub: String,
    /// Whether it starts at boot: `enabled`, `disabled`, ….
    pub enabled: String,
    /// How often systemd itself has restarted it.
    pub restarts: u32,
}

/// A node as the API server shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Whether it is Ready.
    pub ready: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it takes no new pods.
    pub cordoned: bool,
    /// Version of its agent.
    pub kubelet: String,
}

/// Looks at every host and the cluster.
pub async fn look(clusterfile: &Clusterfile, options: &Options) -> Status {
    let scope = wish::scope(clusterfile);
    let targets = install::targets(clusterfile);
    let hosts = on_all(&targets, options, &scope, |session| {
        let scope = scope.clone();
        async move { host(&session, &scope).await }.boxed()
    });
    let (hosts, nodes) = tokio::join!(hosts, nodes(clusterfile, options));
    let (mut nodes, api) = match nodes {
        Ok(nodes) => (nodes, None),
        Err(error) => (BTreeMap::new(), Some(error.to_string())),
    };
    let installed = hosts
        .iter()
        .any(|(_, found)| found.as_ref().is_ok_and(|found| found.state != State::Absent));
    let hosts = hosts
        .into_iter()
        .zip(&clusterfile.cluster.hosts)
        .map(|((ip, found), wished)| {
            let mut status = HostStatus {
                host: ip.to_string(),
                role: if wished.is_master() { "master" } else { "node" },
                ..HostStatus::default()
            };
            match found {
                Ok(found) => {
                    status.node = nodes.remove(&found.name);
                    status.found = Some(found);
                }
                Err(Error::NoProgram { .. }) => status.found = Some(Found::default()),
                Err(error) => status.error = Some(error.to_string()),
            }
            status
        });
    Status {
        cluster: clusterfile.cluster.name.clone(),
        hosts: hosts.collect(),
        // Those of hosts that do not answer are told as what they are: nodes nobody could be found for.
        others: nodes.into_keys().collect(),
        // Where nothing is installed nobody can answer.
        api: api.filter(|_| installed),
    }
}

/// Does something on each host that answers, opened for looking; one that does not hinders no other.
pub(crate) async fn on_all<T: Send>(
    targets: &[(Ipv4Addr, clusterfile::Ssh)],
    options: &Options,
    scope: &Scope,
    work: impl Fn(Session) -> BoxFuture<'static, Result<T>> + Sync,
) -> Vec<(Ipv4Addr, Result<T>)> {
    let opened = session::open_all(targets, &options.access, None).await;
    let all = targets.iter().zip(opened).map(|((ip, _), opened)| {
        let work = &work;
        async move {
            let done = async {
                let session = opened?;
                let looking = session.client.open(scope, Mode::Read).await;
                looking.map_err(session.failed("opening the host"))?;
                work(session).await
            };
            (*ip, done.await)
        }
        .boxed()
    });
    fan::all(all.collect()).await
}

async fn host(session: &Session, scope: &Scope) -> Result<Found> {
    let query = Query::default();
    let (facts, journal, certificates) = tokio::join!(
        session.client.facts(&query),
        session.client.journal(),
        session.client.certificates(),
    );
    let facts = facts.map_err(session.failed("looking at the host"))?;
    let journal = journal.map_err(session.failed("reading the journal"))?;
    let mut units = Vec::new();
    for name in paths::unit::ALL {
        let unit = session.client.unit_status(name, 0).await;
        let unit = unit.map_err(session.failed(format!("looking at {name}")))?;
        if unit.load != "not-found" {
            units.push(UnitState {
                name: name.to_owned(),
                load: unit.load,
                active: unit.active,
                sub: unit.sub,
                enabled: unit.enabled,
                restarts: unit.restarts,
            });
        }
    }
    // A clusterd of an older version cannot tell.
    let certificates = certificates.unwrap_or_default();
    Ok(found(facts, journal, certificates, units, scope))
}

fn found(
    facts: Facts,
    journal: JournalSummary,
    certificates: Vec<CertificateInfo>,
    units: Vec<UnitState>,
    scope: &Scope,
) -> Found {
    let state = state(&journal);
    let (own, others): (Vec<_>, Vec<_>) = facts.installed.into_iter().partition(|of| of.cluster == scope.cluster);
    Found {
        image: journal.brought.as_ref().and_then(|mark| mark.image.clone()),
        digest: journal.brought.and_then(|mark| mark.digest),
        name: facts.hostname.to_lowercase(),
        state,
        rootfs: own.into_iter().find_map(|of| of.rootfs),
        others: others.into_iter().map(|of| of.cluster).collect(),
        units,
        first_to_end: certificates.into_iter().min_by_key(|cert| cert.not_after),
        installed: journal.first,
        last: journal.last,
    }
}

async fn nodes(clusterfile: &Clusterfile, options: &Options) -> Result<BTreeMap<String, NodeStatus>> {
    let cluster = reset::open_cluster(clusterfile, options).await?;
    let api: Api<Node> = Api::all(cluster.client.clone());
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(Error::api("listing nodes"))?;
    let named = |node: Node| (node.metadata.name.clone().unwrap_or_default(), node_status(&node));
    Ok(listed.items.into_iter().map(named).collect())
}

fn node_status(node: &Node) -> NodeStatus {
    let ready = nodes::is_ready(node);
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    NodeStatus {
        ready,
        reason: (!ready).then(|| nodes::not_ready_because(node)),
        cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
        kubelet: info.map(|info| info.kubelet_version.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::proto::RunMark;

    fn run(image: Option<&str>, ended: Option<RunEnd>) -> RunNote {
        RunNote {
            mark: RunMark {
                who: "ann".into(),
                at_ms: 1,
                image: image.map(str::to_owned),
                digest: image.map(|name| oci::Digest::of(name.as_bytes())),
                role: None,
            },
            ended,
            ended_ms: None,
        }
    }

    #[test]
    fn how_far_a_host_is_follows_from_its_journal() {
        let journal = |last: Option<RunNote>, undoing: bool| JournalSummary {
            exists: true,
            entries: vec!["began".into()],
            undoing,
            last,
            ..JournalSummary::default()
        };
        for (journal, expected) in [
            (JournalSummary::default(), State::Absent),
            (journal(None, false), State::Staged),
            (journal(Some(run(None, Some(RunEnd::Done))), false), State::Whole),
            (journal(Some(run(None, Some(RunEnd::Undone))), false), State::Whole),
            (journal(Some(run(None, Some(RunEnd::Failed))), false), State::Failed),
            (journal(Some(run(None, None)), false), State::HalfApplied),
            (journal(Some(run(None, Some(RunEnd::Done))), true), State::Undoing),
        ] {
            assert_eq!(state(&journal), expected, "{journal:?}");
        }
    }

    #[test]
    fn a_host_tells_what_it_has_and_what_ends_first() {
        let cert = |path: &str, not_after: i64| CertificateInfo {
            path: path.into(),
            not_after,
            ..CertificateInfo::default()
        };
        let installed = |cluster: &str, rootfs: Option<&str>| host::facts::Installed {
            cluster: cluster.into(),
            rootfs: rootfs.map(str::to_owned),
            ..host::facts::Installed::default()
        };
        let facts = Facts {
            hostname: "N1".into(),
            installed: vec![installed("demo", Some("abc")), installed("other", None)],
            ..Facts::default()
        };
        let journal = JournalSummary {
            exists: true,
            entries: vec!["began".into()],
            first: Some(run(Some("local/native:1"), Some(RunEnd::Done))),
            // Renewing certificates brings no image.
            last: Some(run(None, Some(RunEnd::PartDone))),
            brought: Some(run(Some("local/native:2"), None).mark),
            ..JournalSummary::default()
        };
        let found = found(
            facts,
            journal,
            vec![cert("b", 9), cert("a", 3)],
            vec![],
            &Scope::new("demo"),
        );
        assert_eq!((found.name.as_str(), found.state), ("n1", State::Whole));
        assert_eq!(found.image.as_deref(), Some("local/native:2"));
        assert_eq!(
            (found.rootfs.as_deref(), found.others),
            (Some("abc"), vec!["other".to_owned()])
        );
        assert_eq!(found.first_to_end.unwrap().path, "a");
    }
}
