//! Priority: `priorityClassName` becomes a number that the scheduler compares.

use super::{Attributes, Lookup};
use crate::error::{ApiError, Result};
use serde_json::Value;

/// Names that only the system may use as a prefix, and the values behind them.
const SYSTEM: &[(&str, i64)] = &[
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

/// The highest value users may give a class.
const HIGHEST_FOR_USERS: i64 = 1_000_000_000;

pub(super) fn pod(lookup: &dyn Lookup, a: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    let named = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if named.is_empty() {
        lookup
            .list("scheduling.k8s.io", "priorityclasses", "")
            .into_iter()
            .filter(|c| c["globalDefault"] == true)
            .min_by_key(|c| c["value"].as_i64())
    } else {
        let refuse = || {
            ApiError::forbidden(
                "",
                "pods",
                a.name,
                &format!("no PriorityClass with name {named} was found"),
            )
        };
        Some(
            lookup
                .get("scheduling.k8s.io", "priorityclasses", "", &named)
                .or_else(|| built_in(&named))
                .ok_or_else(refuse)?,
        )
    };
    let value = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let policy = class
        .as_ref()
        .and_then(|c| c["preemptionPolicy"].as_str())
        .unwrap_or("PreemptLowerPriority")
        .to_owned();
    if let Some(asked) = pod["spec"]["priority"].as_i64().filter(|asked| *asked != value) {
        let why = format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(ApiError::forbidden("", "pods", a.name, &why));
    }
    if let (true, Some(name)) = (
        named.is_empty(),
        class.as_ref().and_then(|c| c["metadata"]["name"].as_str()),
    ) {
        pod["spec"]["priorityClassName"] = name.into();
    }
    pod["spec"]["priority"] = value.into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = policy.into();
    }
    Ok(())
}

/// The system's classes hold before their objects are there: static pods are mirrored at the first moment.
fn built_in(name: &str) -> Option<Value> {
    SYSTEM
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, value)| serde_json::json!({"value": value}))
}

pub(super) fn class(lookup: &dyn Lookup, class: &Value) -> Result<()> {
    let name = class["metadata"]["name"].as_str().unwrap_or_default();
    let value = class["value"].as_i64().unwrap_or(0);
    let refuse = |why: &str| Err(ApiError::forbidden("scheduling.k8s.io", "priorityclasses", name, why));
    let system = SYSTEM.contains(&(name, value));
    if name.starts_with("system-") && !system {
        return refuse("priority class names with 'system-' prefix are reserved for system use only");
    }
    if value > HIGHEST_FOR_USERS && !system {
        return refuse(&format!(
            "maximum allowed value of a user defined priority is {HIGHEST_FOR_USERS}"
        ));
    }
    if class["globalDefault"] == true {
        let other = lookup
            .list("scheduling.k8s.io", "priorityclasses", "")
            .into_iter()
            .find(|c| c["globalDefault"] == true);
        if let Some(other) = other {
            return refuse(&format!(
                "PriorityClass {} is already marked as default",
                other["metadata"]["name"]
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixed, create};
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_name_becomes_its_value() {
        let lookup = Fixed::default().with(
            "priorityclasses//high",
            json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"}),
        );
        for (spec, expected) in [
            (json!({}), Some((0, "PreemptLowerPriority"))),
            (json!({"priorityClassName": "high"}), Some((7, "Never"))),
            (json!({"priorityClassName": "high", "priority": 7}), Some((7, "Never"))),
            (json!({"priorityClassName": "high", "priority": 8}), None),
            (
                json!({"priorityClassName": "system-node-critical"}),
                Some((2_000_001_000, "PreemptLowerPriority")),
            ),
            (json!({"priorityClassName": "unknown"}), None),
        ] {
            let mut object = json!({"spec": spec});
            let result = pod(&lookup, &create("pods", "d"), &mut object);
            let found = result.ok().map(|()| {
                (
                    object["spec"]["priority"].as_i64().unwrap(),
                    object["spec"]["preemptionPolicy"].as_str().unwrap(),
                )
            });
            assert_eq!(found, expected, "{object}");
        }
    }

    #[test]
    fn the_default_class_is_used_and_named() {
        let lookup = Fixed::default().with(
            "priorityclasses//d",
            json!({"metadata": {"name": "d"}, "value": 3, "globalDefault": true}),
        );
        let mut object = json!({"spec": {}});
        pod(&lookup, &create("pods", "d"), &mut object).unwrap();
        assert_eq!(
            (
                object["spec"]["priority"].as_i64(),
                object["spec"]["priorityClassName"].as_str()
            ),
            (Some(3), Some("d"))
        );
        assert!(
            class(
                &lookup,
                &json!({"metadata": {"name": "e"}, "value": 1, "globalDefault": true})
            )
            .is_err()
        );
        assert!(class(&lookup, &json!({"metadata": {"name": "system-mine"}, "value": 1})).is_err());
        assert!(
            class(
                &lookup,
                &json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000})
            )
            .is_ok()
        );
        assert!(class(&lookup, &json!({"metadata": {"name": "big"}, "value": 2_000_000_000})).is_err());
    }
}
