//! Defaults of Deployments, ReplicaSets and DaemonSets.

use serde_json::{Map, Value, json};

use super::{default, default_text, map_mut, pod, text};

type Object = Map<String, Value>;

/// A Deployment.
pub(super) fn deployment(root: &mut Object) {
    let Some(spec) = map_mut(root, "spec") else { return };
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    default(spec, "strategy", json!({}));
    if let Some(strategy) = map_mut(spec, "strategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            default(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = map_mut(strategy, "rollingUpdate") {
                default(rolling, "maxUnavailable", "25%");
                default(rolling, "maxSurge", "25%");
            }
        }
    }
    pod::template(spec.get_mut("template"));
}

/// A ReplicaSet.
pub(super) fn replica_set(root: &mut Object) {
    let Some(spec) = map_mut(root, "spec") else { return };
    default(spec, "replicas", 1);
    pod::template(spec.get_mut("template"));
}

/// A DaemonSet.
pub(super) fn daemon_set(root: &mut Object) {
    let Some(spec) = map_mut(root, "spec") else { return };
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "updateStrategy", json!({}));
    if let Some(strategy) = map_mut(spec, "updateStrategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            default(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = map_mut(strategy, "rollingUpdate") {
                default(rolling, "maxUnavailable", 1);
                default(rolling, "maxSurge", 0);
            }
        }
    }
    pod::template(spec.get_mut("template"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::tests::check;

    #[test]
    fn a_deployment_rolls_by_quarters() {
        check(
            "apps",
            "deployments",
            json!({"spec": {}}),
            json!({"spec": {
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            }}),
        );
        check(
            "apps",
            "deployments",
            json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}),
            json!({"spec": {"replicas": 0, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600, "strategy": {"type": "Recreate"}}}),
        );
    }

    #[test]
    fn a_daemon_set_rolls_one_by_one() {
        check(
            "apps",
            "daemonsets",
            json!({"spec": {}}),
            json!({"spec": {
                "revisionHistoryLimit": 10,
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            }}),
        );
    }
}
