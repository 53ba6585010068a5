//! The numbers a component shows at `/metrics` (OpenMetrics text).

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type ByName = Vec<(&'static str, &'static str)>;

/// Counters of the work queues of a process, by queue name.
#[derive(Clone, Debug, Default)]
pub struct QueueMetrics {
    adds: Family<ByName, Counter>,
    retries: Family<ByName, Counter>,
}

impl QueueMetrics {
    pub(crate) fn added(&self, name: &'static str) {
        self.adds.get_or_create(&vec![("name", name)]).inc();
    }

    pub(crate) fn retried(&self, name: &'static str) {
        self.retries.get_or_create(&vec![("name", name)]).inc();
    }
}

/// All numbers of a process.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// Of the work queues.
    pub queues: QueueMetrics,
    leading: Gauge,
    resident: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let queues = QueueMetrics::default();
        let (leading, resident) = (Gauge::default(), Gauge::default());
        registry.register("workqueue_adds", "Keys added to a work queue", queues.adds.clone());
        registry.register(
            "workqueue_retries",
            "Keys that came back after a failure",
            queues.retries.clone(),
        );
        registry.register(
            "leader_election_master_status",
            "1 while this process leads",
            leading.clone(),
        );
        registry.register("process_resident_memory_bytes", "Resident memory", resident.clone());
        Self {
            registry: Arc::new(Mutex::new(registry)),
            queues,
            leading,
            resident,
        }
    }
}

impl Metrics {
    /// Lets a component register its own numbers.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        if let Some(bytes) = resident_bytes() {
            self.resident.set(bytes);
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// Resident memory of this process in bytes, from `/proc/self/statm`.
pub fn resident_bytes() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * i64::try_from(rustix::param::page_size()).ok()?)
}
