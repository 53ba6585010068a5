//! What the agent watches at the API server: its own pods, and the services that environments name. Each begins again
//! by itself after any error, quickly at first.

use crate::api_client::Api;
use crate::backoff::Doubling;
use crate::env::ServiceInfo;
use crate::manager::ApiEvent;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::watcher::{self, Event, watcher};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Pods of this node.
pub async fn pods(mut api: Api, node: String, sender: mpsc::Sender<ApiEvent>) {
    loop {
        let client = api.wait().await;
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let stream =
            kube::runtime::WatchStreamExt::backoff(watcher(kube::Api::<Pod>::all(client), config), Doubling::api());
        let mut stream = std::pin::pin!(stream);
        let mut listing: Vec<Pod> = vec![];
        loop {
            tokio::select! {
                () = api.changed() => break,
                event = stream.next() => {
                    let event = match event {
                        None => break,
                        Some(Err(e)) => {
                            tracing::debug!("watching pods: {e}");
                            continue;
                        }
                        Some(Ok(event)) => event,
                    };
                    let event = match event {
                        Event::Init => {
                            listing.clear();
                            continue;
                        }
                        Event::InitApply(pod) => {
                            listing.push(pod);
                            continue;
                        }
                        Event::InitDone => ApiEvent::All(std::mem::take(&mut listing)),
                        Event::Apply(pod) => ApiEvent::Apply(Box::new(pod)),
                        Event::Delete(pod) => ApiEvent::Delete(Box::new(pod)),
                    };
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// What environments need of a service; headless and external ones have no address.
fn info(s: &Service) -> Option<ServiceInfo> {
    let spec = s.spec.as_ref()?;
    let ip = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")?;
    Some(ServiceInfo {
        namespace: s.metadata.namespace.clone()?,
        name: s.metadata.name.clone()?,
        ip: ip.to_owned(),
        ports: spec
            .ports
            .iter()
            .flatten()
            .map(|p| {
                (
                    p.name.clone().unwrap_or_default(),
                    p.port,
                    p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                )
            })
            .collect(),
    })
}

type Key = (String, String);

fn key(s: &Service) -> Key {
    (
        s.metadata.namespace.clone().unwrap_or_default(),
        s.metadata.name.clone().unwrap_or_default(),
    )
}

/// Services of all namespaces, reduced to what environments need.
pub async fn services(mut api: Api, sender: watch::Sender<Option<Arc<Vec<ServiceInfo>>>>) {
    loop {
        let client = api.wait().await;
        let stream = watcher(kube::Api::<Service>::all(client), watcher::Config::default());
        let stream = kube::runtime::WatchStreamExt::backoff(stream, Doubling::api());
        let mut stream = std::pin::pin!(stream);
        let mut all: BTreeMap<Key, ServiceInfo> = BTreeMap::new();
        let mut listed = false;
        loop {
            tokio::select! {
                () = api.changed() => break,
                event = stream.next() => {
                    match event {
                        None => break,
                        Some(Err(e)) => {
                            tracing::debug!("watching services: {e}");
                            continue;
                        }
                        Some(Ok(Event::Init)) => {
                            all.clear();
                            listed = false;
                        }
                        Some(Ok(Event::InitApply(s) | Event::Apply(s))) => match info(&s) {
                            Some(i) => drop(all.insert(key(&s), i)),
                            None => drop(all.remove(&key(&s))),
                        },
                        Some(Ok(Event::Delete(s))) => drop(all.remove(&key(&s))),
                        Some(Ok(Event::InitDone)) => listed = true,
                    }
                    if listed {
                        sender.send_replace(Some(Arc::new(all.values().cloned().collect())));
                    }
                }
            }
        }
    }
}
