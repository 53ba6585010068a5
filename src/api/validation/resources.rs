//! Requests and limits of containers, and of a pod as a whole.

use serde_json::Value;

use super::rules::{Errors, entries, has, items, named, quantity};
use super::{FieldError, names};
use crate::quantity::Quantity;

/// Requests and limits of a container.
pub(super) fn of_container(out: &mut Errors, r: &Value, path: &str) {
    amounts(out, r, path, resource_name);
}

/// Requests and limits; `check` judges the names of resources.
fn amounts(out: &mut Errors, r: &Value, path: &str, check: fn(&mut Errors, &str, &str)) {
    let mut limits = std::collections::BTreeMap::new();
    for (name, v) in entries(r, "limits") {
        let at = format!("{path}.limits[{name}]");
        check(out, &at, name);
        if let Some(q) = quantity(out, at, v) {
            limits.insert(name, q);
        }
    }
    for (name, v) in entries(r, "requests") {
        let at = format!("{path}.requests[{name}]");
        check(out, &at, name);
        let Some(q) = quantity(out, at, v) else { continue };
        let own = !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        let shown = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let field = format!("{path}.requests");
        match limits.get(name) {
            Some(limit) if q > *limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                out.push(FieldError::invalid_text(field, &shown, why));
            }
            Some(limit) if own && q != *limit => {
                let why = format!("must be equal to {name} limit of {limit}");
                out.push(FieldError::invalid_text(field, &shown, why));
            }
            None if own => {
                let why = "Limit must be set for non overcommitable resources";
                out.push(FieldError::required(format!("{path}.limits"), why));
            }
            _ => {}
        }
    }
}

fn resource_name(out: &mut Errors, path: &str, name: &str) {
    let before = out.len();
    named(out, path, name, names::qualified_name);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if out.len() == before && !name.contains('/') && !standard {
        out.push(FieldError::invalid_text(
            path,
            name,
            "must be a standard resource for containers",
        ));
    }
}

/// Requests and limits of a pod as a whole, and whether its containers stay within them (KEP-2837).
pub(super) fn of_pod(out: &mut Errors, spec: &Value, path: &str) {
    if !has(spec, "resources") {
        return;
    }
    let (r, at) = (&spec["resources"], format!("{path}.resources"));
    amounts(out, r, &at, pod_resource_name);
    if !items(r, "claims").is_empty() {
        let why = "claims may not be set for Resources at pod-level";
        out.push(FieldError::forbidden(format!("{at}.claims"), why));
    }
    for (name, v) in entries(r, "requests") {
        let asked = items(spec, "containers").iter();
        let asked = asked.filter_map(|c| read(&c["resources"]["requests"][name]));
        if let (Some(of_pod), Some(sum)) = (read(v), asked.reduce(|a, b| a.plus(&b)))
            && sum > of_pod
        {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            let field = format!("{at}.requests[{name}]");
            out.push(FieldError::invalid_text(field, &of_pod.to_string(), why));
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in items(spec, list).iter().enumerate() {
            for (name, v) in entries(&c["resources"], "limits") {
                if let (Some(own), Some(of_pod)) = (read(v), read(&r["limits"][name]))
                    && own > of_pod
                {
                    let field = format!("{path}.{list}[{i}].resources.limits[{name}]");
                    let why = format!("must be less than or equal to pod limits of {of_pod}");
                    out.push(FieldError::invalid_text(field, &own.to_string(), why));
                }
            }
        }
    }
}

fn read(v: &Value) -> Option<Quantity> {
    v.as_str()?.parse().ok()
}

fn pod_resource_name(out: &mut Errors, path: &str, name: &str) {
    if !matches!(name, "cpu" | "memory") && !name.starts_with("hugepages-") {
        out.push(FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_stay_within_what_their_pod_has() {
        let two = json!([{"resources": {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}}}, {"resources": {"requests": {"cpu": "500m"}}}]);
        for (resources, expected) in [
            (
                json!({"requests": {"cpu": "2"}, "limits": {"cpu": "3", "memory": "2Gi"}}),
                &[][..],
            ),
            (json!(null), &[]),
            (
                json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}),
                &[
                    "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 1500m",
                    "spec.containers[0].resources.limits[memory]: Invalid value: \"2Gi\": must be less than or equal to pod limits of 1Gi",
                ],
            ),
            (
                json!({"requests": {"cpu": "3"}, "limits": {"cpu": "2"}}),
                &["spec.resources.requests: Invalid value: \"3\": must be less than or equal to cpu limit of 2"],
            ),
            (
                json!({"limits": {"ephemeral-storage": "1Gi"}}),
                &[
                    "spec.resources.limits[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\"",
                ],
            ),
        ] {
            let mut out = Errors::new();
            of_pod(&mut out, &json!({"containers": two, "resources": resources}), "spec");
            let texts: Vec<_> = out.iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected, "{resources}");
        }
    }
}
