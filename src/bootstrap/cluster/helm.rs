//! Charts: helm's command line and what helm keeps of a release (its storage driver `secrets`: a Secret for each revision, with
//! labels `owner`, `name`, `version`, `status`).

use crate::{Error, Result, paths, verify};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use std::time::Duration;

/// Things named that are in the way, at most.
const BLOCKERS: usize = 10;

/// How the latest revision of a release stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    /// There is none.
    Absent,
    /// It is what runs.
    Deployed,
    /// It failed, or was taken away but for its history.
    Failed,
    /// Somebody works on it, or was killed doing so.
    Pending {
        /// Its revision.
        revision: u32,
        /// `pending-upgrade`.
        status: String,
        /// The Secret that says so.
        secret: String,
    },
}

/// How a release stands, from helm's Secrets of it.
pub fn release(secrets: &[Secret]) -> Release {
    let label = |secret: &Secret, name: &str| secret.labels().get(name).cloned().unwrap_or_default();
    let revision = |secret: &Secret| label(secret, "version").parse::<u32>().unwrap_or(0);
    let Some(latest) = secrets.iter().max_by_key(|secret| revision(secret)) else {
        return Release::Absent;
    };
    match label(latest, "status").as_str() {
        "deployed" => Release::Deployed,
        status if status.starts_with("pending") => Release::Pending {
            revision: revision(latest),
            status: status.to_owned(),
            secret: latest.name_any(),
        },
        _ => Release::Failed,
    }
}

fn secrets(client: &Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client.clone(), namespace)
}

/// Asks the cluster how a release stands.
///
/// # Errors
/// When the API server does not answer.
pub async fn look(client: &Client, namespace: &str, name: &str) -> Result<Release> {
    let params = ListParams::default().labels(&format!("owner=helm,name={name}"));
    let list = secrets(client, namespace).list(&params).await;
    Ok(release(
        &list
            .map_err(Error::api(format!("looking at the release {name}")))?
            .items,
    ))
}

/// Forgets a revision that nobody works on any more: helm refuses to begin while one is pending.
///
/// # Errors
/// When the API server refuses.
pub async fn forget(client: &Client, namespace: &str, secret: &str) -> Result<()> {
    match secrets(client, namespace)
        .delete(secret, &DeleteParams::default())
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::api(format!("removing {secret}, which an interrupted helm left"))(error)),
    }
}

/// The command that installs or upgrades a release and waits until it works.
pub fn upgrade(release: &str, chart: &str, namespace: &str, values: &[String], limit: Duration) -> Vec<String> {
    let limit = format!("{}s", limit.as_secs());
    let words = [
        paths::HELM,
        "upgrade",
        "--install",
        release,
        chart,
        "--namespace",
        namespace,
        "--create-namespace",
        "--wait",
        "--timeout",
        &limit,
    ];
    let files = values.iter().flat_map(|file| ["--values", file]);
    words.into_iter().chain(files).map(str::to_owned).collect()
}

/// What in a namespace is not as it should be: pods that are not Ready and claims without a volume, each with its reason.
///
/// # Errors
/// When the API server does not answer.
pub async fn blockers(client: &Client, namespace: &str) -> Result<Vec<String>> {
    let failed = || Error::api(format!("looking at what runs in the namespace {namespace}"));
    let (pods, claims) = (
        Api::<Pod>::namespaced(client.clone(), namespace),
        Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace),
    );
    let all = ListParams::default();
    let (pods, claims) = tokio::join!(pods.list(&all), claims.list(&all));
    let pods = pods.map_err(failed())?;
    let claims = match claims {
        // A cluster without volumes serves no claims.
        Err(kube::Error::Api(status)) if status.is_not_found() => Vec::new(),
        other => other.map_err(failed())?.items,
    };
    Ok(in_the_way(&pods.items, &claims))
}

fn in_the_way(pods: &[Pod], claims: &[PersistentVolumeClaim]) -> Vec<String> {
    let unbound = claims.iter().filter_map(|claim| {
        let phase = claim.status.as_ref()?.phase.as_deref()?;
        (phase != "Bound").then(|| format!("persistentvolumeclaim {}: {phase}", claim.name_any()))
    });
    let unready = pods
        .iter()
        .filter_map(|pod| Some(format!("pod {}: {}", pod.name_any(), verify::unready_because(pod)?)));
    unbound.chain(unready).take(BLOCKERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(version: &str, status: &str) -> Secret {
        let object = json!({"metadata": {"name": format!("sh.helm.release.v1.web.v{version}"), "labels": {"version": version, "status": status}}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_latest_revision_tells_how_a_release_stands() {
        let of = |list: &[(&str, &str)]| release(&list.iter().map(|(v, s)| secret(v, s)).collect::<Vec<_>>());
        assert_eq!(of(&[]), Release::Absent);
        assert_eq!(of(&[("9", "superseded"), ("10", "deployed")]), Release::Deployed);
        assert_eq!(of(&[("1", "deployed"), ("2", "failed")]), Release::Failed);
        let pending = of(&[("2", "pending-upgrade"), ("1", "deployed")]);
        let expected = Release::Pending {
            revision: 2,
            status: "pending-upgrade".into(),
            secret: "sh.helm.release.v1.web.v2".into(),
        };
        assert_eq!(pending, expected);
    }

    #[test]
    fn helm_is_called_with_words_and_not_with_a_shell() {
        let words = upgrade(
            "web",
            "/opt/installer/application/apps/web",
            "shop",
            &["/a b".into()],
            Duration::from_secs(600),
        );
        assert_eq!(
            words.join("|"),
            "/opt/installer/bin/helm|upgrade|--install|web|/opt/installer/application/apps/web|--namespace|shop|--create-namespace|--wait|--timeout|600s|--values|/a b"
        );
    }

    #[test]
    fn what_is_in_the_way_is_named_with_its_reason() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "web-1"}, "spec": {"containers": []}, "status": status}))
                .unwrap()
        };
        let waiting = json!({"containerStatuses": [{"name": "web", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
        let homeless = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no node fits"}]});
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let done = json!({"phase": "Succeeded"});
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "data"}, "status": {"phase": "Pending"}})).unwrap();
        assert_eq!(
            in_the_way(&[pod(waiting), pod(homeless), pod(ready), pod(done)], &[claim]),
            [
                "persistentvolumeclaim data: Pending",
                "pod web-1: web waits: ImagePullBackOff: no such image",
                "pod web-1: not Ready: no node fits"
            ]
        );
    }
}
