//! Services, Endpoints and EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::rules::{
    Errors, has, immutable, items, labels, named, port_number, port_number_or_name, required, required_choice,
    required_name, supported, text,
};
use super::{FieldError, names};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
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
            for field in ["ipFamilies", "ipFamilyPolicy"] {
                if has(s, field) {
                    let why = "may not be set when `type` is 'ExternalName'";
                    out.push(FieldError::forbidden(format!("spec.{field}"), why));
                }
            }
            if !matches!(text(s, "clusterIP"), "" | "None") {
                out.push(FieldError::forbidden(
                    "spec.clusterIPs[0]",
                    "may not be set when `type` is 'ExternalName'",
                ));
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
            if !matches!(kind, "NodePort" | "LoadBalancer") {
                let why = format!("may not be used when `type` is '{kind}'");
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

fn addresses(out: &mut Errors, s: &Value) {
    let cluster_ip = text(s, "clusterIP");
    let all: Vec<&str> = items(s, "clusterIPs").iter().filter_map(Value::as_str).collect();
    for (i, ip) in all.iter().enumerate() {
        if *ip == "None" && i == 0 && all.len() == 1 {
            continue;
        }
        named(out, format!("spec.clusterIPs[{i}]"), ip, names::ip);
    }
    if all.is_empty() && !matches!(cluster_ip, "" | "None") {
        named(out, "spec.clusterIP", cluster_ip, names::ip);
    }
    if !all.is_empty() && cluster_ip != all[0] {
        let why = "first value must match `clusterIP`";
        out.push(FieldError::invalid("spec.clusterIPs", &s["clusterIPs"], why));
    }
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
    if addresses.len() > 2 {
        let why = "may only hold up to 2 values";
        out.push(FieldError::invalid("spec.clusterIPs", &s["clusterIPs"], why));
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
    if needs_health_check(n) && needs_health_check(o) && has(o, "healthCheckNodePort") {
        immutable(out, n, o, "spec", "healthCheckNodePort");
    }
    service(out, new);
}

/// Endpoints.
pub(super) fn endpoints(out: &mut Errors, e: &Value) {
    for (i, subset) in items(e, "subsets").iter().enumerate() {
        let at = format!("subsets[{i}]");
        let addresses = ["addresses", "notReadyAddresses"];
        if addresses.iter().all(|f| items(subset, f).is_empty()) {
            out.push(FieldError::required(
                at.clone(),
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for field in addresses {
            for (j, a) in items(subset, field).iter().enumerate() {
                endpoint_ip(out, format!("{at}.{field}[{j}].ip"), text(a, "ip"));
                if !text(a, "hostname").is_empty() {
                    named(
                        out,
                        format!("{at}.{field}[{j}].hostname"),
                        text(a, "hostname"),
                        names::dns1123_label,
                    );
                }
            }
        }
        let ports = items(subset, "ports");
        for (j, p) in ports.iter().enumerate() {
            let at = format!("{at}.ports[{j}]");
            if ports.len() > 1 || !text(p, "name").is_empty() {
                required_name(out, format!("{at}.name"), text(p, "name"), names::dns1123_label);
            }
            port_number(out, format!("{at}.port"), p["port"].as_i64().unwrap_or(0));
            required_choice(out, p, &at, "protocol", &PROTOCOLS);
        }
    }
}

/// Traffic to these addresses would reach something else than a workload.
fn endpoint_ip(out: &mut Errors, path: String, ip: &str) {
    let Ok(address) = ip.parse::<IpAddr>() else {
        named(out, path, ip, names::ip);
        return;
    };
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    for (bad, why) in [
        (address.is_unspecified(), "may not be unspecified"),
        (
            address.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (address.is_multicast(), "may not be in the multicast range"),
    ] {
        if bad {
            out.push(FieldError::invalid_text(path.clone(), ip, why));
        }
    }
}

/// An EndpointSlice.
pub(super) fn slice(out: &mut Errors, s: &Value) {
    let family = text(s, "addressType");
    required(out, s, "", "addressType");
    supported(out, s, "", "addressType", &["FQDN", "IPv4", "IPv6"]);
    let list = items(s, "endpoints");
    if list.len() > 1000 {
        out.push(FieldError::too_many("endpoints", list.len(), 1000));
    }
    for (i, e) in list.iter().enumerate() {
        let at = format!("endpoints[{i}].addresses");
        let addresses = items(e, "addresses");
        if addresses.is_empty() {
            out.push(FieldError::required(at.clone(), "must contain at least 1 address"));
        } else if addresses.len() > 100 {
            out.push(FieldError::too_many(at.clone(), addresses.len(), 100));
        }
        for (j, a) in addresses.iter().enumerate() {
            let (at, a) = (format!("{at}[{j}]"), a.as_str().unwrap_or_default());
            match (family, a.parse::<IpAddr>()) {
                ("FQDN", _) => named(out, at, a, names::dns1123_subdomain),
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => endpoint_ip(out, at, a),
                ("IPv4", _) => out.push(FieldError::invalid_text(at, a, "must be a valid IPv4 address")),
                ("IPv6", _) => out.push(FieldError::invalid_text(at, a, "must be a valid IPv6 address")),
                _ => {}
            }
        }
        if !text(e, "hostname").is_empty() {
            named(
                out,
                format!("endpoints[{i}].hostname"),
                text(e, "hostname"),
                names::dns1123_label,
            );
        }
    }
    let mut seen = BTreeSet::new();
    for (i, p) in items(s, "ports").iter().enumerate() {
        let at = format!("ports[{i}]");
        let name = text(p, "name");
        if !name.is_empty() {
            named(out, format!("{at}.name"), name, names::dns1123_label);
        }
        if !seen.insert(name) {
            out.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
        }
        required_choice(out, p, &at, "protocol", &PROTOCOLS);
        if let Some(n) = p["port"].as_i64() {
            port_number(out, format!("{at}.port"), n);
        }
    }
}

/// A slice keeps its family of addresses.
pub(super) fn slice_update(out: &mut Errors, new: &Value, old: &Value) {
    slice(out, new);
    immutable(out, new, old, "", "addressType");
}
