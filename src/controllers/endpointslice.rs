//! EndpointSlices for Services with a selector.

use std::collections::BTreeMap;
use std::sync::Arc;

use component::{Change, Error, ObjectKey, Queue, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use crate::context::{Context, known};
use crate::endpoint_facts as facts;
use crate::endpoint_facts::Port;
use crate::endpointslice_plan::{FULL, Group, plan};
use crate::endpointslice_writer::{MANAGED_BY, SERVICE_NAME, SliceWriter};
use crate::meta::{controller_reference, is_deleting, name};
use crate::pods::{is_ready, node_name};

const WORKERS: usize = 4;
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
struct Controller {
    ctx: Arc<Context>,
    queue: Arc<Queue<ObjectKey>>,
    writer: SliceWriter,
}

/// Starts the EndpointSlice controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("endpointslice");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        queue: Arc::clone(&queue),
        writer: SliceWriter::new(ctx.client.clone(), MANAGER),
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
        if let Some(key) = on.writer.service_of(c.latest()) {
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
        let existing = self.writer.slices(&self.ctx.caches.slices, key);
        let service = self.ctx.caches.services.get_key(key).filter(|s| facts::is_managed(s));
        let Some(service) = service else {
            // A deleted Service takes its slices along as their owner; one that lost its selector keeps nothing of ours.
            return self.writer.delete_all(key, &existing).await;
        };
        if is_deleting(&service.metadata) {
            return Ok(Requeue::Done);
        }
        if let Some(wait) = self.writer.behind(key, &existing) {
            return Ok(Requeue::After(wait));
        }
        let spec = service.spec.clone().unwrap_or_default();
        let living: Vec<_> = existing.into_iter().filter(|s| !is_deleting(&s.metadata)).collect();
        let plan = plan(&living, self.wanted(&service, &spec), &placeholders(&spec), FULL);
        let dress = |slice: &mut EndpointSlice| {
            slice.metadata.labels = Some(labels(&service, &spec));
        };
        let owner = controller_reference(&*service);
        self.writer.carry_out(key, &owner, plan, dress).await
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
