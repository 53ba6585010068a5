//! What admission may read: the watch caches.

use serde_json::Value;

use crate::admission::Lookup;
use crate::cache::Cache;

/// The caches as admission sees them.
pub struct CacheLookup<'a>(pub &'a Cache);

impl Lookup for CacheLookup<'_> {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        Some(self.0.kind(group, plural)?.get(namespace, name)?.value())
    }

    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        match self.0.kind(group, plural) {
            Some(k) => k.list(namespace, 0, |_| true).items.iter().map(|o| o.value()).collect(),
            None => Vec::new(),
        }
    }
}
