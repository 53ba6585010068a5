//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::rules::{
    Errors, has, items, labels, named, port_number, port_number_or_name, required_choice, required_name, supported,
    text,
};
use super::{FieldError, names};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const TRAFFIC: [&str; 2] = ["Cluster", "Local"];

/// A Service, new or changed.
pub(super) fn service(out: &mut Errors, service: &Value) {
    let s = &service["spec"];
    let kind = text(s, "type");
    required_choice(out, s, "spec", "type", &TYPES);
    let headless = text(s, "clusterIP") == "None";
    ports(out, s, kind, headless);
    labels(out, "spec.selector", &s["selector"]);
    required_choice(out, s, "spec", "sessionAffinity", &["ClientIP", "None"]);
    if text(s, "sessionAffinity") == "ClientIP" {
        let seconds = s["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
            .as_i64()
            .unwrap_or(0);
        if !(1..=86_400).contains(&seconds) {
            let at = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            out.push(FieldError::invalid(
                at,
                &seconds.into(),
                "must be greater than 0 and less than 86400",
            ));
        }
    }
    match kind {
        "ExternalName" => {
            let address = !text(s, "clusterIP").is_empty() || !items(s, "clusterIPs").is_empty();
            for (field, is) in [
                ("clusterIPs", address),
                ("ipFamilies", has(s, "ipFamilies")),
                ("ipFamilyPolicy", has(s, "ipFamilyPolicy")),
            ] {
                if is {
                    let why = "may not be set for ExternalName services";
                    out.push(FieldError::forbidden(format!("spec.{field}"), why));
                }
            }
            required_name(
                out,
                "spec.externalName".to_owned(),
                text(s, "externalName").trim_end_matches('.'),
                names::dns1123_subdomain,
            );
        }
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            out.push(FieldError::invalid_text("spec.clusterIPs[0]", "None", why));
        }
        _ => {}
    }
    addresses(out, s);
    policies(out, s, kind);
}

fn ports(out: &mut Errors, s: &Value, kind: &str, headless: bool) {
    let list = items(s, "ports");
    if list.is_empty() && !headless && kind != "ExternalName" {
        out.push(FieldError::required("spec.ports", ""));
    }
    let mut seen_names = BTreeSet::new();
    let mut seen_ports = BTreeSet::new();
    let mut seen_node_ports = BTreeSet::new();
    for (i, p) in list.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = text(p, "name");
        if name.is_empty() && list.len() > 1 {
            out.push(FieldError::required(format!("{at}.name"), ""));
        } else if !name.is_empty() {
            named(out, format!("{at}.name"), name, names::dns1123_label);
            if !seen_names.insert(name) {
                out.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
            }
        }
        port_number(out, format!("{at}.port"), p["port"].as_i64().unwrap_or(0));
        required_choice(out, p, &at, "protocol", &PROTOCOLS);
        port_number_or_name(out, format!("{at}.targetPort"), &p["targetPort"]);
        if !seen_ports.insert((p["port"].as_i64(), text(p, "protocol"))) {
            out.push(FieldError::duplicate(at.clone(), p));
        }
        let node_port = p["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 {
            if kind == "ClusterIP" {
                let why = "may not be used when `type` is 'ClusterIP'";
                out.push(FieldError::forbidden(format!("{at}.nodePort"), why));
            } else if !seen_node_ports.insert((node_port, text(p, "protocol"))) {
                out.push(FieldError::duplicate(format!("{at}.nodePort"), &node_port.into()));
            }
        }
        if !text(p, "appProtocol").is_empty() {
            named(
                out,
                format!("{at}.appProtocol"),
                text(p, "appProtocol"),
                names::qualified_name,
            );
        }
    }
}

fn external_addresses(out: &mut Errors, s: &Value) {
    for (i, ip) in items(s, "externalIPs").iter().enumerate() {
        let (at, ip) = (format!("spec.externalIPs[{i}]"), ip.as_str().unwrap_or_default());
        match ip.parse::<IpAddr>() {
            Ok(a) if a.is_loopback() || a.is_unspecified() || a.is_multicast() => {
                out.push(FieldError::invalid_text(
                    at,
                    ip,
                    "may not be unspecified, in the loopback or multicast range",
                ));
            }
            Ok(_) => {}
            Err(_) => named(out, at, ip, names::ip),
        }
    }
}

