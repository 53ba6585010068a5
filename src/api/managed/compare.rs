//! Which fields a document sets, and which differ between two.

use super::parts::Parts;
use super::path::Element;
use super::set::FieldSet;
use crate::fieldcheck::says_nothing;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The fields that a configuration sets: leaves, entries of maps and items of lists.
pub(super) fn fields_of(parts: Parts, config: &Value) -> FieldSet {
    let mut walk = Collect {
        path: Vec::new(),
        set: FieldSet::default(),
    };
    walk.value(parts, config);
    walk.set
}

struct Collect {
    path: Vec<Element>,
    set: FieldSet,
}

impl Collect {
    fn value(&mut self, parts: Parts, value: &Value) {
        if let Some(map) = parts.entries(Some(value)) {
            for (name, inner) in map {
                let element = Element::field(name);
                // A field of a message is owned through what is in it; an entry is also owned for being there.
                let hollow = inner.is_null() || inner.as_object().is_some_and(|m| m.is_empty());
                self.child(parts, element.clone(), inner, hollow || parts.field(&element).is_none());
            }
        } else if parts.items(Some(value)).is_some() {
            for (element, same) in by_element(parts, Some(value)) {
                match same.as_slice() {
                    [item] => self.child(parts, element, item, true),
                    // Of duplicates nobody can say which is whose.
                    _ => self.child(Parts::Leaf, element, &Value::Null, true),
                }
            }
        } else if parts == Parts::Leaf {
            self.set.insert(&self.path);
        }
    }

    fn child(&mut self, parts: Parts, element: Element, value: &Value, member: bool) {
        let inner = parts.below(&element);
        self.path.push(element);
        self.value(inner, value);
        if member {
            self.set.insert(&self.path);
        }
        self.path.pop();
    }
}

/// How two documents differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Fields that only the new one has.
    pub(super) added: FieldSet,
    /// Fields that only the old one has.
    pub(super) removed: FieldSet,
    /// Leaves whose value differs.
    pub(super) modified: FieldSet,
}

impl Comparison {
    /// Compares. A field that is null or empty is as good as none, unless `wishes` says that in the new document it is the wish
    /// that there be none where there is one.
    pub(super) fn of(parts: Parts, old: &Value, new: &Value, wishes: bool) -> Self {
        let mut walk = Compare {
            path: Vec::new(),
            out: Self::default(),
            wishes,
        };
        let there = |v: &&Value| !v.is_null();
        walk.value(parts, Some(old).filter(there), Some(new).filter(there), false);
        walk.out
    }

    /// Fields that are not in the old document as they are in the new one.
    pub(super) fn written(&self) -> FieldSet {
        self.added.clone().union(&self.modified)
    }

    /// The same without fields that `keep` drops.
    pub(super) fn filtered(self, keep: impl Fn(&FieldSet) -> FieldSet) -> Self {
        Self {
            added: keep(&self.added),
            removed: keep(&self.removed),
            modified: keep(&self.modified),
        }
    }
}

struct Compare {
    path: Vec<Element>,
    out: Comparison,
    wishes: bool,
}

impl Compare {
    /// `counts` says that what is there is owned also for being there.
    fn value(&mut self, parts: Parts, old: Option<&Value>, new: Option<&Value>, counts: bool) {
        if old.is_none() && new.is_none() {
            return;
        }
        if !self.descend(parts, old, new) {
            return self.leaf(old, new);
        }
        if old.is_none() && counts {
            self.out.added.insert(&self.path);
        } else if new.is_none() {
            self.out.removed.insert(&self.path);
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        let set = match (old, new) {
            (None, _) => &mut self.out.added,
            (_, None) => &mut self.out.removed,
            (old, new) if old != new => &mut self.out.modified,
            _ => return,
        };
        set.insert(&self.path);
    }

    /// Compares part by part, unless these are the parts of neither, or there is nothing in either.
    fn descend(&mut self, parts: Parts, old: Option<&Value>, new: Option<&Value>) -> bool {
        let fits = |v: Option<&Value>| {
            v.is_none_or(|v| v.is_null() || parts.entries(Some(v)).is_some() || parts.items(Some(v)).is_some())
        };
        if parts == Parts::Leaf || !fits(old) || !fits(new) {
            return false;
        }
        match parts {
            Parts::Message(_) | Parts::Map(_) => {
                let (a, b) = (parts.entries(old), parts.entries(new));
                let names: BTreeSet<&String> = a.into_iter().chain(b).flat_map(|m| m.keys()).collect();
                for name in &names {
                    let (x, y) = (a.and_then(|m| m.get(*name)), b.and_then(|m| m.get(*name)));
                    self.child(parts, Element::field(name), x, y);
                }
                !names.is_empty()
            }
            _ => {
                let (a, b) = (by_element(parts, old), by_element(parts, new));
                let elements: BTreeSet<&Element> = a.keys().chain(b.keys()).collect();
                for element in &elements {
                    let (x, y) = (a.get(*element), b.get(*element));
                    self.items(
                        parts,
                        element,
                        x.map_or(&[], Vec::as_slice),
                        y.map_or(&[], Vec::as_slice),
                    );
                }
                !elements.is_empty()
            }
        }
    }

    fn child(&mut self, parts: Parts, element: Element, old: Option<&Value>, new: Option<&Value>) {
        let (inner, field) = (parts.below(&element), parts.field(&element));
        // Fields of a message are there by nature; that a part of them is set makes nobody the owner of the whole.
        let counts = !(field.is_some() && matches!(inner, Parts::Message(_)));
        let hollow = |v: &&Value| field.is_some_and(|f| says_nothing(f, v));
        let old = old.filter(|v| !hollow(v));
        // Nothing is wished away where nothing is.
        let new = new.filter(|v| (self.wishes && old.is_some()) || !hollow(v));
        self.path.push(element);
        self.value(inner, old, new, counts);
        self.path.pop();
    }

    /// Items that cannot be told apart are compared as one.
    fn items(&mut self, parts: Parts, element: &Element, old: &[&Value], new: &[&Value]) {
        match (old, new) {
            ([_, _, ..], [_, _, ..]) => self.mark(element, |out| &mut out.modified, old != new),
            ([_, _, ..], _) => {
                if let [item] = new {
                    self.child(parts, element.clone(), None, Some(item));
                }
                self.mark(element, |out| &mut out.removed, true);
            }
            (_, [_, _, ..]) => {
                if let [item] = old {
                    self.child(parts, element.clone(), Some(item), None);
                }
                self.mark(element, |out| &mut out.added, true);
            }
            _ => self.child(parts, element.clone(), old.first().copied(), new.first().copied()),
        }
    }

    fn mark(&mut self, element: &Element, set: impl Fn(&mut Comparison) -> &mut FieldSet, when: bool) {
        if when {
            self.path.push(element.clone());
            set(&mut self.out).insert(&self.path);
            self.path.pop();
        }
    }
}

/// The items of a list by what tells them apart; those that nothing tells apart are left out.
fn by_element(parts: Parts, list: Option<&Value>) -> BTreeMap<Element, Vec<&Value>> {
    let mut found: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for item in parts.items(list).into_iter().flatten() {
        if let Ok(element) = parts.item(item) {
            found.entry(element).or_default().push(item);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::message;
    use serde_json::json;

    fn deployment() -> Parts {
        Parts::Message(message("apps.v1.Deployment").unwrap())
    }

    fn config() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}, "annotations": {}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                "template": {"metadata": {"creationTimestamp": null}, "spec": {
                    "containers": [{"name": "web", "args": ["a"], "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}],
                    "volumes": []}}}})
    }

