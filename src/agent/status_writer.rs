//! Writes one pod's status to the API server, and deletes the pod there at its end. For a static pod it first makes
//! sure that its mirror exists. Only the newest status is ever sent; nothing waits for the API server but the pod's end.

use crate::api_client::limited;
use crate::backoff::Doubling;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::names;
use crate::status;
use crate::worker::Desired;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, Preconditions};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Mirror pods that the API server has, by `namespace/name`.
pub type Mirrors = watch::Receiver<HashMap<String, Mirror>>;

/// A mirror pod as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Its UID.
    pub uid: String,
    /// The hash of the manifest it mirrors.
    pub hash: String,
    /// What it says about itself, see [`status::said`].
    pub said: Vec<(String, String)>,
}

/// The writer of one pod.
#[derive(Debug)]
pub struct Writer {
    ctx: Arc<Ctx>,
    pod: Arc<Pod>,
    queue: watch::Sender<Option<PodStatus>>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Starts the writer.
    pub fn spawn(ctx: Arc<Ctx>, desired: watch::Receiver<Desired>, mirrors: Mirrors) -> Writer {
        let pod = desired.borrow().pod.clone();
        let (queue, receiver) = watch::channel(None);
        let task = tokio::spawn(run(ctx.clone(), desired, receiver, mirrors));
        Writer { ctx, pod, queue, task }
    }

    /// Hands over the newest status.
    pub fn put(&self, status: PodStatus) {
        self.queue.send_replace(Some(status));
    }

    /// Whether any status was handed over.
    pub fn has_written(&self) -> bool {
        self.queue.borrow().is_some()
    }

