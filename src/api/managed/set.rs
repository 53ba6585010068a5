//! A set of fields of an object, as a tree of steps.

use super::path::{Element, display};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet(BTreeMap<Element, Node>);

/// What a set has at a step and below it; never neither of both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    member: bool,
    below: FieldSet,
}

impl FieldSet {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a field in.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let node = self.0.entry(first.clone()).or_default();
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert(rest);
        }
    }

    /// Whether a field is in it.
    #[cfg(test)]
    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.is_member(last),
            [first, rest @ ..] => self.below(first).is_some_and(|below| below.has(rest)),
        }
    }

    /// Whether the step itself is in it.
    pub fn is_member(&self, element: &Element) -> bool {
        self.0.get(element).is_some_and(|n| n.member)
    }

    /// What is in it below a step.
    pub fn below(&self, element: &Element) -> Option<&Self> {
        self.0.get(element).map(|n| &n.below).filter(|below| !below.is_empty())
    }

    /// Every field of either.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        for (element, theirs) in &other.0 {
            match self.0.entry(element.clone()) {
                Entry::Vacant(slot) => {
                    slot.insert(theirs.clone());
                }
                Entry::Occupied(mut slot) => {
                    let own = slot.get_mut();
                    own.member |= theirs.member;
                    own.below = std::mem::take(&mut own.below).union(&theirs.below);
                }
            }
        }
        self
    }

    /// The fields that are not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.filter(|element, node| match other.0.get(element) {
            None => Some(node.clone()),
            Some(theirs) => Node::some(node.member && !theirs.member, node.below.minus(&theirs.below)),
        })
    }

    /// The fields that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.filter(|element, node| {
            let theirs = other.0.get(element)?;
            Node::some(node.member && theirs.member, node.below.intersection(&theirs.below))
        })
    }

    /// The fields that are neither in the other nor below one of it.
    #[must_use]
    pub fn outside(&self, other: &Self) -> Self {
        self.filter(|element, node| match other.0.get(element) {
            None => Some(node.clone()),
            Some(theirs) if theirs.member => None,
            Some(theirs) => Node::some(node.member, node.below.outside(&theirs.below)),
        })
    }

    /// The fields that are in the other or below one of it.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        self.filter(|element, node| {
            let theirs = other.0.get(element)?;
            if theirs.member {
                return Some(node.clone());
            }
            Node::some(false, node.below.within(&theirs.below))
        })
    }

    /// The set with the first step of every field renamed.
    #[must_use]
    pub fn renamed(self, name: impl Fn(&str) -> Option<&'static str>) -> Self {
        let rename = |(element, node)| match &element {
            Element::Field(old) => (name(old).map_or(element.clone(), Element::field), node),
            _ => (element, node),
        };
        Self(self.0.into_iter().map(rename).collect())
    }

    /// The set with those steps as members too, of which `also` says so; it is asked with the steps before it.
    #[must_use]
    pub fn with_members<C: Copy>(&self, at: C, also: &impl Fn(C, &Element) -> (bool, C)) -> Self {
        self.filter(|element, node| {
            let (member, below) = also(at, element);
            let member = node.member || (member && !node.below.is_empty());
            Node::some(member, node.below.with_members(below, also))
        })
    }

    fn filter(&self, keep: impl Fn(&Element, &Node) -> Option<Node>) -> Self {
        let kept = self.0.iter().filter_map(|(e, n)| Some((e.clone(), keep(e, n)?)));
        Self(kept.collect())
    }

    /// The fields as messages name them, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.visit(&mut Vec::new(), &mut |path| out.push(display(path)));
        out
    }

    fn visit(&self, path: &mut Vec<Element>, f: &mut impl FnMut(&[Element])) {
        for (element, node) in &self.0 {
            path.push(element.clone());
            if node.member {
                f(path);
            }
            node.below.visit(path, f);
            path.pop();
        }
    }

    /// The `FieldsV1` object.
    pub fn encode(&self) -> Value {
        let mut out = Map::new();
        for (element, node) in &self.0 {
            let mut inner = node.below.encode();
            if node.member && !node.below.is_empty() {
                inner["."] = json!({});
            }
            out.insert(element.encode(), inner);
        }
        Value::Object(out)
    }

    /// Reads a `FieldsV1` object; steps that mean nothing are left out.
    ///
    /// # Errors
    /// What is wrong, when it is no such object.
    pub fn decode(fields: &Value) -> Result<Self, &'static str> {
        let Some(map) = fields.as_object() else {
            return Err("fieldsV1 must consist of objects");
        };
        let mut out = BTreeMap::new();
        for (key, inner) in map.iter().filter(|(key, _)| *key != ".") {
            let inner_map = inner.as_object().ok_or("fieldsV1 must consist of objects")?;
            let below = Self::decode(inner)?;
            let member = inner_map.is_empty() || inner_map.contains_key(".");
            if let (Some(element), Some(node)) = (Element::decode(key), Node::some(member, below)) {
                out.insert(element, node);
            }
        }
        Ok(Self(out))
    }
}

