//! What can only be judged when the whole Clusterfile is read: hosts, names, address plan.

use std::collections::BTreeMap;

use crate::cluster::{
    Clusterfile, Connection, DEFAULT_DNS_DOMAIN, DEFAULT_POD_CIDR, DEFAULT_SERVICE_CIDR, Env, Host, Networks,
};
use crate::decode::Decoder;
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::net::{AddressError, Cidr};
use crate::read::Places;

/// A service block must hold the API server's and the DNS's addresses and a few services.
const SMALLEST_SERVICE_PREFIX: u8 = 28;
/// A pod block is cut into a /24 for each node.
const SMALLEST_POD_PREFIX: u8 = 24;

pub(crate) fn check(decoder: &mut Decoder, file: &Clusterfile, places: &Places) {
    let cluster = &file.cluster;
    if !cluster.name.is_empty() && !is_dns_label(&cluster.name) {
        let rule = "lower-case letters, digits and inner hyphens, at most 63";
        decoder.problem(
            places.name,
            format!("metadata.name {:?} is no cluster name ({rule})", cluster.name),
        );
    }
    if places.hosts_refused {
        // What lacks may stand in what was refused.
    } else if !places.names_group {
        decoder.problem(places.hosts, "spec.hosts names no host");
    } else if !places.names_master {
        decoder.problem(places.hosts, "spec.hosts has no host with the role master");
    }
    let local = |host: &&Host| host.ssh.connection == Connection::Local;
    if cluster.hosts.iter().filter(local).count() > 1 {
        let message = "spec.hosts: only one host can be this machine (ssh.connection: local)";
        decoder.problem(places.hosts, message);
    }
    let mut first = BTreeMap::new();
    for (host, at) in cluster.hosts.iter().zip(&places.addresses) {
        if let Some(line) = first.insert(host.ip, at.line) {
            decoder.problem(*at, format!("spec.hosts: {} is already named in line {line}", host.ip));
        }
    }
    let masters = file.masters().count();
    if masters > 0 && masters.is_multiple_of(2) {
        decoder.warning(
            places.hosts,
            format!(
                "{masters} masters survive no more failures than {}; use an odd number",
                masters - 1
            ),
        );
    }
    if let Some(error) = file.networks(&Env::new()).err().filter(|_| !places.blocks_refused) {
        decoder.problem(places.env, error.to_string());
    }
}

pub(crate) fn networks(file: &Clusterfile, image_env: &Env) -> Result<Networks, AddressError> {
    let pick = |kubeadm: &Option<String>, name: &str, default: &str| {
        let env = file.cluster.env.get(name).or_else(|| image_env.get(name)).cloned();
        let own = kubeadm
            .clone()
            .map(|text| ("ClusterConfiguration.networking".to_string(), text));
        own.or(env.map(|text| (name.to_string(), text)))
            .unwrap_or((name.to_string(), default.to_string()))
    };
    let block = |(source, text): (String, String)| {
        text.parse::<Cidr>()
            .map_err(|error| AddressError::new(format!("{source}: {error}")))
    };
    let pod_cidr = block(pick(&file.kubeadm.pod_subnet, "PodCIDR", DEFAULT_POD_CIDR))?;
    let service_cidr = block(pick(&file.kubeadm.service_subnet, "SvcCIDR", DEFAULT_SERVICE_CIDR))?;
    if pod_cidr.prefix() > SMALLEST_POD_PREFIX {
        return Err(AddressError::new(format!(
            "PodCIDR {pod_cidr} is smaller than the /24 that each node needs"
        )));
    }
    if service_cidr.prefix() > SMALLEST_SERVICE_PREFIX {
        return Err(AddressError::new(format!(
            "SvcCIDR {service_cidr} is too small, use at least a /28"
        )));
    }
    let nodes = 1_u64 << (SMALLEST_POD_PREFIX - pod_cidr.prefix());
    if nodes < file.cluster.hosts.len() as u64 {
        let hosts = file.cluster.hosts.len();
        return Err(AddressError::new(format!(
            "PodCIDR {pod_cidr} has a /24 for {nodes} of the {hosts} hosts"
        )));
    }
    if pod_cidr.overlaps(service_cidr) {
        return Err(AddressError::new(format!(
            "PodCIDR {pod_cidr} and SvcCIDR {service_cidr} overlap"
        )));
    }
    for host in &file.cluster.hosts {
        for (name, block) in [("PodCIDR", pod_cidr), ("SvcCIDR", service_cidr)] {
            if block.contains(host.ip) {
                return Err(AddressError::new(format!(
                    "{name} {block} contains the host {}",
                    host.ip
                )));
            }
        }
    }
    let (source, dns_domain) = pick(&file.kubeadm.dns_domain, "DNSDomain", DEFAULT_DNS_DOMAIN);
    if !is_dns_subdomain(&dns_domain) {
        return Err(AddressError::new(format!("{source}: {dns_domain:?} is no domain")));
    }
    Ok(Networks {
        pod_cidr,
        service_cidr,
        dns_domain,
    })
}
