//! Namespaces that are being deleted: delete everything in them, then let them go.
//!
//! Pods go first, so that nothing else is pulled from under them. What remains is said in the namespace's conditions.

use std::sync::Arc;
use std::time::Duration;

use component::patch::{Part, update};
use component::{ApiErrorExt, Error, ObjectKey, Requeue, plain};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use serde_json::json;

use crate::context::{Context, known};
use crate::discover::{Kind, kinds};
use crate::meta::is_deleting;

const WORKERS: usize = 4;
/// How many kinds are emptied at once.
const AT_ONCE: usize = 8;
/// How soon to look again: at first quickly, then slower.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(5);

/// What is left of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rest {
    kind: String,
    count: usize,
    finalizers: Vec<String>,
}

/// What one pass found.
#[derive(Debug, Default)]
struct Findings {
    discovery: Option<String>,
    failures: Vec<String>,
    rest: Vec<Rest>,
}

struct Controller {
    ctx: Arc<Context>,
}

/// Starts the namespace controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("namespace");
    let controller = Arc::new(Controller { ctx: Arc::clone(ctx) });
    let add = Arc::clone(&queue);
    ctx.caches.namespaces.on_change(move |c| {
        if !c.is_deleted() && is_deleting(&c.latest().metadata) {
            add.add(ObjectKey::of(&**c.latest()));
        }
    });
    ctx.work(
        known!(ctx, namespaces),
        queue,
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(namespace) = self.ctx.caches.namespaces.get("", &key.name) else {
            return Ok(Requeue::Done);
        };
        let Some(begun) = namespace.metadata.deletion_timestamp.as_ref().map(|t| t.0) else {
            return Ok(Requeue::Done);
        };
        let ours = |f: &String| f == "kubernetes";
        if !namespace
            .spec
            .iter()
            .flat_map(|s| s.finalizers.iter().flatten())
            .any(ours)
        {
            return Ok(Requeue::Done);
        }
        let findings = self.empty(&key.name).await;
        let done = findings.discovery.is_none() && findings.failures.is_empty() && findings.rest.is_empty();
        let now = Timestamp::now();
        let mut wanted = (*namespace).clone();
        let status = wanted.status.get_or_insert_default();
        status.conditions = Some(conditions(status.conditions.take().unwrap_or_default(), &findings, now));
        let api: Api<Namespace> = Api::all(self.ctx.client.clone());
        if done {
            return self.finalize(&api, &namespace).await;
        }
        if let Err(e) = update(&api, &*namespace, &wanted, Part::Status).await
            && !matches!(&e, Error::Api(e) if e.is_not_found())
        {
            return Err(e);
        }
        // Ever slower the longer it takes: a tenth of the time it has taken so far.
        let taken = crate::meta::since(begun, now);
        Ok(Requeue::After((taken / 10).clamp(FIRST_LOOK, LAST_LOOK)))
    }

    async fn finalize(&self, api: &Api<Namespace>, namespace: &Namespace) -> Result<Requeue, Error> {
        let name = crate::meta::name(&namespace.metadata);
        let finalizers: Vec<&String> = namespace
            .spec
            .iter()
            .flat_map(|s| s.finalizers.iter().flatten())
            .filter(|f| *f != "kubernetes")
            .collect();
        let body = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "uid": namespace.metadata.uid, "resourceVersion": namespace.metadata.resource_version},
            "spec": {"finalizers": finalizers},
        });
        match api
            .replace_subresource("finalize", name, &Default::default(), &body)
            .await
        {
            Ok(_) => Ok(Requeue::Done),
            Err(e) if e.is_not_found() => Ok(Requeue::Done),
            Err(e) => Err(e.into()),
        }
    }

    async fn empty(&self, namespace: &str) -> Findings {
        let mut findings = Findings::default();
        let found = match kinds(&self.ctx.client).await {
            Ok(found) => found,
            Err(e) => {
                findings.discovery = Some(e.to_string());
                return findings;
            }
        };
        let deletable = found
            .into_iter()
            .filter(|k| k.namespaced && k.can("delete") && k.can("list"));
        let (pods, others): (Vec<_>, Vec<_>) =
            deletable.partition(|k| k.resource.kind == "Pod" && k.resource.group.is_empty());
        self.empty_kinds(namespace, pods, &mut findings).await;
        if findings.rest.is_empty() && findings.failures.is_empty() {
            self.empty_kinds(namespace, others, &mut findings).await;
        }
        findings
    }

    async fn empty_kinds(&self, namespace: &str, kinds: Vec<Kind>, findings: &mut Findings) {
        let results: Vec<_> = stream::iter(kinds)
            .map(|kind| {
                let client = self.ctx.client.clone();
                async move { (empty_kind(client, namespace, &kind).await, kind) }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (result, kind) in results {
            match result {
                Ok(None) => {}
                Ok(Some(rest)) => findings.rest.push(rest),
                Err(e) => findings.failures.push(format!("{}: {}", plural(&kind), plain(&e))),
            }
        }
        findings.rest.sort_by(|a, b| a.kind.cmp(&b.kind));
        findings.failures.sort();
    }
}

fn plural(kind: &Kind) -> String {
    let resource = &kind.resource;
    if resource.group.is_empty() {
        format!("{}.", resource.plural)
    } else {
        format!("{}.{}", resource.plural, resource.group)
    }
}

async fn empty_kind(client: Client, namespace: &str, kind: &Kind) -> Result<Option<Rest>, kube::Error> {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::namespaced_with(client, namespace, &kind.resource);
    let gone = |e: &kube::Error| e.is_not_found() || e.is_method_not_allowed();
    let list = match api.list(&ListParams::default().limit(500)).await {
        Ok(list) => list,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    if list.items.is_empty() {
        return Ok(None);
    }
    if list.items.iter().any(|o| !is_deleting(&o.metadata)) {
        let params = DeleteParams::background();
        let collected = if kind.can("deletecollection") {
            api.delete_collection(&params, &ListParams::default())
                .await
                .map(|_| true)
        } else {
            Ok(false)
        };
        match collected {
            Ok(true) => {}
            Ok(false) => delete_each(&api, &list.items, &params).await?,
            Err(e) if gone(&e) => delete_each(&api, &list.items, &params).await?,
            Err(e) => return Err(e),
        }
    }
    let left = api.list(&ListParams::default().limit(500)).await?;
    if left.items.is_empty() {
        return Ok(None);
    }
    let count = left.items.len() + usize::try_from(left.metadata.remaining_item_count.unwrap_or(0)).unwrap_or(0);
    let mut finalizers: Vec<String> = left
        .items
        .iter()
        .flat_map(|o| o.metadata.finalizers.clone().unwrap_or_default())
        .collect();
    finalizers.sort();
    finalizers.dedup();
    Ok(Some(Rest {
        kind: plural(kind),
        count,
        finalizers,
    }))
}

async fn delete_each(
    api: &Api<PartialObjectMeta<DynamicObject>>,
    objects: &[PartialObjectMeta<DynamicObject>],
    params: &DeleteParams,
) -> Result<(), kube::Error> {
    for object in objects {
        match api.delete(crate::meta::name(&object.metadata), params).await {
            Ok(_) => {}
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The conditions that say what stands in the way; those that say the same keep their time.
fn conditions(old: Vec<NamespaceCondition>, findings: &Findings, now: Timestamp) -> Vec<NamespaceCondition> {
    let remaining: Vec<String> = findings
        .rest
        .iter()
        .map(|r| format!("{} has {} resource instances", r.kind, r.count))
        .collect();
    let held: Vec<String> = findings
        .rest
        .iter()
        .flat_map(|r| {
            r.finalizers
                .iter()
                .map(move |f| format!("{f} in {} resource instances", r.count))
        })
        .collect();
    let said = [
        (
            "NamespaceDeletionDiscoveryFailure",
            findings
                .discovery
                .iter()
                .map(|e| format!("Discovery failed for some groups: {e}"))
                .collect::<Vec<_>>(),
            (
                "DiscoveryFailed",
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            "",
        ),
        (
            "NamespaceDeletionContentFailure",
            findings.failures.clone(),
            (
                "ContentDeletionFailed",
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            "Failed to delete all resource types: ",
        ),
        (
            "NamespaceContentRemaining",
            remaining,
            (
                "SomeResourcesRemain",
                "ContentRemoved",
                "All content successfully removed",
            ),
            "Some resources are remaining: ",
        ),
        (
            "NamespaceFinalizersRemaining",
            held,
            (
                "SomeFinalizersRemain",
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
            "Some content in the namespace has finalizers remaining: ",
        ),
    ];
    let condition = |(kind, troubles, (bad, good, fine), prefix): (&str, Vec<String>, (&str, &str, &str), &str)| {
        let trouble = !troubles.is_empty();
        let status = if trouble { "True" } else { "False" };
        let since = old
            .iter()
            .find(|c| c.type_ == kind && c.status == status)
            .and_then(|c| c.last_transition_time.clone());
        NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(if trouble { bad } else { good }.into()),
            message: Some(if trouble {
                format!("{prefix}{}", troubles.join(", "))
            } else {
                fine.into()
            }),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        }
    };
    said.into_iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_said_and_keeps_its_time() {
        let findings = Findings {
            rest: vec![Rest {
                kind: "pods.".into(),
                count: 2,
                finalizers: vec!["x/y".into()],
            }],
            ..Findings::default()
        };
        let first = conditions(Vec::new(), &findings, Timestamp::UNIX_EPOCH);
        let texts: Vec<_> = first
            .iter()
            .map(|c| (c.status.as_str(), c.message.as_deref().unwrap()))
            .collect();
        assert_eq!(
            texts[2],
            ("True", "Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(
            texts[3],
            (
                "True",
                "Some content in the namespace has finalizers remaining: x/y in 2 resource instances"
            )
        );
        assert_eq!(texts[0].0, "False");
        let again = conditions(first.clone(), &findings, Timestamp::from_second(9).unwrap());
        assert_eq!(first, again);
    }
}
