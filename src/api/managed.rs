//! Who owns which fields of an object (`metadata.managedFields`, KEP-555), and server-side apply, which is decided by it.
//!
//! ```text
//!  any write:  live ─┐                      ┌─ added, modified ─► the writer's
//!                    ├─ compare by schema ──┤
//!              new ──┘                      └─ removed ─────────► nobody's
//!
//!  apply:      live ─┐
//!                    ├─ merge ─► without what the manager applied last time, nobody else owns, and is not in the configuration
//!              config┘           ─► compare with live: what others own and would change is a conflict, unless forced
//! ```
//!
//! Ownership follows the schema's topology ([`crate::schema::Ownership`]). Changes of the topology between versions of the schema
//! are not followed: there has been one version.

mod compare;
mod entries;
mod last_applied;
mod merge;
mod parts;
mod path;
mod set;
mod validate;

use crate::kinds::Kind;
use crate::metadata;
use crate::schema::message;
use crate::status::Status;
use crate::strategy::{self, Reach};
use crate::time;
use compare::{Comparison, fields_of};
use entries::{Manager, Managers, Operation, Owned};
use jiff::Timestamp;
use parts::Parts;
use path::Element;
use serde_json::{Value, json};
use set::FieldSet;

/// Longest name of a manager, in bytes.
pub const MAX_MANAGER: usize = 128;
/// The manager of what an object had before the first apply to it, when nobody had been noted for it.
const BEFORE: &str = "before-first-apply";
/// The manager whose applies follow and keep up the annotation of client-side apply.
const KUBECTL: &str = "kubectl";

/// The name of a manager that gave none: the part of the user agent before the first `/`, as far as it can be printed.
pub fn default_manager(user_agent: &str) -> String {
    let mut name = String::new();
    for c in user_agent
        .split('/')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
    {
        if name.len() + c.len_utf8() > MAX_MANAGER {
            break;
        }
        name.push(c);
    }
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// Whether two objects differ in nothing but times of their managers and their resource version; then the write changes nothing,
/// and the new one should keep the old one's managers.
pub fn only_times_differ(old: &Value, new: &Value) -> bool {
    let managers = |v: &Value| v["metadata"]["managedFields"].clone();
    same_but(old, new, &["metadata"])
        && same_but(
            &old["metadata"],
            &new["metadata"],
            &["managedFields", "resourceVersion"],
        )
        && entries::same_but_times(&managers(old), &managers(new))
}

/// What a configuration sets of an object of its kind, as `fieldsV1` of whoever applies it. What is the server's alone (names, UID,
/// times) is not among it.
pub fn configured_fields(kind: &Kind, config: &Value) -> Value {
    entries::ownable(&fields_of(parts_of(kind), config)).encode()
}

/// Why an object cannot be the configuration of an apply: fields that its kind does not have, values of another type, items of
/// lists that cannot be told apart; each with its path. Empty: it fits.
pub fn configuration_errors(kind: &Kind, config: &Value) -> Vec<String> {
    message(kind.message).map_or_else(Vec::new, |m| validate::errors(m, config))
}

fn parts_of(kind: &Kind) -> Parts {
    message(kind.message).map_or(Parts::Leaf, Parts::Message)
}

/// Whether two maps have the same entries apart from these.
fn same_but(a: &Value, b: &Value, but: &[&str]) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return a == b;
    };
    let names = a.keys().chain(b.keys()).filter(|name| !but.contains(&name.as_str()));
    names.into_iter().all(|name| a.get(name) == b.get(name))
}

/// Who writes what.
#[derive(Debug, Clone, Copy)]
pub struct Writing<'a> {
    /// Kind of the object, in the version the request is in.
    pub kind: &'static Kind,
    /// Subresource through which it is written, empty for none.
    pub subresource: &'a str,
    /// Name of the manager.
    pub manager: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// Fields that an apply would take from others.
type Conflicts = Vec<(Manager, FieldSet)>;

