//! Which families of addresses a service gets: `ipFamilyPolicy` and `ipFamilies`. The service range has IPv4 only, so what
//! needs another family is refused, but for headless services without selector: their addresses are whatever somebody else
//! writes into their endpoints.

use crate::error::{FieldError, Result};
use serde_json::{Value, json};
use std::net::IpAddr;

/// The families of the service range.
const CONFIGURED: [&str; 1] = ["IPv4"];

/// Fills in both fields.
///
/// # Errors
/// 422 where the cluster cannot have what is asked for.
pub(super) fn assign(service: &mut Value, old: Option<&Value>) -> Result<()> {
    if old.is_some_and(|o| keeps_preference(service, o)) {
        return Ok(());
    }
    let free = service["spec"]["clusterIP"] == "None" && is_empty(&service["spec"]["selector"]);
    let before = old.map(|o| &o["spec"]["ipFamilyPolicy"]).filter(|p| p.is_string());
    if !service["spec"]["ipFamilyPolicy"].is_string() {
        let default = if free { "RequireDualStack" } else { "SingleStack" };
        service["spec"]["ipFamilyPolicy"] = before.cloned().unwrap_or_else(|| default.into());
    }
    let policy = text(&service["spec"]["ipFamilyPolicy"]).to_owned();
    let mut errors = single_stack(service, old, &policy);
    let mut families: Vec<String> = strings(&service["spec"]["ipFamilies"]);
    for (i, ip) in strings(&service["spec"]["clusterIPs"]).iter().enumerate() {
        let Some(family) = family_of(ip) else { break };
        match families.get(i) {
            Some(_) => {}
            None if CONFIGURED.contains(&family) => families.push(family.to_owned()),
            None => errors.push(FieldError::invalid(
                format!("spec.clusterIPs[{i}]"),
                &service["spec"]["clusterIPs"],
                format!("{family} is not configured on this cluster"),
            )),
        }
    }
    if errors.is_empty() && !free {
        if policy == "RequireDualStack" {
            let why = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid_text("spec.ipFamilyPolicy", &policy, why));
        }
        for (i, family) in families.iter().enumerate() {
            if !CONFIGURED.contains(&family.as_str()) {
                let at = format!("spec.ipFamilies[{i}]");
                errors.push(FieldError::invalid_text(at, family, "not configured on this cluster"));
            }
        }
    }
    if !errors.is_empty() {
        return Err(super::refused(service, &errors));
    }
    if families.is_empty() {
        families.push(CONFIGURED[0].to_owned());
    }
    if free && families.len() == 1 && policy != "SingleStack" {
        let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
    service["spec"]["ipFamilies"] = json!(families);
    Ok(())
}

/// A service that takes what there is stays as it is until it asks for something else.
fn keeps_preference(new: &Value, old: &Value) -> bool {
    let prefers = |s: &Value| s["spec"]["ipFamilyPolicy"] == "PreferDualStack";
    prefers(new)
        && prefers(old)
        && ["clusterIPs", "ipFamilies"]
            .iter()
            .all(|field| !is_empty(&new["spec"][*field]) && new["spec"][*field] == old["spec"][*field])
}

/// One family only: what was there before goes if only the policy was changed; what is asked for in pairs is refused.
fn single_stack(service: &mut Value, old: Option<&Value>, policy: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        let count = strings(&service["spec"][field]).len();
        let had = old.map_or(0, |o| strings(&o["spec"][field]).len());
        let at = "spec.ipFamilyPolicy";
        if policy != "SingleStack" {
            // What a client leaves out is not taken away.
            if count > 0 && count < had {
                let what = if field == "clusterIPs" {
                    "cluster IP"
                } else {
                    "IP family"
                };
                let why = format!("must be 'SingleStack' to release the secondary {what}");
                errors.push(FieldError::invalid_text(at, policy, why));
            }
        } else if count > 1 && old.is_some_and(|o| o["spec"][field] == service["spec"][field]) {
            if let Some(list) = service["spec"][field].as_array_mut() {
                list.truncate(1);
            }
        } else if count > 1 {
            let why = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            errors.push(FieldError::invalid_text(at, policy, why));
        }
    }
    errors
}

fn family_of(ip: &str) -> Option<&'static str> {
    match ip.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        other => other.is_null(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(spec: Value, old: Option<Value>) -> std::result::Result<(Value, Value), String> {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        let old = old.map(|spec| json!({"spec": spec}));
        assign(&mut service, old.as_ref()).map_err(|e| e.message)?;
        let spec = &service["spec"];
        Ok((spec["ipFamilyPolicy"].clone(), spec["ipFamilies"].clone()))
    }

    #[test]
    fn services_get_the_family_of_the_cluster() {
        for (spec, policy, families) in [
            (json!({}), "SingleStack", json!(["IPv4"])),
            (json!({"clusterIPs": ["10.96.0.5"]}), "SingleStack", json!(["IPv4"])),
            (json!({"ipFamilies": ["IPv4"]}), "SingleStack", json!(["IPv4"])),
            (
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                "PreferDualStack",
                json!(["IPv4"]),
            ),
            (
                json!({"clusterIP": "None", "selector": {"a": "b"}}),
                "SingleStack",
                json!(["IPv4"]),
            ),
            (
                json!({"clusterIP": "None"}),
                "RequireDualStack",
                json!(["IPv4", "IPv6"]),
            ),
            (
                json!({"clusterIP": "None", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]}),
                "SingleStack",
                json!(["IPv6"]),
            ),
        ] {
            assert_eq!(assigned(spec.clone(), None), Ok((policy.into(), families)), "{spec}");
        }
    }

    #[test]
    fn what_the_cluster_does_not_have_is_refused() {
        for (spec, expected) in [
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({"ipFamilies": ["IPv4", "IPv6"]}),
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
            (
                json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}),
                "spec.ipFamilies[1]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({"clusterIPs": ["fd00::1"]}),
                "spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster",
            ),
        ] {
            let message = assigned(spec.clone(), None).unwrap_err();
            assert_eq!(message, format!("Service \"s\" is invalid: {expected}"), "{spec}");
        }
    }

    #[test]
    fn a_change_keeps_the_policy_that_is_not_named() {
        let old = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.5"]});
        assert_eq!(
            assigned(json!({}), Some(old.clone())),
            Ok(("PreferDualStack".into(), json!(["IPv4"])))
        );
        assert_eq!(
            assigned(
                json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}),
                Some(old)
            ),
            Ok(("SingleStack".into(), json!(["IPv4"])))
        );
        let two = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "None"});
        let one = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "None"});
        assert_eq!(
            assigned(one, Some(two.clone())),
            Ok(("SingleStack".into(), json!(["IPv4"])))
        );
        let less = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4"], "clusterIP": "None"});
        assert!(
            assigned(less, Some(two))
                .unwrap_err()
                .ends_with("must be 'SingleStack' to release the secondary IP family")
        );
    }
}