    /// Writes the last status, then deletes the pod; tries until it is done or the API no longer has the pod.
    pub async fn finish(&self, last: PodStatus, mut desired: watch::Receiver<Desired>) {
        self.task.abort();
        let mut backoff = Doubling::api();
        let uid = names::uid(&self.pod).to_owned();
        let mut written = false;
        while !desired.borrow_and_update().gone {
            let result = async {
                let api = api(&self.ctx, &self.pod)?;
                if !written {
                    patch(&api, names::name(&self.pod), &uid, None, &last).await?;
                    written = true;
                }
                delete(&api, names::name(&self.pod), &uid).await
            };
            match limited(result).await {
                Ok(()) => return,
                Err(e) if matches!(e.api_code(), Some(404 | 409)) => return,
                Err(e) => tracing::debug!(pod = names::full(&self.pod), "deleting: {e}"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                changed = desired.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Deletes a static pod's mirror, if the API server can be reached.
    pub async fn remove_mirror(&self) {
        self.task.abort();
        let result = async {
            let api = api(&self.ctx, &self.pod)?;
            let Some(mirror) = api.get_opt(names::name(&self.pod)).await? else {
                return Ok(());
            };
            let own = mirror_hash_of(&self.pod);
            if names::mirror_hash(&mirror) == Some(own) {
                delete(&api, names::name(&self.pod), names::uid(&mirror)).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(e) = limited(result).await {
            tracing::debug!(pod = names::full(&self.pod), "deleting the mirror: {e}");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn mirror_hash_of(pod: &Pod) -> &str {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(names::CONFIG_HASH))
        .map(String::as_str)
        .unwrap_or_default()
}

fn api(ctx: &Ctx, pod: &Pod) -> Result<kube::Api<Pod>> {
    Ok(kube::Api::namespaced(ctx.api.client()?, names::namespace(pod)))
}

async fn patch(
    api: &kube::Api<Pod>,
    name: &str,
    uid: &str,
    before: Option<&PodStatus>,
    status: &PodStatus,
) -> Result<()> {
    let body = status::patch(uid, before, status);
    api.patch_status(name, &Default::default(), &Patch::Strategic(&body))
        .await?;
    Ok(())
}

/// Deletes at once, this very object only.
pub async fn delete(api: &kube::Api<Pod>, name: &str, uid: &str) -> Result<()> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..Default::default()
    };
    match api.delete(name, &params).await.map_err(Error::from) {
        Ok(_) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}

async fn run(
    ctx: Arc<Ctx>,
    mut desired: watch::Receiver<Desired>,
    mut queue: watch::Receiver<Option<PodStatus>>,
    mut mirrors: Mirrors,
) {
    let pod = desired.borrow().pod.clone();
    let is_static = names::is_static(&pod);
    let key = names::full(&pod);
    let mut sent: Option<PodStatus> = pod.status.clone();
    let mut sent_to: Option<String> = None;
    let mut backoff = Doubling::api();
    let mut api_handle = ctx.api.clone();
    loop {
        let status = queue.borrow_and_update().clone();
        let target = if is_static {
            mirrors.borrow_and_update().get(&key).cloned()
        } else {
            None
        };
        let moved = is_static && target.as_ref().map(|t| &t.uid) != sent_to.as_ref();
        // While nothing was heard of this node others may have declared the pod not ready: what we say holds. An event older than
        // our last write only makes us repeat ourselves, which changes nothing and makes no event.
        let said = match &target {
            Some(mirror) => mirror.said.clone(),
            None => status::said(desired.borrow_and_update().pod.status.as_ref()),
        };
        let contradicted = sent_to.is_some() && !said.is_empty() && said != status::said(sent.as_ref());
        let due = status.is_some() && (status != sent || moved || sent_to.is_none() || contradicted);
        let mut again = None;
        if let Some(status) = status.filter(|_| due) {
            api_handle.wait().await;
            match limited(write(&ctx, &pod, is_static, target, sent.as_ref(), &status)).await {
                Ok(uid) => {
                    sent = Some(status);
                    sent_to = Some(uid);
                    backoff.reset();
                }
                Err(e) if !is_static && matches!(e.api_code(), Some(404 | 409)) => {
                    tracing::debug!(pod = key, "the pod is gone from the API: {e}");
                    sent = Some(status);
                    sent_to = Some(String::new());
                }
                Err(e) => {
                    tracing::debug!(pod = key, "status: {e}");
                    again = Some(backoff.next());
                }
            }
        }
        let retry = async {
            match again {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = queue.changed() => if changed.is_err() { return },
            changed = mirrors.changed(), if is_static => if changed.is_err() { return },
            changed = desired.changed(), if !is_static => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

/// Writes a status; the UID of the object it went to.
async fn write(
    ctx: &Ctx,
    pod: &Pod,
    is_static: bool,
    mirror: Option<Mirror>,
    sent: Option<&PodStatus>,
    status: &PodStatus,
) -> Result<String> {
    let api = api(ctx, pod)?;
    let uid = if is_static {
        ensure_mirror(ctx, &api, pod, mirror).await?
    } else {
        names::uid(pod).to_owned()
    };
    patch(&api, names::name(pod), &uid, sent, status).await?;
    Ok(uid)
}

async fn ensure_mirror(ctx: &Ctx, api: &kube::Api<Pod>, pod: &Pod, known: Option<Mirror>) -> Result<String> {
    let hash = mirror_hash_of(pod);
    if let Some(mirror) = known.filter(|mirror| mirror.hash == hash) {
        return Ok(mirror.uid);
    }
    if let Some(found) = api.get_opt(names::name(pod)).await? {
        let uid = names::uid(&found).to_owned();
        match names::mirror_hash(&found) {
            Some(h) if h == hash && found.metadata.deletion_timestamp.is_none() => return Ok(uid),
            Some(_) => delete(api, names::name(pod), &uid).await?,
            None => {
                return Err(Error::Other(format!(
                    "{} exists and is no mirror pod",
                    names::full(pod)
                )));
            }
        }
    }
    let mut mirror = pod.clone();
    mirror.status = None;
    mirror.metadata.uid = None;
    let notes = mirror.metadata.annotations.get_or_insert_default();
    notes.insert(names::CONFIG_MIRROR.into(), hash.to_owned());
    // Owned by the Node, so that it goes when the Node goes.
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(ctx.api.client()?);
    let node = nodes.get(&ctx.node_name).await?;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: ctx.node_name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    let made = api.create(&Default::default(), &mirror).await?;
    Ok(names::uid(&made).to_owned())
}
