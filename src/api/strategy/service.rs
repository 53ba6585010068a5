//! Fields of a Service that depend on its type: they go with the type that they belonged to, so that a client may send back
//! what it read and change the type alone. A field that the client changed as well is left for validation to refuse.

use serde_json::Value;

use crate::metadata::child_mut;

/// Whether a Service uses a field.
type Uses = fn(&Value) -> bool;

/// Fields by who uses them.
const FIELDS: [(&str, Uses); 6] = [
    ("ipFamilies", has_address),
    ("ipFamilyPolicy", has_address),
    ("healthCheckNodePort", needs_health_check),
    ("allocateLoadBalancerNodePorts", is_load_balancer),
    ("loadBalancerClass", is_load_balancer),
    ("externalTrafficPolicy", takes_outside_traffic),
];

/// Drops what the new type does not use and the client did not change.
pub(super) fn drop_unused(new: &mut Value, old: &Value) {
    let leaves = |new: &Value, uses: Uses| uses(&old["spec"]) && !uses(&new["spec"]);
    let kept = |new: &Value, field: &str| new["spec"][field] == old["spec"][field];
    let mut gone: Vec<&str> = FIELDS
        .iter()
        .filter(|(field, uses)| leaves(new, *uses) && kept(new, field))
        .map(|(field, _)| *field)
        .collect();
    if leaves(new, has_address) && kept(new, "clusterIP") && kept(new, "clusterIPs") {
        gone.extend(["clusterIP", "clusterIPs"]);
    }
    let no_new_ports = node_ports(new).all(|n| node_ports(old).any(|o| o == n));
    if leaves(new, has_node_ports) && no_new_ports {
        let ports = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    if !gone.is_empty() {
        let spec = child_mut(new, "spec");
        gone.iter().for_each(|field| drop(spec.remove(*field)));
    }
}

fn node_ports(service: &Value) -> impl Iterator<Item = i64> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports.filter_map(|p| p["nodePort"].as_i64()).filter(|n| *n != 0)
}

fn has_address(spec: &Value) -> bool {
    spec["type"] != "ExternalName"
}

fn has_node_ports(spec: &Value) -> bool {
    spec["type"] == "NodePort" || is_load_balancer(spec)
}

fn is_load_balancer(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer"
}

fn needs_health_check(spec: &Value) -> bool {
    is_load_balancer(spec) && spec["externalTrafficPolicy"] == "Local"
}

fn takes_outside_traffic(spec: &Value) -> bool {
    has_node_ports(spec) || spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full(kind: &str) -> Value {
        json!({"type": kind, "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
            "healthCheckNodePort": 30002, "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "x/y",
            "ports": [{"port": 80, "nodePort": 30001}]})
    }

    fn changed(to: &str, change: impl Fn(&mut Value)) -> Value {
        let old = json!({"spec": full("LoadBalancer")});
        let mut new = json!({"spec": full("LoadBalancer")});
        new["spec"]["type"] = to.into();
        change(&mut new["spec"]);
        drop_unused(&mut new, &old);
        new["spec"].take()
    }

    #[test]
    fn fields_go_with_the_type_they_belonged_to() {
        for (to, expected) in [
            (
                "ExternalName",
                json!({"type": "ExternalName", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80}]}),
            ),
            (
                "ClusterIP",
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ipFamilies": ["IPv4"],
                    "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80}]}),
            ),
            (
                "NodePort",
                json!({"type": "NodePort", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ipFamilies": ["IPv4"],
                    "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local",
                    "ports": [{"port": 80, "nodePort": 30001}]}),
            ),
            ("LoadBalancer", full("LoadBalancer")),
        ] {
            assert_eq!(changed(to, |_| {}), expected, "{to}");
        }
    }

    #[test]
    fn what_the_client_changed_too_is_left_to_be_refused() {
        let spec = changed("ExternalName", |s| {
            s["ipFamilyPolicy"] = "PreferDualStack".into();
            s["ports"][0]["nodePort"] = 30009.into();
            s["clusterIP"] = "10.96.0.9".into();
        });
        assert_eq!(spec["ipFamilyPolicy"], "PreferDualStack");
        assert_eq!(spec["ports"][0]["nodePort"], 30009);
        assert_eq!(spec["clusterIP"], "10.96.0.9");
        let cluster = changed("LoadBalancer", |s| s["externalTrafficPolicy"] = "Cluster".into());
        assert!(cluster["healthCheckNodePort"].is_null());
    }
}
