//! Merging a configuration into an object, and taking fields out of one.

use super::parts::Parts;
use super::path::Element;
use super::set::FieldSet;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The live value with everything the configuration sets. A null stands where the configuration wants a field gone.
pub(super) fn merge(parts: Parts, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let chosen = || config.or(live).cloned();
    match parts {
        Parts::Leaf => chosen(),
        Parts::Message(_) | Parts::Map(_) => {
            let (a, b) = (parts.entries(live), parts.entries(config));
            let names: BTreeSet<&String> = a.into_iter().chain(b).flat_map(Map::keys).collect();
            if names.is_empty() {
                return chosen();
            }
            let merged = names.into_iter().filter_map(|name| {
                let inner = parts.below(&Element::field(name));
                let value = merge(inner, a.and_then(|m| m.get(name)), b.and_then(|m| m.get(name)));
                Some((name.clone(), value?))
            });
            Some(Value::Object(merged.collect()))
        }
        Parts::Set | Parts::Keyed(..) => {
            let none = Vec::new();
            let (a, b) = (parts.items(live).unwrap_or(&none), parts.items(config).unwrap_or(&none));
            if a.is_empty() && b.is_empty() {
                return chosen();
            }
            Some(Value::Array(merge_items(parts, a, b)))
        }
    }
}

/// Items that only the live list has keep their place before the next item of both; those of the configuration come in its order.
fn merge_items(parts: Parts, live: &[Value], config: &[Value]) -> Vec<Value> {
    let element = |item: &Value| parts.item(item).ok();
    let lives: Vec<(Option<Element>, &Value)> = live.iter().map(|i| (element(i), i)).collect();
    let mut counts: BTreeMap<&Element, (usize, &Value)> = BTreeMap::new();
    for (element, item) in &lives {
        if let Some(element) = element {
            counts.entry(element).or_insert((0, item)).0 += 1;
        }
    }
    let wanted: Vec<(Option<Element>, &Value)> = config.iter().map(|i| (element(i), i)).collect();
    let known: BTreeSet<&Element> = wanted.iter().filter_map(|(e, _)| e.as_ref()).collect();
    let merged = |(element, item): &(Option<Element>, &Value)| {
        let Some(element) = element else {
            return Some((*item).clone());
        };
        // Of live duplicates none is the one that is meant.
        let twin = counts.get(element).filter(|(n, _)| *n == 1).map(|(_, live)| *live);
        merge(parts.below(element), twin, Some(item))
    };
    // The first item of the configuration from a place on that the live list has too.
    let shared = |from: usize| {
        let known = |w: &(Option<Element>, &Value)| w.0.as_ref().is_some_and(|e| counts.contains_key(e));
        wanted[from..].iter().position(known).map(|i| from + i)
    };
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let (mut next, mut ahead) = (0, shared(0));
    for (element, item) in &lives {
        match element.as_ref().filter(|e| known.contains(e)) {
            None => out.push((*item).clone()),
            Some(element) => {
                if let Some(at) = ahead.filter(|at| wanted[*at].0.as_ref() == Some(element)) {
                    out.extend(wanted[next..=at].iter().filter_map(merged));
                    next = at + 1;
                    ahead = shared(next);
                }
            }
        }
    }
    out.extend(wanted[next..].iter().filter_map(merged));
    out
}

/// The value without the fields of a set; what is emptied by that goes too.
pub(super) fn without(parts: Parts, value: &Value, gone: &FieldSet) -> Option<Value> {
    if let Some(map) = parts.entries(Some(value)) {
        if map.is_empty() {
            return Some(value.clone());
        }
        let left: Map<String, Value> = map
            .iter()
            .filter_map(|(name, inner)| {
                let element = Element::field(name);
                Some((name.clone(), without_child(parts, &element, inner, gone)?))
            })
            .collect();
        return (!left.is_empty()).then_some(Value::Object(left));
    }
    if let Some(items) = parts.items(Some(value)) {
        if items.is_empty() {
            return Some(value.clone());
        }
        let left: Vec<Value> = items
            .iter()
            .filter_map(|item| match parts.item(item) {
                Ok(element) => without_child(parts, &element, item, gone),
                Err(_) => Some(item.clone()),
            })
            .collect();
        return (!left.is_empty()).then_some(Value::Array(left));
    }
    Some(value.clone())
}

fn without_child(parts: Parts, element: &Element, value: &Value, gone: &FieldSet) -> Option<Value> {
    if gone.is_member(element) {
        return None;
    }
    match gone.below(element) {
        Some(below) => without(parts.below(element), value, below),
        None => Some(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::fields_of;
    use super::*;
    use crate::schema::message;
    use serde_json::json;

    fn pod() -> Parts {
        Parts::Message(message("core.v1.Pod").unwrap())
    }

    fn names(list: &Value) -> String {
        list.as_array()
            .unwrap()
            .iter()
            .map(|i| i["name"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn lists_take_the_order_of_the_configuration_and_keep_what_others_put_in() {
        let list = |names: &str| -> Value {
            let items: Vec<_> = names.chars().map(|c| json!({"name": c.to_string()})).collect();
            json!({"spec": {"containers": items}})
        };
        for (live, config, expected) in [
            ("", "ab", "ab"),
            ("ab", "", "ab"),
            ("ab", "ab", "ab"),
            ("ab", "ba", "ba"),
            ("abc", "ca", "bca"),
            ("ab", "xa", "xab"),
            ("ab", "axb", "axb"),
            ("axb", "ab", "axb"),
            ("xa", "ay", "xay"),
            ("abc", "xcyb", "axcyb"),
        ] {
            let merged = merge(pod(), Some(&list(live)), Some(&list(config))).unwrap();
            assert_eq!(names(&merged["spec"]["containers"]), expected, "{live} + {config}");
        }
    }

    #[test]
    fn a_configuration_changes_only_what_it_sets() {
        let live = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x"]},
            "spec": {"nodeSelector": {"a": "1"}, "hostNetwork": true, "containers": [{"name": "c", "image": "old", "args": ["1"]}], "securityContext": {}}});
        let config = json!({"metadata": {"labels": {"b": "3", "c": "4"}, "finalizers": ["y"]},
            "spec": {"nodeSelector": {"b": "2"}, "hostNetwork": null, "containers": [{"name": "c", "image": "new"}], "securityContext": null}});
        assert_eq!(
            merge(pod(), Some(&live), Some(&config)).unwrap(),
            json!({"metadata": {"labels": {"a": "1", "b": "3", "c": "4"}, "finalizers": ["x", "y"]},
                "spec": {"nodeSelector": {"b": "2"}, "hostNetwork": null, "containers": [{"name": "c", "image": "new", "args": ["1"]}], "securityContext": null}})
        );
    }

    #[test]
    fn taken_fields_leave_no_empty_shells() {
        let object = json!({"metadata": {"name": "p", "labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "env": [{"name": "X"}]}], "overhead": {}}});
        let gone = fields_of(
            pod(),
            &json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "env": [{"name": "X"}]}]}}),
        );
        assert_eq!(
            without(pod(), &object, &gone),
            Some(json!({"metadata": {"name": "p"}, "spec": {"overhead": {}}}))
        );
    }
}
