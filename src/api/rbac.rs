//! Aggregated ClusterRoles: which rules a role with an `aggregationRule` has.

use serde_json::Value;

use crate::metadata;
use crate::selector::{LabelSelector, SelectorError};

/// The rules that a ClusterRole holds as it is written.
pub fn rules(role: &Value) -> &[Value] {
    role["rules"].as_array().map_or(&[], Vec::as_slice)
}

/// The rules that an aggregated ClusterRole shall hold: those of every role in `all` that one of its selectors selects,
/// in the order of the selectors and then of the names, each rule once. Its own rules do not count. `None` for a role
/// without an `aggregationRule`.
///
/// # Errors
/// When a selector cannot be read.
pub fn aggregated_rules(role: &Value, all: &[Value]) -> Result<Option<Vec<Value>>, SelectorError> {
    if role["aggregationRule"].is_null() {
        return Ok(None);
    }
    let mut parts: Vec<&Value> = all
        .iter()
        .filter(|part| metadata::name(part) != metadata::name(role))
        .collect();
    parts.sort_by_key(|part| metadata::name(part));
    let mut found: Vec<Value> = Vec::new();
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    for selector in selectors.into_iter().flatten() {
        let selector = LabelSelector::from_object(selector)?;
        for part in parts.iter().filter(|part| selector.matches_object(part)) {
            for rule in rules(part) {
                if !found.contains(rule) {
                    found.push(rule.clone());
                }
            }
        }
    }
    Ok(Some(found))
}

/// Writes the rules of every aggregated ClusterRole into it, through all levels of aggregation, and returns the indices
/// of the roles that changed. A role whose selectors cannot be read stays as it is.
pub fn aggregate(roles: &mut [Value]) -> Vec<usize> {
    let mut changed = vec![false; roles.len()];
    // Each round settles one more level. Roles that select each other in a circle could exchange rules for ever.
    for _ in 0..roles.len() {
        let mut settled = true;
        for i in 0..roles.len() {
            if let Ok(Some(wanted)) = aggregated_rules(&roles[i], roles)
                && rules(&roles[i]) != wanted
            {
                roles[i]["rules"] = wanted.into();
                changed[i] = true;
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    (0..roles.len()).filter(|i| changed[*i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(resource: &str) -> Value {
        json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]})
    }

    fn role(name: &str, label: &str, selected: Option<&[&str]>, resources: &[&str]) -> Value {
        let mut role = json!({"metadata": {"name": name, "labels": {label: "true"}},
            "rules": resources.iter().map(|r| rule(r)).collect::<Vec<_>>()});
        if let Some(labels) = selected {
            let selectors: Vec<_> = labels.iter().map(|l| json!({"matchLabels": {*l: "true"}})).collect();
            role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        }
        role
    }

    fn resources(role: &Value) -> Vec<&str> {
        rules(role)
            .iter()
            .map(|r| r["resources"][0].as_str().unwrap())
            .collect()
    }

    #[test]
    fn an_aggregated_role_has_the_rules_of_those_it_selects_and_none_of_its_own() {
        let all = [
            role("whole", "x", Some(&["two", "one"]), &["secrets"]),
            role("c", "one", None, &["pods", "nodes"]),
            role("b", "two", None, &["events"]),
            role("a", "one", None, &["pods"]),
            role("other", "three", None, &["services"]),
        ];
        let whole = json!({"rules": aggregated_rules(&all[0], &all).unwrap().unwrap()});
        assert_eq!(resources(&whole), ["events", "pods", "nodes"]);
        assert_eq!(aggregated_rules(&all[1], &all).unwrap(), None);
    }

    #[test]
    fn a_role_does_not_select_itself_and_an_empty_selector_selects_every_other() {
        let mut all = [
            role("whole", "one", Some(&["one"]), &["secrets"]),
            role("a", "b", None, &["pods"]),
        ];
        assert_eq!(aggregated_rules(&all[0], &all).unwrap().unwrap(), Vec::<Value>::new());
        all[0]["aggregationRule"] = json!({"clusterRoleSelectors": [{}]});
        assert_eq!(aggregated_rules(&all[0], &all).unwrap().unwrap(), [rule("pods")]);
    }

    #[test]
    fn an_unreadable_selector_is_an_error() {
        let mut whole = role("whole", "x", Some(&[]), &[]);
        whole["aggregationRule"] =
            json!({"clusterRoleSelectors": [{"matchExpressions": [{"key": "a", "operator": "Like"}]}]});
        assert!(aggregated_rules(&whole, &[]).is_err());
    }

    #[test]
    fn aggregation_reaches_through_every_level_and_tells_what_changed() {
        let mut all = [
            role("admin", "x", Some(&["to-admin"]), &["secrets"]),
            role("edit", "to-admin", Some(&["to-edit"]), &[]),
            role("view", "to-edit", Some(&["to-view"]), &[]),
            role("leaf", "to-view", None, &["widgets"]),
        ];
        assert_eq!(aggregate(&mut all), [0, 1, 2]);
        assert_eq!(resources(&all[0]), ["widgets"]);
        assert_eq!(aggregate(&mut all), Vec::<usize>::new());
    }

    #[test]
    fn roles_that_select_each_other_come_to_an_end() {
        let mut all = [
            role("a", "one", Some(&["two"]), &[]),
            role("b", "two", Some(&["one"]), &["pods"]),
        ];
        aggregate(&mut all);
        assert_eq!(resources(&all[0]), resources(&all[1]));
    }
}
