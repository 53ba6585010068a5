//! Addresses and ports of services: what a new or changed service gets from the service range and the node port range.
//!
//! What is taken is read off the services themselves, so nothing can leak and a restart needs no repair. The caller holds one
//! lock from reading them to storing the result.

mod families;
mod ports;

use crate::error::{ApiError, FieldError, Result};
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive};

/// What may be given to services.
#[derive(Debug, Clone)]
pub struct Ranges {
    /// The service range's network address. Its first usable address is that of the service `kubernetes`.
    pub network: Ipv4Addr,
    /// Length of the range's prefix in bits, 8 to 30.
    pub prefix: u8,
    /// Ports that nodes open for services.
    pub node_ports: RangeInclusive<u16>,
}

/// What other services have.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

impl Taken {
    /// Collects it from all services but the one named.
    pub fn by_others<'a>(services: impl IntoIterator<Item = &'a Value>, namespace: &str, name: &str) -> Self {
        let mut taken = Self::default();
        for service in services {
            let meta = &service["metadata"];
            if meta["namespace"] == namespace && meta["name"] == name {
                continue;
            }
            taken.addresses.extend(
                service["spec"]["clusterIP"]
                    .as_str()
                    .and_then(|ip| ip.parse::<Ipv4Addr>().ok()),
            );
            taken.ports.extend(ports::of(service));
        }
        taken
    }
}

impl Ranges {
    /// Usable addresses: neither the network's own nor the broadcast address.
    fn usable(&self) -> RangeInclusive<u32> {
        let first = u32::from(self.network);
        let size = 1_u32 << (32 - u32::from(self.prefix.clamp(8, 30)));
        first + 1..=first + size - 2
    }

    /// The lower band is left to those who choose addresses themselves (KEP-3070): min(max(16, size/16), 256) of them.
    fn dynamic(&self) -> RangeInclusive<u32> {
        let all = self.usable();
        let size = all.end() - all.start() + 1;
        let band = (size / 16).clamp(16, 256);
        if band >= size {
            all
        } else {
            all.start() + band..=*all.end()
        }
    }
}

/// Gives a service what it lacks and keeps what it has. What its new type does not use is gone already
/// (`api::strategy::prepare_update`), or refused by validation.
///
/// # Errors
/// 422 where an address, a family or a port that was asked for is taken or not to be had; 500 where nothing is left.
pub fn assign(ranges: &Ranges, taken: &Taken, service: &mut Value, old: Option<&Value>) -> Result<()> {
    if service["spec"]["type"] != "ExternalName" {
        families::assign(service, old)?;
        address(ranges, taken, service, old)?;
    }
    ports::assign(&ranges.node_ports, &taken.ports, service, old)
}

fn address(ranges: &Ranges, taken: &Taken, service: &mut Value, old: Option<&Value>) -> Result<()> {
    let had = old
        .and_then(|o| o["spec"]["clusterIP"].as_str())
        .filter(|ip| !ip.is_empty());
    let asked = service["spec"]["clusterIP"]
        .as_str()
        .filter(|ip| !ip.is_empty())
        .or(service["spec"]["clusterIPs"][0].as_str())
        .or(had);
    let text = match asked.map(str::to_owned) {
        Some(headless) if headless == "None" => headless,
        Some(text) if Some(text.as_str()) == had => text,
        Some(text) => chosen(ranges, taken, service, &text)?.to_string(),
        None => free_address(ranges, taken)?.to_string(),
    };
    service["spec"]["clusterIPs"] = json!([text]);
    service["spec"]["clusterIP"] = text.into();
    Ok(())
}

fn chosen(ranges: &Ranges, taken: &Taken, service: &Value, text: &str) -> Result<Ipv4Addr> {
    let refuse = |why: &str| {
        let why = format!("failed to allocate IP {text}: {why}");
        refused(service, &[FieldError::invalid("spec.clusterIPs", &json!([text]), why)])
    };
    let ip: Ipv4Addr = text.parse().map_err(|_| refuse("it is not an IPv4 address"))?;
    if !ranges.usable().contains(&u32::from(ip)) {
        return Err(refuse(&format!(
            "the provided IP is not in the valid range {}/{}",
            ranges.network, ranges.prefix
        )));
    }
    if taken.addresses.contains(&ip) {
        return Err(refuse("provided IP is already allocated"));
    }
    Ok(ip)
}

