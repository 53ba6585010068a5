//! `metadata.managedFields`: who owns which fields, decoded and encoded.

#[cfg(test)]
use super::path::Element;
use super::set::FieldSet;
use crate::convert;
use crate::kinds::{self, Kind};
use crate::time;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// Writers by other ways than apply that are kept apart; the oldest beyond them are summed up.
const MAX_UPDATERS: usize = 10;
/// Name under which they are.
const ANCIENT: &str = "ancient-changes";

/// What of an object is the server's alone or identifies it, and is never owned.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// The way in which a manager writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    /// Server-side apply.
    Apply,
    /// Anything else.
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// A manager. One that applies is the same in every version of the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manager {
    pub(super) operation: Operation,
    pub(super) name: String,
    /// Empty for [`Operation::Apply`].
    pub(super) api_version: String,
    pub(super) subresource: String,
}

/// As conflicts name it.
impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What a manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    /// Version in which it wrote.
    pub(super) api_version: String,
    /// When it took the last of it.
    pub(super) time: Option<String>,
    /// The fields, as the kind of the request names them.
    pub(super) fields: FieldSet,
}

/// All managers of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Managers(pub(super) BTreeMap<Manager, Owned>);

/// Names that fields of `from` have in `to`, two kinds whose objects are the same.
fn translated(fields: FieldSet, from: &Kind, to: &Kind) -> FieldSet {
    fields.renamed(|name| convert::field_name(from, to, name))
}

/// The kind of this version that shares its objects with another one.
fn sibling(kind: &Kind, api_version: &str) -> Option<&'static Kind> {
    kinds::kinds()
        .iter()
        .find(|k| k.plural == kind.plural && k.storage_group == kind.storage_group && k.api_version() == api_version)
}

