//! Which objects of a kind a list or watch is about: namespace, label and field selectors, evaluated on what the cache
//! keeps parsed.

use api::Kind;
use api::selector::{FieldSelector, LabelSelector, selectable_fields};

use crate::cache::{Object, Spec};
use crate::error::{ApiError, Result};
use crate::request::Query;

/// The cache's description of a stored kind.
pub fn spec(kind: &Kind) -> Spec {
    let fields = selectable_fields(kind.storage_group, kind.plural)
        .iter()
        .map(|f| stored_path(f))
        .filter(|f| !matches!(*f, "metadata.name" | "metadata.namespace"))
        .collect();
    Spec {
        group: kind.storage_group.to_owned(),
        plural: kind.plural.to_owned(),
        fields,
    }
}

/// A compiled selection.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Namespace; empty for all.
    pub namespace: String,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Paths of the cached field values.
    paths: Vec<&'static str>,
}

impl Selection {
    /// Reads the selectors of a request.
    ///
    /// # Errors
    /// 400 for malformed selectors and unsupported fields.
    pub fn parse(kind: &Kind, paths: &[&'static str], namespace: &str, query: &Query) -> Result<Self> {
        let bad = |e: api::selector::SelectorError| ApiError::bad_request(format!("unable to parse requirement: {e}"));
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let fields = FieldSelector::parse(
            query.get("fieldSelector").unwrap_or_default(),
            selectable_fields(kind.group, kind.plural),
        )
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
        Ok(Self {
            namespace: namespace.to_owned(),
            labels,
            fields,
            paths: paths.to_vec(),
        })
    }

    /// Whether nothing but the namespace selects.
    pub fn is_plain(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The only name that can match, if the selection demands one.
    pub fn name(&self) -> Option<&str> {
        self.fields.required("metadata.name")
    }

    /// Whether an object is selected.
    pub fn matches(&self, o: &Object) -> bool {
        if !self.namespace.is_empty() && *self.namespace != *o.namespace {
            return false;
        }
        if self.is_plain() {
            return true;
        }
        self.fields.matches(|path| self.field(o, path)) && self.labels.matches(|key| o.label(key))
    }

    fn field<'a>(&self, o: &'a Object, path: &str) -> &'a str {
        match path {
            "metadata.name" => return &o.name,
            "metadata.namespace" => return &o.namespace,
            _ => {}
        }
        let cached = |stored: &str| {
            let at = self.paths.iter().position(|p| *p == stored);
            at.and_then(|i| o.fields.get(i)).map_or("", |v| v)
        };
        let value = cached(stored_path(path));
        if value.is_empty() && path == "source" {
            // Newer clients name only the controller that reports.
            return cached("reportingComponent");
        }
        if value.is_empty() && matches!(path, "spec.unschedulable" | "spec.hostNetwork") {
            "false"
        } else {
            value
        }
    }
}

/// Where the value that a field stands for is stored. Events of both groups are stored in the form of the older one.
fn stored_path(path: &str) -> &str {
    match path {
        "source" => "source.component",
        "regarding.kind" => "involvedObject.kind",
        "regarding.namespace" => "involvedObject.namespace",
        "regarding.name" => "involvedObject.name",
        "regarding.uid" => "involvedObject.uid",
        "regarding.apiVersion" => "involvedObject.apiVersion",
        "regarding.resourceVersion" => "involvedObject.resourceVersion",
        "regarding.fieldPath" => "involvedObject.fieldPath",
        "reportingController" => "reportingComponent",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::kinds::find;
    use serde_json::json;

    fn check(selector: &str, object: serde_json::Value, expected: bool) {
        check_kind(find("", "v1", "pods").unwrap(), selector, object, expected);
    }

    fn check_kind(kind: &Kind, selector: &str, object: serde_json::Value, expected: bool) {
        let paths = spec(kind).fields;
        let (o, _) = Object::from_value(object, 1, &paths);
        let s = Selection::parse(kind, &paths, "a", &Query::parse(selector)).unwrap();
        assert_eq!(s.matches(&o), expected, "{selector}");
    }

    #[test]
    fn labels_fields_and_namespace_select_together() {
        let pod = json!({"metadata": {"namespace": "a", "name": "p", "labels": {"x": "y"}}, "spec": {"nodeName": "n"}});
        check("", pod.clone(), true);
        check("labelSelector=x%3Dy", pod.clone(), true);
        check("labelSelector=x!%3Dy", pod.clone(), false);
        check("fieldSelector=spec.nodeName%3Dn,metadata.name%3Dp", pod.clone(), true);
        check("fieldSelector=spec.nodeName%3D", pod.clone(), false);
        check("fieldSelector=spec.hostNetwork%3Dfalse", pod, true);
        check("", json!({"metadata": {"namespace": "b", "name": "p"}}), false);
    }

    #[test]
    fn the_source_of_an_event_is_its_component_or_its_controller() {
        let event = |source: &str, controller: &str| json!({"metadata": {"namespace": "a", "name": "e"}, "source": {"component": source}, "reportingComponent": controller});
        let events = find("", "v1", "events").unwrap();
        for (source, controller, expected) in [
            ("kubelet", "", true),
            ("kubelet", "other", true),
            ("", "kubelet", true),
            ("other", "kubelet", false),
            ("", "", false),
        ] {
            check_kind(
                events,
                "fieldSelector=source%3Dkubelet",
                event(source, controller),
                expected,
            );
        }
        let newer = find("events.k8s.io", "v1", "events").unwrap();
        let selector = "fieldSelector=reportingController%3Dc,regarding.name%3Dp";
        let stored = json!({"metadata": {"namespace": "a", "name": "e"}, "reportingComponent": "c", "involvedObject": {"name": "p"}});
        check_kind(newer, selector, stored, true);
    }
}
