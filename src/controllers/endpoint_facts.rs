//! What a Service's pods offer: addresses, resolved ports, readiness. The common ground of Endpoints and EndpointSlices.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use component::{Change, ObjectKey, selector};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::context::Context;
use crate::meta::{is_deleting, name, namespace};
use crate::pods::{is_ready, is_terminal, node_name};

/// A port that a pod really offers for a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) port: i32,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// As `addressType` says it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// The family of an address; nothing for a text that is none.
    pub(crate) fn of(ip: &str) -> Option<Self> {
        match ip.parse().ok()? {
            IpAddr::V4(_) => Some(Family::V4),
            IpAddr::V6(_) => Some(Family::V6),
        }
    }
}

/// Whether this Service's endpoints are the controllers' business.
pub(crate) fn is_managed(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|s| !s.is_empty())
}

/// Whether a Service has no address of its own.
pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// The families a Service has endpoints in; the first is its main one.
pub(crate) fn families(spec: &ServiceSpec) -> Vec<Family> {
    let families: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|f| if f == "IPv6" { Family::V6 } else { Family::V4 })
        .collect();
    if !families.is_empty() {
        return families;
    }
    vec![spec.cluster_ip.as_deref().and_then(Family::of).unwrap_or(Family::V4)]
}

/// Whether a Service selects a pod.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    is_managed(service)
        && service
            .spec
            .as_ref()
            .and_then(|s| s.selector.as_ref())
            .is_some_and(|s| selector::matches_map(s, pod.metadata.labels.as_ref()))
}

/// The address of a pod in a family; pods that have ended have none.
pub(crate) fn address(pod: &Pod, family: Family) -> Option<&str> {
    if is_terminal(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    many.chain(status.pod_ip.as_deref())
        .find(|ip| Family::of(ip) == Some(family))
}

/// The ports of a Service on that pod. A named port that the pod lacks is left out.
pub(crate) fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<Port> {
    let mut ports: Vec<Port> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                port: resolve(port, pod)?,
                protocol: protocol(port).to_owned(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn resolve(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let wanted = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| p.name.as_ref() == Some(wanted) && p.protocol.as_deref().unwrap_or("TCP") == protocol(port))
        .map(|p| p.container_port)
}

/// The host name a pod has in the Service's domain.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let inside = spec.subdomain.as_deref() == Some(name(&service.metadata))
        && pod.metadata.namespace == service.metadata.namespace;
    spec.hostname.clone().filter(|h| inside && !h.is_empty())
}

/// A reference to the pod.
pub(crate) fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The zone of a node.
pub(crate) fn zone(node: &Node) -> Option<String> {
    node.metadata
        .labels
        .as_ref()?
        .get("topology.kubernetes.io/zone")
        .cloned()
}

/// The pods a Service selects, in a stable order.
pub(crate) fn selected(ctx: &Context, service: &Service) -> Vec<Arc<Pod>> {
    let mut pods = ctx.caches.pods.list(namespace(&service.metadata));
    pods.retain(|p| selects(service, p));
    pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    pods
}

/// The Services that a change of a pod matters to.
pub(crate) fn touched(ctx: &Context, change: Change<'_, Pod>) -> HashSet<ObjectKey> {
    let pod = change.latest();
    let services = ctx.caches.services.list(namespace(&pod.metadata));
    let relabelled = change.old().is_some_and(|o| o.metadata.labels != pod.metadata.labels);
    if change.old().is_some_and(|o| !relabelled && offers(o) == offers(pod)) {
        return HashSet::new();
    }
    services
        .iter()
        .filter(|s| selects(s, pod) || (relabelled && change.old().is_some_and(|o| selects(s, o))))
        .map(|s| ObjectKey::of(&**s))
        .collect()
}

type Offer<'a> = (bool, bool, bool, Option<&'a str>, Option<&'a str>, Vec<&'a str>);

/// Everything of a pod that endpoints show and that can change.
fn offers(pod: &Pod) -> Offer<'_> {
    let status = pod.status.as_ref();
    (
        is_ready(pod),
        is_terminal(pod),
        is_deleting(&pod.metadata),
        node_name(pod),
        status.and_then(|s| s.pod_ip.as_deref()),
        status
            .iter()
            .flat_map(|s| s.pod_ips.iter().flatten())
            .map(|ip| ip.ip.as_str())
            .collect(),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use k8s_openapi::api::core::v1::{Container, ContainerPort, PodIP};

    /// A pod with an address and a container port called `http` for tests.
    pub(crate) fn serving(name: &str, ip: &str, http: i32, ready: bool) -> Pod {
        let mut pod = pod(name, Some("n1"), "Running", ready.then_some(1));
        let status = pod.status.as_mut().unwrap();
        status.pod_ip = Some(ip.into());
        status.pod_ips = Some(vec![PodIP { ip: ip.into() }]);
        let port = ContainerPort {
            name: Some("http".into()),
            container_port: http,
            ..ContainerPort::default()
        };
        pod.spec.as_mut().unwrap().containers = vec![Container {
            ports: Some(vec![port]),
            ..Container::default()
        }];
        pod
    }

    /// A Service port for tests.
    pub(crate) fn service_port(name: &str, port: i32, target: Option<IntOrString>) -> ServicePort {
        ServicePort {
            name: Some(name.into()),
            port,
            target_port: target,
            ..ServicePort::default()
        }
    }

    #[test]
    fn ports_are_resolved_by_number_by_name_or_taken_as_they_are() {
        let pod = serving("a", "10.0.0.1", 8080, true);
        let spec = |port| ServiceSpec {
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        };
        for (target, expected) in [
            (None, Some(80)),
            (Some(IntOrString::Int(9000)), Some(9000)),
            (Some(IntOrString::String("http".into())), Some(8080)),
            (Some(IntOrString::String("absent".into())), None),
        ] {
            let found = ports(&spec(service_port("web", 80, target.clone())), &pod);
            assert_eq!(found.first().map(|p| p.port), expected, "{target:?}");
        }
    }

    #[test]
    fn an_ended_pod_has_no_address_and_families_are_told_apart() {
        let mut pod = serving("a", "fd00::1", 80, true);
        assert_eq!(address(&pod, Family::V6), Some("fd00::1"));
        assert_eq!(address(&pod, Family::V4), None);
        pod.status.as_mut().unwrap().phase = Some("Succeeded".into());
        assert_eq!(address(&pod, Family::V6), None);
    }
}
