//! Services as the proxy sees them: one value per service port, with the endpoints that traffic may go to. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice},
};

use crate::Cidr;

/// Services with this label are somebody else's business (well-known labels of Kubernetes).
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// How long a client stays with its endpoint unless the service says otherwise, in seconds.
const AFFINITY_TIMEOUT: u32 = 10_800;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where traffic goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The container's port.
    pub port: u16,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name/protocol/port name or number`: unique, and the end of the names of its chains.
    pub id: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The address inside the cluster.
    pub cluster_ip: Ipv4Addr,
    /// The port on every address of the service.
    pub port: u16,
    /// The port on every node.
    pub node_port: Option<u16>,
    /// Addresses that are routed here by somebody else.
    pub external_ips: BTreeSet<Ipv4Addr>,
    /// Addresses of load balancers in front of us.
    pub balancer_ips: BTreeSet<Ipv4Addr>,
    /// Who may use the balancers' addresses; empty: everybody.
    pub source_ranges: BTreeSet<Cidr>,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity: Option<u32>,
    /// Traffic from inside the cluster stays on its node.
    pub internal_local: bool,
    /// Traffic from outside stays on the node it arrives at, and keeps its source address.
    pub external_local: bool,
    /// All endpoints that may be used.
    pub all: BTreeSet<Endpoint>,
    /// Those on this node.
    pub local: BTreeSet<Endpoint>,
    /// Everybody who still serves, ready or ending, wherever: flows that have begun may go on there.
    pub serving: BTreeSet<Ipv4Addr>,
}

/// What a load balancer in front of a service is told about this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// How many ready endpoints are on this node, by address.
    pub local_endpoints: usize,
}

/// A port of this node that leads to a pod on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `namespace/pod/protocol/port`.
    pub id: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The host's address it is bound to; all of them if none is named.
    pub address: Option<Ipv4Addr>,
    /// The port on the host.
    pub port: u16,
    /// The pod's end.
    pub endpoint: Endpoint,
}

/// All service ports, sorted by id.
pub fn service_ports<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> Vec<ServicePort> {
    let by_service = by_service(slices);
    let mut ports: Vec<ServicePort> = Vec::new();
    for service in services {
        let key = (service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        let (Some(namespace), Some(name)) = key else { continue };
        let slices = by_service.get(&(namespace, name)).map_or(&[][..], Vec::as_slice);
        add_ports(&mut ports, namespace, name, service, slices, node);
    }
    ports.sort_by(|one, other| one.id.cmp(&other.id));
    ports
}

/// The slices with addresses that are served here, by namespace and name of their service.
fn by_service<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>> {
    let mut by_service: BTreeMap<_, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.into_iter().filter(|slice| slice.address_type == "IPv4") {
        let labels = slice.metadata.labels.as_ref();
        if let (Some(namespace), Some(name)) = (
            slice.metadata.namespace.as_deref(),
            labels.and_then(|labels| labels.get(SERVICE_NAME)),
        ) {
            by_service.entry((namespace, name.as_str())).or_default().push(slice);
        }
    }
    by_service
}

/// The health checks that this node answers, by their port.
pub fn health_checks<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> BTreeMap<u16, HealthCheck> {
    let by_service = by_service(slices);
    let mut checks = BTreeMap::new();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (&service.metadata.namespace, &service.metadata.name, &service.spec)
        else {
            continue;
        };
        let is_checked = spec.type_.as_deref() == Some("LoadBalancer")
            && spec.external_traffic_policy.as_deref() == Some("Local")
            && !is_of_others(service);
        let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok());
        let Some(port) = port.filter(|port| *port != 0 && is_checked) else {
            continue;
        };
        // Those that end still serve, but a balancer must turn away from a node that has no others.
        let local: BTreeSet<&str> = by_service
            .get(&(namespace.as_str(), name.as_str()))
            .into_iter()
            .flatten()
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter(|it| it.node_name.as_deref() == Some(node) && is_ready(it))
            .filter_map(|it| it.addresses.first().map(String::as_str))
            .collect();
        checks.entry(port).or_insert(HealthCheck {
            namespace: namespace.clone(),
            name: name.clone(),
            local_endpoints: local.len(),
        });
    }
    checks
}

/// Whether a service is somebody else's to serve.
fn is_of_others(service: &Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key(OTHER_PROXY))
}

fn is_ready(endpoint: &SliceEndpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|it| it.ready).unwrap_or(true)
}

/// Whether an endpoint takes traffic, be it that it ends. Whoever does not tell does.
fn is_serving(endpoint: &SliceEndpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|it| it.serving).unwrap_or(true)
}

fn add_ports(
    ports: &mut Vec<ServicePort>,
    namespace: &str,
    name: &str,
    service: &Service,
    slices: &[&EndpointSlice],
    node: &str,
) {
    let Some(spec) = &service.spec else { return };
    // Headless services have "None" here and ExternalName services nothing: both are DNS's business alone.
    let cluster_ips = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let Some(cluster_ip) = cluster_ips.into_iter().find_map(|address| address.parse().ok()) else {
        return;
    };
    if is_of_others(service) || spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let addresses = |texts: Option<&Vec<String>>| {
        texts
            .into_iter()
            .flatten()
            .filter_map(|text| text.parse().ok())
            .collect()
    };
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds);
        seconds
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(AFFINITY_TIMEOUT)
    });
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (Protocol::parse(port.protocol.as_deref()), u16::try_from(port.port)) else {
            continue;
        };
        let port_name = port.name.as_deref().unwrap_or_default();
        let found = found(slices, port_name, protocol);
        let label = if port_name.is_empty() {
            number.to_string()
        } else {
            port_name.to_owned()
        };
        ports.push(ServicePort {
            id: format!("{namespace}/{name}/{protocol}/{label}"),
            protocol,
            cluster_ip,
            port: number,
            node_port: port
                .node_port
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0),
            external_ips: addresses(spec.external_ips.as_ref()),
            balancer_ips: balancer_ips(service),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|range| range.trim().parse().ok())
                .collect(),
            affinity,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            all: chosen(&found, None),
            local: chosen(&found, Some(node)),
            serving: found
                .iter()
                .filter(|(_, it)| is_serving(it))
                .map(|(end, _)| end.address)
                .collect(),
        });
    }
}

fn balancer_ips(service: &Service) -> BTreeSet<Ipv4Addr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    // Mode Proxy: traffic must really go through the balancer.
    let direct = ingress
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    direct
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
        .collect()
}

/// All endpoints of one port.
fn found<'a>(slices: &[&'a EndpointSlice], port_name: &str, protocol: Protocol) -> Vec<(Endpoint, &'a SliceEndpoint)> {
    let mut found = Vec::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find(|port| {
            port.name.as_deref().unwrap_or_default() == port_name
                && Protocol::parse(port.protocol.as_deref()) == Some(protocol)
        });
        let Some(port) = port.and_then(|port| u16::try_from(port.port?).ok()) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            // The addresses of an endpoint are interchangeable: the first is used.
            if let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) {
                found.push((Endpoint { address, port }, endpoint));
            }
        }
    }
    found
}

/// Where new traffic goes: to ready endpoints only, on `node` if one is given; if there is none, to those that end but still
/// serve (KEP-1669).
fn chosen(found: &[(Endpoint, &SliceEndpoint)], node: Option<&str>) -> BTreeSet<Endpoint> {
    let of = |accepts: fn(&SliceEndpoint) -> bool| -> BTreeSet<Endpoint> {
        let here = |it: &SliceEndpoint| node.is_none() || it.node_name.as_deref() == node;
        let accepted = found.iter().filter(|(_, it)| here(it) && accepts(it));
        accepted.map(|(endpoint, _)| *endpoint).collect()
    };
    let ready = of(is_ready);
    if !ready.is_empty() {
        return ready;
    }
    of(|it| {
        let condition = it.conditions.clone().unwrap_or_default();
        condition.serving.unwrap_or(false) && condition.terminating.unwrap_or(false)
    })
}

/// The host ports of the pods on `node`, sorted. Pods on the host's own network need none.
pub fn host_ports<'a>(pods: impl IntoIterator<Item = &'a Pod>, node: &str) -> Vec<HostPort> {
    let mut ports = Vec::new();
    for pod in pods {
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else {
            continue;
        };
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if spec.node_name.as_deref() != Some(node) || spec.host_network == Some(true) || ended {
            continue;
        }
        let Some(address) = status.pod_ip.as_deref().and_then(|address| address.parse().ok()) else {
            continue;
        };
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        let sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|it| it.restart_policy.as_deref() == Some("Always"));
        for port in spec
            .containers
            .iter()
            .chain(sidecars)
            .flat_map(|container| container.ports.iter().flatten())
        {
            let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
            let (Some(protocol), Some(host), Some(container)) = (
                Protocol::parse(port.protocol.as_deref()),
                port.host_port.and_then(number),
                number(port.container_port),
            ) else {
                continue;
            };
            let bound = port
                .host_ip
                .as_deref()
                .filter(|address| !matches!(*address, "" | "0.0.0.0"));
            let address_of_host = match bound.map(str::parse) {
                None => None,
                Some(Ok(address)) => Some(address),
                Some(Err(_)) => continue,
            };
            let suffix = address_of_host
                .map(|address: Ipv4Addr| format!("/{address}"))
                .unwrap_or_default();
            ports.push(HostPort {
                id: format!("{namespace}/{name}/{protocol}/{host}{suffix}"),
                protocol,
                address: address_of_host,
                port: host,
                endpoint: Endpoint {
                    address,
                    port: container,
                },
            });
        }
    }
    ports.sort();
    ports
}

/// Drops what the proxy does not need of a pod.
pub fn trim_pod(pod: &mut Pod) {
    pod.metadata.annotations = None;
    pod.metadata.labels = None;
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            container.env = None;
            container.env_from = None;
            container.volume_mounts = None;
            container.command = None;
            container.args = None;
        }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
