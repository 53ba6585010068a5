//! Nodes that a whole cluster has and its Clusterfile lacks. A reset of the others would leave them without a cluster, and say that nothing
//! is left.
//!
//! The cluster itself is asked. One that does not answer any more is often why it is reset: then the names that its hosts know each other
//! by tell.

use super::{ANSWER, Request};
use crate::{
    Error, Result,
    cluster::{self, Cluster, nodes},
    event::{Event, Observer},
    install::Options,
    session::Session,
    wish,
};
use clusterfile::Clusterfile;
use host::Mode;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _, api::ListParams};
use std::net::Ipv4Addr;

/// Largest file of names that is read, in bytes.
const HOSTS_LIMIT: u64 = 4 << 20;

/// A node by its name, and the address of its host if it tells one.
pub(crate) type Known = (String, Option<Ipv4Addr>);

/// Looks for nodes that the Clusterfile lacks; `sessions` are to the hosts that it has and that can be reached.
///
/// # Errors
/// When there are some, unless they may be left: then they are told.
pub(super) async fn refuse(
    clusterfile: &Clusterfile,
    options: &Options,
    request: &Request,
    sessions: impl Iterator<Item = &Session>,
) -> Result<()> {
    let observer = &*options.observer;
    let missing = find(clusterfile, observer, sessions).await;
    if missing.is_empty() {
        return Ok(());
    }
    let message = describe(&clusterfile.cluster.name, &missing);
    if !request.leave_unlisted {
        return Err(Error::Wish(format!(
            "{message}; nothing was done. {}",
            remedy(&missing)
        )));
    }
    observer.event(Event::Warning {
        host: None,
        message: format!("{message}: they stay as they are, without a cluster"),
    });
    Ok(())
}

fn describe(cluster: &str, missing: &[Known]) -> String {
    let name = |(name, ip): &Known| ip.map_or_else(|| name.clone(), |ip| format!("{name} ({ip})"));
    let names: Vec<String> = missing.iter().map(name).collect();
    format!(
        "the cluster {cluster} has nodes that are not in the Clusterfile: {}",
        names.join(", ")
    )
}

fn remedy(missing: &[Known]) -> String {
    let ips: Vec<String> = missing
        .iter()
        .filter_map(|(_, ip)| ip.as_ref().map(ToString::to_string))
        .collect();
    let ips = ips.join(",");
    format!(
        "Add them to the Clusterfile (installer join --nodes {ips} --update-clusterfile), or reset them first \
         (installer reset --nodes {ips}); --leave-unlisted resets the others and leaves these as they are"
    )
}

/// The nodes that are missing in the Clusterfile.
async fn find(
    clusterfile: &Clusterfile,
    observer: &dyn Observer,
    sessions: impl Iterator<Item = &Session>,
) -> Vec<Known> {
    let sessions: Vec<&Session> = sessions.collect();
    let scope = wish::scope(clusterfile);
    let mut masters: Vec<Ipv4Addr> = Vec::new();
    let mut unanswered = None;
    for session in &sessions {
        if session.client.open(&scope, Mode::Read).await.is_err() {
            continue;
        }
        let host = clusterfile.cluster.hosts.iter().find(|host| host.ip == session.ip);
        if host.is_some_and(clusterfile::Host::is_master) {
            masters.push(session.ip);
        }
    }
    for session in sessions.iter().filter(|session| masters.contains(&session.ip)) {
        // Where there is no control plane yet, or no more, there is nobody to be asked.
        if cluster::admin_kubeconfig(session).await.is_err() {
            continue;
        }
        match ask(session).await {
            Ok(nodes) => return lacking(nodes, clusterfile),
            Err(error) => unanswered = Some(error),
        }
    }
    if let Some(error) = unanswered {
        observer.event(Event::Warning {
            host: None,
            message: format!(
                "the cluster cannot be asked for its nodes, so its hosts' /etc/hosts are looked at: {error}"
            ),
        });
    }
    let mut known = Vec::new();
    for session in sessions {
        let named = named_on(session, clusterfile).await.into_iter();
        known.extend(named.map(|(name, ip)| (name, Some(ip))));
    }
    known.sort();
    known.dedup();
    known
}

