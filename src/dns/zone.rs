//! The cluster's names, computed from its objects: what the DNS specification calls the zone. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use hickory_proto::rr::Name;
use k8s_openapi::api::{
    core::v1::{Namespace, Service as ServiceObject},
    discovery::v1::EndpointSlice,
};

/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// All names of the cluster at one moment.
#[derive(Debug, Default)]
pub struct Zone {
    /// The labels of the cluster's domain, in lower case: `cluster`, `local`.
    pub domain: Vec<String>,
    /// Namespaces that are there.
    pub namespaces: HashSet<String>,
    /// Services by namespace and name.
    pub services: HashMap<(String, String), Service>,
    /// Names of an address: labels below the domain.
    pub reverse: HashMap<IpAddr, BTreeSet<Vec<String>>>,
}

/// What a service's name leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The addresses of the service itself; empty if it is headless.
    pub addresses: Vec<IpAddr>,
    /// The name it stands for, if it is of type ExternalName.
    pub external: Option<Name>,
    /// Its own named ports.
    pub ports: BTreeSet<Port>,
    /// Its ready endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its protocol in lower case.
    pub protocol: String,
    /// Its number.
    pub number: u16,
}

/// One ready endpoint of a service.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its label below the service's name: the pod's host name, or its address with dashes.
    pub label: String,
    /// Its address.
    pub address: IpAddr,
    /// Its named ports.
    pub ports: BTreeSet<Port>,
}

impl Zone {
    /// The names below `domain` of these objects.
    pub fn new<'a>(
        domain: &str,
        namespaces: impl IntoIterator<Item = &'a Namespace>,
        services: impl IntoIterator<Item = &'a ServiceObject>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut zone = Self {
            domain: domain
                .trim_matches('.')
                .split('.')
                .map(str::to_ascii_lowercase)
                .collect(),
            namespaces: namespaces
                .into_iter()
                .filter_map(|namespace| namespace.metadata.name.clone())
                .collect(),
            ..Self::default()
        };
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            let service = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(SERVICE_NAME));
            if let (Some(namespace), Some(service)) = (slice.metadata.namespace.as_deref(), service) {
                by_service.entry((namespace, service)).or_default().push(slice);
            }
        }
        for object in services {
            let (Some(namespace), Some(name)) = (&object.metadata.namespace, &object.metadata.name) else {
                continue;
            };
            let slices = by_service
                .get(&(namespace.as_str(), name.as_str()))
                .map_or(&[][..], Vec::as_slice);
            let service = service(object, slices);
            zone.add_reverse(namespace, name, &service);
            zone.services.insert((namespace.clone(), name.clone()), service);
        }
        zone
    }

    fn add_reverse(&mut self, namespace: &str, name: &str, service: &Service) {
        let labels = |first: &[&str]| {
            let below = [name, namespace, "svc"];
            first
                .iter()
                .chain(&below)
                .map(|label| (*label).to_owned())
                .collect::<Vec<_>>()
        };
        for address in &service.addresses {
            self.reverse.entry(*address).or_default().insert(labels(&[]));
        }
        if service.addresses.is_empty() {
            for endpoint in &service.endpoints {
                self.reverse
                    .entry(endpoint.address)
                    .or_default()
                    .insert(labels(&[&endpoint.label]));
            }
        }
    }
}

fn service(object: &ServiceObject, slices: &[&EndpointSlice]) -> Service {
    let spec = object.spec.clone().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        let external = spec.external_name.as_deref().and_then(|name| {
            let mut name = Name::from_ascii(name).ok()?;
            name.set_fqdn(true);
            Some(name)
        });
        return Service {
            external,
            ..Service::default()
        };
    }
    let texts: BTreeSet<String> = spec.cluster_ips.into_iter().flatten().chain(spec.cluster_ip).collect();
    let ports = spec.ports.into_iter().flatten();
    Service {
        addresses: texts.iter().filter_map(|text| text.parse().ok()).collect(),
        external: None,
        ports: ports
            .filter_map(|it| port(it.name.as_deref(), it.protocol.as_deref(), it.port))
            .collect(),
        endpoints: endpoints(slices),
    }
}

/// Ready endpoints, each once though several slices may list it with different ports.
fn endpoints(slices: &[&EndpointSlice]) -> Vec<Endpoint> {
    let mut found: BTreeMap<(IpAddr, String), BTreeSet<Port>> = BTreeMap::new();
    for slice in slices {
        let ports: BTreeSet<Port> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|it| port(it.name.as_deref(), it.protocol.as_deref(), it.port?))
            .collect();
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
            endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true)
        });
        for endpoint in ready {
            for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
                let hostname = endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty());
                let label = hostname.map_or_else(|| dashed(address), str::to_ascii_lowercase);
                found.entry((address, label)).or_default().extend(ports.iter().cloned());
            }
        }
    }
    found
        .into_iter()
        .map(|((address, label), ports)| Endpoint { label, address, ports })
        .collect()
}

fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    let name = name.filter(|name| !name.is_empty())?.to_ascii_lowercase();
    let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
    Some(Port {
        name,
        protocol,
        number: u16::try_from(number).ok()?,
    })
}

/// An address as a label: `10-0-0-1`, `fd00--1`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address that a label of a pod's name stands for.
pub fn undashed(label: &str) -> Option<IpAddr> {
    let dashes = label.matches('-').count();
    let as_v4 = || label.replace('-', ".").parse().ok().map(IpAddr::V4);
    let as_v6 = || label.replace('-', ":").parse().ok().map(IpAddr::V6);
    if dashes == 3 { as_v4().or_else(as_v6) } else { as_v6() }
}
