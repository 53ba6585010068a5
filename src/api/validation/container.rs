//! Containers of a pod: the ordinary ones, those that initialise, and those that come later to debug.

use std::collections::BTreeSet;

use serde_json::Value;

use super::rules::{Errors, has, is_zero, items, named, port_number, required, required_name, supported, text};
use super::{FieldError, mount, names, probe, resources, security};

/// Names of a pod's volumes.
pub(super) type Volumes = BTreeSet<String>;

/// All containers of a pod's spec.
pub(super) fn all(out: &mut Errors, spec: &Value, path: &str, volumes: &Volumes) {
    let main = items(spec, "containers");
    if main.is_empty() {
        out.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut seen = BTreeSet::new();
    let host_network = spec["hostNetwork"] == true;
    for list in ["containers", "initContainers"] {
        for (i, c) in items(spec, list).iter().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            container(out, c, &at, volumes);
            unique_name(out, c, &at, &mut seen);
            host_ports(out, c, &at, host_network);
            if c["securityContext"]["procMount"] == "Unmasked" && spec["hostUsers"] != false {
                let field = format!("{at}.securityContext.procMount");
                let why = "`hostUsers` must be false to use `Unmasked`";
                out.push(FieldError::invalid_text(field, "Unmasked", why));
            }
            let sidecar = text(c, "restartPolicy") == "Always";
            if list == "initContainers" && !sidecar {
                for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    if has(c, field) {
                        let why = "may not be set for init containers without restartPolicy=Always";
                        out.push(FieldError::forbidden(format!("{at}.{field}"), why));
                    }
                }
            }
        }
    }
    port_conflicts(out, main, path);
    ephemeral(out, spec, path, volumes);
}

