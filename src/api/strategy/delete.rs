//! What a delete request leads to: at once, or after a grace period, or when the last finalizer is gone.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::metadata;
use crate::status::Status;
use crate::time;

/// What a delete request leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Deletion {
    /// The object goes now.
    Now,
    /// The object is kept, marked like this.
    Marked(Value),
    /// It is marked as asked already.
    Unchanged,
}

/// Refuses a request whose preconditions do not hold; `options` is a `DeleteOptions` object.
///
/// # Errors
/// 409.
pub fn preconditions(kind: &Kind, object: &Value, options: &Value) -> Result<(), Status> {
    let check = |field: &str, title: &str, found: &str| match options["preconditions"][field].as_str() {
        Some(want) if want != found => {
            let why = format!("Precondition failed: {title} in precondition: {want}, {title} in object meta: {found}");
            Err(Status::conflict(kind.group, kind.plural, metadata::name(object), &why))
        }
        _ => Ok(()),
    };
    check("uid", "UID", metadata::uid(object))?;
    check("resourceVersion", "ResourceVersion", metadata::resource_version(object))
}

/// Decides a delete request; `options` is a `DeleteOptions` object.
pub fn delete(kind: &Kind, object: &Value, options: &Value, now: Timestamp) -> Deletion {
    let mut marked = object.clone();
    let finalizers = finalizers_after(object, options);
    metadata::set(
        &mut marked,
        "finalizers",
        if finalizers.is_empty() {
            Value::Null
        } else {
            json!(finalizers)
        },
    );
    let grace = if kind.message == "core.v1.Pod" {
        pod_grace(object, options)
    } else {
        0
    };
    match metadata::deletion_timestamp(object) {
        None => mark(&mut marked, grace, now),
        Some(at) => shorten(&mut marked, at, grace, options),
    }
    if kind.message == "core.v1.Namespace" {
        metadata::child_mut(&mut marked, "status").insert("phase".to_owned(), "Terminating".into());
    }
    if ends(kind, &marked) {
        Deletion::Now
    } else if marked == *object {
        Deletion::Unchanged
    } else {
        Deletion::Marked(marked)
    }
}

/// Whether an object has nothing left to wait for and must be removed; also to be asked after each update.
pub fn ends(kind: &Kind, object: &Value) -> bool {
    let held =
        kind.message == "core.v1.Namespace" && object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    metadata::deletion_timestamp(object).is_some()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && metadata::finalizers(object).next().is_none()
        && !held
}

/// Seconds that a pod is given. One that runs nowhere, or no more, needs none.
fn pod_grace(pod: &Value, options: &Value) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    if unscheduled || finished {
        return 0;
    }
    let wanted = options["gracePeriodSeconds"].as_i64();
    let seconds = wanted
        .or(pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(0);
    if seconds < 0 { 1 } else { seconds }
}

fn mark(object: &mut Value, grace: i64, now: Timestamp) {
    let at = now
        .checked_add(SignedDuration::from_secs(grace))
        .unwrap_or(Timestamp::MAX);
    let generation = metadata::generation(object);
    if generation > 0 {
        metadata::set(object, "generation", (generation + 1).into());
    }
    metadata::set(object, "deletionTimestamp", time::time(at).into());
    metadata::set(object, "deletionGracePeriodSeconds", grace.into());
}

