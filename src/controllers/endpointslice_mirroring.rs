//! EndpointSlices for Services without a selector: copies of the Endpoints that somebody wrote for them, because proxies and
//! DNS read slices only.

use std::collections::BTreeMap;
use std::sync::Arc;

use component::events::Level;
use component::{Error, ObjectKey, Queue, Requeue};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use crate::context::{Context, known};
use crate::endpoint_facts::{Family, Port};
use crate::endpoints::is_election_record;
use crate::endpointslice_plan::{Group, plan};
use crate::endpointslice_writer::{MANAGED_BY, SERVICE_NAME, SliceWriter};
use crate::meta::{controller_reference, is_deleting, name};

const WORKERS: usize = 4;
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The most addresses that are copied of a subset, and so the most in a slice.
const FULL: usize = 1000;
/// Annotations that speak of the Endpoints object alone.
const NOT_COPIED: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];

struct Controller {
    ctx: Arc<Context>,
    queue: Arc<Queue<ObjectKey>>,
    writer: SliceWriter,
}

/// Starts the EndpointSlice mirroring controller.
pub(crate) fn start(ctx: &Arc<Context>) -> BoxFuture<'static, ()> {
    let queue = ctx.queue("endpointslice-mirroring");
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
        .endpoints
        .on_change(move |c| on.queue.add(ObjectKey::of(&**c.latest())));
    let on = Arc::clone(&controller);
    ctx.caches.slices.on_change(move |c| {
        if let Some(key) = on.writer.service_of(c.latest()) {
            on.queue.add(key);
        }
    });
    ctx.work(
        known!(ctx, services, endpoints, slices),
        queue,
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(&key).await },
    )
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let caches = &self.ctx.caches;
        let existing = self.writer.slices(&caches.slices, key);
        let service = caches.services.get_key(key).filter(|s| has_no_selector(s));
        let endpoints = caches.endpoints.get_key(key).filter(|e| is_mirrored(e));
        let (Some(_), Some(endpoints)) = (service, endpoints) else {
            return self.writer.delete_all(key, &existing).await;
        };
        if is_deleting(&endpoints.metadata) {
            return Ok(Requeue::Done);
        }
        if let Some(wait) = self.writer.behind(key, &existing) {
            return Ok(Requeue::After(wait));
        }
        let copy = copy(&endpoints);
        self.report(&endpoints, &copy);
        let living: Vec<_> = existing.into_iter().filter(|s| !is_deleting(&s.metadata)).collect();
        let plan = plan(&living, copy.wanted, &[], FULL);
        let owner = controller_reference(&*endpoints);
        self.writer
            .carry_out(key, &owner, plan, |slice| dress(slice, &endpoints))
            .await
    }

    /// Tells the owner of the Endpoints what is left out.
    fn report(&self, endpoints: &Endpoints, copy: &Copy) {
        let warn = |reason: &'static str, message: String| {
            self.ctx.events.event(endpoints, Level::Warning, reason, message);
        };
        if copy.invalid > 0 {
            let message = format!(
                "Skipped {} invalid IP addresses when mirroring to EndpointSlices",
                copy.invalid
            );
            warn("InvalidIPAddress", message);
        }
        if copy.surplus > 0 {
            let message = format!(
                "A max of {FULL} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                copy.surplus
            );
            warn("TooManyAddressesToMirror", message);
        }
    }
}

fn has_no_selector(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_none_or(BTreeMap::is_empty)
}

/// Whether Endpoints are meant to be copied.
fn is_mirrored(endpoints: &Endpoints) -> bool {
    let skips = endpoints.metadata.labels.as_ref().and_then(|l| l.get(SKIP));
    skips.is_none_or(|s| s != "true") && !is_election_record(endpoints)
}

/// What Endpoints are as slices.
#[derive(Debug, Default)]
struct Copy {
    wanted: BTreeMap<Group, Vec<Endpoint>>,
    /// Addresses that are none.
    invalid: usize,
    /// Addresses above the limit of a subset.
    surplus: usize,
}

