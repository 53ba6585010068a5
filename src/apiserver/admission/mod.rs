//! Admission: what may be changed about a request, or forbidden, after it was authorised and before it is validated and stored.
//!
//! Steps run in Kubernetes' order and are plain functions over the object and a few look-ups; none of them writes anything.

mod defaults;
mod namespace;
mod priority;
pub mod service;
mod service_account;

use crate::error::Result;
use serde_json::Value;

/// What is asked of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object.
    Update,
    /// An object's end.
    Delete,
}

/// What a step may know about the request.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// What is asked.
    pub operation: Operation,
    /// API group, empty for the legacy one.
    pub group: &'a str,
    /// Plural name of the resource.
    pub plural: &'a str,
    /// Subresource, empty for the object itself.
    pub subresource: &'a str,
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Name, empty while it is not yet generated.
    pub name: &'a str,
}

impl Attributes<'_> {
    fn creates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Create && self.is_about(group, plural)
    }

    fn updates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Update && self.is_about(group, plural)
    }

    fn is_about(&self, group: &str, plural: &str) -> bool {
        self.subresource.is_empty() && self.group == group && self.plural == plural
    }
}

/// Reads that steps need, answered from the watch caches.
pub trait Lookup {
    /// An object; the namespace is empty for cluster-scoped kinds.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a kind in a namespace; the empty one means all of them.
    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value>;
}

/// Runs every step on a request. `object` is what shall be stored, `Null` for deletions.
///
/// # Errors
/// The refusal of the first step that refuses.
pub fn admit(lookup: &dyn Lookup, attributes: &Attributes<'_>, object: &mut Value) -> Result<()> {
    namespace::lifecycle(lookup, attributes)?;
    if attributes.creates("", "pods") {
        service_account::admit(lookup, attributes, object)?;
        priority::pod(lookup, attributes, object)?;
        defaults::tolerations(object);
        defaults::runtime_class(lookup, attributes, object)?;
    }
    if attributes.updates("", "pods") {
        // Whoever sends a list of tolerations of his own does not know those that were added when the pod was made.
        defaults::tolerations(object);
    }
    if attributes.creates("scheduling.k8s.io", "priorityclasses") {
        priority::class(lookup, object)?;
    }
    if attributes.creates("", "nodes") {
        defaults::node_taints(object);
    }
    Ok(())
}

/// A field that is an array, made if it is not there, and its parent too.
fn array<'a>(parent: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    if parent.is_null() {
        *parent = Value::Object(serde_json::Map::new());
    }
    let slot = parent.as_object_mut()?.entry(field).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Objects by `plural/namespace/name`.
    #[derive(Default)]
    pub(super) struct Fixed(pub(super) BTreeMap<String, Value>);

    impl Fixed {
        pub(super) fn with(mut self, key: &str, value: Value) -> Self {
            self.0.insert(key.to_owned(), value);
            self
        }
    }

    impl Lookup for Fixed {
        fn get(&self, _: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
            self.0.get(&format!("{plural}/{namespace}/{name}")).cloned()
        }
        fn list(&self, _: &str, plural: &str, namespace: &str) -> Vec<Value> {
            let prefix = if namespace.is_empty() {
                format!("{plural}/")
            } else {
                format!("{plural}/{namespace}/")
            };
            self.0
                .iter()
                .filter(|(k, _)| k.starts_with(&prefix))
                .map(|(_, v)| v.clone())
                .collect()
        }
    }

    pub(super) fn create<'a>(plural: &'a str, namespace: &'a str) -> Attributes<'a> {
        Attributes {
            operation: Operation::Create,
            group: "",
            plural,
            subresource: "",
            namespace,
            name: "x",
        }
    }

    #[test]
    fn only_creation_of_the_object_itself_is_changed() {
        let mut pod = serde_json::json!({"metadata": {}, "spec": {}});
        let before = pod.clone();
        let binding = Attributes {
            subresource: "binding",
            ..create("pods", "default")
        };
        let lookup = Fixed::default().with(
            "namespaces//default",
            serde_json::json!({"status": {"phase": "Active"}}),
        );
        admit(&lookup, &binding, &mut pod).unwrap();
        assert_eq!(pod, before);
    }
}
