//! The moment in which the API server begins to answer, and what it must know before node agents can join.

use super::{Cluster, apply::Applier, token};
use crate::{
    Error, Result, effects, paths,
    phases::{Outcome, Phase},
    run::Run,
    session::Session,
    site::Seat,
    verify,
};
use futures::{FutureExt as _, future::BoxFuture};
use host::proto::{Condition, HttpGet};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How long the first control plane may take: images to unpack, etcd to form, probes to pass.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long one answer of an API server that may just be replaced is waited for.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two looks at something whose end nobody announces.
const AGAIN: Duration = Duration::from_millis(500);

/// Waits for the API server of the first master, opens the way to it, and lets node agents join.
pub fn come_up(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let session = &run.sessions[run.site.first_master()];
        wait_ready(session, PATIENCE).await?;
        if !run.cluster.initialized() {
            let cluster = Cluster::open(session).await?;
            let _ = run.cluster.set(cluster);
        }
        let cluster = run.cluster()?;
        settle(&run, cluster).await?;
        let applier = Applier::new(cluster.client.clone());
        let mut changes = 0;
        let token = run.learned().token;
        let joining = run.site.seats.iter().any(|seat| !seat.seen.joined);
        let secret = joining.then(|| token::secret(&token, jiff::Timestamp::now()));
        for object in secret.into_iter().chain(bindings()) {
            if applier.apply(&object).await?.0 != super::Applied::Same {
                changes += 1;
            }
        }
        Ok(Outcome {
            changes,
            ..Outcome::default()
        })
    }
    .boxed()
}

/// Waits until the control plane of the first master is what was placed there. Where nothing was replaced it is so at once; where it
/// was, the API server that has just answered may be the old one.
async fn settle(run: &Run, cluster: &Cluster) -> Result<()> {
    let seat = &run.site.seats[run.site.first_master()];
    if !seat.seen.joined {
        return Ok(());
    }
    let pods = effects::static_pods(&run.site, seat)?;
    let mut ticks = tokio::time::interval(AGAIN);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        ticks.tick().await;
        let mut waiting = Vec::new();
        for pod in &pods {
            let (namespace, name) = pod.shown(&seat.name);
            let api = Api::<Pod>::namespaced(cluster.client.clone(), &namespace);
            // While it is replaced the API server does not answer.
            let shown = tokio::time::timeout(ANSWER, api.get_opt(&name)).await;
            let shown = shown.unwrap_or(Ok(None)).unwrap_or_default();
            waiting.extend(unsettled(shown.as_ref(), pod.digest()).map(|why| format!("{name}: {why}")));
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::Timeout {
                what: format!("{}: that its control plane runs as it was placed", place(seat)),
                seconds: PATIENCE.as_secs(),
                last: waiting.join("; "),
            });
        }
    }
}

fn place(seat: &Seat) -> String {
    format!("{} ({})", seat.ip, seat.name)
}

/// Why a static pod is not yet the one that was placed and Ready.
pub(crate) fn unsettled(shown: Option<&Pod>, digest: &str) -> Option<String> {
    let Some(pod) = shown else {
        return Some("the API server does not show it".to_owned());
    };
    let notes = pod.metadata.annotations.as_ref();
    if notes.and_then(|notes| notes.get(effects::MANIFEST)).map(String::as_str) != Some(digest) {
        return Some("it still runs as it was before".to_owned());
    }
    verify::unready_because(pod)
}

/// Waits until the API server on a master is ready; says what the host says about it when it is not in time.
///
/// # Errors
/// When it is not ready within `patience`.
pub async fn wait_ready(session: &Session, patience: Duration) -> Result<()> {
    let ready = Condition::Http(HttpGet {
        url: format!("https://127.0.0.1:{}/readyz", paths::API_PORT),
        ca: Some(paths::CA_CERT.to_owned()),
        timeout_ms: 2_000,
        ..HttpGet::default()
    });
    let Err(error) = session.client.wait_for(ready, patience).await else {
        return Ok(());
    };
    let mut last = error.to_string();
    if let Ok(unit) = session.client.unit_status(paths::unit::AGENT, 8).await {
        last = format!(
            "{last}\n  {} is {} ({}); it says:",
            paths::unit::AGENT,
            unit.active,
            unit.sub
        );
        for line in unit.log {
            last = format!("{last}\n    {line}");
        }
    }
    Err(Error::Timeout {
        what: format!("{}: readiness of the API server", session.ip),
        seconds: patience.as_secs(),
        last,
    })
}

/// Who may join, and whose certificates are signed without asking. Names and groups are kubeadm's, so that its users find what
/// they know.
pub fn bindings() -> Vec<Value> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    const NODES: &str = "system:nodes";
    let role = |name: &str, group: &str, resource: &str, verb: &str| {
        json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [{"apiGroups": [group], "resources": [resource], "verbs": [verb]}],
        })
    };
    let binding = |name: &str, role: &str, group: &str| {
        json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}],
        })
    };
    let signing = |what: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{what}");
    let serving = "certificatesigningrequests/selfnodeserver";
    vec![
        binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", token::GROUP),
        binding(
            "kubeadm:node-autoapprove-bootstrap",
            &signing("nodeclient"),
            token::GROUP,
        ),
        binding(
            "kubeadm:node-autoapprove-certificate-rotation",
            &signing("selfnodeclient"),
            NODES,
        ),
        // A node's own serving certificate. Upstream leaves its approval to people; here whoever approves asks for this verb.
        role(&signing("selfnodeserver"), "certificates.k8s.io", serving, "create"),
        binding("installer:node-autoapprove-serving", &signing("selfnodeserver"), NODES),
        // A joining node looks whether its name is taken.
        role("kubeadm:get-nodes", "", "nodes", "get"),
        binding("kubeadm:get-nodes", "kubeadm:get-nodes", token::GROUP),
    ]
}

/// A new token to join with.
pub fn new_token() -> zeroize::Zeroizing<String> {
    token::generate()
}

/// Takes the token away again.
///
/// # Errors
/// When the server refuses; one that is gone already is none.
pub async fn forget_token(run: &Run) -> Result<()> {
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
        kube::Api::namespaced(run.cluster()?.client.clone(), "kube-system");
    let name = token::secret_name(&run.learned().token);
    match secrets.delete(&name, &kube::api::DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::api("taking the bootstrap token away")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_that_is_bound_is_the_servers_own_or_made_before() {
        let objects = bindings();
        let mut made: Vec<&str> = vec![
            "system:node-bootstrapper",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        ];
        for object in &objects {
            match object["roleRef"]["name"].as_str() {
                Some(role) => assert!(made.contains(&role), "{role}"),
                None => made.push(object["metadata"]["name"].as_str().unwrap()),
            }
        }
    }

    #[test]
    fn a_static_pod_is_settled_when_the_new_one_is_ready() {
        let pod = |digest: &str, ready: &str| -> Pod {
            let object = json!({
                "metadata": {"name": "etcd-m1", "annotations": {effects::MANIFEST: digest}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            serde_json::from_value(object).unwrap()
        };
        assert_eq!(unsettled(Some(&pod("new", "True")), "new"), None);
        assert!(unsettled(Some(&pod("new", "False")), "new").is_some());
        assert_eq!(
            unsettled(Some(&pod("old", "True")), "new").as_deref(),
            Some("it still runs as it was before")
        );
        assert!(unsettled(None, "new").is_some());
    }
}