/// Ephemeral containers, which have neither ports nor probes nor resources.
pub(super) fn ephemeral(out: &mut Errors, spec: &Value, path: &str, volumes: &Volumes) {
    let mut seen: BTreeSet<String> = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| items(spec, l))
        .map(|c| text(c, "name").to_owned())
        .collect();
    for (i, c) in items(spec, "ephemeralContainers").iter().enumerate() {
        let at = format!("{path}.ephemeralContainers[{i}]");
        container(out, c, &at, volumes);
        unique_name(out, c, &at, &mut seen);
        for field in ["ports", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if has(c, field) {
                out.push(FieldError::forbidden(
                    format!("{at}.{field}"),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
        if c["resources"].as_object().is_some_and(|r| !r.is_empty()) {
            out.push(FieldError::forbidden(
                format!("{at}.resources"),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
}

fn unique_name(out: &mut Errors, c: &Value, path: &str, seen: &mut BTreeSet<String>) {
    let name = text(c, "name");
    if !name.is_empty() && !seen.insert(name.to_owned()) {
        out.push(FieldError::duplicate(format!("{path}.name"), &name.into()));
    }
}

fn container(out: &mut Errors, c: &Value, path: &str, volumes: &Volumes) {
    required_name(out, format!("{path}.name"), text(c, "name"), names::dns1123_label);
    let image = text(c, "image");
    if image.is_empty() {
        out.push(FieldError::required(format!("{path}.image"), ""));
    } else if image != image.trim() {
        let why = "must not have leading or trailing whitespace";
        out.push(FieldError::invalid_text(format!("{path}.image"), image, why));
    }
    supported(out, c, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    supported(
        out,
        c,
        path,
        "terminationMessagePolicy",
        &["File", "FallbackToLogsOnError"],
    );
    ports(out, c, path);
    environment(out, c, path);
    mount::mounts(out, c, path, volumes);
    resources::of_container(out, &c["resources"], &format!("{path}.resources"));
    for (field, one_success) in [
        ("livenessProbe", true),
        ("readinessProbe", false),
        ("startupProbe", true),
    ] {
        if has(c, field) {
            probe::probe(out, &c[field], &format!("{path}.{field}"), one_success);
        }
    }
    for hook in ["postStart", "preStop"] {
        if has(&c["lifecycle"], hook) {
            probe::handler(out, &c["lifecycle"][hook], &format!("{path}.lifecycle.{hook}"));
        }
    }
    restarts(out, c, path);
    resize_policy(out, c, path);
    security::of_container(out, &c["securityContext"], &format!("{path}.securityContext"));
}

/// When the container is started again, where that differs from its pod.
fn restarts(out: &mut Errors, c: &Value, path: &str) {
    let rules = items(c, "restartPolicyRules");
    let at = format!("{path}.restartPolicyRules");
    if text(c, "restartPolicy").is_empty() && !rules.is_empty() {
        let why = "must specify restartPolicy when restart rules are used";
        out.push(FieldError::required(format!("{path}.restartPolicy"), why));
    }
    supported(out, c, path, "restartPolicy", &["Always", "Never", "OnFailure"]);
    if rules.len() > 20 {
        out.push(FieldError::too_many(at.clone(), rules.len(), 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = format!("{at}[{i}]");
        required(out, rule, &at, "action");
        supported(out, rule, &at, "action", &["Restart", "RestartAllContainers"]);
        let codes = &rule["exitCodes"];
        if !has(rule, "exitCodes") {
            out.push(FieldError::required(format!("{at}.exitCodes"), "must be specified"));
            continue;
        }
        let at = format!("{at}.exitCodes");
        required(out, codes, &at, "operator");
        supported(out, codes, &at, "operator", &["In", "NotIn"]);
        let count = items(codes, "values").len();
        if count > 255 {
            out.push(FieldError::too_many(format!("{at}.values"), count, 255));
        }
    }
}

/// What a change of resources would do to the container. Such changes are not served, so only the form matters.
fn resize_policy(out: &mut Errors, c: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (i, p) in items(c, "resizePolicy").iter().enumerate() {
        let at = format!("{path}.resizePolicy[{i}]");
        required(out, p, &at, "resourceName");
        supported(out, p, &at, "resourceName", &["cpu", "memory"]);
        required(out, p, &at, "restartPolicy");
        supported(out, p, &at, "restartPolicy", &["NotRequired", "RestartContainer"]);
        if !seen.insert(text(p, "resourceName")) {
            out.push(FieldError::duplicate(at, &p["resourceName"]));
        }
    }
}

fn ports(out: &mut Errors, c: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (i, p) in items(c, "ports").iter().enumerate() {
        let at = format!("{path}.ports[{i}]");
        let name = text(p, "name");
        if !name.is_empty() {
            named(out, format!("{at}.name"), name, names::port_name);
            if !seen.insert(name) {
                out.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
            }
        }
        match p["containerPort"].as_i64().unwrap_or(0) {
            0 => out.push(FieldError::required(format!("{at}.containerPort"), "")),
            n => port_number(out, format!("{at}.containerPort"), n),
        }
        match p["hostPort"].as_i64().unwrap_or(0) {
            0 => {}
            n => port_number(out, format!("{at}.hostPort"), n),
        }
        required(out, p, &at, "protocol");
        supported(out, p, &at, "protocol", &["SCTP", "TCP", "UDP"]);
        if !text(p, "hostIP").is_empty() {
            named(out, format!("{at}.hostIP"), text(p, "hostIP"), names::ip);
        }
    }
}

fn host_ports(out: &mut Errors, c: &Value, path: &str, host_network: bool) {
    for (i, p) in items(c, "ports").iter().enumerate() {
        if host_network && p["hostPort"].as_i64().unwrap_or(0) != p["containerPort"].as_i64().unwrap_or(0) {
            let at = format!("{path}.ports[{i}].containerPort");
            out.push(FieldError::invalid(
                at,
                &p["containerPort"],
                "must match `hostPort` when `hostNetwork` is true",
            ));
        }
    }
}

/// Two ports of a pod cannot be the same port of the host.
fn port_conflicts(out: &mut Errors, containers: &[Value], path: &str) {
    let mut seen = BTreeSet::new();
    for (i, c) in containers.iter().enumerate() {
        for (j, p) in items(c, "ports").iter().enumerate() {
            let host = p["hostPort"].as_i64().unwrap_or(0);
            let key = format!("{}/{}/{host}", text(p, "protocol"), text(p, "hostIP"));
            if host != 0 && !seen.insert(key.clone()) {
                out.push(FieldError::duplicate(
                    format!("{path}.containers[{i}].ports[{j}].hostPort"),
                    &key.into(),
                ));
            }
        }
    }
}

fn environment(out: &mut Errors, c: &Value, path: &str) {
    for (i, v) in items(c, "env").iter().enumerate() {
        let at = format!("{path}.env[{i}]");
        required_name(out, format!("{at}.name"), text(v, "name"), names::env_var_name);
        let from = &v["valueFrom"];
        if from.is_null() {
            continue;
        }
        let at = format!("{at}.valueFrom");
        let sources = [
            "fieldRef",
            "resourceFieldRef",
            "configMapKeyRef",
            "secretKeyRef",
            "fileKeyRef",
        ];
        let given: Vec<_> = sources.into_iter().filter(|s| has(from, s)).collect();
        if !text(v, "value").is_empty() {
            out.push(FieldError::invalid(
                at,
                &"".into(),
                "may not be specified when `value` is not empty",
            ));
        } else if given.is_empty() {
            let list = "`fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            out.push(FieldError::invalid(
                at,
                &"".into(),
                format!("must specify one of: {list}"),
            ));
        } else if given.len() > 1 {
            out.push(FieldError::invalid(
                at,
                &"".into(),
                "may not have more than one field specified at a time",
            ));
        } else {
            source(out, from, &at, given[0]);
        }
    }
    for (i, e) in items(c, "envFrom").iter().enumerate() {
        let at = format!("{path}.envFrom[{i}]");
        let given: Vec<_> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|s| has(e, s))
            .collect();
        match given[..] {
            [] => out.push(FieldError::invalid(
                at,
                &"".into(),
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            [one] => required(out, &e[one], &format!("{at}.{one}"), "name"),
            _ => out.push(FieldError::invalid(
                at,
                &"".into(),
                "may not have more than one field specified at a time",
            )),
        }
    }
}

/// Fields of a pod that its environment may show.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn source(out: &mut Errors, from: &Value, path: &str, kind: &str) {
    let (r, at) = (&from[kind], format!("{path}.{kind}"));
    match kind {
        "configMapKeyRef" | "secretKeyRef" => {
            required(out, r, &at, "name");
            required_name(out, format!("{at}.key"), text(r, "key"), names::config_map_key);
        }
        "fieldRef" => field_ref(out, r, &at, &ENV_FIELDS),
        "resourceFieldRef" => resource_ref(out, r, &at),
        _ => {}
    }
}

/// A reference to a field of the pod. Single labels and annotations are fields too.
pub(super) fn field_ref(out: &mut Errors, r: &Value, path: &str, fields: &[&str]) {
    let field = text(r, "fieldPath");
    if field.is_empty() {
        out.push(FieldError::required(format!("{path}.fieldPath"), ""));
        return;
    }
    let subscripted = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|p| field.starts_with(p))
        && field.ends_with("']");
    if !subscripted && !fields.contains(&field) {
        out.push(FieldError::not_supported(format!("{path}.fieldPath"), field, fields));
    }
}

/// A reference to an amount of a container's resources.
pub(super) fn resource_ref(out: &mut Errors, r: &Value, path: &str) {
    let resource = text(r, "resource");
    const PLAIN: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if resource.is_empty() {
        out.push(FieldError::required(format!("{path}.resource"), ""));
    } else if !huge && !PLAIN.contains(&resource) {
        out.push(FieldError::not_supported(format!("{path}.resource"), resource, &PLAIN));
    }
}

/// Whether both numbers of a rolling update are none, so that nothing could ever move.
pub(super) fn cannot_roll(rolling: &Value) -> bool {
    is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"])
}
