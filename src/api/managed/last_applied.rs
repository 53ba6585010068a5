//! The way from client-side apply: kubectl kept what it had applied in an annotation, which says what is its own as long as
//! nobody else has changed it.

use super::compare::{Comparison, fields_of};
use super::parts::Parts;
use super::set::FieldSet;
use crate::kinds::Kind;
use crate::metadata;
use serde_json::{Map, Value};

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Bytes that all annotations of an object may have together.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// The fields that still are as the annotation says; `None` if there is no annotation, or it is of another version.
pub(super) fn owned(kind: &Kind, parts: Parts, live: &Value) -> Option<FieldSet> {
    let text = metadata::annotation(live, ANNOTATION).filter(|t| !t.is_empty())?;
    let last: Value = serde_json::from_str(text).ok()?;
    if last["apiVersion"] != kind.api_version() {
        return None;
    }
    let comparison = Comparison::of(parts, &last, live, false);
    let changed = comparison.written().union(&comparison.removed);
    Some(fields_of(parts, &last).minus(&changed))
}

/// Writes the configuration into the annotation, if there is one. One that has become too large goes.
pub(super) fn keep_up(object: &mut Value, config: &Value) {
    if metadata::annotation(object, ANNOTATION).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(Value::Object(annotations)) = config.pointer_mut("/metadata/annotations") {
        annotations.remove(ANNOTATION);
    }
    let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") else {
        return;
    };
    annotations.insert(ANNOTATION.to_owned(), format!("{config}\n").into());
    if size(annotations) > MAX_ANNOTATIONS {
        annotations.remove(ANNOTATION);
    }
}

fn size(annotations: &Map<String, Value>) -> usize {
    annotations
        .iter()
        .map(|(k, v)| k.len() + v.as_str().unwrap_or_default().len())
        .sum()
}
