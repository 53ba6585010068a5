//! The table of kinds: each built-in kind is declared once, and everything generic reads it from here. A kind that
//! nothing in the cluster would act on is left out, so that clients get a clear 404 instead of an object without effect.

use std::collections::HashMap;
use std::sync::OnceLock;

mod table;
mod unserved;

pub use unserved::{Unserved, unserved};

/// A subresource of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subresource {
    /// Last part of the path, e.g. `status`.
    pub name: &'static str,
    /// Group of the object that travels.
    pub group: &'static str,
    /// Version of the object that travels.
    pub version: &'static str,
    /// Kind of the object that travels.
    pub kind: &'static str,
    /// API verbs.
    pub verbs: &'static [&'static str],
}

/// One kind that the server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the legacy one.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind in camel case.
    pub kind: &'static str,
    /// Plural, lower case: the word in paths.
    pub plural: &'static str,
    /// Singular, lower case.
    pub singular: &'static str,
    /// Short names for `kubectl`.
    pub short_names: &'static [&'static str],
    /// Categories such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// API verbs.
    pub verbs: &'static [&'static str],
    /// Name of its message in the schema, e.g. `apps.v1.Deployment`.
    pub message: &'static str,
    /// Group whose storage holds the objects (`events.k8s.io` events live with the core ones).
    pub storage_group: &'static str,
    /// Version in which objects are stored.
    pub storage_version: &'static str,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        join_api_version(self.group, self.version)
    }

    /// `pods` or `deployments.apps`, as errors name it.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `Pod` or `Deployment.apps`, as errors name it.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() {
            self.kind.to_owned()
        } else {
            format!("{}.{}", self.kind, self.group)
        }
    }

    /// Kind of a list of these.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether objects are kept; reviews and bindings are only answered.
    pub fn stored(&self) -> bool {
        self.verbs.contains(&"get")
    }

    /// The kind in whose form objects are stored.
    pub fn storage(&self) -> Option<&'static Kind> {
        find(self.storage_group, self.storage_version, self.plural)
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// What clients are told who use this kind although another one replaces it.
    pub fn deprecation(&self) -> Option<&'static str> {
        (self.message == "core.v1.Endpoints")
            .then_some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
    }

    /// Whether the kind has a `status` subresource.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

/// What the `scale` subresource of workloads speaks of: no kind with a path of its own, but one with a table.
pub const SCALE: Kind = Kind {
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
    plural: "scales",
    singular: "scale",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    verbs: &[],
    message: "autoscaling.v1.Scale",
    storage_group: "autoscaling",
    storage_version: "v1",
};

/// Joins group and version into an `apiVersion`.
pub fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Splits an `apiVersion` into group and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// All kinds, grouped by API group in the order of discovery.
pub fn kinds() -> &'static [Kind] {
    table::KINDS
}

/// API groups with their versions (the preferred one first), in the order of discovery; the legacy group is not among them.
pub fn groups() -> &'static [(&'static str, &'static [&'static str])] {
    table::GROUPS
}

type Index = HashMap<(&'static str, &'static str, &'static str), &'static Kind>;

/// Finds a kind by its plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    static INDEX: OnceLock<Index> = OnceLock::new();
    let index = INDEX.get_or_init(|| kinds().iter().map(|k| ((k.group, k.version, k.plural), k)).collect());
    index.get(&(group, version, plural)).copied()
}

/// Finds a kind by its name.
pub fn find_by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    static INDEX: OnceLock<Index> = OnceLock::new();
    let index = INDEX.get_or_init(|| kinds().iter().map(|k| ((k.group, k.version, k.kind), k)).collect());
    index.get(&(group, version, kind)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_plural_and_name_and_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for k in kinds() {
            assert!(seen.insert((k.group, k.version, k.plural)), "{} twice", k.plural);
            assert_eq!(find(k.group, k.version, k.plural), Some(k));
            assert_eq!(find_by_kind(k.group, k.version, k.kind), Some(k));
            assert!(k.group.is_empty() || groups().iter().any(|(g, v)| *g == k.group && v.contains(&k.version)));
            assert!(!k.stored() || k.storage().is_some(), "{}", k.kind);
        }
    }

    #[test]
    fn events_of_both_groups_share_one_storage() {
        let e = find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(e.storage(), find("", "v1", "events"));
    }
}