impl Writing<'_> {
    /// Enters a write by other ways than apply into the new object's `managedFields`. `live` is the object before it, without
    /// a UID if there was none. A client may itself set `managedFields` (to one empty entry: forget everything).
    pub fn update(&self, live: &Value, new: &mut Value) {
        let mut managers = self.given(live, new);
        metadata::set(new, "managedFields", Value::Null);
        // Nothing is known of an object from before ownership was noted; the first apply will begin.
        if !managers.0.is_empty() || metadata::uid(live).is_empty() {
            let comparison = self.compare(live, new, false);
            let written = comparison.written();
            managers.strip(&written, None);
            managers.strip(&comparison.removed, None);
            managers.take(self.updater(self.manager), &written, self.now);
            managers.cap();
        }
        metadata::set(new, "managedFields", managers.encode(self.kind));
    }

    /// The object that results from applying a configuration, with `managedFields`. `live` is null if there is none yet.
    /// Fields that the configuration sets to null are null in it.
    ///
    /// # Errors
    /// 400 for a configuration that does not fit the kind, 409 with a cause per field that others own and `force` is false.
    pub fn apply(&self, live: &Value, config: &Value, force: bool) -> Result<Value, Status> {
        self.check(config)?;
        let mut live = live.clone();
        let noted = &live["metadata"]["managedFields"];
        let mut managers = Managers::decode(self.kind, noted)
            .map_err(|e| Status::bad_request(format!("failed to decode managed fields: {e}")))?;
        if live.is_object() {
            metadata::set(&mut live, "managedFields", Value::Null);
        }
        if managers.0.is_empty() {
            let all = self.compare(&Value::Null, &live, false).added;
            managers.take(self.updater(BEFORE), &all, self.now);
        }
        let mut done = self.attempt(&live, config, managers.clone(), force);
        if self.manager == KUBECTL
            && let Err(conflicts) = done
        {
            let allowed = last_applied::owned(self.kind, self.parts(), &live).unwrap_or_default();
            let left: Conflicts = conflicts
                .into_iter()
                .map(|(manager, fields)| (manager, fields.minus(&allowed)))
                .filter(|(_, fields)| !fields.is_empty())
                .collect();
            done = if left.is_empty() {
                self.attempt(&live, config, managers, true)
            } else {
                Err(left)
            };
        }
        let (mut object, managers) = done.map_err(|conflicts| refusal(&conflicts))?;
        if self.manager == KUBECTL {
            last_applied::keep_up(&mut object, config);
        }
        metadata::set(&mut object, "managedFields", managers.encode(self.kind));
        Ok(object)
    }

    fn parts(&self) -> Parts {
        parts_of(self.kind)
    }

    /// Without what this way of writing cannot change.
    fn reachable(&self, fields: &FieldSet) -> FieldSet {
        match strategy::reach(self.kind, Some(self.subresource).filter(|s| !s.is_empty())) {
            Reach::AllBut(paths) => fields.outside(&paths.iter().copied().collect()),
            Reach::Only(paths) => fields.within(&paths.iter().copied().collect()),
        }
    }

    fn compare(&self, live: &Value, new: &Value, wishes: bool) -> Comparison {
        Comparison::of(self.parts(), live, new, wishes).filtered(|set| self.reachable(set))
    }

    fn updater(&self, name: &str) -> Manager {
        Manager {
            operation: Operation::Update,
            name: name.to_owned(),
            api_version: self.kind.api_version(),
            subresource: self.subresource.to_owned(),
        }
    }

    /// The managers that a write begins with: those in the new object if it has sensible ones, else the live one's.
    fn given(&self, live: &Value, new: &Value) -> Managers {
        let decode =
            |object: &Value| Managers::decode(self.kind, &object["metadata"]["managedFields"]).unwrap_or_default();
        if !self.subresource.is_empty() {
            return decode(live);
        }
        if new["metadata"]["managedFields"] == json!([{}]) {
            return Managers::default();
        }
        let given = decode(new);
        if given.0.is_empty() { decode(live) } else { given }
    }

    fn check(&self, config: &Value) -> Result<(), Status> {
        let (version, kind) = (&config["apiVersion"], &config["kind"]);
        if *version != self.kind.api_version() {
            return Err(Status::bad_request(format!(
                "Incorrect version specified in apply patch. Specified patch version: {}, expected: {}",
                version.as_str().unwrap_or_default(),
                self.kind.api_version()
            )));
        }
        if *kind != self.kind.kind {
            return Err(Status::bad_request(format!(
                "the kind in the apply patch ({}) does not match the expected kind ({})",
                kind.as_str().unwrap_or_default(),
                self.kind.kind
            )));
        }
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let errors = configuration_errors(self.kind, config);
        let list = match errors.as_slice() {
            [] => return Ok(()),
            [one] => one.clone(),
            many => format!("errors:\n  {}", many.join("\n  ")),
        };
        let (namespace, name) = (metadata::namespace(config), metadata::name(config));
        Err(Status::bad_request(format!(
            "failed to create typed patch object ({namespace}/{name}; {}, Kind={}): {list}",
            self.kind.api_version(),
            self.kind.kind
        )))
    }

    fn attempt(
        &self,
        live: &Value,
        config: &Value,
        mut managers: Managers,
        force: bool,
    ) -> Result<(Value, Managers), Conflicts> {
        let parts = self.parts();
        let applier = Manager {
            operation: Operation::Apply,
            name: self.manager.to_owned(),
            api_version: String::new(),
            subresource: self.subresource.to_owned(),
        };
        let merged = merge::merge(parts, Some(live), Some(config)).unwrap_or_else(|| json!({}));
        let owned = Owned {
            api_version: self.kind.api_version(),
            time: Some(time::time(self.now)),
            fields: self.reachable(&fields_of(parts, config)),
        };
        let last = managers
            .0
            .insert(applier.clone(), owned)
            .map(|o| o.fields)
            .unwrap_or_default();
        let pruned = prune(parts, &merged, &last, &managers);
        // Lists that lost their last item are gone; those that the configuration wants empty come back.
        let object = merge::merge(parts, Some(&pruned), Some(config)).unwrap_or(pruned);
        let comparison = self.compare(live, &object, true);
        let written = comparison.written();
        let conflicts: Conflicts = managers
            .0
            .iter()
            .filter(|(manager, _)| **manager != applier)
            .map(|(manager, owned)| (manager.clone(), owned.fields.intersection(&written)))
            .filter(|(_, fields)| !fields.is_empty())
            .collect();
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        managers.strip(&written, Some(&applier));
        managers.strip(&comparison.removed, Some(&applier));
        if let Some(owned) = managers.0.get_mut(&applier) {
            owned.fields = entries::ownable(&owned.fields);
        }
        managers.0.retain(|_, owned| !owned.fields.is_empty());
        Ok((object, managers))
    }
}

