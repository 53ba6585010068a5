//! The node agent of a host: whom it trusts, how it reaches the API servers, its configuration, its unit.

use super::{Learned, file, owned_dir, service};
use crate::{
    Result,
    nameservers::Nameservers,
    paths, render,
    site::{Seat, Site},
};
use host::{
    Effect,
    effect::{Cert, Kubeconfig, RENEW_DAYS, Subject, Usage},
    facts::RESOLVED_CONF,
};
use serde_json::{Map, Value};

/// The field of the agent's configuration that names the resolver file for pods.
pub(crate) const RESOLV_CONF: &str = "resolvConf";

/// The cluster's authority, and the agent's serving certificate signed by it. Where the authority's key is, the host signs for itself.
///
/// # Errors
/// Never; the signature is that of all phases.
pub fn trust(site: &Site, seat: &Seat, learned: &Learned) -> Result<Vec<Effect>> {
    let mut effects = vec![
        owned_dir("/etc/kubernetes", 0o755),
        owned_dir("/var/lib/kubelet", 0o750),
        file(
            paths::REGISTRY_CA,
            learned.registry_ca.as_ref().unwrap_or(&learned.ca),
            0o644,
        ),
    ];
    if site.seats[site.first_master()].ip == seat.ip {
        effects.push(Effect::Cert(Cert {
            cert: paths::KUBELET_CERT.to_owned(),
            key: paths::KUBELET_KEY.to_owned(),
            ca_cert: paths::CA_CERT.to_owned(),
            ca_key: paths::CA_KEY.to_owned(),
            subject: serving_subject(seat),
            usage: Usage::Server,
            days: 365,
            renew_days: RENEW_DAYS,
        }));
    } else {
        effects.push(file(paths::CA_CERT, &learned.ca, 0o644));
        if let Some(cert) = learned.kubelet_certs.get(&seat.ip) {
            effects.push(file(paths::KUBELET_CERT, cert, 0o644));
        }
    }
    Ok(effects)
}

/// For whom the agent's serving certificate is.
pub fn serving_subject(seat: &Seat) -> Subject {
    serving_subject_of(&seat.name, seat.ip)
}

/// As [`serving_subject`], for the node called `name` on the host with this address.
pub fn serving_subject_of(name: &str, ip: std::net::Ipv4Addr) -> Subject {
    Subject {
        common_name: format!("system:node:{name}"),
        organizations: vec!["system:nodes".to_owned()],
        sans: vec![name.to_owned(), ip.to_string()],
    }
}

/// The local way to all API servers.
///
/// # Errors
/// When the image lacks the unit.
pub fn balancer(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    Ok(vec![service(site, seat, paths::unit::BALANCER, &[])?])
}

/// The agent itself. The token to join with is written only while the host has not joined.
///
/// # Errors
/// When the image lacks a template or one cannot be rendered.
pub fn agent(site: &Site, seat: &Seat, learned: &Learned) -> Result<Vec<Effect>> {
    let mut triggers = vec![paths::KUBELET_CONFIG, paths::KUBELET_CERT];
    let mut effects = vec![
        owned_dir("/var/log/pods", 0o755),
        owned_dir("/var/log/containers", 0o755),
        owned_dir(paths::STATIC_PODS, 0o755),
        file(paths::KUBELET_CONFIG, kubelet_config(site, seat)?, 0o644),
    ];
    if !seat.seen.joined {
        effects.push(Effect::Kubeconfig(Kubeconfig {
            path: paths::BOOTSTRAP_CONF.to_owned(),
            server: paths::LOCAL_API.to_owned(),
            ca: paths::CA_CERT.to_owned(),
            cluster: site.scope.cluster.clone(),
            user: "tls-bootstrap-token-user".to_owned(),
            cert: None,
            key: None,
            token: Some(learned.token.to_string()),
        }));
        triggers.push(paths::BOOTSTRAP_CONF);
    }
    effects.push(service(site, seat, paths::unit::AGENT, &triggers)?);
    Ok(effects)
}

fn kubelet_config(site: &Site, seat: &Seat) -> Result<String> {
    let text = render::file(site, seat, paths::source::KUBELET)?;
    let before = parse(&text)?;
    let after = kubelet_fields(site, seat)?;
    if before == after {
        // As it stands in the image, with its comments.
        return Ok(text);
    }
    render::yaml(&serde_json::Value::Object(after))
}

/// The fields of the agent's configuration: the image's, overlaid by the Clusterfile's, completed by what follows from the host.
///
/// # Errors
/// When the image's cannot be rendered or read.
pub(crate) fn kubelet_fields(site: &Site, seat: &Seat) -> Result<Map<String, Value>> {
    let mut fields = parse(&render::file(site, seat, paths::source::KUBELET)?)?;
    clusterfile::kubeadm::merge_kubelet(&mut fields, &site.kubeadm);
    if !fields.contains_key(RESOLV_CONF)
        && let Nameservers::Resolved = Nameservers::of(&seat.facts)
    {
        fields.insert(RESOLV_CONF.to_owned(), RESOLVED_CONF.into());
    }
    Ok(fields)
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    let document = render::documents(paths::source::KUBELET, text)?.into_iter().next();
    Ok(match document {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    })
}
