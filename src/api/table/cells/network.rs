//! Cells of services and of what stands behind them.

use super::{join, list, or_none};
use serde_json::Value;

pub(super) fn external_addresses(o: &Value) -> String {
    let spec = &o["spec"];
    let given = join(list(&spec["externalIPs"]).iter().filter_map(Value::as_str));
    match spec["type"].as_str() {
        Some("ExternalName") => or_none(spec["externalName"].as_str().unwrap_or_default().to_owned()),
        Some("LoadBalancer") => {
            let ingress = list(&o["status"]["loadBalancer"]["ingress"]);
            let addresses = join(
                ingress
                    .iter()
                    .filter_map(|i| i["ip"].as_str().or(i["hostname"].as_str())),
            );
            let all = join(
                [addresses.as_str(), given.as_str()]
                    .into_iter()
                    .filter(|s| !s.is_empty()),
            );
            if all.is_empty() { "<pending>".to_owned() } else { all }
        }
        _ => or_none(given),
    }
}

pub(super) fn service_ports(spec: &Value) -> String {
    let port = |p: &Value| {
        let protocol = p["protocol"].as_str().unwrap_or("TCP");
        match p["nodePort"].as_i64().filter(|n| *n > 0) {
            Some(node_port) => format!("{}:{node_port}/{protocol}", p["port"]),
            None => format!("{}/{protocol}", p["port"]),
        }
    };
    or_none(list(&spec["ports"]).iter().map(port).collect::<Vec<_>>().join(","))
}

/// At most three, then how many more there are.
fn shortened(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    let text = or_none(all.join(","));
    if more > 0 {
        format!("{text} + {more} more...")
    } else {
        text
    }
}

pub(super) fn endpoints(subsets: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(subsets) {
        let ports = list(&subset["ports"]);
        for address in list(&subset["addresses"]).iter().filter_map(|a| a["ip"].as_str()) {
            match ports {
                [] => all.push(address.to_owned()),
                ports => all.extend(ports.iter().map(|p| format!("{address}:{}", p["port"]))),
            }
        }
    }
    shortened(all)
}

pub(super) fn slice_ports(o: &Value) -> String {
    let number = |p: &Value| p["port"].as_i64().map_or("*".to_owned(), |n| n.to_string());
    let ports: Vec<_> = list(&o["ports"]).iter().map(number).collect();
    if ports.is_empty() {
        "<unset>".to_owned()
    } else {
        shortened(ports)
    }
}

pub(super) fn slice_addresses(o: &Value) -> String {
    let all: Vec<_> = list(&o["endpoints"])
        .iter()
        .flat_map(|e| list(&e["addresses"]))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if all.is_empty() {
        "<unset>".to_owned()
    } else {
        shortened(all)
    }
}