impl Node {
    fn some(member: bool, below: FieldSet) -> Option<Self> {
        (member || !below.is_empty()).then_some(Self { member, below })
    }
}

impl<'a> FromIterator<&'a [&'a str]> for FieldSet {
    /// A set of fields given by the names on their way.
    fn from_iter<I: IntoIterator<Item = &'a [&'a str]>>(paths: I) -> Self {
        let mut set = Self::default();
        for path in paths {
            let elements: Vec<_> = path.iter().map(|name| Element::field(name)).collect();
            set.insert(&elements);
        }
        set
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn any_set() -> impl Strategy<Value = FieldSet> {
        let element = prop_oneof![
            "[a-c]".prop_map(|n| Element::field(&n)),
            (0..2_i64).prop_map(|n| Element::of_item("k", |_| None, &json!({"k": n})).unwrap()),
            "[x-y]".prop_map(|v| Element::of_value(&json!(v)).unwrap()),
        ];
        prop::collection::vec(prop::collection::vec(element, 1..4), 0..8).prop_map(|paths| {
            let mut set = FieldSet::default();
            paths.iter().for_each(|p| set.insert(p));
            set
        })
    }

    #[test]
    fn the_wire_form_is_that_of_kubernetes() {
        let wire = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:containers": {r#"k:{"name":"web"}"#: {".": {}, "f:image": {}}}, "f:replicas": {}},
        });
        let set = FieldSet::decode(&wire).unwrap();
        assert_eq!(set.encode(), wire);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                r#".spec.containers[name="web"]"#,
                r#".spec.containers[name="web"].image"#,
                ".spec.replicas",
            ]
        );
        assert!(FieldSet::decode(&json!({"f:a": 1})).is_err());
        assert!(FieldSet::decode(&json!([])).is_err());
    }

    #[test]
    fn what_lies_below_is_told_from_what_lies_beside() {
        let set: FieldSet = [&["a"][..], &["a", "b"], &["a", "b", "c"], &["d"]]
            .into_iter()
            .collect();
        let cut: FieldSet = [&["a", "b"][..]].into_iter().collect();
        assert_eq!(set.minus(&cut).paths(), [".a", ".a.b.c", ".d"]);
        assert_eq!(set.outside(&cut).paths(), [".a", ".d"]);
        assert_eq!(set.within(&cut).paths(), [".a.b", ".a.b.c"]);
        assert_eq!(
            set.renamed(|n| (n == "d").then_some("e")).paths(),
            [".a", ".a.b", ".a.b.c", ".e"]
        );
    }

    proptest! {
        #[test]
        fn sets_obey_their_laws(a in any_set(), b in any_set()) {
            prop_assert_eq!(a.clone().union(&b), b.clone().union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(a.minus(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.minus(&b).intersection(&b).is_empty());
            prop_assert_eq!(a.outside(&b).minus(&a), FieldSet::default());
            prop_assert_eq!(a.outside(&FieldSet::default()), a.clone());
            prop_assert_eq!(FieldSet::decode(&a.encode()).unwrap(), a);
        }
    }
}
