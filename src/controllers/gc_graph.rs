//! Who owns whom: the graph of all objects by their owner references, and what a change in it asks to be looked at. Pure.
//!
//! An owner that is named but was never seen is a *virtual* node until the API server has been asked whether it exists.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// What identifies an object to people and to the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A reference to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: String,
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) blocks: bool,
}

impl Owner {
    pub(crate) fn of(reference: &OwnerReference) -> Self {
        Self {
            uid: reference.uid.clone(),
            group: group(&reference.api_version).to_owned(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            blocks: reference.block_owner_deletion == Some(true),
        }
    }
}

/// The group of an `apiVersion`.
pub(crate) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: Identity,
    pub(crate) owners: Vec<Owner>,
    pub(crate) dependents: HashSet<String>,
    pub(crate) deleting: bool,
    /// Deleting, and waiting for its dependents.
    pub(crate) foreground: bool,
    /// Deleting, and leaving its dependents behind.
    pub(crate) orphaning: bool,
    pub(crate) is_virtual: bool,
}

/// What should be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Whether this object (by UID) must go.
    Check(String),
    /// This object leaves its dependents behind.
    Orphan(String),
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Task::Check(uid) => write!(f, "check {uid}"),
            Task::Orphan(uid) => write!(f, "orphan {uid}"),
        }
    }
}

/// All objects by UID.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<String, Node>,
}

impl Graph {
    /// The object of that UID.
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// How many objects are known.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// An object was seen, or seen changed.
    pub(crate) fn upsert(&mut self, group: &str, kind: &str, meta: &ObjectMeta) -> Vec<Task> {
        let Some(uid) = &meta.uid else { return Vec::new() };
        let owners: Vec<Owner> = meta.owner_references.iter().flatten().map(Owner::of).collect();
        let finalizer = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
        let deleting = meta.deletion_timestamp.is_some();
        let (foreground, orphaning) = (deleting && finalizer(FOREGROUND), deleting && finalizer(ORPHAN));
        let id = Identity {
            group: group.to_owned(),
            kind: kind.to_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let mut tasks = Vec::new();
        let before = self.nodes.remove(uid);
        let known = before.as_ref().filter(|n| !n.is_virtual);
        let old_owners = known.map(|n| n.owners.clone()).unwrap_or_default();
        let newly = |now: bool, was: fn(&Node) -> bool| now && !known.is_some_and(was);
        if newly(orphaning, |n| n.orphaning) {
            tasks.push(Task::Orphan(uid.clone()));
        }
        let starts_foreground = newly(foreground, |n| n.foreground);
        let dependents = before.as_ref().map(|n| n.dependents.clone()).unwrap_or_default();
        if starts_foreground {
            tasks.extend(dependents.iter().map(|d| Task::Check(d.clone())));
        }
        let owners_changed = old_owners != owners;
        if starts_foreground || foreground || (owners_changed && !owners.is_empty()) {
            tasks.push(Task::Check(uid.clone()));
        }
        let node = Node {
            id,
            owners: owners.clone(),
            dependents,
            deleting,
            foreground,
            orphaning,
            is_virtual: false,
        };
        let namespace = node.id.namespace.clone();
        self.nodes.insert(uid.clone(), node);
        if owners_changed {
            for gone in old_owners.iter().filter(|o| !owners.iter().any(|n| n.uid == o.uid)) {
                tasks.extend(self.unlink(&gone.uid, uid));
            }
            for owner in &owners {
                tasks.extend(self.link(owner, uid, &namespace));
                // A reference that no longer blocks may have been what a deletion waited for.
                if !owner.blocks {
                    tasks.extend(self.waiting(&owner.uid));
                }
            }
        }
        tasks
    }

    /// An object is gone.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<Task> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut tasks: Vec<Task> = node.dependents.iter().map(|d| Task::Check(d.clone())).collect();
        for owner in &node.owners {
            tasks.extend(self.unlink(&owner.uid, uid));
        }
        tasks
    }

