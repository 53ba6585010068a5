//! EndpointSlices for Services with a selector.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use component::patch::{Part, update};
use component::{ApiErrorExt, Change, Error, ObjectKey, Queue, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::context::{Context, known};
use crate::endpoint_facts as facts;
use crate::endpoint_facts::Port;
use crate::endpointslice_plan::{Group, plan, slice_ports};
use crate::meta::{controller_reference, is_deleting, name, namespace};
use crate::pods::{is_ready, node_name};

const WORKERS: usize = 4;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// How long a write may take to come back through the watch before the cache is believed again.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was written and not seen back yet: slice name → the version that must have been passed (nothing: must exist).
type Unseen = HashMap<String, (Option<String>, Instant)>;

struct Controller {
    ctx: Arc<Context>,
    queue: Arc<Queue<ObjectKey>>,
    unseen: Mutex<HashMap<ObjectKey, Unseen>>,
}

/// Starts the EndpointSlice controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("endpointslice");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        queue: Arc::clone(&queue),
        unseen: Mutex::default(),
    });
    let on = Arc::clone(&controller);
    ctx.caches
        .services
        .on_change(move |c| on.queue.add(ObjectKey::of(&**c.latest())));
    let on = Arc::clone(&controller);
    ctx.caches
        .pods
        .on_change(move |c| facts::touched(&on.ctx, c).into_iter().for_each(|k| on.queue.add(k)));
    let on = Arc::clone(&controller);
    ctx.caches.slices.on_change(move |c| {
        if let Some(key) = service_of(c.latest()) {
            on.queue.add(key);
        }
    });
    let on = Arc::clone(&controller);
    ctx.caches.nodes.on_change(move |c| on.node_changed(c));
    ctx.work(
        known!(ctx, services, pods, slices, nodes),
        queue,
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

/// The Service a slice of ours belongs to.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    (labels.get(MANAGED_BY)? == MANAGER).then_some(())?;
    Some(ObjectKey::new(namespace(&slice.metadata), labels.get(SERVICE_NAME)?))
}

