//! Endpoints (the older form) for Services with a selector; clients still read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use component::patch::{Part, update};
use component::{ApiErrorExt, Error, ObjectKey, Queue, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::context::{Context, known};
use crate::endpoint_facts as facts;
use crate::endpoint_facts::Port;
use crate::meta::{annotation, is_deleting, name};
use crate::pods::{is_ready, node_name};

const WORKERS: usize = 4;
/// The most addresses in one object.
const FULL: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

struct Controller {
    ctx: Arc<Context>,
    queue: Arc<Queue<ObjectKey>>,
}

/// Starts the Endpoints controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("endpoints");
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        queue: Arc::clone(&queue),
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
    ctx.caches.endpoints.on_change(move |c| {
        // Endpoints may come before their Service; only what the end of a Service leaves behind goes.
        let key = ObjectKey::of(&**c.latest());
        if on.ctx.caches.services.get_key(&key).is_some() {
            on.queue.add(key);
        }
    });
    let work = ctx.work(
        known!(ctx, services, pods, endpoints),
        queue,
        WORKERS,
        Arc::clone(&controller),
        |controller, key| async move { controller.reconcile(&key).await },
    );
    let known = known!(ctx, services, endpoints);
    let ctx = Arc::clone(ctx);
    Box::pin(async move {
        if ctx.synced(known).await {
            controller.queue_leftovers();
            work.await;
        }
    })
}

/// Whether Endpoints are the record of an election, which the oldest clients still keep there.
pub(crate) fn is_election_record(endpoints: &Endpoints) -> bool {
    annotation(&endpoints.metadata, "control-plane.alpha.kubernetes.io/leader").is_some()
}

impl Controller {
    /// Takes in the Endpoints whose Service has gone while nobody looked.
    fn queue_leftovers(&self) {
        for endpoints in self.ctx.caches.endpoints.all() {
            self.queue.add(ObjectKey::of(&*endpoints));
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let api: Api<Endpoints> = Api::namespaced(self.ctx.client.clone(), &key.namespace);
        let current = self.ctx.caches.endpoints.get_key(key);
        let Some(service) = self.ctx.caches.services.get_key(key) else {
            // Whoever wrote them, they go with the Service.
            if current.is_some_and(|e| !is_election_record(&e)) {
                match api.delete(&key.name, &DeleteParams::default()).await {
                    Ok(_) => {}
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e.into()),
                }
            }
            return Ok(Requeue::Done);
        };
        if !facts::is_managed(&service) || is_deleting(&service.metadata) {
            return Ok(Requeue::Done);
        }
        let wanted = build(&service, &facts::selected(&self.ctx, &service));
        let written = match current {
            None => api
                .create(&PostParams::default(), &wanted)
                .await
                .map(|_| ())
                .map_err(Error::from),
            Some(current) => {
                let mut next = Endpoints {
                    subsets: wanted.subsets,
                    ..(*current).clone()
                };
                next.metadata.labels = wanted.metadata.labels;
                let annotations = next.metadata.annotations.get_or_insert_default();
                annotations.remove(OVER_CAPACITY);
                annotations.extend(wanted.metadata.annotations.into_iter().flatten());
                if annotations.is_empty() {
                    next.metadata.annotations = None;
                }
                update(&api, &*current, &next, Part::Main).await.map(|_| ())
            }
        };
        match written {
            Err(Error::Api(e)) if e.is_namespace_terminating() => Ok(Requeue::Done),
            // It exists, the cache just does not know yet: its event brings the key back.
            Err(Error::Api(e)) if e.is_already_exists() => Ok(Requeue::Done),
            Err(e) => Err(e),
            Ok(()) => Ok(Requeue::Done),
        }
    }
}

fn labels(service: &Service, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    labels.remove(HEADLESS);
    if facts::is_headless(spec) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// The Endpoints of a Service with those pods: one subset per set of resolved ports.
fn build(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let spec = service.spec.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses == Some(true);
    let Some(family) = facts::families(&spec).first().copied() else {
        return Endpoints::default();
    };
    let mut groups: BTreeMap<Vec<Port>, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    let (mut used, mut cut) = (0, false);
    for pod in pods.iter().filter(|p| publish || !is_deleting(&p.metadata)) {
        let Some(ip) = facts::address(pod, family) else {
            continue;
        };
        if used == FULL {
            cut = true;
            break;
        }
        used += 1;
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: facts::hostname(service, pod),
            node_name: node_name(pod).map(str::to_owned),
            target_ref: Some(facts::pod_reference(pod)),
        };
        let not_ready = !(publish || is_ready(pod));
        groups.entry(facts::ports(&spec, pod)).or_default()[usize::from(not_ready)].push(address);
    }
    let subsets: Vec<EndpointSubset> = groups.into_iter().map(subset).collect();
    Endpoints {
        metadata: ObjectMeta {
            name: Some(name(&service.metadata).to_owned()),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service, &spec)),
            annotations: cut.then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn subset((ports, [mut ready, mut not_ready]): (Vec<Port>, [Vec<EndpointAddress>; 2])) -> EndpointSubset {
    ready.sort_by(|a, b| a.ip.cmp(&b.ip));
    not_ready.sort_by(|a, b| a.ip.cmp(&b.ip));
    let port = |p: Port| EndpointPort {
        name: (!p.name.is_empty()).then_some(p.name),
        port: p.port,
        protocol: Some(p.protocol),
        app_protocol: p.app_protocol,
    };
    let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
    EndpointSubset {
        addresses: (!ready.is_empty()).then_some(ready),
        not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
        ports: (!ports.is_empty()).then_some(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint_facts::tests::{service_port, serving};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    #[test]
    fn pods_with_other_ports_form_another_subset_and_unready_ones_are_set_apart() {
        let mut service = Service::default();
        service.metadata.name = Some("web".into());
        let port = service_port("http", 80, Some(IntOrString::String("http".into())));
        service.spec = Some(ServiceSpec {
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        });
        let pods: Vec<_> = [
            serving("a", "10.0.0.2", 8080, true),
            serving("b", "10.0.0.1", 8080, false),
            serving("c", "10.0.0.3", 9090, true),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let subsets = build(&service, &pods).subsets.unwrap();
        let ips = |a: &Option<Vec<EndpointAddress>>| a.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>();
        assert_eq!(subsets.len(), 2);
        assert_eq!(ips(&subsets[0].addresses), ["10.0.0.2"]);
        assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.0.0.1"]);
        assert_eq!(subsets[1].ports.as_ref().unwrap()[0].port, 9090);
        if let Some(spec) = &mut service.spec {
            spec.publish_not_ready_addresses = Some(true);
        }
        assert_eq!(
            ips(&build(&service, &pods).subsets.unwrap()[0].addresses),
            ["10.0.0.1", "10.0.0.2"]
        );
    }
}
