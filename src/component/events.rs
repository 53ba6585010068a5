//! Events for people (`kubectl describe`, `kubectl get events`): core/v1, counted instead of repeated, bounded in
//! number and in rate. An event that cannot be written is dropped: nothing may ever wait for one.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::ApiErrorExt;

const WAITING: usize = 1024;
const REMEMBERED: usize = 1024;
/// Of one object and reporter: so many at once, then one every five minutes.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `Normal`.
    Normal,
    /// `Warning`.
    Warning,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Normal => "Normal",
            Level::Warning => "Warning",
        }
    }
}

struct Note {
    component: &'static str,
    about: ObjectReference,
    level: Level,
    reason: &'static str,
    message: String,
}

/// Where events are handed in; clone freely.
#[derive(Clone, Debug)]
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Note>,
}

impl Recorder {
    /// A recorder, and the task that writes what it is given until `stop`.
    pub fn new(
        client: Client,
        component: &'static str,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { component, sender }, write_all(client, receiver, stop))
    }

    /// The same recorder speaking for another component (`replicaset-controller`, …).
    pub fn named(&self, component: &'static str) -> Self {
        Self {
            component,
            sender: self.sender.clone(),
        }
    }

    /// Says something about `object`.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        level: Level,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.about(reference(object), level, reason, message);
    }

    /// Says something about what `about` names.
    pub fn about(&self, about: ObjectReference, level: Level, reason: &'static str, message: impl Into<String>) {
        let note = Note {
            component: self.component,
            about,
            level,
            reason,
            message: message.into(),
        };
        if self.sender.try_send(note).is_err() {
            debug!(reason, "too many events waiting; dropped");
        }
    }
}

/// A reference to `object`.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

type Sameness = (&'static str, String, &'static str, &'static str, String);

/// What was written lately, to count instead of repeat, and how much each object has said.
#[derive(Default)]
struct Memory {
    known: HashMap<Sameness, (String, String, i32)>,
    order: VecDeque<Sameness>,
    allowance: HashMap<(&'static str, String), (f64, Instant)>,
}

impl Memory {
    fn allow(&mut self, note: &Note, now: Instant) -> bool {
        if self.allowance.len() >= REMEMBERED {
            // Whoever has a full allowance again is as good as unknown.
            self.allowance.retain(|_, (left, at)| refilled(*left, *at, now) < BURST);
            if self.allowance.len() >= REMEMBERED {
                self.allowance.clear();
            }
        }
        let (left, at) = self
            .allowance
            .entry((note.component, subject(&note.about)))
            .or_insert((BURST, now));
        *left = refilled(*left, *at, now);
        *at = now;
        let allowed = *left >= 1.0;
        if allowed {
            *left -= 1.0;
        }
        allowed
    }

    fn remember(&mut self, key: Sameness, value: (String, String, i32)) {
        if self.known.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    fn forget(&mut self, key: &Sameness) {
        self.known.remove(key);
        self.order.retain(|k| k != key);
    }
}

fn refilled(left: f64, at: Instant, now: Instant) -> f64 {
    (left + now.duration_since(at).as_secs_f64() / REFILL.as_secs_f64()).min(BURST)
}

fn subject(about: &ObjectReference) -> String {
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    format!(
        "{}/{}/{}/{}",
        part(&about.kind),
        part(&about.namespace),
        part(&about.name),
        part(&about.uid)
    )
}

async fn write_all(client: Client, mut receiver: mpsc::Receiver<Note>, stop: CancellationToken) {
    let mut memory = Memory::default();
    loop {
        let note = tokio::select! {
            () = stop.cancelled() => return,
            note = receiver.recv() => match note {
                Some(note) => note,
                None => return,
            },
        };
        if memory.allow(&note, Instant::now()) {
            let written = tokio::time::timeout(Duration::from_secs(5), write(&client, &mut memory, note)).await;
            if let Ok(Err(error)) = written {
                debug!(%error, "event not written");
            }
        }
    }
}

async fn write(client: &Client, memory: &mut Memory, note: Note) -> Result<(), kube::Error> {
    let key: Sameness = (
        note.component,
        subject(&note.about),
        note.level.as_str(),
        note.reason,
        note.message.clone(),
    );
    let now = Timestamp::now();
    if let Some((namespace, name, count)) = memory.known.get(&key).cloned() {
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let patch = json!({"count": count + 1, "lastTimestamp": Time(now)});
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                memory.remember(key, (namespace, name, count + 1));
                return Ok(());
            }
            Err(e) if e.is_not_found() => memory.forget(&key),
            Err(e) => return Err(e),
        }
    }
    let event = new_event(note, now);
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let name = event.metadata.name.clone().unwrap_or_default();
    Api::<Event>::namespaced(client.clone(), &namespace)
        .create(&PostParams::default(), &event)
        .await?;
    memory.remember(key, (namespace, name, 1));
    Ok(())
}

fn new_event(note: Note, now: Timestamp) -> Event {
    let namespace = note
        .about
        .namespace
        .clone()
        .filter(|n| !n.is_empty())
        .unwrap_or_else(|| "default".to_owned());
    let name = format!(
        "{}.{:x}",
        note.about.name.as_deref().unwrap_or("unknown"),
        now.as_nanosecond()
    );
    let mut event = Event {
        involved_object: note.about,
        type_: Some(note.level.as_str().to_owned()),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.chars().take(1024).collect()),
        source: Some(EventSource {
            component: Some(note.component.to_owned()),
            host: None,
        }),
        reporting_component: Some(note.component.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    event.metadata.namespace = Some(namespace);
    event.metadata.name = Some(name);
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_says_too_much_is_held_back_and_recovers_slowly() {
        let mut memory = Memory::default();
        let note = Note {
            component: "c",
            about: ObjectReference::default(),
            level: Level::Normal,
            reason: "R",
            message: String::new(),
        };
        let start = Instant::now();
        assert_eq!((0..100).filter(|_| memory.allow(&note, start)).count(), 25);
        assert!(memory.allow(&note, start + REFILL));
        assert!(!memory.allow(&note, start + REFILL));
    }
}
