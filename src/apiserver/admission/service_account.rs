//! ServiceAccount: every pod runs as an account of its namespace and, unless it or the account declines, finds a token of it.

use super::{Attributes, Lookup, array};
use crate::error::{ApiError, Result};
use serde_json::{Value, json};

/// Where programs look for their token (client libraries' in-cluster configuration).
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Mirror pods stand for static ones, which the node agent runs without asking: they may have no account.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Life of the projected token in seconds; the node agent renews it long before.
const TOKEN_SECONDS: i64 = 3607;

pub(super) fn admit(lookup: &dyn Lookup, a: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        return mirror(a, pod);
    }
    let spec = &mut pod["spec"];
    if spec["serviceAccountName"].as_str().is_none_or(str::is_empty) {
        let deprecated = spec["serviceAccount"]
            .as_str()
            .filter(|s| !s.is_empty())
            .unwrap_or("default");
        spec["serviceAccountName"] = deprecated.to_owned().into();
    }
    let name = spec["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    spec["serviceAccount"] = name.as_str().into();
    let account = lookup.get("", "serviceaccounts", a.namespace, &name).ok_or_else(|| {
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            a.namespace
        );
        ApiError::forbidden("", "pods", a.name, &why)
    })?;
    let wanted = spec["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool());
    if wanted.unwrap_or(true) {
        mount_token(spec);
    }
    if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty) && !account["imagePullSecrets"].is_null() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

/// What a mirror pod shows must not give a node access to more than it has.
fn mirror(a: &Attributes<'_>, pod: &Value) -> Result<()> {
    let refuse = |why: &str| Err(ApiError::forbidden("", "pods", a.name, why));
    if pod["spec"]["serviceAccountName"]
        .as_str()
        .is_some_and(|s| !s.is_empty())
    {
        return refuse("a mirror pod may not reference service accounts");
    }
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        if !volume["secret"].is_null() {
            return refuse("a mirror pod may not reference secrets");
        }
        let sources = volume["projected"]["sources"].as_array();
        if sources
            .into_iter()
            .flatten()
            .any(|s| !s["serviceAccountToken"].is_null())
        {
            return refuse("a mirror pod may not use service account token volume projections");
        }
    }
    Ok(())
}

/// Adds one volume with token, CA and namespace, and mounts it where nothing is mounted yet.
fn mount_token(spec: &mut Value) {
    let existing = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|v| v["name"].as_str().filter(|n| n.starts_with(VOLUME_PREFIX)));
    let name = existing.map_or_else(
        || format!("{VOLUME_PREFIX}{}", api::metadata::random_suffix()),
        str::to_owned,
    );
    let fresh = existing.is_none();
    let mut mounted = false;
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(mounts) = array(container, "volumeMounts") else {
                continue;
            };
            if !mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if mounted
        && fresh
        && let Some(volumes) = array(spec, "volumes")
    {
        volumes.push(token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixed, create};
    use super::*;

    fn run(account: Value, mut pod: Value) -> Result<Value> {
        let lookup = Fixed::default().with("serviceaccounts/d/default", account);
        admit(&lookup, &create("pods", "d"), &mut pod).map(|()| pod)
    }

    #[test]
    fn every_container_finds_the_token_once() {
        let elsewhere = json!([{"name": "own", "mountPath": MOUNT_PATH}]);
        let pod = json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b", "volumeMounts": elsewhere}]}});
        let pod = run(json!({}), pod).unwrap();
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        let volume = pod["spec"]["volumes"][0]["name"].as_str().unwrap();
        assert!(volume.starts_with(VOLUME_PREFIX) && volume.len() == VOLUME_PREFIX.len() + 5);
        for container in [&pod["spec"]["initContainers"][0], &pod["spec"]["containers"][0]] {
            assert_eq!(container["volumeMounts"][0]["name"], volume);
        }
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(),
            1
        );
    }

    #[test]
    fn pod_and_account_may_decline_the_token_and_the_pod_has_the_last_word() {
        for (account, pod, mounted) in [
            (None, None, true),
            (Some(false), None, false),
            (Some(false), Some(true), true),
            (None, Some(false), false),
        ] {
            let mut spec = json!({"containers": [{"name": "a"}]});
            if let Some(wish) = pod {
                spec["automountServiceAccountToken"] = wish.into();
            }
            let account = account.map_or(json!({}), |wish| json!({"automountServiceAccountToken": wish}));
            let pod = run(account, json!({"spec": spec})).unwrap();
            assert_eq!(pod["spec"]["volumes"].is_array(), mounted, "{pod}");
        }
    }

    #[test]
    fn an_unknown_account_is_refused() {
        let refusal = run(
            json!({}),
            json!({"spec": {"serviceAccountName": "other", "containers": []}}),
        )
        .unwrap_err();
        assert_eq!(refusal.code, 403);
        assert!(
            refusal.message.contains("serviceaccount \"other\" not found"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn a_mirror_pod_brings_no_account() {
        let pod = |spec: Value| json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": spec});
        assert!(run(json!({}), pod(json!({"containers": [{"name": "a"}]}))).unwrap()["spec"]["volumes"].is_null());
        assert!(run(json!({}), pod(json!({"volumes": [{"secret": {"secretName": "x"}}]}))).is_err());
    }
}