    #[test]
    fn a_configuration_owns_what_it_sets() {
        assert_eq!(
            fields_of(deployment(), &config()).encode(),
            json!({
                "f:apiVersion": {}, "f:kind": {},
                "f:metadata": {"f:name": {}, "f:labels": {"f:app": {}}, "f:annotations": {}},
                "f:spec": {"f:replicas": {}, "f:selector": {}, "f:strategy": {},
                    "f:template": {"f:metadata": {"f:creationTimestamp": {}}, "f:spec": {"f:containers": {r#"k:{"name":"web"}"#: {
                        ".": {}, "f:name": {}, "f:args": {},
                        "f:ports": {r#"k:{"containerPort":80,"protocol":"TCP"}"#: {".": {}, "f:containerPort": {}}},
                        "f:resources": {"f:limits": {"f:cpu": {}}}}}}}},
            })
        );
    }

    #[test]
    fn a_writer_owns_also_the_maps_and_lists_it_begins() {
        let new = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a"}], "hostNetwork": null}}}});
        let comparison = Comparison::of(deployment(), &json!({}), &new, false);
        assert_eq!(
            comparison.added.encode(),
            json!({
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {".": {}, r#"k:{"name":"a"}"#: {".": {}, "f:name": {}}}}}},
            })
        );
        assert!(comparison.removed.is_empty() && comparison.modified.is_empty());
    }

    #[test]
    fn differences_are_found_where_they_are() {
        let old = config();
        let mut new = config();
        new["spec"]["replicas"] = 3.into();
        new["spec"]["selector"]["matchLabels"]["app"] = "other".into();
        new["metadata"]["labels"] = Value::Null;
        new["spec"]["template"]["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": 80, "protocol": "TCP", "name": "http"}]);
        let comparison = Comparison::of(deployment(), &old, &new, false);
        assert_eq!(comparison.modified.paths(), [".spec.replicas", ".spec.selector"]);
        assert_eq!(comparison.removed.paths(), [".metadata.labels", ".metadata.labels.app"]);
        let port = r#".spec.template.spec.containers[name="web"].ports[containerPort=80,protocol="TCP"]"#;
        assert_eq!(
            comparison.added.paths(),
            [format!("{port}.name"), format!("{port}.protocol")]
        );
        assert_eq!(
            Comparison::of(deployment(), &old, &old, true).written(),
            FieldSet::default()
        );
    }

    #[test]
    fn duplicates_are_compared_as_one() {
        let parts = Parts::Message(message("core.v1.Pod").unwrap());
        let pod = |env: Value| json!({"spec": {"containers": [{"name": "a", "env": env}]}});
        let twice = |v: &str| pod(json!([{"name": "X", "value": "1"}, {"name": "X", "value": v}]));
        let x = r#".spec.containers[name="a"].env[name="X"]"#;
        let differ = |old: &Value, new: &Value| {
            let c = Comparison::of(parts, old, new, false);
            (c.added.paths(), c.removed.paths(), c.modified.paths())
        };
        let (none, one) = (Vec::<String>::new(), vec![x.to_owned()]);
        let whole = vec![x.to_owned(), format!("{x}.name"), format!("{x}.value")];
        let single = pod(json!([{"name": "X", "value": "1"}]));
        assert_eq!(
            differ(&twice("2"), &twice("2")),
            (none.clone(), none.clone(), none.clone())
        );
        assert_eq!(
            differ(&twice("2"), &twice("3")),
            (none.clone(), none.clone(), one.clone())
        );
        assert_eq!(differ(&twice("2"), &single), (whole.clone(), one.clone(), none.clone()));
        assert_eq!(differ(&single, &twice("2")), (one, whole, none));
    }
}