/// Takes out of a merged object what the manager applied last time and nobody owns any more.
fn prune(parts: Parts, merged: &Value, last: &FieldSet, managers: &Managers) -> Value {
    if last.is_empty() {
        return merged.clone();
    }
    let whole =
        |set: &FieldSet| set.with_members(parts, &|at: Parts, e: &Element| (at.field(e).is_some(), at.below(e)));
    let of = |object: &Value| whole(&fields_of(parts, object));
    let without = |gone: &FieldSet| merge::without(parts, merged, gone).unwrap_or_else(|| json!({}));
    let (all, last) = (of(merged), whole(last));
    let owned = managers
        .0
        .values()
        .fold(FieldSet::default(), |set, o| set.union(&o.fields));
    // First everything goes that was applied, then all comes back that anybody owns, then all that nobody ever did.
    let pruned = without(&last);
    let kept = without(&all.minus(&of(&pruned).union(&whole(&owned))));
    without(&all.minus(&of(&kept)).intersection(&last))
}

fn refusal(conflicts: &Conflicts) -> Status {
    let all: Vec<(&Manager, String)> = conflicts
        .iter()
        .flat_map(|(manager, fields)| fields.paths().into_iter().map(move |path| (manager, path)))
        .collect();
    let message = if let [(manager, path)] = all.as_slice() {
        format!("Apply failed with 1 conflict: conflict with {manager}: {path}")
    } else {
        let mut lines = Vec::new();
        for (manager, fields) in conflicts {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(fields.paths().iter().map(|path| format!("- {path}")));
        }
        format!("Apply failed with {} conflicts: {}", all.len(), lines.join("\n"))
    };
    let cause = |(manager, path): &(&Manager, String)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": path});
    let mut status = Status::new(409, "Conflict", message);
    status.details = json!({"causes": all.iter().map(cause).collect::<Vec<_>>()});
    status
}

#[cfg(test)]
mod tests;
