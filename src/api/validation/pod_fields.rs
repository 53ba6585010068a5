//! Fields of a pod that no component acts on. They are refused, because a pod that runs without what it asks for is worse
//! than one that does not run. `docs/pod-fields.md` lists every field; the tests beside this file compare it with the schema.

use serde_json::Value;

use super::FieldError;
use super::rules::{Errors, has, items, text};
use crate::kinds::Kind;
use crate::schema::{Shape, message};

/// Kinds of volumes that the node agent mounts.
pub(super) const VOLUMES: [&str; 6] = [
    "configMap",
    "downwardAPI",
    "emptyDir",
    "hostPath",
    "projected",
    "secret",
];
/// Kinds of sources of a projected volume that the node agent writes.
const PROJECTIONS: [&str; 4] = ["configMap", "downwardAPI", "secret", "serviceAccountToken"];
/// Lists of containers that the node agent starts. Ephemeral ones are refused as a whole where they are added.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// Refuses what an object newly asks for and nothing acts on. What `old` asks for already stays, so that such an object can
/// still be changed and deleted.
pub(super) fn check(out: &mut Errors, kind: &Kind, new: &Value, old: Option<&Value>) {
    let Some(path) = pod_spec_path(kind.message) else {
        return;
    };
    let spec = |object: &Value| path.iter().fold(object.clone(), |v, field| v[*field].clone());
    let at = path.join(".");
    let known = old.map(|o| unsupported(&spec(o), &at)).unwrap_or_default();
    out.extend(unsupported(&spec(new), &at).into_iter().filter(|e| !known.contains(e)));
}

/// Where objects of a message hold the spec of a pod. Found in the schema, so that a new kind with a template is covered.
fn pod_spec_path(of: &str) -> Option<Vec<&'static str>> {
    fn search(of: &str, depth: usize) -> Option<Vec<&'static str>> {
        if of == "core.v1.PodSpec" {
            return Some(Vec::new());
        }
        let fields = message(of)?.fields.iter();
        fields
            .filter(|f| depth > 0 && f.shape == Shape::One && matches!(f.name, "spec" | "template" | "jobTemplate"))
            .find_map(|f| {
                let mut path = search(f.ty.message()?.name, depth - 1)?;
                path.insert(0, f.name);
                Some(path)
            })
    }
    search(of, 5)
}

/// Everything a pod's spec asks for and nothing acts on.
fn unsupported(spec: &Value, path: &str) -> Errors {
    let mut out = Errors::new();
    let mut refuse = |is: bool, field: &str, why: &str| {
        if is {
            out.push(FieldError::forbidden(format!("{path}.{field}"), why));
        }
    };
    refuse(
        spec["hostUsers"] == false,
        "hostUsers",
        "user namespaces are not supported: the pod would run as users of the host; leave the field out or set it to true",
    );
    refuse(
        !items(spec, "resourceClaims").is_empty(),
        "resourceClaims",
        "dynamic resource allocation is not supported",
    );
    refuse(
        text(&spec["os"], "name") == "windows",
        "os.name",
        "all nodes of this cluster run Linux",
    );
    let context = &spec["securityContext"];
    refuse(
        has(context, "windowsOptions"),
        "securityContext.windowsOptions",
        WINDOWS,
    );
    refuse(
        has(context, "seLinuxChangePolicy"),
        "securityContext.seLinuxChangePolicy",
        "volumes are not relabelled for SELinux",
    );
    for (i, v) in items(spec, "volumes").iter().enumerate() {
        volume(&mut out, v, &format!("{path}.volumes[{i}]"));
    }
    for list in CONTAINERS {
        for (i, c) in items(spec, list).iter().enumerate() {
            container(&mut out, c, &format!("{path}.{list}[{i}]"));
        }
    }
    out
}

const WINDOWS: &str = "all nodes of this cluster run Linux, where Windows options mean nothing";

fn volume(out: &mut Errors, v: &Value, path: &str) {
    let sources = v.as_object().into_iter().flatten();
    for (kind, source) in sources.filter(|(k, source)| *k != "name" && !source.is_null()) {
        if !VOLUMES.contains(&kind.as_str()) {
            let why = format!(
                "volumes of this kind are not supported (supported: {})",
                VOLUMES.join(", ")
            );
            out.push(FieldError::forbidden(format!("{path}.{kind}"), why));
        }
        let medium = text(source, "medium");
        if kind == "emptyDir" && !matches!(medium, "" | "Memory") {
            let field = format!("{path}.emptyDir.medium");
            out.push(FieldError::not_supported(field, medium, &["", "Memory"]));
        }
    }
    for (i, source) in items(&v["projected"], "sources").iter().enumerate() {
        for (kind, _) in source.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()) {
            if !PROJECTIONS.contains(&kind.as_str()) {
                let at = format!("{path}.projected.sources[{i}].{kind}");
                let list = PROJECTIONS.join(", ");
                out.push(FieldError::forbidden(
                    at,
                    format!("sources of this kind are not supported (supported: {list})"),
                ));
            }
        }
    }
}

fn container(out: &mut Errors, c: &Value, path: &str) {
    let mut refuse = |is: bool, field: &str, why: &str| {
        if is {
            out.push(FieldError::forbidden(format!("{path}.{field}"), why));
        }
    };
    refuse(
        !items(c, "volumeDevices").is_empty(),
        "volumeDevices",
        "block devices are not supported",
    );
    refuse(
        !items(&c["resources"], "claims").is_empty(),
        "resources.claims",
        "dynamic resource allocation is not supported",
    );
    refuse(
        !text(&c["lifecycle"], "stopSignal").is_empty(),
        "lifecycle.stopSignal",
        "the signal is the image's STOPSIGNAL; another one is not supported",
    );
    let context = &c["securityContext"];
    refuse(
        has(context, "windowsOptions"),
        "securityContext.windowsOptions",
        WINDOWS,
    );
    for (i, m) in items(c, "volumeMounts").iter().enumerate() {
        refuse(
            text(m, "recursiveReadOnly") == "Enabled",
            &format!("volumeMounts[{i}].recursiveReadOnly"),
            "mounts below a read-only mount cannot be made read-only here; use IfPossible or leave the field out",
        );
    }
    for (i, v) in items(c, "env").iter().enumerate() {
        refuse(
            has(&v["valueFrom"], "fileKeyRef"),
            &format!("env[{i}].valueFrom.fileKeyRef"),
            "variables from files are not supported",
        );
    }
    for (i, r) in items(c, "restartPolicyRules").iter().enumerate() {
        refuse(
            text(r, "action") == "RestartAllContainers",
            &format!("restartPolicyRules[{i}].action"),
            "restarting all containers of a pod is not supported",
        );
    }
}

#[cfg(test)]
mod tests;
