//! Events for people (`kubectl describe`). Sent in the background from a bounded queue: when it is full, or there is
//! no API server, events are dropped, never pods held up.

use crate::api_client::Api;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::HashMap;
use tokio::sync::mpsc;

/// The queue's sending side.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    node: String,
}

const QUEUE: usize = 256;

impl Events {
    /// A queue and the task that empties it.
    pub fn new(api: Api, node: &str) -> (Events, impl Future<Output = ()> + use<>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (
            Events {
                queue,
                node: node.to_owned(),
            },
            send_all(api, receiver),
        )
    }

    /// Something normal about a pod.
    pub fn normal(&self, pod: &Pod, container: Option<&str>, reason: &str, message: String) {
        self.put(pod, container, "Normal", reason, message);
    }

    /// Something that should not be.
    pub fn warning(&self, pod: &Pod, container: Option<&str>, reason: &str, message: String) {
        self.put(pod, container, "Warning", reason, message);
    }

    fn put(&self, pod: &Pod, container: Option<&str>, kind: &str, reason: &str, message: String) {
        let full = crate::names::full(pod);
        match kind {
            "Warning" => tracing::warn!(pod = full, container, reason, "{message}"),
            _ => tracing::info!(pod = full, container, reason, "{message}"),
        }
        let field = container.map(|c| {
            let init = crate::spec::init_containers(pod).any(|(_, i)| i.name == c);
            format!("spec.{}{{{c}}}", if init { "initContainers" } else { "containers" })
        });
        let uid = match crate::names::is_static(pod) {
            // The API knows a static pod by its mirror, whose identity clients look for.
            true => pod
                .metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(crate::names::CONFIG_HASH))
                .cloned(),
            false => pod.metadata.uid.clone(),
        };
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid,
            field_path: field,
            ..Default::default()
        };
        self.about(about, kind, reason, message);
    }

    fn about(&self, about: ObjectReference, kind: &str, reason: &str, message: String) {
        let now = Time(k8s_openapi::jiff::Timestamp::now());
        let mut message = message;
        if message.len() > 1024 {
            let mut at = 1021;
            while !message.is_char_boundary(at) {
                at -= 1;
            }
            message.truncate(at);
            message.push_str("...");
        }
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!(
                    "{}.{:x}",
                    about.name.as_deref().unwrap_or("node"),
                    crate::observed::now()
                )),
                namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".into())),
                ..Default::default()
            },
            involved_object: about,
            type_: Some(kind.into()),
            reason: Some(reason.into()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource {
                component: Some("kubelet".into()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node.clone()),
            ..Default::default()
        };
        let _ = self.queue.try_send(event);
    }
}

/// Identity of an event for counting repeats.
fn key(e: &Event) -> String {
    format!("{:?}/{:?}/{:?}", e.involved_object, e.reason, e.message)
}

async fn send_all(mut api: Api, mut queue: mpsc::Receiver<Event>) {
    const REMEMBERED: usize = 512;
    let mut seen: HashMap<String, (String, i32)> = HashMap::new();
    while let Some(event) = queue.recv().await {
        let client = api.wait().await;
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: kube::Api<Event> = kube::Api::namespaced(client, &namespace);
        let key = key(&event);
        if let Some((name, count)) = seen.get_mut(&key) {
            *count += 1;
            let patch = serde_json::json!({"count": count, "lastTimestamp": event.last_timestamp});
            if api
                .patch(name, &Default::default(), &kube::api::Patch::Merge(&patch))
                .await
                .is_ok()
            {
                continue;
            }
        }
        match api.create(&Default::default(), &event).await {
            Ok(_) => {
                if seen.len() >= REMEMBERED {
                    seen.clear();
                }
                seen.insert(key, (event.metadata.name.unwrap_or_default(), 1));
            }
            Err(e) => tracing::debug!("event not sent: {e}"),
        }
    }
}
