//! Three-way decisions over named things: who changed what, who contradicts whom, who wins. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{Conflict, Prefer};
use crate::error::Error;
use crate::tree::{Entry, Kind};

/// Decides, and remembers what had to be decided.
pub(super) struct Decider<'a> {
    /// The images' names, in their order.
    pub(super) names: &'a [String],
    prefer: Option<Prefer>,
    /// Where the next decisions belong to.
    pub(super) platform: String,
    conflicts: Vec<Conflict>,
}

impl<'a> Decider<'a> {
    pub(super) fn new(names: &'a [String], prefer: Option<Prefer>) -> Decider<'a> {
        Decider {
            names,
            prefer,
            platform: String::new(),
            conflicts: Vec::new(),
        }
    }

    pub(super) fn prefers_last(&self) -> bool {
        self.prefer == Some(Prefer::Last)
    }

    /// Everything that was decided; an error if nobody said how.
    pub(super) fn finish(mut self) -> Result<Vec<Conflict>, Error> {
        self.conflicts.sort();
        self.conflicts.dedup();
        match self.prefer.is_some() || self.conflicts.is_empty() {
            true => Ok(self.conflicts),
            false => Err(Error::Conflicts(self.conflicts)),
        }
    }

    /// What `sides` made of `base`: a side that leaves a thing as it was in `base` has no say in it.
    pub(super) fn merge<V: Clone>(
        &mut self,
        what: &str,
        base: &BTreeMap<String, V>,
        sides: &[&BTreeMap<String, V>],
        same: impl Fn(&V, &V) -> bool,
        shown: impl Fn(&V) -> String,
    ) -> BTreeMap<String, V> {
        let names: BTreeSet<&String> = sides.iter().flat_map(|side| side.keys()).chain(base.keys()).collect();
        let equal = |a: Option<&V>, b: Option<&V>| match (a, b) {
            (Some(a), Some(b)) => same(a, b),
            (None, None) => true,
            _ => false,
        };
        let mut merged = BTreeMap::new();
        for name in names {
            let old = base.get(name);
            let says = sides.iter().map(|side| side.get(name)).enumerate();
            let changed: Vec<(usize, Option<&V>)> = says.filter(|(_, value)| !equal(*value, old)).collect();
            let value = match changed.as_slice() {
                [] => old,
                [(_, first), rest @ ..] if rest.iter().all(|(_, other)| equal(*first, *other)) => *first,
                [(_, first), .., (_, last)] => {
                    let text = |value: &Option<&V>| value.map_or_else(|| "removed it".to_string(), &shown);
                    let choices = changed
                        .iter()
                        .map(|(side, value)| (self.names[*side].clone(), text(value)));
                    self.conflicts.push(Conflict {
                        what: what.to_string(),
                        name: name.clone(),
                        platform: self.platform.clone(),
                        choices: choices.collect(),
                    });
                    match self.prefer {
                        Some(Prefer::Last) => *last,
                        _ => *first,
                    }
                }
                [(_, only)] => *only,
            };
            merged.extend(value.map(|value| (name.clone(), value.clone())));
        }
        merged
    }
}

/// A file, folder or link in a few words.
pub(super) fn shown_entry(entry: &Entry) -> String {
    let mode = entry.mode;
    match &entry.kind {
        Kind::Dir => format!("a folder with mode {mode:04o}"),
        Kind::File { digest, size, .. } => format!(
            "{} {}… with mode {mode:04o}",
            oci::counted(*size, "byte"),
            digest.short()
        ),
        Kind::Link { target } => format!("a link to {target}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Map = BTreeMap<String, u8>;

    fn run(prefer: Option<Prefer>, base: &Map, sides: &[Map]) -> (Map, Vec<Conflict>) {
        let names: Vec<String> = (0..sides.len()).map(|number| format!("image{number}")).collect();
        let mut decider = Decider::new(&names, prefer);
        let sides: Vec<&Map> = sides.iter().collect();
        let merged = decider.merge("thing", base, &sides, |a, b| a == b, u8::to_string);
        (merged, decider.conflicts)
    }

    fn map(text: &str) -> Map {
        let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        pairs
            .map(|(name, value)| (name.to_string(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn whoever_changed_something_decides_and_two_who_disagree_are_named() {
        for (base, sides, first, last, conflicts) in [
            ("", &["a=1", "b=2"][..], "a=1 b=2", "a=1 b=2", ""),
            ("a=1", &["a=1", "a=2"], "a=2", "a=2", ""),
            ("a=1 b=1", &["b=1", "a=1 b=1"], "b=1", "b=1", ""),
            ("", &["a=1", "a=1"], "a=1", "a=1", ""),
            ("", &["a=1", "a=2"], "a=1", "a=2", "a: image0 has 1; image1 has 2"),
            (
                "a=1",
                &["a=2", "a=1", "a=3"],
                "a=2",
                "a=3",
                "a: image0 has 2; image2 has 3",
            ),
            ("a=1", &["", "a=2"], "", "a=2", "a: image0 has removed it; image1 has 2"),
            (
                "",
                &["a=1", "", "a=2", "a=1"],
                "a=1",
                "a=1",
                "a: image0 has 1; image2 has 2; image3 has 1",
            ),
        ] {
            let sides: Vec<Map> = sides.iter().map(|side| map(side)).collect();
            for (prefer, expected) in [(None, first), (Some(Prefer::First), first), (Some(Prefer::Last), last)] {
                let (merged, found) = run(prefer, &map(base), &sides);
                assert_eq!(merged, map(expected), "{base} {sides:?} {prefer:?}");
                let found: Vec<String> = found
                    .iter()
                    .map(|c| c.to_string().replace("thing ", "").replace(" ()", ""))
                    .collect();
                assert_eq!(found.join("|"), conflicts, "{base} {sides:?}");
            }
        }
    }

    fn any_map() -> impl Strategy<Value = Map> {
        proptest::collection::btree_map("[a-d]", 0u8..3, 0..4)
    }

    proptest! {
        #[test]
        fn the_order_of_images_matters_only_where_they_disagree(base in any_map(), a in any_map(), b in any_map()) {
            let (one, conflicts) = run(None, &base, &[a.clone(), b.clone()]);
            let (other, _) = run(None, &base, &[b, a]);
            for name in one.keys().chain(other.keys()) {
                let decided = conflicts.iter().any(|conflict| conflict.name == *name);
                prop_assert!(decided || one.get(name) == other.get(name), "{name}");
            }
        }

        #[test]
        fn merging_an_image_with_itself_or_with_what_it_was_made_from_gives_it_back(base in any_map(), a in any_map()) {
            for sides in [[a.clone(), a.clone()], [a.clone(), base.clone()], [base.clone(), a.clone()]] {
                let (merged, conflicts) = run(None, &base, &sides);
                prop_assert_eq!(&merged, &a);
                prop_assert!(conflicts.is_empty());
            }
        }
    }
}
