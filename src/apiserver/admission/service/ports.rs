//! Ports that nodes open for a service: one for each of its ports, and one on which load balancers ask for its health.

use crate::error::{ApiError, FieldError, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Numbers that a service has.
pub(super) fn of(service: &Value) -> impl Iterator<Item = u16> + '_ {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|p| number(&p["nodePort"]))
        .chain(health_check(service))
}

/// Gives a service the numbers that it lacks.
///
/// # Errors
/// 422 where a number is out of range or somebody else's; 500 where none is left, or the one for health checks is taken.
pub(super) fn assign(
    range: &RangeInclusive<u16>,
    taken: &BTreeSet<u16>,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<()> {
    let mut own = taken.clone();
    if has_node_ports(service) {
        node_ports(range, &mut own, service, old)?;
    }
    if !needs_health_check(service) {
        return Ok(());
    }
    let had = old.filter(|o| needs_health_check(o)).and_then(health_check);
    let port = match health_check(service).or(had) {
        Some(n) if Some(n) == had => n,
        Some(n) => {
            let refuse =
                |why: &str| ApiError::internal(format!("failed to allocate requested HealthCheck NodePort {n}: {why}"));
            if !range.contains(&n) {
                return Err(refuse(&out_of_range(range)));
            }
            if own.contains(&n) {
                return Err(refuse(ALLOCATED));
            }
            n
        }
        None => free(range, &own)
            .ok_or_else(|| ApiError::internal("failed to allocate a HealthCheck NodePort: range is full"))?,
    };
    service["spec"]["healthCheckNodePort"] = port.into();
    Ok(())
}

const ALLOCATED: &str = "provided port is already allocated";

fn out_of_range(range: &RangeInclusive<u16>) -> String {
    let (low, high) = (range.start(), range.end());
    format!("provided port is not in the valid range. The range of valid ports is {low}-{high}")
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}

fn health_check(service: &Value) -> Option<u16> {
    number(&service["spec"]["healthCheckNodePort"])
}

fn has_node_ports(service: &Value) -> bool {
    matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"))
}

/// Whether load balancers have to ask nodes which of them have an endpoint.
fn needs_health_check(service: &Value) -> bool {
    service["spec"]["type"] == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// `taken` grows by what the service gets.
fn node_ports(
    range: &RangeInclusive<u16>,
    taken: &mut BTreeSet<u16>,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<()> {
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let old_ports = old.filter(|o| has_node_ports(o)).map(|o| &o["spec"]["ports"]);
    let old_ports = old_ports
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    for (i, port) in ports.iter().enumerate() {
        let Some(n) = port["nodePort"].as_u64().filter(|n| *n > 0) else {
            continue;
        };
        let known = old_ports.iter().any(|o| o["nodePort"] == port["nodePort"]);
        let why = match u16::try_from(n).ok().filter(|n| known || range.contains(n)) {
            None => out_of_range(range),
            Some(n) if taken.contains(&n) => ALLOCATED.to_owned(),
            Some(_) => continue,
        };
        let error = FieldError::invalid(format!("spec.ports[{i}].nodePort"), &n.into(), why);
        return Err(super::refused(service, &[error]));
    }
    let asked: Vec<Option<u16>> = with_old_numbers(&ports, old_ports);
    taken.extend(asked.iter().flatten());
    let unwanted =
        service["spec"]["type"] == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] == false;
    // One number serves all protocols of a port: the first that is asked for.
    let mut by_port: BTreeMap<Option<u64>, u16> = BTreeMap::new();
    for (port, n) in ports.iter().zip(&asked) {
        if let Some(n) = n {
            by_port.entry(port["port"].as_u64()).or_insert(*n);
        }
    }
    let mut given = Vec::with_capacity(ports.len());
    for (port, n) in ports.iter().zip(asked) {
        let key = port["port"].as_u64();
        given.push(match n.or_else(|| by_port.get(&key).copied()) {
            None if unwanted => None,
            Some(_) if unwanted => n,
            Some(n) => Some(n),
            None => {
                let n = free(range, taken)
                    .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?;
                taken.insert(n);
                by_port.insert(key, n);
                Some(n)
            }
        });
    }
    let slots = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for (port, n) in slots.into_iter().flatten().zip(given) {
        if let Some(n) = n {
            port["nodePort"] = n.into();
        }
    }
    Ok(())
}

/// The numbers that ports ask for; a port without one keeps that of the old port of its name, unless another port has it now.
fn with_old_numbers(ports: &[Value], old: &[Value]) -> Vec<Option<u16>> {
    let name = |p: &Value| p["name"].as_str().unwrap_or_default().to_owned();
    let asked: Vec<Option<u16>> = ports.iter().map(|p| number(&p["nodePort"])).collect();
    let mut left: BTreeMap<String, u16> = old
        .iter()
        .filter_map(|p| Some((name(p), number(&p["nodePort"])?)))
        .filter(|(_, n)| !asked.contains(&Some(*n)))
        .collect();
    let keep = |(p, n): (&Value, Option<u16>)| n.or_else(|| left.remove(&name(p)));
    ports.iter().zip(asked).map(keep).collect()
}

/// A free number. The lower part of the range is left to those who choose numbers themselves (KEP-3668): min(max(16,
/// size / 32), 128) of them, where the range has more than 16.
fn free(range: &RangeInclusive<u16>, taken: &BTreeSet<u16>) -> Option<u16> {
    let (low, high) = (*range.start(), *range.end());
    let size = u32::from(high) + 1 - u32::from(low);
    let band = if size > 16 { (size / 32).clamp(16, 128) } else { 0 };
    let first = u16::try_from(u32::from(low) + band)
        .ok()
        .filter(|n| *n <= high)
        .unwrap_or(low);
    let start = rand::random_range(first..=high);
    let mut all = (start..=high).chain(first..start).chain(low..first);
    all.find(|n| !taken.contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RANGE: RangeInclusive<u16> = 30000..=30099;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec})
    }

    fn assigned(spec: Value, taken: &[u16], old: Option<&Value>) -> std::result::Result<Value, String> {
        let mut service = service(spec);
        let taken = taken.iter().copied().collect();
        assign(&RANGE, &taken, &mut service, old).map_err(|e| e.message)?;
        Ok(service)
    }

    fn numbers(service: &Value) -> Vec<u64> {
        let ports = service["spec"]["ports"].as_array().unwrap();
        ports.iter().filter_map(|p| p["nodePort"].as_u64()).collect()
    }

    fn dns(tcp: Value, udp: Value) -> Value {
        json!({"type": "NodePort", "ports": [
            {"name": "tcp", "port": 53, "protocol": "TCP", "nodePort": tcp},
            {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": udp},
            {"name": "web", "port": 80, "protocol": "TCP"}]})
    }

    #[test]
    fn two_protocols_of_one_port_have_one_number() {
        for (tcp, udp, expected) in [
            (json!(null), json!(null), None),
            (json!(30007), json!(null), Some((30007, 30007))),
            (json!(null), json!(30007), Some((30007, 30007))),
            (json!(30008), json!(30007), Some((30008, 30007))),
            (json!(30008), json!(30008), Some((30008, 30008))),
        ] {
            let given = numbers(&assigned(dns(tcp.clone(), udp.clone()), &[], None).unwrap());
            let expected = expected.unwrap_or((given[0], given[0]));
            assert_eq!((given[0], given[1]), expected, "{tcp} {udp}");
            assert_ne!(given[2], given[0]);
        }
    }

    #[test]
    fn a_number_belongs_to_one_service() {
        assert_eq!(
            assigned(dns(json!(null), json!(30007)), &[30007], None).unwrap_err(),
            "Service \"s\" is invalid: spec.ports[1].nodePort: Invalid value: 30007: provided port is already allocated"
        );
    }

    #[test]
    fn ports_keep_their_numbers_by_name() {
        let old = service(dns(json!(30001), json!(30002)));
        let renumbered = json!({"type": "NodePort", "ports": [
            {"name": "udp", "port": 5353, "protocol": "UDP"}, {"name": "other", "port": 1, "nodePort": 30001}, {"name": "tcp", "port": 2}]});
        let given = numbers(&assigned(renumbered, &[], Some(&old)).unwrap());
        assert_eq!(given[..2], [30002, 30001]);
        assert!(![30001, 30002].contains(&given[2]));
    }

    #[test]
    fn chosen_numbers_lie_in_the_lower_part_of_the_range() {
        for _ in 0..50 {
            assert!(free(&RANGE, &BTreeSet::new()).unwrap() >= 30016);
        }
        let upper: BTreeSet<u16> = (30016..=30099).collect();
        assert!(free(&RANGE, &upper).unwrap() < 30016);
        assert_eq!(free(&RANGE, &RANGE.collect()), None);
    }

    #[test]
    fn load_balancers_with_local_traffic_have_a_port_for_health_checks() {
        let local = |port: Value| json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port, "ports": [{"port": 80}]});
        let first = assigned(local(json!(null)), &[], None).unwrap();
        let health = health_check(&first).unwrap();
        assert!(RANGE.contains(&health) && numbers(&first)[0] != u64::from(health));
        let again = assigned(local(json!(null)), &[], Some(&first)).unwrap();
        assert_eq!(health_check(&again), Some(health));
        assert_eq!(
            health_check(&assigned(local(json!(30005)), &[], None).unwrap()),
            Some(30005)
        );
        assert_eq!(
            assigned(local(json!(30005)), &[30005], None).unwrap_err(),
            "Internal error occurred: failed to allocate requested HealthCheck NodePort 30005: provided port is already allocated"
        );
        for spec in [
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "ports": [{"port": 80}]}),
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
        ] {
            assert_eq!(health_check(&assigned(spec, &[], None).unwrap()), None);
        }
        assert_eq!(of(&first).count(), 2);
    }

    #[test]
    fn a_load_balancer_may_do_without_node_ports() {
        let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [
            {"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30003}]});
        assert_eq!(numbers(&assigned(spec, &[], None).unwrap()), [30003]);
    }
}