fn copy(endpoints: &Endpoints) -> Copy {
    let mut copy = Copy::default();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        let mut taken = 0;
        for (address, is_ready) in ready.chain(unready) {
            let Some(family) = Family::of(&address.ip) else {
                copy.invalid += 1;
                continue;
            };
            if taken == FULL {
                copy.surplus += 1;
                continue;
            }
            taken += 1;
            let group = Group {
                family,
                ports: ports.clone(),
            };
            copy.wanted.entry(group).or_default().push(endpoint(address, is_ready));
        }
    }
    copy
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let mut ports: Vec<Port> = subset
        .ports
        .iter()
        .flatten()
        .map(|p| Port {
            name: p.name.clone().unwrap_or_default(),
            port: p.port,
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            app_protocol: p.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    ports
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(is_ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// Labels and annotations of a slice: those of the Endpoints, and whose it is.
fn dress(slice: &mut EndpointSlice, endpoints: &Endpoints) {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name(&endpoints.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    slice.metadata.labels = Some(labels);
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    slice.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::EndpointPort;

    fn address(ip: &str) -> EndpointAddress {
        EndpointAddress {
            ip: ip.into(),
            ..EndpointAddress::default()
        }
    }

    fn subset(ready: Vec<EndpointAddress>, unready: Vec<EndpointAddress>, port: i32) -> EndpointSubset {
        let port = EndpointPort {
            port,
            ..EndpointPort::default()
        };
        EndpointSubset {
            addresses: Some(ready),
            not_ready_addresses: Some(unready),
            ports: Some(vec![port]),
        }
    }

    fn endpoints(subsets: Vec<EndpointSubset>) -> Endpoints {
        let mut endpoints = Endpoints {
            subsets: Some(subsets),
            ..Endpoints::default()
        };
        endpoints.metadata.name = Some("db".into());
        endpoints
    }

    #[test]
    fn every_family_and_set_of_ports_has_slices_of_its_own() {
        let copy = copy(&endpoints(vec![
            subset(
                vec![address("192.0.2.1"), address("2001:db8::1")],
                vec![address("192.0.2.2")],
                80,
            ),
            subset(vec![address("192.0.2.3"), address("no address")], vec![], 81),
            subset(vec![address("192.0.2.4")], vec![], 80),
        ]));
        let seen: Vec<_> = copy
            .wanted
            .iter()
            .map(|(group, endpoints)| {
                let endpoints = endpoints.iter();
                let ready = |e: &Endpoint| e.conditions.as_ref().unwrap().ready.unwrap();
                let all: Vec<_> = endpoints.map(|e| (e.addresses[0].as_str(), ready(e))).collect();
                (group.family, group.ports[0].port, all)
            })
            .collect();
        assert_eq!(
            seen,
            [
                (
                    Family::V4,
                    80,
                    vec![("192.0.2.1", true), ("192.0.2.2", false), ("192.0.2.4", true)]
                ),
                (Family::V4, 81, vec![("192.0.2.3", true)]),
                (Family::V6, 80, vec![("2001:db8::1", true)]),
            ]
        );
        assert_eq!((copy.invalid, copy.surplus), (1, 0));
    }

    #[test]
    fn a_subset_above_the_limit_is_cut_and_told_of() {
        let many = (0..1002)
            .map(|i| address(&format!("10.0.{}.{}", i / 250, i % 250)))
            .collect();
        let copy = copy(&endpoints(vec![subset(many, vec![address("10.1.0.1")], 80)]));
        assert_eq!(copy.wanted.values().map(Vec::len).sum::<usize>(), FULL);
        assert_eq!(copy.surplus, 3);
    }

    #[test]
    fn election_records_and_what_asks_not_to_be_copied_are_left_out() {
        let mut mirrored = endpoints(vec![]);
        assert!(is_mirrored(&mirrored));
        mirrored.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&mirrored));
        mirrored.metadata.labels = None;
        let record = ("control-plane.alpha.kubernetes.io/leader".to_owned(), "{}".to_owned());
        mirrored.metadata.annotations = Some([record].into());
        assert!(!is_mirrored(&mirrored));
    }

    #[test]
    fn a_slice_has_the_labels_of_the_endpoints_and_most_annotations() {
        let mut endpoints = endpoints(vec![]);
        let text = |s: &str| s.to_owned();
        endpoints.metadata.labels = Some([(text("app"), text("db")), (text(MANAGED_BY), text("me"))].into());
        endpoints.metadata.annotations = Some([(text("note"), text("x")), (text(NOT_COPIED[1]), text("{}"))].into());
        let mut slice = EndpointSlice::default();
        dress(&mut slice, &endpoints);
        let labels = slice.metadata.labels.unwrap();
        assert_eq!((labels["app"].as_str(), labels[SERVICE_NAME].as_str()), ("db", "db"));
        assert_eq!(labels[MANAGED_BY], MANAGER);
        assert_eq!(slice.metadata.annotations.unwrap(), [(text("note"), text("x"))].into());
    }
}
