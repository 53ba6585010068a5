//! Aggregated ClusterRoles: writes the rules of the roles they select into them. Only what is written there counts for the
//! authorizer, so rules that somebody puts into such a role by hand are overwritten.

use std::sync::Arc;

use component::{ApiErrorExt, Error, ObjectKey, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::context::{Context, known};

const WORKERS: usize = 2;
/// The field manager of the written rules, and the name of the controller.
const MANAGER: &str = "clusterrole-aggregation-controller";

/// Starts the controller: any change of a ClusterRole may concern every aggregated one.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue(MANAGER);
    let (add, roles) = (Arc::clone(&queue), Arc::clone(&ctx.caches.cluster_roles));
    ctx.caches.cluster_roles.on_change(move |_| {
        for role in roles.all().iter().filter(|r| r.aggregation_rule.is_some()) {
            add.add(ObjectKey::of(&**role));
        }
    });
    ctx.work(
        known!(ctx, cluster_roles),
        queue,
        WORKERS,
        Arc::clone(ctx),
        |ctx, key| async move { reconcile(&ctx, &key).await },
    )
}

async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Requeue, Error> {
    let Some(role) = ctx.caches.cluster_roles.get_key(key) else {
        return Ok(Requeue::Done);
    };
    let role = serde_json::to_value(&*role)?;
    let all = ctx.caches.cluster_roles.all();
    let all: Vec<Value> = all
        .iter()
        .map(|r| serde_json::to_value(&**r))
        .collect::<Result<_, _>>()?;
    let wanted = api::rbac::aggregated_rules(&role, &all)
        .map_err(|e| Error::Invalid(format!("the aggregationRule of ClusterRole {:?}: {e}", key.name)))?;
    let Some(wanted) = wanted.filter(|w| api::rbac::rules(&role) != w.as_slice()) else {
        return Ok(Requeue::Done);
    };
    // The resource version keeps rules of a stale cache from being written over an aggregationRule that is gone by now.
    let configuration = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": key.name, "resourceVersion": role["metadata"]["resourceVersion"]},
        "rules": wanted,
    });
    let api: Api<ClusterRole> = Api::all(ctx.client.clone());
    let params = PatchParams::apply(MANAGER).force();
    match api.patch(&key.name, &params, &Patch::Apply(configuration)).await {
        Ok(_) => Ok(Requeue::Done),
        Err(e) if e.is_not_found() => Ok(Requeue::Done),
        Err(e) => Err(e.into()),
    }
}
