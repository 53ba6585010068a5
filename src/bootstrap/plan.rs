//! The difference between what is and what shall be, as values: per host what changes and how many bytes are sent, and what changes in
//! the cluster. Computing it changes nothing.

use crate::{
    Error, Result,
    apps::Kind,
    cluster::{Applied, Cluster, launch, ledger, nodes, objects, record},
    effects::Learned,
    fan, hooks,
    phases::{On, PHASES, Phase},
    rolling::{PlannedTurn, hold},
    session::Session,
    site::{Seat, Site},
    transfer,
};
mod file;
mod restarts;

pub use file::{Moved, PlanFile};
pub use restarts::Restart;

use clusterfile::{Plugin, PluginAction};
use futures::FutureExt as _;
use host::{
    Action, Change, Effect,
    proto::{Blob, Missing},
};
use serde::Serialize;

/// See the head of this file.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Name of the cluster.
    pub cluster: String,
    /// The cluster image.
    pub image: String,
    /// Its digest.
    pub digest: oci::Digest,
    /// Host by host, in the order of the Clusterfile.
    pub hosts: Vec<HostPlan>,
    /// Hosts that are worked on one after the other because they run pods, in that order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<PlannedTurn>,
    /// Objects of the cluster that are made or changed; absent while there is no cluster to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<ObjectChange>>,
    /// Images that are brought to a registry of somebody else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Nodes of the cluster that are not in the Clusterfile.
    pub leaving: Vec<Leaving>,
}

/// What changes on one host.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPlan {
    /// Its address.
    pub host: String,
    /// Its name.
    pub name: String,
    /// `master` or `node`.
    pub role: &'static str,
    /// Whether it is to be added to the cluster.
    pub joins: bool,
    /// Blobs it lacks.
    pub blobs: usize,
    /// Bytes to be sent to it.
    pub bytes: u64,
    /// What changes, in order.
    pub changes: Vec<PhaseChange>,
    /// What does not go on running as it is.
    pub restarts: Vec<Restart>,
}

/// A change and the phase it belongs to.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseChange {
    /// Name of the phase.
    pub phase: &'static str,
    /// The change.
    #[serde(flatten)]
    pub change: Change,
}

/// An object that is made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectChange {
    /// `deployment kube-system/dns`.
    pub object: String,
    /// `create`, `modify` or `remove`.
    pub action: &'static str,
}

/// A node that is in the cluster but not in the Clusterfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// Its name.
    pub name: String,
    /// Its address, as it says itself.
    pub ip: Option<std::net::Ipv4Addr>,
    /// The name under which the same host is in the Clusterfile: it has come back under that one, and only the old node goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

impl Plan {
    /// Whether there is nothing to do. Nodes that are not in the Clusterfile are something to be asked about, not to be done.
    pub fn is_empty(&self) -> bool {
        self.hosts.iter().all(HostPlan::is_empty)
            && self.images.is_empty()
            && self.objects.as_ref().is_some_and(Vec::is_empty)
    }

    /// Bytes to be sent to all hosts.
    pub fn bytes(&self) -> u64 {
        self.hosts.iter().map(|host| host.bytes).sum()
    }
}

impl HostPlan {
    /// Whether nothing changes on this host.
    pub fn is_empty(&self) -> bool {
        !self.joins && self.blobs == 0 && self.changes.is_empty()
    }
}

/// Whether a phase happens on a host.
fn happens(phase: &Phase, site: &Site, seat: &Seat) -> bool {
    match phase.on {
        On::Every => true,
        On::Masters => seat.master,
        On::Registries => seat.registry,
        On::First => site.seats[site.first_master()].ip == seat.ip,
        On::Cluster | On::External | On::Rolling | On::Hooks(_) => false,
    }
}

/// All effects on a host, with the phase each belongs to. Pure.
///
/// # Errors
/// When the image's templates cannot be rendered.
pub fn effects(site: &Site, seat: &Seat, learned: &Learned) -> Result<Vec<(&'static str, Effect)>> {
    let mut all = Vec::new();
    for phase in PHASES.iter().filter(|phase| happens(phase, site, seat)) {
        if let Some(wanted) = phase.effects {
            all.extend(
                wanted(site, seat, learned)?
                    .into_iter()
                    .map(|effect| (phase.name, effect)),
            );
        }
    }
    Ok(all)
}

/// All blobs a host shall have.
pub fn wanted_blobs(site: &Site, seat: &Seat) -> Vec<Blob> {
    let mut wanted = site.image.host_blobs.clone();
    if seat.registry {
        wanted.extend(site.image.registry_blobs.iter().cloned());
    }
    wanted
}

