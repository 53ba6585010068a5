//! `ObjectMeta`: what holds for the metadata of every kind.

use serde_json::Value;

use super::rules::{Errors, entries, has, items, labels, named, text};
use super::{FieldError, names};
use crate::kinds::Kind;

/// Bytes that all annotations of an object may have together.
const ANNOTATIONS_MAX: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// The form of names of a kind.
fn name_check(kind: &Kind) -> fn(&str) -> Vec<String> {
    match kind.message {
        "core.v1.Service" => names::dns1035_label,
        "core.v1.Namespace" => names::dns1123_label,
        m if m.starts_with("rbac.v1.") => names::path_segment,
        _ => names::dns1123_subdomain,
    }
}

/// Metadata of an object that is to be created.
pub(super) fn create(out: &mut Errors, kind: &Kind, object: &Value) {
    let meta = &object["metadata"];
    let (name, prefix) = (text(meta, "name"), text(meta, "generateName"));
    let check = name_check(kind);
    if !prefix.is_empty() {
        // A name will follow the last dash.
        let shown = prefix
            .strip_suffix('-')
            .map_or_else(|| prefix.to_owned(), |p| format!("{p}a"));
        out.extend(
            check(&shown)
                .into_iter()
                .map(|why| FieldError::invalid_text("metadata.generateName", prefix, why)),
        );
    }
    if name.is_empty() {
        out.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        named(out, "metadata.name", name, check);
    }
    let namespace = text(meta, "namespace");
    if kind.namespaced && namespace.is_empty() {
        out.push(FieldError::required("metadata.namespace", ""));
    } else if kind.namespaced {
        named(out, "metadata.namespace", namespace, names::dns1123_label);
    } else if !namespace.is_empty() {
        out.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    }
    common(out, meta, "metadata");
}

/// Labels, annotations, owners and finalizers of any metadata, those of templates too.
pub(super) fn common(out: &mut Errors, meta: &Value, path: &str) {
    labels(out, &format!("{path}.labels"), &meta["labels"]);
    let at = format!("{path}.annotations");
    let mut size = 0;
    for (key, value) in entries(meta, "annotations") {
        named(out, at.clone(), &key.to_lowercase(), names::qualified_name);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        out.push(FieldError::too_long(at, ANNOTATIONS_MAX));
    }
    owners(out, meta, path);
    for (i, f) in items(meta, "finalizers").iter().enumerate() {
        finalizer(out, format!("{path}.finalizers[{i}]"), f.as_str().unwrap_or_default());
    }
}

/// One finalizer.
pub(super) fn finalizer(out: &mut Errors, path: String, name: &str) {
    named(out, path.clone(), name, names::qualified_name);
    if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        out.push(FieldError::invalid_text(path, name, why));
    }
}

fn owners(out: &mut Errors, meta: &Value, path: &str) {
    let mut controllers = 0;
    for (i, owner) in items(meta, "ownerReferences").iter().enumerate() {
        let at = format!("{path}.ownerReferences[{i}]");
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                out.push(FieldError::invalid(
                    format!("{at}.{field}"),
                    &Value::from(""),
                    "must not be empty",
                ));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        out.push(FieldError::invalid(
            format!("{path}.ownerReferences"),
            &meta["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
}

/// Metadata of a change.
pub(super) fn update(out: &mut Errors, new: &Value, old: &Value) {
    let (n, o) = (&new["metadata"], &old["metadata"]);
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        if text(n, field) != text(o, field) {
            out.push(FieldError::invalid(
                format!("metadata.{field}"),
                &n[field],
                "field is immutable",
            ));
        }
    }
    if has(o, "deletionTimestamp") {
        let added: Vec<&Value> = items(n, "finalizers")
            .iter()
            .filter(|f| !items(o, "finalizers").contains(f))
            .collect();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(ToString::to_string).collect();
            out.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    common(out, n, "metadata");
}