    fn link(&mut self, owner: &Owner, dependent: &str, namespace: &str) -> Vec<Task> {
        let mut tasks = Vec::new();
        let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| {
            tasks.push(Task::Check(owner.uid.clone()));
            Node {
                id: Identity {
                    group: owner.group.clone(),
                    kind: owner.kind.clone(),
                    namespace: namespace.to_owned(),
                    name: owner.name.clone(),
                },
                owners: Vec::new(),
                dependents: HashSet::new(),
                deleting: false,
                foreground: false,
                orphaning: false,
                is_virtual: true,
            }
        });
        node.dependents.insert(dependent.to_owned());
        tasks
    }

    fn unlink(&mut self, owner: &str, dependent: &str) -> Vec<Task> {
        let Some(node) = self.nodes.get_mut(owner) else {
            return Vec::new();
        };
        node.dependents.remove(dependent);
        if node.is_virtual && node.dependents.is_empty() {
            self.nodes.remove(owner);
            return Vec::new();
        }
        self.waiting(owner)
    }

    /// An owner in foreground deletion looks again whenever something it waits for changes.
    fn waiting(&self, owner: &str) -> Vec<Task> {
        let waits = self.nodes.get(owner).is_some_and(|n| n.foreground);
        if waits {
            vec![Task::Check(owner.to_owned())]
        } else {
            Vec::new()
        }
    }

    /// The dependents that an owner in foreground deletion waits for.
    pub(crate) fn blocking(&self, uid: &str) -> Vec<&str> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let blocks = |d: &&String| {
            self.nodes
                .get(*d)
                .is_some_and(|n| n.owners.iter().any(|o| o.uid == uid && o.blocks))
        };
        node.dependents.iter().filter(blocks).map(String::as_str).collect()
    }

    /// The owners of an object in foreground deletion that wait for it while it waits for them, directly or through others:
    /// none of them could ever go.
    pub(crate) fn circular_owners(&self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.get(uid).filter(|n| n.foreground) else {
            return Vec::new();
        };
        let mut awaited = HashSet::from([uid]);
        let mut open = vec![uid];
        while let Some(at) = open.pop() {
            for dependent in self.blocking(at) {
                if self.nodes.get(dependent).is_some_and(|n| n.foreground) && awaited.insert(dependent) {
                    open.push(dependent);
                }
            }
        }
        let blocked = node
            .owners
            .iter()
            .filter(|o| o.blocks && awaited.contains(o.uid.as_str()));
        blocked.map(|o| o.uid.clone()).collect()
    }
}

/// How an object's owners stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is there.
    Solid,
    /// It does not exist.
    Absent,
    /// It is there and waits for its dependents to go.
    Waiting,
}

/// What to do about an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Keep,
    /// It has an owner left: forget those (by UID) that are gone or going.
    Disown(Vec<String>),
    /// No owner is left: delete it.
    Delete,
    /// Its owners wait for it, and it has dependents itself: delete it in the foreground.
    DeleteForeground,
}