/// Asks every host what would change; all at once.
///
/// # Errors
/// When a host does not answer or a template cannot be rendered.
pub async fn hosts(
    site: &Site,
    sessions: &[Session],
    learned: &Learned,
    missing: &[Vec<Missing>],
) -> Result<Vec<HostPlan>> {
    let each = site.seats.iter().zip(sessions).zip(missing);
    fan::all_good(
        each.map(|((seat, session), missing)| host_plan(site, seat, session, learned, missing).boxed())
            .collect(),
    )
    .await
}

async fn host_plan(
    site: &Site,
    seat: &Seat,
    session: &Session,
    learned: &Learned,
    missing: &[Missing],
) -> Result<HostPlan> {
    let (phases, effects): (Vec<_>, Vec<_>) = effects(site, seat, learned)?.into_iter().unzip();
    let previewed = session
        .client
        .preview(effects.clone())
        .await
        .map_err(session.failed("looking at what would change"))?;
    let signs_for_itself = site.seats[site.first_master()].ip == seat.ip;
    let is_signed = !signs_for_itself && !learned.kubelet_certs.contains_key(&seat.ip);
    let signed: &[&str] = if is_signed { &[crate::paths::KUBELET_CERT] } else { &[] };
    let restarts = restarts::of(&effects, &previewed, signed);
    let changed = phases.into_iter().zip(previewed).filter(|(_, change)| change.changed());
    let mut changes: Vec<PhaseChange> = changed.map(|(phase, change)| PhaseChange { phase, change }).collect();
    if is_signed {
        changes.push(PhaseChange {
            phase: "trust",
            change: Change {
                what: crate::paths::KUBELET_CERT.to_owned(),
                action: if seat.seen.kubelet_cert.is_some() {
                    Action::Modify
                } else {
                    Action::Create
                },
                detail: "signed by the first master".to_owned(),
                diff: None,
            },
        });
    }
    changes.extend(hook_changes(site, seat));
    Ok(HostPlan {
        host: seat.ip.to_string(),
        name: seat.name.clone(),
        role: if seat.master { "master" } else { "node" },
        joins: !seat.seen.joined,
        blobs: missing.len(),
        bytes: transfer::outstanding(missing),
        changes,
        restarts,
    })
}

/// The hooks that will run on a host. What they change nobody knows.
fn hook_changes(site: &Site, seat: &Seat) -> Vec<PhaseChange> {
    let Some(index) = site.seats.iter().position(|other| other.ip == seat.ip) else {
        return Vec::new();
    };
    let moments = PHASES.iter().filter_map(|phase| match phase.on {
        // Whether the cluster was made to its end is not known yet; if there is none it is not.
        On::Hooks(PluginAction::PostInstall) if site.seats[site.first_master()].seen.joined => None,
        On::Hooks(action) => Some((phase.name, action)),
        _ => None,
    });
    let change = |plugin: &Plugin, action: PluginAction| Change {
        what: hooks::title(plugin, action),
        action: Action::Create,
        detail: "runs a script".to_owned(),
        diff: None,
    };
    let all = moments.flat_map(|(phase, action)| {
        let here = hooks::on(site, index, action).into_iter();
        here.map(move |plugin| PhaseChange {
            phase,
            change: change(plugin, action),
        })
    });
    all.collect()
}

/// A node that nobody wishes. The host at its address may be wished nevertheless: then it must not be reset with its old node.
fn leaving_node(site: &Site, name: String, ip: Option<std::net::Ipv4Addr>) -> Leaving {
    let seat = site.seats.iter().find(|seat| Some(seat.ip) == ip);
    Leaving {
        name,
        ip,
        now: seat.map(|seat| seat.name.clone()),
    }
}

/// Nodes that nobody wishes and whose hosts are no others': they are nodes like the others until somebody says that they leave.
pub(crate) fn staying(leaving: &[Leaving]) -> Vec<(String, std::net::Ipv4Addr)> {
    let own = leaving.iter().filter(|node| node.now.is_none());
    own.filter_map(|node| Some((node.name.clone(), node.ip?))).collect()
}

/// What is to be done in a cluster that is there.
#[derive(Debug, Default)]
pub struct Compared {
    /// Objects to be made, changed or taken away, and applications to be launched.
    pub objects: Vec<ObjectChange>,
    /// Nodes that are not in the Clusterfile.
    pub leaving: Vec<Leaving>,
    /// Whether the cluster was installed to the end before.
    pub recorded: bool,
}

