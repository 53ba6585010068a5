//! Endpoints and EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::rules::{
    Errors, immutable, items, named, port_number, required, required_choice, required_name, supported, text,
};
use super::service::PROTOCOLS;
use super::{FieldError, names};

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