/// A pending deletion may only come sooner.
fn shorten(object: &mut Value, at: &str, grace: i64, options: &Value) {
    let given = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if options["gracePeriodSeconds"].is_null() || grace >= given {
        return;
    }
    if let Some(at) = time::parse(at)
        && let Ok(sooner) = at.checked_sub(SignedDuration::from_secs(given - grace))
    {
        metadata::set(object, "deletionTimestamp", time::time(sooner).into());
        metadata::set(object, "deletionGracePeriodSeconds", grace.into());
    }
}

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Finalizers after the wish about dependents; without one, those that are there decide.
fn finalizers_after(object: &Value, options: &Value) -> Vec<String> {
    let all: Vec<String> = metadata::finalizers(object).map(str::to_owned).collect();
    let wanted = match (
        options["propagationPolicy"].as_str(),
        options["orphanDependents"].as_bool(),
    ) {
        (Some("Orphan"), _) | (None, Some(true)) => Some(ORPHAN),
        (Some("Foreground"), _) => Some(FOREGROUND),
        (Some(_), _) | (None, Some(false)) => None,
        (None, None) => return all,
    };
    let mut out: Vec<String> = all.into_iter().filter(|f| f != ORPHAN && f != FOREGROUND).collect();
    out.extend(wanted.map(str::to_owned));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    fn at(s: &str) -> Timestamp {
        time::parse(s).unwrap()
    }

    #[test]
    fn a_running_pod_is_given_its_grace_and_may_be_hurried() {
        let kind = find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let Deletion::Marked(marked) = delete(kind, &pod, &json!({}), at("2026-01-01T00:00:00Z")) else {
            panic!()
        };
        assert_eq!(
            marked["metadata"],
            json!({"name": "a", "generation": 2, "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30})
        );
        let later = at("2026-01-01T00:00:05Z");
        assert_eq!(delete(kind, &marked, &json!({}), later), Deletion::Unchanged);
        assert_eq!(
            delete(kind, &marked, &json!({"gracePeriodSeconds": 60}), later),
            Deletion::Unchanged
        );
        let Deletion::Marked(sooner) = delete(kind, &marked, &json!({"gracePeriodSeconds": 10}), later) else {
            panic!()
        };
        assert_eq!(sooner["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        assert_eq!(
            delete(kind, &sooner, &json!({"gracePeriodSeconds": 0}), later),
            Deletion::Now
        );
    }

    #[test]
    fn pods_that_do_not_run_go_at_once() {
        let kind = find("", "v1", "pods").unwrap();
        for pod in [
            json!({"metadata": {}, "spec": {"terminationGracePeriodSeconds": 30}}),
            json!({"metadata": {}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Succeeded"}}),
        ] {
            assert_eq!(delete(kind, &pod, &json!({}), Timestamp::UNIX_EPOCH), Deletion::Now);
        }
    }

    #[test]
    fn finalizers_hold_an_object() {
        let kind = find("apps", "v1", "replicasets").unwrap();
        let rs = json!({"metadata": {"name": "a"}});
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            delete(kind, &rs, &json!({"propagationPolicy": "Background"}), now),
            Deletion::Now
        );
        let Deletion::Marked(m) = delete(kind, &rs, &json!({"propagationPolicy": "Foreground"}), now) else {
            panic!()
        };
        assert_eq!(m["metadata"]["finalizers"], json!(["foregroundDeletion"]));
        assert!(!ends(kind, &m));
        assert_eq!(delete(kind, &m, &json!({}), now), Deletion::Unchanged);
        assert_eq!(
            delete(kind, &m, &json!({"propagationPolicy": "Background"}), now),
            Deletion::Now
        );
    }

    #[test]
    fn a_namespace_terminates_before_it_goes() {
        let kind = find("", "v1", "namespaces").unwrap();
        let n = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
        let Deletion::Marked(mut m) = delete(kind, &n, &json!({}), Timestamp::UNIX_EPOCH) else {
            panic!()
        };
        assert_eq!(m["status"]["phase"], "Terminating");
        m["spec"]["finalizers"] = json!([]);
        assert!(ends(kind, &m));
    }

    #[test]
    fn a_precondition_names_both_sides() {
        let kind = find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a", "uid": "x"}});
        let e = preconditions(kind, &pod, &json!({"preconditions": {"uid": "y"}})).unwrap_err();
        assert_eq!(
            e.message,
            "Operation cannot be fulfilled on pods \"a\": Precondition failed: UID in precondition: y, UID in object meta: x"
        );
    }
}
