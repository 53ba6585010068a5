//! Volumes of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container::{field_ref, resource_ref};
use super::mount::local_path;
use super::rules::{Errors, has, items, quantity, required, required_name, supported, text};
use super::{FieldError, names};

/// Fields of a pod that a file may show.
const FILE_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Checks the volumes and returns their names.
pub(super) fn volumes(out: &mut Errors, spec: &Value, path: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (i, v) in items(spec, "volumes").iter().enumerate() {
        let at = format!("{path}[{i}]");
        let name = text(v, "name");
        required_name(out, format!("{at}.name"), name, names::dns1123_label);
        if !name.is_empty() && !seen.insert(name.to_owned()) {
            out.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
        }
        volume(out, v, &at);
    }
    seen
}

fn volume(out: &mut Errors, v: &Value, path: &str) {
    let mut sources = v
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, v)| *k != "name" && !v.is_null())
        .map(|(k, _)| k);
    let Some(kind) = sources.next() else {
        out.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    for extra in sources {
        out.push(FieldError::forbidden(
            format!("{path}.{extra}"),
            "may not specify more than 1 volume type",
        ));
    }
    let (s, at) = (&v[kind], format!("{path}.{kind}"));
    match kind.as_str() {
        "emptyDir" if has(s, "sizeLimit") => {
            quantity(out, format!("{at}.sizeLimit"), &s["sizeLimit"]);
        }
        "hostPath" => host_path(out, s, &at),
        "secret" => {
            required(out, s, &at, "secretName");
            files(out, s, &at);
        }
        "configMap" => {
            required(out, s, &at, "name");
            files(out, s, &at);
        }
        "downwardAPI" => {
            mode(out, s, &at, "defaultMode");
            downward(out, s, &at);
        }
        "projected" => projected(out, s, &at),
        "persistentVolumeClaim" => required(out, s, &at, "claimName"),
        "nfs" => {
            required(out, s, &at, "server");
            required(out, s, &at, "path");
            if !text(s, "path").is_empty() && !text(s, "path").starts_with('/') {
                out.push(FieldError::invalid_text(
                    format!("{at}.path"),
                    text(s, "path"),
                    "must be an absolute path",
                ));
            }
        }
        "csi" => required(out, s, &at, "driver"),
        "image" => supported(out, s, &at, "pullPolicy", &["Always", "IfNotPresent", "Never"]),
        _ => {}
    }
}

const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];

fn host_path(out: &mut Errors, s: &Value, path: &str) {
    let target = text(s, "path");
    if target.is_empty() {
        out.push(FieldError::required(format!("{path}.path"), ""));
    } else if target.split('/').any(|p| p == "..") {
        out.push(FieldError::invalid_text(
            format!("{path}.path"),
            target,
            "must not contain '..'",
        ));
    }
    supported(out, s, path, "type", &HOST_PATH_TYPES);
}

fn mode(out: &mut Errors, v: &Value, path: &str, field: &str) {
    if let Some(n) = v[field].as_i64()
        && !(0..=0o777).contains(&n)
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        out.push(FieldError::invalid(format!("{path}.{field}"), &n.into(), why));
    }
}

fn files(out: &mut Errors, s: &Value, path: &str) {
    mode(out, s, path, "defaultMode");
    for (i, item) in items(s, "items").iter().enumerate() {
        let at = format!("{path}.items[{i}]");
        required(out, item, &at, "key");
        file(out, item, &at);
    }
}

fn file(out: &mut Errors, item: &Value, path: &str) {
    required(out, item, path, "path");
    local_path(out, format!("{path}.path"), text(item, "path"));
    if text(item, "path").starts_with("..") {
        out.push(FieldError::invalid_text(
            format!("{path}.path"),
            text(item, "path"),
            "must not start with '..'",
        ));
    }
    mode(out, item, path, "mode");
}

fn downward(out: &mut Errors, s: &Value, path: &str) {
    for (i, item) in items(s, "items").iter().enumerate() {
        let at = format!("{path}.items[{i}]");
        file(out, item, &at);
        match (has(item, "fieldRef"), has(item, "resourceFieldRef")) {
            (true, true) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                out.push(FieldError::invalid_text(at, "resource", why));
            }
            (true, false) => field_ref(out, &item["fieldRef"], &format!("{at}.fieldRef"), &FILE_FIELDS),
            (false, true) => {
                let r = &item["resourceFieldRef"];
                required(out, r, &format!("{at}.resourceFieldRef"), "containerName");
                resource_ref(out, r, &format!("{at}.resourceFieldRef"));
            }
            (false, false) => out.push(FieldError::required(
                at,
                "one of fieldRef and resourceFieldRef must be specified",
            )),
        }
    }
}

fn projected(out: &mut Errors, s: &Value, path: &str) {
    mode(out, s, path, "defaultMode");
    for (i, source) in items(s, "sources").iter().enumerate() {
        let at = format!("{path}.sources[{i}]");
        let given: Vec<_> = source
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !v.is_null())
            .collect();
        if given.len() > 1 {
            out.push(FieldError::forbidden(
                at.clone(),
                "may not specify more than 1 volume type per source",
            ));
        }
        let Some((kind, v)) = given.first() else {
            out.push(FieldError::required(at, "must specify a volume type"));
            continue;
        };
        let at = format!("{at}.{kind}");
        match kind.as_str() {
            "secret" | "configMap" => {
                required(out, v, &at, "name");
                files(out, v, &at);
            }
            "downwardAPI" => downward(out, v, &at),
            "serviceAccountToken" => token(out, v, &at),
            _ => {}
        }
    }
}

fn token(out: &mut Errors, v: &Value, path: &str) {
    file(out, v, path);
    let field = format!("{path}.expirationSeconds");
    match v["expirationSeconds"].as_i64() {
        Some(n) if n < 600 => {
            out.push(FieldError::invalid(
                field,
                &n.into(),
                "may not specify a duration less than 10 minutes",
            ));
        }
        Some(n) if n > 1 << 32 => {
            out.push(FieldError::invalid(
                field,
                &n.into(),
                "may not specify a duration larger than 2^32 seconds",
            ));
        }
        _ => {}
    }
}
