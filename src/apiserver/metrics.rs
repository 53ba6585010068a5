//! `/metrics`, under the names dashboards know.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::app::App;

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// API verb.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// HTTP status code.
    pub code: u16,
}

/// Labels of a duration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DurationLabels {
    /// API verb.
    pub verb: String,
    /// Plural.
    pub resource: String,
}

/// Labels of the things held in flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram>,
    /// Open watches.
    pub watches: Family<KindLabels, Gauge>,
    objects: Family<KindLabels, Gauge>,
    cached: Family<KindLabels, Gauge>,
}

const BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

impl Default for Metrics {
    fn default() -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let durations = Family::<DurationLabels, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let watches = Family::<KindLabels, Gauge>::default();
        let objects = Family::<KindLabels, Gauge>::default();
        let cached = Family::<KindLabels, Gauge>::default();
        let mut r = Registry::default();
        r.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            requests.clone(),
        );
        r.register(
            "apiserver_request_duration_seconds",
            "Time to answer, watches excluded",
            durations.clone(),
        );
        r.register("apiserver_longrunning_requests", "Open watches", watches.clone());
        r.register("apiserver_storage_objects", "Stored objects", objects.clone());
        r.register(
            "apiserver_watch_cache_bytes",
            "Bytes held by the watch cache",
            cached.clone(),
        );
        Self {
            registry: r,
            requests,
            durations,
            watches,
            objects,
            cached,
        }
    }
}

impl Metrics {
    /// Counts one answered request.
    pub fn answered(&self, labels: RequestLabels, took: Duration) {
        if labels.verb != "watch" {
            let key = DurationLabels {
                verb: labels.verb.clone(),
                resource: labels.resource.clone(),
            };
            self.durations.get_or_create(&key).observe(took.as_secs_f64());
        }
        self.requests.get_or_create(&labels).inc();
    }

    /// The page.
    ///
    /// # Errors
    /// If a label cannot be written.
    pub fn page(&self, app: &App) -> Result<String, std::fmt::Error> {
        for k in app.cache.all() {
            let labels = KindLabels {
                group: k.spec.group.clone(),
                resource: k.spec.plural.clone(),
            };
            self.objects.get_or_create(&labels).set(k.len() as i64);
            self.cached.get_or_create(&labels).set(k.bytes() as i64);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