impl Managers {
    /// Reads `managedFields` of an object of a kind. Entries in a version that is not served are left out.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn decode(kind: &Kind, entries: &Value) -> Result<Self, String> {
        let mut found = BTreeMap::new();
        for (i, entry) in entries.as_array().into_iter().flatten().enumerate() {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".to_owned()),
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".to_owned());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {i}")),
            }
            let fields = match &entry["fieldsV1"] {
                Value::Null => FieldSet::default(),
                fields => FieldSet::decode(fields).map_err(str::to_owned)?,
            };
            let Some(theirs) = sibling(kind, api_version) else {
                continue;
            };
            let manager = Manager {
                operation,
                name: text("manager").to_owned(),
                api_version: if operation == Operation::Apply {
                    String::new()
                } else {
                    api_version.to_owned()
                },
                subresource: text("subresource").to_owned(),
            };
            let owned = Owned {
                api_version: api_version.to_owned(),
                time: entry["time"].as_str().map(str::to_owned),
                fields: translated(fields, theirs, kind),
            };
            found.insert(manager, owned);
        }
        Ok(Self(found))
    }

    /// Writes `managedFields` for an object of a kind; null if nobody owns anything.
    pub(super) fn encode(self, kind: &Kind) -> Value {
        let mut all: Vec<(Manager, Owned)> = self.0.into_iter().collect();
        if all.is_empty() {
            return Value::Null;
        }
        all.sort_by_cached_key(|(m, o)| {
            (
                m.operation,
                seconds(o),
                m.name.clone(),
                o.api_version.clone(),
                m.subresource.clone(),
            )
        });
        let entry = |(manager, owned): (Manager, Owned)| {
            let fields = match sibling(kind, &owned.api_version) {
                Some(theirs) => translated(owned.fields, kind, theirs),
                None => owned.fields,
            };
            let mut out = Map::new();
            for (field, text) in [("manager", manager.name), ("subresource", manager.subresource)] {
                if !text.is_empty() {
                    out.insert(field.to_owned(), text.into());
                }
            }
            if let Some(time) = owned.time {
                out.insert("time".to_owned(), time.into());
            }
            out.insert("operation".to_owned(), manager.operation.name().into());
            out.insert("apiVersion".to_owned(), owned.api_version.into());
            out.insert("fieldsType".to_owned(), "FieldsV1".into());
            out.insert("fieldsV1".to_owned(), fields.encode());
            Value::Object(out)
        };
        all.into_iter().map(entry).collect()
    }

    /// Takes fields away from everybody but one, and forgets those who have none left.
    pub(super) fn strip(&mut self, gone: &FieldSet, but: Option<&Manager>) {
        if gone.is_empty() {
            return;
        }
        for (manager, owned) in &mut self.0 {
            if but != Some(manager) {
                owned.fields = owned.fields.minus(gone);
            }
        }
        self.0.retain(|_, owned| !owned.fields.is_empty());
    }

    /// Gives fields to a manager that writes by other ways than apply.
    pub(super) fn take(&mut self, manager: Manager, fields: &FieldSet, now: Timestamp) {
        let fields = ownable(fields);
        if fields.is_empty() {
            return;
        }
        let owned = Owned {
            api_version: manager.api_version.clone(),
            time: None,
            fields: FieldSet::default(),
        };
        let owned = self.0.entry(manager).or_insert(owned);
        owned.fields = std::mem::take(&mut owned.fields).union(&fields);
        owned.time = Some(time::time(now));
    }

    /// Sums up the oldest of too many managers that do not apply, a sum for each version.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<(i64, Manager)> = self
            .0
            .iter()
            .filter(|(m, _)| m.operation == Operation::Update)
            .map(|(m, o)| (seconds(o), m.clone()))
            .collect();
        updaters.sort();
        let mut excess = updaters.len().saturating_sub(MAX_UPDATERS);
        let mut oldest: BTreeMap<String, Manager> = BTreeMap::new();
        for (_, manager) in updaters {
            if excess == 0 {
                return;
            }
            let Some(older) = oldest.get(&manager.api_version).cloned() else {
                oldest.insert(manager.api_version.clone(), manager);
                continue;
            };
            let sum = Manager {
                operation: Operation::Update,
                name: ANCIENT.to_owned(),
                api_version: manager.api_version.clone(),
                subresource: String::new(),
            };
            excess -= self.join(&[&older, &sum, &manager], sum.clone());
            oldest.insert(manager.api_version, sum);
        }
    }

    /// Makes one manager out of several, the newest last; how many there are less.
    fn join(&mut self, parts: &[&Manager], sum: Manager) -> usize {
        let found: Vec<Owned> = parts.iter().filter_map(|m| self.0.remove(m)).collect();
        let fewer = found.len().saturating_sub(1);
        let joined = found.into_iter().reduce(|a, b| Owned {
            fields: a.fields.union(&b.fields),
            ..b
        });
        if let Some(owned) = joined {
            self.0.insert(sum, owned);
        }
        fewer
    }
}

/// The fields without those that nobody owns.
pub(super) fn ownable(fields: &FieldSet) -> FieldSet {
    fields.minus(&UNOWNED.iter().copied().collect())
}

fn seconds(owned: &Owned) -> i64 {
    owned
        .time
        .as_deref()
        .and_then(time::parse)
        .map_or(0, Timestamp::as_second)
}

/// Whether two `managedFields` say the same but for the times.
pub(super) fn same_but_times(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else {
        return a == b;
    };
    let timeless = |list: &[Value]| -> BTreeMap<String, Value> {
        let entry = |entry: &Value| {
            let id = ["operation", "manager", "apiVersion", "subresource"].map(|f| &entry[f]);
            (json!(id).to_string(), entry["fieldsV1"].clone())
        };
        list.iter().map(entry).collect()
    };
    a.len() == b.len() && timeless(a) == timeless(b)
}