fn free_address(ranges: &Ranges, taken: &Taken) -> Result<Ipv4Addr> {
    let is_free = |n: &u32| !taken.addresses.contains(&Ipv4Addr::from(*n));
    let (dynamic, all) = (ranges.dynamic(), ranges.usable());
    // A random start makes it unlikely that an address is given again soon after it was freed.
    let start = rand::random_range(dynamic.clone());
    let upper = (start..=*dynamic.end()).chain(*dynamic.start()..start);
    let found = upper.chain(*all.start()..*dynamic.start()).find(is_free);
    found
        .map(Ipv4Addr::from)
        .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))
}

fn refused(service: &Value, errors: &[FieldError]) -> ApiError {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    ApiError::invalid("", "Service", name, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        Ranges {
            network: Ipv4Addr::new(10, 96, 0, 0),
            prefix: 24,
            node_ports: 30000..=30009,
        }
    }

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})
    }

    fn ip(service: &Value) -> Ipv4Addr {
        service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap()
    }

    #[test]
    fn every_address_of_the_range_is_given_once_and_then_none() {
        let mut services: Vec<Value> = Vec::new();
        let mut seen = BTreeSet::new();
        for i in 0..254 {
            let mut new = service(&format!("s{i}"), json!({"type": "ClusterIP"}));
            assign(
                &ranges(),
                &Taken::by_others(&services, "d", &format!("s{i}")),
                &mut new,
                None,
            )
            .unwrap();
            assert!(seen.insert(ip(&new)), "{new}");
            assert!(
                i >= 238 || ip(&new) > Ipv4Addr::new(10, 96, 0, 16),
                "the lower band is given last"
            );
            services.push(new);
        }
        let mut one_more = service("more", json!({}));
        assert_eq!(
            assign(
                &ranges(),
                &Taken::by_others(&services, "d", "more"),
                &mut one_more,
                None
            )
            .unwrap_err()
            .code,
            500
        );
    }

    #[test]
    fn an_address_may_be_chosen_if_it_is_free_and_in_range() {
        let others = [service("dns", json!({"clusterIP": "10.96.0.10"}))];
        for (asked, ok) in [
            ("10.96.0.11", true),
            ("10.96.0.10", false),
            ("10.97.0.1", false),
            ("10.96.0.0", false),
            ("10.96.0.255", false),
            ("x", false),
            ("None", true),
        ] {
            let mut new = service("s", json!({"clusterIP": asked}));
            let result = assign(&ranges(), &Taken::by_others(&others, "d", "s"), &mut new, None);
            assert_eq!(result.is_ok(), ok, "{asked}");
            assert!(!ok || new["spec"]["clusterIPs"] == json!([asked]));
        }
    }

    #[test]
    fn an_update_keeps_address_and_ports() {
        let mut first = service(
            "s",
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP"}]}),
        );
        assign(&ranges(), &Taken::default(), &mut first, None).unwrap();
        let mut second = service("s", json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}]}));
        assign(
            &ranges(),
            &Taken::by_others([&first], "d", "s"),
            &mut second,
            Some(&first),
        )
        .unwrap();
        assert_eq!(second["spec"]["clusterIP"], first["spec"]["clusterIP"]);
        assert_eq!(
            second["spec"]["ports"][0]["nodePort"],
            first["spec"]["ports"][0]["nodePort"]
        );
    }

    #[test]
    fn node_ports_are_in_range_and_no_one_elses() {
        let others = [service(
            "o",
            json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}),
        )];
        for (asked, ok) in [(30000, true), (30001, false), (29999, false), (70000, false)] {
            let mut new = service(
                "s",
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": asked}]}),
            );
            assert_eq!(
                assign(&ranges(), &Taken::by_others(&others, "d", "s"), &mut new, None).is_ok(),
                ok,
                "{asked}"
            );
        }
        let ports: Vec<Value> = (0..11).map(|p| json!({"port": p + 1})).collect();
        let mut many = service("s", json!({"type": "NodePort", "ports": ports}));
        assert_eq!(
            assign(&ranges(), &Taken::default(), &mut many, None).unwrap_err().code,
            500
        );
    }
}
