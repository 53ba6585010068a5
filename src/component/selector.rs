//! Label selectors: `matchLabels`, `matchExpressions`, and plain maps.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels as they are stored.
pub type Labels = BTreeMap<String, String>;

/// Whether every pair of `selector` is among `labels`; an empty selector matches everything.
pub fn matches_map(selector: &Labels, labels: Option<&Labels>) -> bool {
    selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

/// Whether `selector` selects `labels`. No selector selects nothing, an empty one everything; an unknown operator nothing.
pub fn matches(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return false };
    if !selector.match_labels.as_ref().is_none_or(|m| matches_map(m, labels)) {
        return false;
    }
    selector
        .match_expressions
        .iter()
        .flatten()
        .all(|r| requirement(&r.key, &r.operator, r.values.as_deref().unwrap_or_default(), labels))
}

/// One requirement with the operators of label selectors and of node selectors (`Gt`, `Lt` too).
pub fn requirement(key: &str, operator: &str, values: &[String], labels: Option<&Labels>) -> bool {
    let value = labels.and_then(|l| l.get(key));
    match operator {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => {
            let (Some(have), Some(want)) = (number(value), number(values.first())) else {
                return false;
            };
            if operator == "Gt" { have > want } else { have < want }
        }
        _ => false,
    }
}

fn number(text: Option<&String>) -> Option<i64> {
    text?.parse().ok()
}

/// Whether the selector says nothing, and so selects everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_follow_their_documentation() {
        let labels: Labels = [("app".to_owned(), "web".to_owned()), ("n".to_owned(), "5".to_owned())].into();
        for (key, operator, values, expected) in [
            ("app", "In", vec!["web", "db"], true),
            ("app", "In", vec!["db"], false),
            ("absent", "In", vec!["db"], false),
            ("app", "NotIn", vec!["web"], false),
            ("absent", "NotIn", vec!["web"], true),
            ("app", "Exists", vec![], true),
            ("absent", "Exists", vec![], false),
            ("absent", "DoesNotExist", vec![], true),
            ("n", "Gt", vec!["4"], true),
            ("n", "Gt", vec!["5"], false),
            ("n", "Lt", vec!["6"], true),
            ("app", "Lt", vec!["6"], false),
            ("app", "Like", vec!["w"], false),
        ] {
            let values: Vec<String> = values.into_iter().map(str::to_owned).collect();
            assert_eq!(
                requirement(key, operator, &values, Some(&labels)),
                expected,
                "{key} {operator} {values:?}"
            );
        }
    }

    #[test]
    fn no_selector_selects_nothing_and_an_empty_one_everything() {
        assert!(!matches(None, None));
        assert!(matches(Some(&LabelSelector::default()), None));
    }
}
