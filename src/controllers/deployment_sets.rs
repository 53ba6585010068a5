//! The ReplicaSets of a Deployment: which one is the new one, what its successor is called, revisions and annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use component::Error;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::deployment_plan::{Limits, Set, is_rolling, new_replicas};
use crate::hash::template_hash;
use crate::meta::{annotation, controller_reference, name, uid};

pub(crate) const HASH_LABEL: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
/// What a ReplicaSet does not inherit from its Deployment.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
];

/// `spec.replicas` of a set.
pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The set in the numbers that planning needs.
pub(crate) fn numbers(set: &ReplicaSet) -> Set {
    Set {
        replicas: size(set),
        available: set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0),
        max_replicas: annotation(&set.metadata, MOST).and_then(|n| n.parse().ok()),
        created: created(set).map_or(0, |t| t.as_second()),
    }
}

fn created(set: &ReplicaSet) -> Option<Timestamp> {
    set.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// What [`in_proportion`](crate::deployment_plan::in_proportion) was told when the set was last scaled.
pub(crate) fn desired(set: &ReplicaSet) -> Option<i32> {
    annotation(&set.metadata, DESIRED).and_then(|n| n.parse().ok())
}

/// The revision in the annotation; 0 if there is none.
pub(crate) fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
            if labels.is_empty() {
                meta.labels = None;
            }
        }
        if *meta == ObjectMeta::default() {
            template.metadata = None;
        }
    }
    template
}

/// Sorts sets by age, oldest first, and finds the one that has the Deployment's template (the oldest, if several have).
pub(crate) fn split(
    deployment: &Deployment,
    mut sets: Vec<Arc<ReplicaSet>>,
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    sets.sort_by(|a, b| (created(a), name(&a.metadata)).cmp(&(created(b), name(&b.metadata))));
    let Some(wanted) = deployment.spec.as_ref().map(|s| without_hash(&s.template)) else {
        return (None, sets);
    };
    let is_new = |set: &Arc<ReplicaSet>| {
        set.spec
            .as_ref()
            .and_then(|s| s.template.as_ref())
            .is_some_and(|t| without_hash(t) == wanted)
    };
    match sets.iter().position(is_new) {
        Some(i) => {
            let new = sets.remove(i);
            (Some(new), sets)
        }
        None => (None, sets),
    }
}

/// The next revision: one more than the highest of the old sets.
pub(crate) fn next_revision(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter().map(|s| revision(&s.metadata)).max().unwrap_or(0) + 1
}

/// The annotations of `set` as the new ReplicaSet of revision `revision`.
pub(crate) fn annotations(deployment: &Deployment, set: Option<&ReplicaSet>, next: i64) -> BTreeMap<String, String> {
    let mut annotations = set.and_then(|s| s.metadata.annotations.clone()).unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let before = annotations.get(REVISION).cloned();
    let was: i64 = before.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0);
    if was < next {
        if let Some(before) = before.filter(|_| was > 0) {
            let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&before);
        }
        annotations.insert(REVISION.to_owned(), next.to_string());
    }
    annotations
}

/// The sizes that a set remembers for scaling in proportion.
pub(crate) fn remember_sizes(annotations: &mut BTreeMap<String, String>, limits: Limits) {
    annotations.insert(DESIRED.to_owned(), limits.replicas.to_string());
    annotations.insert(MOST.to_owned(), limits.most().to_string());
}

/// `set` with that many replicas and fresh memory of sizes.
pub(crate) fn resized(set: &ReplicaSet, replicas: i32, limits: Limits) -> ReplicaSet {
    let mut set = set.clone();
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(replicas);
    }
    remember_sizes(set.metadata.annotations.get_or_insert_default(), limits);
    set
}

/// The ReplicaSet for the Deployment's present template.
///
/// # Errors
/// If the template cannot be hashed.
pub(crate) fn build(deployment: &Deployment, old: &[Arc<ReplicaSet>], next: i64) -> Result<ReplicaSet, Error> {
    let Some(spec) = &deployment.spec else {
        return Err(Error::Invalid("deployment without spec".into()));
    };
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = template_hash(&spec.template, collisions)?;
    let mut template = spec.template.clone();
    template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default()
        .insert(HASH_LABEL.into(), hash.clone());
    let mut selector = spec.selector.clone();
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH_LABEL.into(), hash.clone());
    let limits = Limits::of(deployment);
    let others: Vec<Set> = old.iter().map(|s| numbers(s)).collect();
    let replicas = if is_rolling(deployment) {
        new_replicas(limits, &Set::default(), &others)
    } else {
        limits.replicas
    };
    let mut annotations = annotations(deployment, None, next);
    remember_sizes(&mut annotations, limits);
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

/// Whether an existing set of the wanted name is this Deployment's and has its template (the cache was behind).
pub(crate) fn is_same(deployment: &Deployment, existing: &ReplicaSet) -> bool {
    let owner = existing
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|o| o.controller == Some(true) && o.uid == uid(&deployment.metadata));
    owner && split(deployment, vec![Arc::new(existing.clone())]).0.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::DeploymentSpec;
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    fn deployment(image: &str) -> Deployment {
        let mut d = Deployment::default();
        d.metadata.name = Some("web".into());
        d.metadata.uid = Some("d".into());
        d.metadata.annotations = Some(
            [
                ("note".to_owned(), "x".to_owned()),
                (REVISION.to_owned(), "1".to_owned()),
            ]
            .into(),
        );
        let container = Container {
            name: "c".into(),
            image: Some(image.into()),
            ..Container::default()
        };
        let mut template = PodTemplateSpec {
            spec: Some(PodSpec {
                containers: vec![container],
                ..PodSpec::default()
            }),
            ..PodTemplateSpec::default()
        };
        template.metadata.get_or_insert_default().labels = Some([("app".to_owned(), "web".to_owned())].into());
        d.spec = Some(DeploymentSpec {
            replicas: Some(3),
            template,
            ..DeploymentSpec::default()
        });
        d
    }

    #[test]
    fn the_new_set_is_found_by_its_template_whatever_its_name() {
        let (old, new) = (deployment("a"), deployment("b"));
        let first = Arc::new(build(&old, &[], 1).unwrap());
        let second = Arc::new(build(&new, &[Arc::clone(&first)], 2).unwrap());
        assert_ne!(first.metadata.name, second.metadata.name);
        let (found, rest) = split(&new, vec![Arc::clone(&second), Arc::clone(&first)]);
        assert_eq!(found, Some(Arc::clone(&second)));
        assert_eq!(rest, vec![Arc::clone(&first)]);
        // Undo: the old template again.
        assert_eq!(split(&old, vec![second, Arc::clone(&first)]).0, Some(first));
    }

    #[test]
    fn an_undone_revision_becomes_the_newest_and_remembers() {
        let d = deployment("a");
        let first = build(&d, &[], 1).unwrap();
        assert_eq!(annotation(&first.metadata, "note"), Some("x"));
        let again = annotations(&d, Some(&first), 3);
        assert_eq!(again.get(REVISION).map(String::as_str), Some("3"));
        assert_eq!(again.get(REVISION_HISTORY).map(String::as_str), Some("1"));
        assert_eq!(annotations(&d, Some(&first), 1).get(REVISION_HISTORY), None);
    }
}
