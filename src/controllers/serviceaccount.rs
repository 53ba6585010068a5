//! What every namespace has: the service account `default`, and the ConfigMap `kube-root-ca.crt` with the cluster's CA.

use std::sync::Arc;

use component::patch::{Part, update};
use component::{ApiErrorExt, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use crate::context::{Context, known};
use crate::meta::{is_deleting, name, namespace};

const WORKERS: usize = 4;
const DEFAULT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";

fn by_namespace(namespace: &Namespace) -> ObjectKey {
    ObjectKey::new("", name(&namespace.metadata))
}

fn living(ctx: &Context, key: &ObjectKey) -> bool {
    ctx.caches
        .namespaces
        .get_key(key)
        .is_some_and(|n| !is_deleting(&n.metadata))
}

/// The outcome of creating something that may exist already, in a namespace that may be going.
fn created<T>(result: Result<T, kube::Error>) -> Result<Requeue, Error> {
    match result {
        Ok(_) => Ok(Requeue::Done),
        Err(e) if e.is_already_exists() || e.is_namespace_terminating() || e.is_not_found() => Ok(Requeue::Done),
        Err(e) => Err(e.into()),
    }
}

/// Starts the service account controller.
pub(crate) fn accounts(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("serviceaccount");
    let add = Arc::clone(&queue);
    ctx.caches
        .namespaces
        .on_change(move |c| add.add(by_namespace(c.latest())));
    let add = Arc::clone(&queue);
    ctx.caches.service_accounts.on_change(move |c| {
        if c.is_deleted() && name(&c.latest().metadata) == DEFAULT {
            add.add(ObjectKey::new("", namespace(&c.latest().metadata)));
        }
    });
    ctx.work(
        known!(ctx, namespaces, service_accounts),
        queue,
        WORKERS,
        Arc::clone(ctx),
        |ctx, key| async move { ensure_account(&ctx, &key).await },
    )
}

async fn ensure_account(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    if !living(ctx, key) || ctx.caches.service_accounts.get(&key.name, DEFAULT).is_some() {
        return Ok(Requeue::Done);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT.into()),
            namespace: Some(key.name.clone()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(ctx.client.clone(), &key.name);
    created(api.create(&PostParams::default(), &account).await)
}

/// Starts the root CA publisher; it does nothing without `--root-ca-file`.
pub(crate) fn root_ca(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    if ctx.options.root_ca.is_none() {
        return Box::pin(async {});
    }
    let queue = ctx.queue("root-ca-cert-publisher");
    let add = Arc::clone(&queue);
    ctx.caches
        .namespaces
        .on_change(move |c| add.add(by_namespace(c.latest())));
    let add = Arc::clone(&queue);
    ctx.caches
        .root_cas
        .on_change(move |c| add.add(ObjectKey::new("", namespace(&c.latest().metadata))));
    ctx.work(
        known!(ctx, namespaces, root_cas),
        queue,
        WORKERS,
        Arc::clone(ctx),
        |ctx, key| async move { publish(&ctx, &key).await },
    )
}

fn root_ca_map(old: Option<&ConfigMap>, namespace: &str, ca: &str) -> ConfigMap {
    let mut map = old.cloned().unwrap_or_default();
    map.metadata.name = Some(ROOT_CA.into());
    map.metadata.namespace = Some(namespace.to_owned());
    let text = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
                internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
    map.metadata
        .annotations
        .get_or_insert_default()
        .entry(DESCRIPTION.into())
        .or_insert_with(|| text.into());
    map.data = Some([("ca.crt".to_owned(), ca.to_owned())].into());
    map
}

async fn publish(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    let Some(ca) = ctx.options.root_ca.as_deref().filter(|_| living(ctx, key)) else {
        return Ok(Requeue::Done);
    };
    let api: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &key.name);
    let Some(current) = ctx.caches.root_cas.get(&key.name, ROOT_CA) else {
        return created(
            api.create(&PostParams::default(), &root_ca_map(None, &key.name, ca))
                .await,
        );
    };
    match update(&api, &*current, &root_ca_map(Some(&current), &key.name, ca), Part::Main).await {
        Ok(_) => Ok(Requeue::Done),
        Err(Error::Api(e)) if e.is_not_found() || e.is_namespace_terminating() => Ok(Requeue::Done),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_root_ca_is_put_right_and_nothing_else_touched() {
        let mut old = root_ca_map(None, "ns", "A");
        old.metadata.labels = Some([("mine".to_owned(), "x".to_owned())].into());
        old.data = Some([("ca.crt".to_owned(), "tampered".to_owned())].into());
        let new = root_ca_map(Some(&old), "ns", "A");
        assert_eq!(new.data.unwrap().get("ca.crt").map(String::as_str), Some("A"));
        assert_eq!(new.metadata.labels, old.metadata.labels);
    }
}