/// Compares the cluster's objects, applications and nodes with what they shall be.
///
/// # Errors
/// When the API server does not answer.
pub async fn cluster(site: &Site, cluster: &Cluster, record: &serde_json::Value) -> Result<Compared> {
    let mut wanted = crate::cluster::api::bindings();
    wanted.extend(objects::system(site)?);
    for app in site.apps.iter().filter(|app| app.kind == Kind::Manifests) {
        wanted.extend(objects::application(site, app)?);
    }
    wanted.push(record::object(site, record)?);
    let client = &cluster.client;
    let list = kube::Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
    let params = kube::api::ListParams::default();
    let (pending, nodes, ledger, recorded) = tokio::try_join!(
        objects::pending(client.clone(), &wanted),
        async { list.list(&params).await.map_err(Error::api("listing nodes")) },
        ledger::load(client),
        record::exists(client),
    )?;
    let mut changes: Vec<ObjectChange> = pending
        .into_iter()
        .map(|(object, applied)| ObjectChange {
            object,
            action: if applied == Applied::Created {
                "create"
            } else {
                "modify"
            },
        })
        .collect();
    changes.extend(launch::leaving(site, &ledger)?.iter().map(|object| ObjectChange {
        object: crate::cluster::title(&object.to_object()),
        action: "remove",
    }));
    changes.extend(launch::pending(site, client, &ledger).await?);
    let mut leaving = Vec::new();
    for node in &nodes.items {
        let name = node.metadata.name.clone().unwrap_or_default();
        match site.seats.iter().find(|seat| seat.name == name) {
            Some(seat) if nodes::metadata_patch(node, seat).is_some() || hold::is_held(node) => {
                changes.push(ObjectChange {
                    object: format!("node {name}"),
                    action: "modify",
                })
            }
            Some(_) => {}
            None => leaving.push(leaving_node(site, name, nodes::internal_ip(node))),
        }
    }
    // A host that thinks it has joined but that the cluster does not know has to come again.
    for seat in site.seats.iter().filter(|seat| seat.seen.joined) {
        if !nodes
            .items
            .iter()
            .any(|node| node.metadata.name.as_deref() == Some(&seat.name))
        {
            changes.push(ObjectChange {
                object: format!("node {}", seat.name),
                action: "create",
            });
        }
    }
    Ok(Compared {
        objects: changes,
        leaving,
        recorded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::site;

    #[test]
    fn a_host_that_came_back_under_another_name_loses_its_old_node_and_nothing_else() {
        let site = site();
        let ip = |text: &str| Some(text.parse().unwrap());
        // name and address of a node that is not in the Clusterfile → the name under which its host is
        for (name, at, now) in [
            ("old", ip("10.0.0.2"), Some("n1")),
            ("gone", ip("10.0.0.9"), None),
            ("never", None, None),
        ] {
            let leaving = leaving_node(&site, name.into(), at);
            assert_eq!((leaving.name.as_str(), leaving.now.as_deref()), (name, now));
        }
    }

    #[test]
    fn a_host_comes_back_under_its_old_name_as_one_that_has_not_joined() {
        let mut site = site();
        let learned = Learned {
            ca: "CA".into(),
            token: zeroize::Zeroizing::new("abcdef.0123456789abcdef".into()),
            ..Learned::default()
        };
        let bootstraps = |site: &Site| {
            let effects = effects(site, &site.seats[1], &learned).unwrap();
            effects
                .iter()
                .any(|(_, effect)| matches!(effect, Effect::Kubeconfig(config) if config.path == crate::paths::BOOTSTRAP_CONF))
        };
        site.seats[1].seen.joined = true;
        assert!(!bootstraps(&site));
        // After a reset, or on a new machine, nothing of the agent's identity is there.
        site.seats[1].seen = crate::site::Seen::default();
        assert!(bootstraps(&site));
    }
    /// One master and nodes; the second host is the same however many there are.
    fn sized(hosts: u32) -> Site {
        let mut site = site();
        let more = (3..=hosts).map(|n| {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
            crate::testing::seat(&ip, &format!("n{n}"), false)
        });
        site.seats.extend(more);
        site
    }

    #[test]
    fn what_one_host_shall_have_does_not_grow_with_the_number_of_hosts() {
        let of = |hosts: u32| {
            let site = sized(hosts);
            let all: Vec<_> = site
                .seats
                .iter()
                .map(|seat| effects(&site, seat, &Learned::default()).unwrap())
                .collect();
            assert_eq!(all.len(), hosts as usize);
            let most = all[1..].iter().map(Vec::len).max().unwrap();
            assert_eq!(most, all[1].len(), "nodes are alike");
            let names = all.iter().flatten().filter_map(|(_, effect)| match effect {
                Effect::Hosts { entries } => Some(entries),
                _ => None,
            });
            let names: Vec<_> = names.collect();
            // The one thing with a line for each host is one and the same for all of them.
            assert_eq!((names.len(), names[0].len()), (hosts as usize, hosts as usize + 1));
            assert!(names.iter().all(|entries| entries.as_ptr() == names[0].as_ptr()));
            let rest = all[1]
                .iter()
                .filter(|(_, effect)| !matches!(effect, Effect::Hosts { .. }));
            let rest: Vec<_> = rest.map(|(phase, effect)| (*phase, effect.clone())).collect();
            let blobs = wanted_blobs(&site, &site.seats[1]);
            (serde_json::to_string(&rest).unwrap(), blobs)
        };
        assert_eq!(of(2), of(1000));
    }
}