/// Decides by the standing of each owner.
pub(crate) fn decide(owners: &[(String, Standing)], has_dependents: bool) -> Action {
    if owners.is_empty() {
        return Action::Keep;
    }
    let gone = || {
        owners
            .iter()
            .filter(|(_, s)| *s != Standing::Solid)
            .map(|(uid, _)| uid.clone())
    };
    if owners.iter().any(|(_, s)| *s == Standing::Solid) {
        let gone: Vec<String> = gone().collect();
        return if gone.is_empty() {
            Action::Keep
        } else {
            Action::Disown(gone)
        };
    }
    let awaited = owners.iter().any(|(_, s)| *s == Standing::Waiting);
    if awaited && has_dependents {
        Action::DeleteForeground
    } else {
        Action::Delete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn meta(uid: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> ObjectMeta {
        let owner = |(uid, blocks): &(&str, bool)| OwnerReference {
            uid: (*uid).into(),
            kind: "Owner".into(),
            api_version: "g/v1".into(),
            block_owner_deletion: Some(*blocks),
            ..OwnerReference::default()
        };
        ObjectMeta {
            uid: Some(uid.into()),
            name: Some(uid.into()),
            owner_references: Some(owners.iter().map(owner).collect()),
            finalizers: finalizer.map(|f| vec![f.to_owned()]),
            deletion_timestamp: finalizer.map(|_| Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        }
    }

    fn check(uid: &str) -> Task {
        Task::Check(uid.into())
    }

    #[test]
    fn an_owner_never_seen_is_asked_for_and_its_absence_reaches_its_dependents() {
        let mut graph = Graph::default();
        assert_eq!(
            graph.upsert("", "Pod", &meta("p", &[("o", true)], None)),
            [check("p"), check("o")]
        );
        assert!(graph.get("o").unwrap().is_virtual);
        assert_eq!(graph.remove("o"), [check("p")]);
        graph.remove("p");
        assert_eq!(graph.len(), 0);
    }

    #[test]
    fn a_virtual_owner_without_dependents_is_forgotten_and_a_seen_one_becomes_real() {
        let mut graph = Graph::default();
        graph.upsert("", "Pod", &meta("p", &[("o", true)], None));
        graph.upsert("g", "Owner", &meta("o", &[], None));
        assert!(!graph.get("o").unwrap().is_virtual);
        assert!(graph.get("o").unwrap().dependents.contains("p"));
        graph.upsert("", "Pod", &meta("q", &[("x", true)], None));
        graph.upsert("", "Pod", &meta("q", &[], None));
        assert!(graph.get("x").is_none());
    }

    #[test]
    fn foreground_deletion_asks_for_dependents_and_ends_with_the_last_blocking_one() {
        let mut graph = Graph::default();
        graph.upsert("g", "Owner", &meta("o", &[], None));
        graph.upsert("", "Pod", &meta("p", &[("o", true)], None));
        graph.upsert("", "Pod", &meta("q", &[("o", false)], None));
        let tasks = graph.upsert("g", "Owner", &meta("o", &[], Some(FOREGROUND)));
        assert!(tasks.contains(&check("p")) && tasks.contains(&check("q")) && tasks.contains(&check("o")));
        assert_eq!(graph.blocking("o"), ["p"]);
        assert_eq!(graph.remove("p"), [check("o")]);
        assert!(graph.blocking("o").is_empty());
    }

    #[test]
    fn a_circle_of_objects_that_wait_for_each_other_is_found_once_it_is_closed() {
        let mut graph = Graph::default();
        let circle = [("a", "c"), ("b", "a"), ("c", "b")];
        for (uid, owner) in circle {
            graph.upsert("", "Pod", &meta(uid, &[(owner, true)], None));
        }
        graph.upsert("", "Pod", &meta("d", &[("a", true)], Some(FOREGROUND)));
        for (uid, owner) in circle {
            assert!(graph.circular_owners(uid).is_empty());
            graph.upsert("", "Pod", &meta(uid, &[(owner, true)], Some(FOREGROUND)));
        }
        for (uid, owner) in circle {
            assert_eq!(graph.circular_owners(uid), [owner]);
        }
        // One that hangs on the circle is not part of it.
        assert!(graph.circular_owners("d").is_empty());
        let tasks = graph.upsert("", "Pod", &meta("c", &[("b", false)], Some(FOREGROUND)));
        assert!(tasks.contains(&check("b")));
        assert!(graph.blocking("b").is_empty());
        assert!(circle.iter().all(|(uid, _)| graph.circular_owners(uid).is_empty()));
    }

    #[test]
    fn an_object_that_owns_itself_is_a_circle() {
        let mut graph = Graph::default();
        graph.upsert("", "Pod", &meta("a", &[("a", true)], Some(FOREGROUND)));
        assert_eq!(graph.circular_owners("a"), ["a"]);
    }

    #[test]
    fn orphaning_is_asked_for_once() {
        let mut graph = Graph::default();
        graph.upsert("g", "Owner", &meta("o", &[], None));
        assert_eq!(
            graph.upsert("g", "Owner", &meta("o", &[], Some(ORPHAN))),
            [Task::Orphan("o".into())]
        );
        assert_eq!(graph.upsert("g", "Owner", &meta("o", &[], Some(ORPHAN))), []);
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        let owner = |uid: &str, standing| (uid.to_owned(), standing);
        use Standing::{Absent, Solid, Waiting};
        for (owners, dependents, expected) in [
            (vec![], false, Action::Keep),
            (vec![owner("a", Solid)], false, Action::Keep),
            (
                vec![owner("a", Solid), owner("b", Absent)],
                false,
                Action::Disown(vec!["b".into()]),
            ),
            (vec![owner("a", Absent)], true, Action::Delete),
            (vec![owner("a", Waiting)], false, Action::Delete),
            (
                vec![owner("a", Waiting), owner("b", Absent)],
                true,
                Action::DeleteForeground,
            ),
        ] {
            assert_eq!(decide(&owners, dependents), expected, "{owners:?}");
        }
    }
}
