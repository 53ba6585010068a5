//! Defaults of Services, Endpoints and EndpointSlices. Addresses and node ports are allocated elsewhere.

use serde_json::{Map, Value, json};

use super::{default, default_text, each, map_mut, text};

type Object = Map<String, Value>;

/// Three hours: how long a client sticks to its endpoint.
const AFFINITY_SECONDS: i64 = 10_800;

/// A Service.
pub(super) fn service(root: &mut Object) {
    default(root, "spec", json!({}));
    let Some(spec) = map_mut(root, "spec") else { return };
    default_text(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "None" {
        spec.remove("sessionAffinityConfig");
    } else {
        default(spec, "sessionAffinityConfig", json!({}));
        if let Some(config) = map_mut(spec, "sessionAffinityConfig") {
            default(config, "clientIP", json!({}));
            if let Some(client) = map_mut(config, "clientIP") {
                default(client, "timeoutSeconds", AFFINITY_SECONDS);
            }
        }
    }
    default_text(spec, "type", "ClusterIP");
    let external_name = text(spec, "type") == "ExternalName";
    let outside = matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
        || spec
            .get("externalIPs")
            .and_then(Value::as_array)
            .is_some_and(|ips| !ips.is_empty());
    for port in each(spec, "ports") {
        default_text(port, "protocol", "TCP");
        let target = port.get("targetPort");
        if target.is_none_or(|t| t.is_null() || *t == json!(0) || *t == json!("")) {
            let number = port.get("port").cloned().unwrap_or(Value::Null);
            port.insert("targetPort".to_owned(), number);
        }
    }
    if outside {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if !external_name {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// Endpoints.
pub(super) fn endpoints(root: &mut Object) {
    for subset in each(root, "subsets") {
        for port in each(subset, "ports") {
            default_text(port, "protocol", "TCP");
        }
    }
}

/// An EndpointSlice.
pub(super) fn endpoint_slice(root: &mut Object) {
    for port in each(root, "ports") {
        default(port, "name", "");
        default(port, "protocol", "TCP");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::tests::check;

    #[test]
    fn ports_lead_to_themselves_and_traffic_goes_everywhere() {
        check(
            "",
            "services",
            json!({"spec": {"ports": [{"port": 80}, {"port": 443, "targetPort": "tls"}]}}),
            json!({"spec": {
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}, {"port": 443, "targetPort": "tls", "protocol": "TCP"}],
            }}),
        );
        check(
            "",
            "services",
            json!({"spec": {"type": "NodePort", "sessionAffinity": "ClientIP"}}),
            json!({"spec": {
                "type": "NodePort", "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Cluster",
                "externalTrafficPolicy": "Cluster", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            }}),
        );
    }
}
