//! Where a container's volumes are mounted.

use std::collections::BTreeSet;

use serde_json::Value;

use super::FieldError;
use super::container::Volumes;
use super::rules::{Errors, items, supported, text};

/// Mounts of volumes into a container.
pub(super) fn mounts(out: &mut Errors, c: &Value, path: &str, volumes: &Volumes) {
    let mut seen = BTreeSet::new();
    for (i, m) in items(c, "volumeMounts").iter().enumerate() {
        let at = format!("{path}.volumeMounts[{i}]");
        let (name, target) = (text(m, "name"), text(m, "mountPath"));
        if name.is_empty() {
            out.push(FieldError::required(format!("{at}.name"), ""));
        } else if !volumes.contains(name) {
            out.push(FieldError::not_found(format!("{at}.name"), name));
        }
        if target.is_empty() {
            out.push(FieldError::required(format!("{at}.mountPath"), ""));
        } else if !seen.insert(target) {
            out.push(FieldError::invalid_text(
                format!("{at}.mountPath"),
                target,
                "must be unique",
            ));
        }
        for field in ["subPath", "subPathExpr"] {
            local_path(out, format!("{at}.{field}"), text(m, field));
        }
        if !text(m, "subPath").is_empty() && !text(m, "subPathExpr").is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            out.push(FieldError::invalid_text(
                format!("{at}.subPathExpr"),
                text(m, "subPathExpr"),
                why,
            ));
        }
        supported(
            out,
            m,
            &at,
            "mountPropagation",
            &["None", "HostToContainer", "Bidirectional"],
        );
        if text(m, "mountPropagation") == "Bidirectional" && c["securityContext"]["privileged"] != true {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            out.push(FieldError::forbidden(format!("{at}.mountPropagation"), why));
        }
        recursive_read_only(out, m, &at);
    }
}

fn recursive_read_only(out: &mut Errors, mount: &Value, path: &str) {
    let field = "recursiveReadOnly";
    supported(out, mount, path, field, &["Disabled", "Enabled", "IfPossible"]);
    if !matches!(text(mount, field), "Enabled" | "IfPossible") {
        return;
    }
    if mount["readOnly"] != true {
        let why = "may only be specified when readOnly is true";
        out.push(FieldError::forbidden(format!("{path}.{field}"), why));
    }
    if !matches!(text(mount, "mountPropagation"), "" | "None") {
        let why = "may only be specified when mountPropagation is None or not specified";
        out.push(FieldError::forbidden(format!("{path}.{field}"), why));
    }
}

/// A path that stays below where it is put.
pub(super) fn local_path(out: &mut Errors, path: String, value: &str) {
    if value.starts_with('/') {
        out.push(FieldError::invalid_text(path.clone(), value, "must be a relative path"));
    }
    if value.split('/').any(|part| part == "..") {
        out.push(FieldError::invalid_text(path, value, "must not contain '..'"));
    }
}