/// Hosts that the Clusterfile lacks and that a host has among the names of the cluster; none where that cannot be read.
pub(crate) async fn named_on(session: &Session, clusterfile: &Clusterfile) -> Vec<(String, Ipv4Addr)> {
    let read = session.client.read_file("/etc/hosts", HOSTS_LIMIT).await;
    let text = read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    named(&text.unwrap_or_default(), clusterfile)
}

async fn ask(session: &Session) -> Result<Vec<Known>> {
    cluster::api::wait_ready(session, ANSWER).await?;
    all(&Cluster::open(session).await?).await
}

/// All nodes of a cluster.
///
/// # Errors
/// When the API server does not answer.
pub(crate) async fn all(cluster: &Cluster) -> Result<Vec<Known>> {
    let api: Api<Node> = Api::all(cluster.impatient.clone());
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(Error::api("listing nodes"))?;
    Ok(listed
        .items
        .iter()
        .map(|node| (node.name_any(), nodes::internal_ip(node)))
        .collect())
}

/// Those of `nodes` whose hosts the Clusterfile lacks.
pub(crate) fn lacking(nodes: Vec<Known>, clusterfile: &Clusterfile) -> Vec<Known> {
    let hosts = &clusterfile.cluster.hosts;
    let is_listed = |(_, ip): &Known| ip.is_some_and(|ip| hosts.iter().any(|host| host.ip == ip));
    nodes.into_iter().filter(|node| !is_listed(node)).collect()
}

/// The hosts that the block of a cluster in a file of names tells and the Clusterfile lacks: the first name of each address that is not one
/// of the user's aliases.
fn named(text: &str, clusterfile: &Clusterfile) -> Vec<(String, Ipv4Addr)> {
    let name = &clusterfile.cluster.name;
    let (begin, end) = (host::hosts_begin(name), host::hosts_end(name));
    let lines = text
        .lines()
        .map(str::trim_end)
        .skip_while(|line| *line != begin)
        .skip(1);
    let mut known: Vec<(String, Ipv4Addr)> = Vec::new();
    for line in lines.take_while(|line| *line != end) {
        let mut words = line.split_whitespace();
        let (Some(ip), Some(name)) = (words.next().and_then(|ip| ip.parse().ok()), words.next()) else {
            continue;
        };
        let cluster = &clusterfile.cluster;
        let is_alias = cluster
            .host_aliases
            .iter()
            .any(|alias| alias.ip == std::net::IpAddr::V4(ip));
        let is_listed = cluster.hosts.iter().any(|host| host.ip == ip);
        if !is_alias && !is_listed && known.iter().all(|(_, known)| *known != ip) {
            known.push((name.to_owned(), ip));
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_the_clusterfile_lacks_are_found_by_address_and_named_with_what_to_do() {
        let clusterfile = crate::testing::clusterfile("  hostAliases: [{ip: 10.0.0.99, hostnames: [ntp]}]\n");
        let ip = |text: &str| Some(text.parse().unwrap());
        let nodes = vec![
            ("renamed".to_owned(), ip("10.0.0.1")),
            ("n2".to_owned(), ip("10.0.0.2")),
            ("late".to_owned(), ip("10.0.0.9")),
            ("lost".to_owned(), None),
        ];
        let missing = lacking(nodes, &clusterfile);
        assert_eq!(
            describe("demo", &missing),
            "the cluster demo has nodes that are not in the Clusterfile: late (10.0.0.9), lost"
        );
        assert!(remedy(&missing).contains("installer reset --nodes 10.0.0.9)"));
        let cluster = &clusterfile.cluster.name;
        let hosts = format!(
            "127.0.0.1 localhost\n# begin installer {cluster}\n10.0.0.1 m1\n10.0.0.9 late\n10.0.0.1 registry\n10.0.0.99 ntp\n# end installer {cluster}\n10.0.0.77 other\n"
        );
        let late = ("late".to_owned(), "10.0.0.9".parse().unwrap());
        assert_eq!(named(&hosts, &clusterfile), [late]);
        assert_eq!(named("10.0.0.9 late\n", &clusterfile), []);
    }
}