impl Controller {
    /// Only the zone of a node shows in slices.
    fn node_changed(&self, change: Change<'_, Node>) {
        let Some(old) = change.old() else { return };
        if facts::zone(old) != facts::zone(change.latest()) {
            for service in self.ctx.caches.services.all() {
                self.queue.add(ObjectKey::of(&*service));
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let existing: Vec<Arc<EndpointSlice>> = self
            .ctx
            .caches
            .slices
            .list(&key.namespace)
            .into_iter()
            .filter(|s| service_of(s).as_ref() == Some(key))
            .collect();
        let api: Api<EndpointSlice> = Api::namespaced(self.ctx.client.clone(), &key.namespace);
        let service = self.ctx.caches.services.get_key(key).filter(|s| facts::is_managed(s));
        let Some(service) = service else {
            self.unseen().remove(key);
            // A deleted Service takes its slices along as their owner; one that lost its selector keeps nothing of ours.
            for slice in existing.iter().filter(|s| !is_deleting(&s.metadata)) {
                delete(&api, slice).await?;
            }
            return Ok(Requeue::Done);
        };
        if is_deleting(&service.metadata) {
            return Ok(Requeue::Done);
        }
        if let Some(wait) = self.behind(key, &existing) {
            return Ok(Requeue::After(wait));
        }
        let spec = service.spec.clone().unwrap_or_default();
        let living: Vec<_> = existing.into_iter().filter(|s| !is_deleting(&s.metadata)).collect();
        let plan = plan(&living, self.wanted(&service, &spec), &placeholders(&spec));
        for (group, endpoints) in plan.create {
            match api
                .create(&PostParams::default(), &new_slice(&service, &spec, &group, endpoints))
                .await
            {
                Ok(created) => self.expect(key, name(&created.metadata), None),
                Err(e) if e.is_namespace_terminating() => return Ok(Requeue::Done),
                Err(e) => return Err(e.into()),
            }
        }
        let kept = plan.keep.into_iter().map(|s| (s, None));
        for (slice, endpoints) in plan.update.into_iter().map(|(s, e)| (s, Some(e))).chain(kept) {
            let mut wanted = EndpointSlice {
                endpoints: endpoints.or_else(|| slice.endpoints.clone()),
                ..(*slice).clone()
            };
            wanted.metadata.labels = Some(labels(&service, &spec));
            if update(&api, &*slice, &wanted, Part::Main).await?.is_some() {
                self.expect(key, name(&slice.metadata), slice.metadata.resource_version.clone());
            }
        }
        for slice in &plan.delete {
            delete(&api, slice).await?;
        }
        Ok(Requeue::Done)
    }

    fn wanted(&self, service: &Service, spec: &ServiceSpec) -> BTreeMap<Group, Vec<Endpoint>> {
        let mut wanted: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
        for pod in facts::selected(&self.ctx, service) {
            let zone = node_name(&pod)
                .and_then(|n| self.ctx.caches.nodes.get("", n))
                .and_then(|n| facts::zone(&n));
            for family in facts::families(spec) {
                if let Some(address) = facts::address(&pod, family) {
                    let group = Group {
                        family,
                        ports: facts::ports(spec, &pod),
                    };
                    wanted
                        .entry(group)
                        .or_default()
                        .push(endpoint(service, spec, &pod, address, zone.clone()));
                }
            }
        }
        wanted
    }

    fn unseen(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, Unseen>> {
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, key: &ObjectKey, slice: &str, passed: Option<String>) {
        self.unseen()
            .entry(key.clone())
            .or_default()
            .insert(slice.to_owned(), (passed, Instant::now()));
    }

    /// How long to wait at most for the cache to show our own last writes; their events bring the key back earlier.
    fn behind(&self, key: &ObjectKey, existing: &[Arc<EndpointSlice>]) -> Option<Duration> {
        let mut all = self.unseen();
        let unseen = all.get_mut(key)?;
        unseen.retain(|slice, (passed, since)| {
            let current = existing.iter().find(|s| name(&s.metadata) == slice);
            let seen = match (current, passed) {
                (None, None) => false,
                (None, Some(_)) | (Some(_), None) => true,
                (Some(current), Some(passed)) => current.metadata.resource_version.as_ref() != Some(passed),
            };
            !seen && since.elapsed() < PATIENCE
        });
        if unseen.is_empty() {
            all.remove(key);
            return None;
        }
        Some(PATIENCE)
    }
}

async fn delete(api: &Api<EndpointSlice>, slice: &EndpointSlice) -> Result<(), Error> {
    match api.delete(name(&slice.metadata), &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn endpoint(service: &Service, spec: &ServiceSpec, pod: &Pod, address: &str, zone: Option<String>) -> Endpoint {
    let (serving, terminating) = (is_ready(pod), is_deleting(&pod.metadata));
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: facts::hostname(service, pod),
        node_name: node_name(pod).map(str::to_owned),
        target_ref: Some(facts::pod_reference(pod)),
        zone,
        ..Endpoint::default()
    }
}

/// The groups of the empty slices that a Service without endpoints has: its own port numbers.
fn placeholders(spec: &ServiceSpec) -> Vec<Group> {
    let placeholder = |family| Group {
        family,
        ports: Vec::<Port>::new(),
    };
    facts::families(spec).into_iter().map(placeholder).collect()
}

fn labels(service: &Service, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if facts::is_headless(spec) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn new_slice(service: &Service, spec: &ServiceSpec, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&service.metadata))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service, spec)),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: group.family.as_str().to_owned(),
        endpoints: Some(endpoints),
        ports: Some(slice_ports(group)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint_facts::tests::serving;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn conditions_follow_readiness_deletion_and_the_wish_to_publish_anyway() {
        for (is_ready, deleting, publish, expected) in [
            (true, false, false, (true, true, false)),
            (false, false, false, (false, false, false)),
            (true, true, false, (false, true, true)),
            (false, false, true, (true, false, false)),
            (true, true, true, (true, true, true)),
        ] {
            let mut pod = serving("a", "10.0.0.1", 80, is_ready);
            pod.metadata.deletion_timestamp = deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
            let spec = ServiceSpec {
                publish_not_ready_addresses: Some(publish),
                ..ServiceSpec::default()
            };
            let c = endpoint(&Service::default(), &spec, &pod, "10.0.0.1", None)
                .conditions
                .unwrap();
            assert_eq!((c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()), expected);
        }
    }
}