/// A path given by names.
#[cfg(test)]
pub(super) fn path(names: &[&str]) -> Vec<Element> {
    names.iter().map(|n| Element::field(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    fn updater(name: &str, minute: u32) -> (Manager, Owned) {
        let manager = Manager {
            operation: Operation::Update,
            name: name.to_owned(),
            api_version: "v1".to_owned(),
            subresource: String::new(),
        };
        let mut fields = FieldSet::default();
        fields.insert(&path(&["data", name]));
        let time = Some(format!("2026-01-01T00:{minute:02}:00Z"));
        let api_version = "v1".to_owned();
        (
            manager,
            Owned {
                api_version,
                time,
                fields,
            },
        )
    }

    fn entry(operation: &str, version: &str, fields: Value) -> Value {
        json!({"manager": "m", "operation": operation, "apiVersion": version, "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn entries_survive_and_are_sorted() {
        let kind = find("", "v1", "pods").unwrap();
        let at = |time: &str, mut entry: Value| {
            entry["time"] = time.into();
            entry
        };
        let fields = json!({"f:spec": {"f:nodeName": {}}});
        let mut status = at("2026-01-01T00:00:00Z", entry("Update", "v1", fields.clone()));
        status["subresource"] = "status".into();
        let sorted = json!([
            at("2026-01-02T00:00:00Z", entry("Apply", "v1", fields.clone())),
            status,
            at("2026-01-03T00:00:00Z", entry("Update", "v1", fields)),
        ]);
        let shuffled = json!([sorted[2], sorted[0], sorted[1]]);
        let managers = Managers::decode(kind, &shuffled).unwrap();
        assert_eq!(
            managers.0.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["\"m\"", "\"m\" using v1", "\"m\" with subresource \"status\" using v1"]
        );
        assert_eq!(managers.encode(kind), sorted);
    }

    #[test]
    fn entries_that_make_no_sense_are_refused_and_unserved_versions_left_out() {
        let kind = find("", "v1", "pods").unwrap();
        for bad in [
            entry("Delete", "v1", json!({})),
            entry("Update", "", json!({})),
            entry("Update", "v1", json!({"f:a": 1})),
            json!({"manager": "m", "operation": "Update", "apiVersion": "v1"}),
            json!({}),
        ] {
            assert!(Managers::decode(kind, &json!([bad])).is_err(), "{bad}");
        }
        let other = entry("Update", "v9", json!({"f:a": {}}));
        assert_eq!(Managers::decode(kind, &json!([other])).unwrap(), Managers::default());
    }

    #[test]
    fn events_are_owned_alike_in_both_groups() {
        let (core, new) = (
            find("", "v1", "events").unwrap(),
            find("events.k8s.io", "v1", "events").unwrap(),
        );
        let entries = json!([entry(
            "Update",
            "v1",
            json!({"f:involvedObject": {"f:name": {}}, "f:message": {}})
        )]);
        let managers = Managers::decode(new, &entries).unwrap();
        assert_eq!(
            managers.0.values().next().unwrap().fields.paths(),
            [".note", ".regarding.name"]
        );
        assert_eq!(managers.encode(new), entries);
        assert_eq!(Managers::decode(core, &entries).unwrap().encode(core), entries);
    }

    #[test]
    fn too_many_updaters_are_summed_up_oldest_first() {
        let mut managers = Managers((0..14).map(|i| updater(&format!("u{i:02}"), i)).collect());
        managers.cap();
        let names: Vec<_> = managers.0.keys().map(|m| m.name.clone()).collect();
        assert_eq!(names.len(), MAX_UPDATERS);
        assert_eq!((names[0].as_str(), names[1].as_str()), (ANCIENT, "u05"));
        let ancient = managers.0.values().next().unwrap();
        assert_eq!(
            ancient.fields.paths(),
            [".data.u00", ".data.u01", ".data.u02", ".data.u03", ".data.u04"]
        );
        assert_eq!(ancient.time.as_deref(), Some("2026-01-01T00:04:00Z"));
        let (late, owned) = updater("a", 1);
        managers.0.insert(late, owned);
        managers.cap();
        assert_eq!(managers.0.len(), MAX_UPDATERS);
        assert!(
            managers.0.values().next().unwrap().fields.has(&path(&["data", "a"])),
            "an older one joins the sum"
        );
    }

    #[test]
    fn times_alone_make_no_difference() {
        let (a, mut b) = (
            json!([entry("Update", "v1", json!({"f:a": {}}))]),
            json!([entry("Update", "v1", json!({"f:a": {}}))]),
        );
        b[0]["time"] = "2026-01-01T00:00:00Z".into();
        assert!(same_but_times(&a, &b));
        b[0]["fieldsV1"] = json!({"f:b": {}});
        assert!(!same_but_times(&a, &b));
        assert!(!same_but_times(&a, &Value::Null));
    }
}