fn addresses(out: &mut Errors, s: &Value) {
    external_addresses(out, s);
    // Of these an ExternalName has none.
    if text(s, "type") == "ExternalName" {
        return;
    }
    let cluster_ip = text(s, "clusterIP");
    let all: Vec<&str> = items(s, "clusterIPs").iter().filter_map(Value::as_str).collect();
    for (i, ip) in all.iter().enumerate() {
        if *ip == "None" && i == 0 {
            continue;
        }
        named(out, format!("spec.clusterIPs[{i}]"), ip, names::ip);
    }
    if all.is_empty() && !matches!(cluster_ip, "" | "None") {
        named(out, "spec.clusterIP", cluster_ip, names::ip);
    }
    let mut refuse = |is: bool, why: &str| {
        if is {
            out.push(FieldError::invalid("spec.clusterIPs", &s["clusterIPs"], why));
        }
    };
    let given: Vec<bool> = all
        .iter()
        .filter_map(|ip| Some(ip.parse::<IpAddr>().ok()?.is_ipv4()))
        .collect();
    match (all.first(), cluster_ip) {
        (Some(_), "") => refuse(true, "must be empty when `clusterIP` is not specified"),
        (Some(first), _) => refuse(*first != cluster_ip, "first value must match `clusterIP`"),
        (None, _) => {}
    }
    refuse(
        all.len() > 1 && all[0] == "None",
        "'None' must be the first and only value",
    );
    refuse(all.len() > 2, "may only hold up to 2 values");
    refuse(
        given.len() > 1 && given[1..].contains(&given[0]),
        "may specify no more than one IP for each IP family",
    );
    supported(
        out,
        s,
        "spec",
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    families(out, s, &all);
}

/// Families, and whether the addresses that are given are of them.
fn families(out: &mut Errors, s: &Value, addresses: &[&str]) {
    let list = items(s, "ipFamilies");
    for (i, f) in list.iter().enumerate() {
        let (at, family) = (format!("spec.ipFamilies[{i}]"), f.as_str().unwrap_or_default());
        if !matches!(family, "IPv4" | "IPv6") {
            out.push(FieldError::not_supported(at, family, &["IPv4", "IPv6"]));
        } else if list[..i].contains(f) {
            out.push(FieldError::duplicate(at, f));
        }
        let given = addresses.get(i).and_then(|ip| ip.parse::<IpAddr>().ok());
        if given.is_some_and(|ip| ip.is_ipv4() != (family == "IPv4")) {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            let at = format!("spec.clusterIPs[{i}]");
            out.push(FieldError::invalid_text(at, addresses[i], why));
        }
    }
}

fn policies(out: &mut Errors, s: &Value, kind: &str) {
    supported(out, s, "spec", "internalTrafficPolicy", &TRAFFIC);
    supported(out, s, "spec", "externalTrafficPolicy", &TRAFFIC);
    let outside = matches!(kind, "NodePort" | "LoadBalancer") || !items(s, "externalIPs").is_empty();
    if !outside && !text(s, "externalTrafficPolicy").is_empty() {
        let why = "may only be set for externally-accessible services";
        out.push(FieldError::invalid_text(
            "spec.externalTrafficPolicy",
            text(s, "externalTrafficPolicy"),
            why,
        ));
    }
    let health = s["healthCheckNodePort"].as_i64().unwrap_or(0);
    if health != 0 && (kind != "LoadBalancer" || text(s, "externalTrafficPolicy") != "Local") {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        out.push(FieldError::invalid("spec.healthCheckNodePort", &health.into(), why));
    }
    let near = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    supported(out, s, "spec", "trafficDistribution", &near);
    for (i, range) in items(s, "loadBalancerSourceRanges").iter().enumerate() {
        // Kubernetes accepts spaces around them, and writes the field's name so.
        let (at, range) = (
            format!("spec.LoadBalancerSourceRanges[{i}]"),
            range.as_str().unwrap_or_default(),
        );
        named(out, at, range.trim(), names::cidr);
    }
    if kind == "LoadBalancer" && has(s, "loadBalancerClass") {
        named(
            out,
            "spec.loadBalancerClass",
            text(s, "loadBalancerClass"),
            names::qualified_name,
        );
    }
    if kind != "LoadBalancer" {
        for field in [
            "loadBalancerSourceRanges",
            "loadBalancerClass",
            "allocateLoadBalancerNodePorts",
        ] {
            if has(s, field) {
                out.push(FieldError::forbidden(
                    format!("spec.{field}"),
                    "may only be used when `type` is 'LoadBalancer'",
                ));
            }
        }
    }
}

/// What of a Service may not change: its address, as long as it keeps having one.
pub(super) fn update(out: &mut Errors, new: &Value, old: &Value) {
    let (n, o) = (&new["spec"], &old["spec"]);
    let kept = text(n, "type") != "ExternalName" && text(o, "type") != "ExternalName";
    let was = text(o, "clusterIP");
    if kept && !was.is_empty() && text(n, "clusterIP") != was {
        let list = if items(n, "clusterIPs").is_empty() {
            serde_json::json!([text(n, "clusterIP")])
        } else {
            n["clusterIPs"].clone()
        };
        out.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            &list,
            "may not change once set",
        ));
    }
    let needs_health_check =
        |s: &Value| text(s, "type") == "LoadBalancer" && text(s, "externalTrafficPolicy") == "Local";
    let differs = |field: &str| has(o, field) && n[field] != o[field];
    if needs_health_check(n) && needs_health_check(o) && differs("healthCheckNodePort") {
        out.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    let balanced = |s: &Value| text(s, "type") == "LoadBalancer";
    if balanced(n) && balanced(o) && n["loadBalancerClass"] != o["loadBalancerClass"] {
        let class = &n["loadBalancerClass"];
        out.push(FieldError::invalid(
            "spec.loadBalancerClass",
            class,
            "may not change once set",
        ));
    }
    service(out, new);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service_with(kind: &str, more: Value) -> Value {
        let mut spec = json!({"type": kind, "sessionAffinity": "None", "externalName": "a.example",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"spec": spec})
    }

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn fields_belong_to_types_and_ranges_are_ranges() {
        for (kind, more, expected) in [
            ("ExternalName", json!({}), &[][..]),
            (
                "ExternalName",
                json!({"clusterIP": "None", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}),
                &[
                    "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
                    "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
                    "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
                ],
            ),
            (
                "ClusterIP",
                json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
                &[
                    "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family",
                ],
            ),
            (
                "ClusterIP",
                json!({"clusterIPs": ["10.0.0.1"]}),
                &["spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: must be empty when `clusterIP` is not specified"],
            ),
            (
                "ClusterIP",
                json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]}),
                &[
                    "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
                ],
            ),
            (
                "ClusterIP",
                json!({"healthCheckNodePort": 30000}),
                &[
                    "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
                ],
            ),
            (
                "LoadBalancer",
                json!({"loadBalancerSourceRanges": [" 10.0.0.0/8 ", "10.0.0.0", "10.0.0.0/33", "fd00::/8"]}),
                &[
                    "spec.LoadBalancerSourceRanges[1]: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                    "spec.LoadBalancerSourceRanges[2]: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                "ClusterIP",
                json!({"trafficDistribution": "PreferFar"}),
                &[
                    "spec.trafficDistribution: Unsupported value: \"PreferFar\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
                ],
            ),
        ] {
            let mut out = Errors::new();
            service(&mut out, &service_with(kind, more.clone()));
            assert_eq!(texts(&out), expected, "{kind} {more}");
        }
    }

    #[test]
    fn what_load_balancers_were_told_stays() {
        let balanced = |class: &str, port: u16| {
            service_with(
                "LoadBalancer",
                json!({"loadBalancerClass": class, "externalTrafficPolicy": "Local", "healthCheckNodePort": port}),
            )
        };
        let changed = |new: &Value| {
            let mut out = Errors::new();
            update(&mut out, new, &balanced("a", 30000));
            texts(&out)
        };
        assert_eq!(changed(&balanced("a", 30000)), [""; 0]);
        assert_eq!(
            changed(&balanced("b", 30001)),
            [
                "spec.healthCheckNodePort: Forbidden: field is immutable",
                "spec.loadBalancerClass: Invalid value: \"b\": may not change once set",
            ]
        );
    }
}
