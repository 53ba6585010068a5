//! Pods and pod templates: what belongs to the pod as a whole.

use serde_json::Value;

use super::rules::{
    Errors, has, items, join, label_selector, labels, named, non_negative, required, required_choice, required_name,
    same, supported, text,
};
use super::{FieldError, container, meta, names, resources, security, volume};

const DNS_POLICIES: [&str; 4] = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

/// A new pod.
pub(super) fn create(out: &mut Errors, pod: &Value) {
    let s = &pod["spec"];
    spec(out, s, "spec");
    if !items(s, "ephemeralContainers").is_empty() {
        out.push(FieldError::forbidden(
            "spec.ephemeralContainers",
            "cannot be set on create",
        ));
    }
    security::annotations(out, pod, "");
    mirror(out, pod);
}

/// A static pod's mirror may name nothing that lives in the API.
fn mirror(out: &mut Errors, pod: &Value) {
    if pod["metadata"]["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_none()
    {
        return;
    }
    if text(&pod["spec"], "nodeName").is_empty() {
        let field = "metadata.annotations[kubernetes.io/config.mirror]";
        out.push(FieldError::invalid(
            field,
            &true.into(),
            "must set spec.nodeName if mirror pod annotation is set",
        ));
    }
}

/// The template of a workload.
pub(super) fn template(out: &mut Errors, template: &Value, path: &str) {
    meta::common(out, &template["metadata"], &join(path, "metadata"));
    spec(out, &template["spec"], &join(path, "spec"));
    security::annotations(out, template, path);
    if !items(&template["spec"], "ephemeralContainers").is_empty() {
        let at = format!("{path}.spec.ephemeralContainers");
        out.push(FieldError::forbidden(
            at,
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// A pod's spec.
pub(super) fn spec(out: &mut Errors, s: &Value, path: &str) {
    let at = |field: &str| join(path, field);
    let volumes = volume::volumes(out, s, &at("volumes"));
    container::all(out, s, path, &volumes);
    supported(out, s, path, "restartPolicy", &RESTART_POLICIES);
    supported(out, s, path, "dnsPolicy", &DNS_POLICIES);
    dns(out, s, path);
    non_negative(out, s, path, "terminationGracePeriodSeconds");
    if let Some(n) = s["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&n)
    {
        let why = "must be between 1 and 2147483647, inclusive";
        out.push(FieldError::invalid(at("activeDeadlineSeconds"), &n.into(), why));
    }
    labels(out, &at("nodeSelector"), &s["nodeSelector"]);
    for (field, check) in [
        ("nodeName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("schedulerName", names::qualified_name),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        if !text(s, field).is_empty() {
            named(out, at(field), text(s, field), check);
        }
    }
    for (i, alias) in items(s, "hostAliases").iter().enumerate() {
        named(out, format!("{path}.hostAliases[{i}].ip"), text(alias, "ip"), names::ip);
        for (j, host) in items(alias, "hostnames").iter().enumerate() {
            let field = format!("{path}.hostAliases[{i}].hostnames[{j}]");
            named(out, field, host.as_str().unwrap_or_default(), names::dns1123_subdomain);
        }
    }
    for (i, gate) in items(s, "readinessGates").iter().enumerate() {
        let field = format!("{path}.readinessGates[{i}].conditionType");
        named(out, field, text(gate, "conditionType"), names::qualified_name);
    }
    tolerations(out, items(s, "tolerations"), &at("tolerations"));
    affinity(out, &s["affinity"], &at("affinity"));
    spread(out, s, path);
    security::of_pod(out, s, &at("securityContext"));
    resources::of_pod(out, s, path);
    if has(s, "os") {
        required_choice(out, &s["os"], &at("os"), "name", &["linux", "windows"]);
    }
    supported(out, s, path, "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    host_name(out, s, path);
    for (i, gate) in items(s, "schedulingGates").iter().enumerate() {
        let field = format!("{path}.schedulingGates[{i}]");
        named(out, field, text(gate, "name"), names::qualified_name);
    }
}

fn host_name(out: &mut Errors, s: &Value, path: &str) {
    let (name, field) = (text(s, "hostnameOverride"), format!("{path}.hostnameOverride"));
    if name.is_empty() {
        return;
    }
    named(out, field.clone(), name, names::dns1123_subdomain);
    if name.len() > 64 {
        out.push(FieldError::too_long(field.clone(), 64));
    }
    for other in ["setHostnameAsFQDN", "hostNetwork"] {
        if s[other] == true {
            let why = format!("may not be specified when {other} is true");
            out.push(FieldError::forbidden(field.clone(), why));
        }
    }
}

fn dns(out: &mut Errors, s: &Value, path: &str) {
    let servers = items(&s["dnsConfig"], "nameservers");
    let at = format!("{path}.dnsConfig.nameservers");
    if text(s, "dnsPolicy") == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        out.push(FieldError::required(at.clone(), why));
    }
    if servers.len() > 3 {
        out.push(FieldError::invalid(
            at.clone(),
            &s["dnsConfig"]["nameservers"],
            "must not have more than 3 nameservers",
        ));
    }
    for (i, server) in servers.iter().enumerate() {
        named(
            out,
            format!("{at}[{i}]"),
            server.as_str().unwrap_or_default(),
            names::ip,
        );
    }
}

fn tolerations(out: &mut Errors, list: &[Value], path: &str) {
    for (i, t) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let (key, operator, effect) = (text(t, "key"), text(t, "operator"), text(t, "effect"));
        if !key.is_empty() {
            named(out, format!("{at}.key"), key, names::qualified_name);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            out.push(FieldError::invalid_text(format!("{at}.operator"), operator, why));
        }
        if has(t, "tolerationSeconds") && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            out.push(FieldError::invalid_text(format!("{at}.effect"), effect, why));
        }
        match operator {
            "" | "Equal" => named(out, format!("{at}.operator"), text(t, "value"), names::label_value),
            "Exists" if !text(t, "value").is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                out.push(FieldError::invalid_text(
                    format!("{at}.operator"),
                    text(t, "value"),
                    why,
                ));
            }
            _ => supported(out, t, &at, "operator", &["Equal", "Exists"]),
        }
        supported(out, t, &at, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
}

fn affinity(out: &mut Errors, a: &Value, path: &str) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = &a["nodeAffinity"];
    if has(node, REQUIRED) {
        let at = format!("{path}.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
        let terms = items(&node[REQUIRED], "nodeSelectorTerms");
        if terms.is_empty() {
            out.push(FieldError::required(
                at.clone(),
                "must have at least one node selector term",
            ));
        }
        for (i, t) in terms.iter().enumerate() {
            node_term(out, t, &format!("{at}[{i}]"));
        }
    }
    for (i, p) in items(node, PREFERRED).iter().enumerate() {
        let at = format!("{path}.nodeAffinity.{PREFERRED}[{i}]");
        weight(out, p, &at);
        node_term(out, &p["preference"], &format!("{at}.preference"));
    }
    for side in ["podAffinity", "podAntiAffinity"] {
        for (i, t) in items(&a[side], REQUIRED).iter().enumerate() {
            pod_term(out, t, &format!("{path}.{side}.{REQUIRED}[{i}]"));
        }
        for (i, t) in items(&a[side], PREFERRED).iter().enumerate() {
            let at = format!("{path}.{side}.{PREFERRED}[{i}]");
            weight(out, t, &at);
            pod_term(out, &t["podAffinityTerm"], &format!("{at}.podAffinityTerm"));
        }
    }
}

fn weight(out: &mut Errors, term: &Value, path: &str) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        out.push(FieldError::invalid(
            format!("{path}.weight"),
            &weight.into(),
            "must be in the range 1-100",
        ));
    }
}

fn node_term(out: &mut Errors, term: &Value, path: &str) {
    for (i, e) in items(term, "matchExpressions").iter().enumerate() {
        let at = format!("{path}.matchExpressions[{i}]");
        let count = items(e, "values").len();
        let field = format!("{at}.values");
        match text(e, "operator") {
            "In" | "NotIn" if count == 0 => {
                out.push(FieldError::required(
                    field,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
            "Exists" | "DoesNotExist" if count > 0 => out.push(FieldError::forbidden(
                field,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if count != 1 => out.push(FieldError::required(
                field,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => out.push(FieldError::invalid_text(
                format!("{at}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        named(out, format!("{at}.key"), text(e, "key"), names::qualified_name);
    }
    for (i, e) in items(term, "matchFields").iter().enumerate() {
        if text(e, "key") != "metadata.name" {
            let at = format!("{path}.matchFields[{i}].key");
            out.push(FieldError::invalid_text(
                at,
                text(e, "key"),
                "not a valid field selector key",
            ));
        }
    }
}

fn pod_term(out: &mut Errors, term: &Value, path: &str) {
    label_selector(out, &format!("{path}.labelSelector"), &term["labelSelector"]);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        out.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
    } else {
        named(out, format!("{path}.topologyKey"), key, names::qualified_name);
    }
}

fn spread(out: &mut Errors, s: &Value, path: &str) {
    for (i, c) in items(s, "topologySpreadConstraints").iter().enumerate() {
        let at = format!("{path}.topologySpreadConstraints[{i}]");
        if c["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            out.push(FieldError::invalid(
                format!("{at}.maxSkew"),
                &c["maxSkew"],
                "must be greater than zero",
            ));
        }
        required_name(
            out,
            format!("{at}.topologyKey"),
            text(c, "topologyKey"),
            names::qualified_name,
        );
        required(out, c, &at, "whenUnsatisfiable");
        supported(out, c, &at, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]);
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            supported(out, c, &at, field, &["Honor", "Ignore"]);
        }
        if let Some(n) = c["minDomains"].as_i64() {
            let field = format!("{at}.minDomains");
            if n <= 0 {
                out.push(FieldError::invalid(
                    field.clone(),
                    &n.into(),
                    "must be greater than zero",
                ));
            }
            if text(c, "whenUnsatisfiable") != "DoNotSchedule" {
                let why = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                out.push(FieldError::invalid(field, &n.into(), why));
            }
        }
        label_selector(out, &format!("{at}.labelSelector"), &c["labelSelector"]);
    }
}

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A changed pod.
pub(super) fn update(out: &mut Errors, new: &Value, old: &Value) {
    let (n, o) = (&new["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        let path = format!("spec.{list}");
        if items(n, list).len() != items(o, list).len() {
            out.push(FieldError::forbidden(
                path,
                "pod updates may not add or remove containers",
            ));
            return;
        }
        for (i, c) in items(n, list).iter().enumerate() {
            if text(c, "image").trim().is_empty() {
                out.push(FieldError::required(format!("{path}[{i}].image"), ""));
            }
        }
    }
    deadline(out, n, o);
    let old_tolerations = items(o, "tolerations");
    if !old_tolerations
        .iter()
        .all(|t| items(n, "tolerations").iter().any(|x| same_toleration(x, t)))
    {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        out.push(FieldError::forbidden("spec.tolerations", why));
    }
    tolerations(out, items(n, "tolerations"), "spec.tolerations");
    let gates = |s: &Value| items(s, "schedulingGates").to_vec();
    if let Some(added) = gates(n).iter().find(|g| !gates(o).contains(g)) {
        let at = "spec.schedulingGates";
        out.push(FieldError::forbidden(
            at,
            format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                text(added, "name")
            ),
        ));
    }
    if !same(&with_changeable_of(n, o), o) {
        out.push(FieldError::forbidden("spec", CHANGEABLE));
    }
}

fn same_toleration(a: &Value, b: &Value) -> bool {
    ["key", "operator", "value", "effect"]
        .iter()
        .all(|f| text(a, f) == text(b, f))
}

fn deadline(out: &mut Errors, new: &Value, old: &Value) {
    let field = "spec.activeDeadlineSeconds";
    match (
        new["activeDeadlineSeconds"].as_i64(),
        old["activeDeadlineSeconds"].as_i64(),
    ) {
        (Some(n), _) if n < 0 => out.push(FieldError::invalid(
            field,
            &n.into(),
            "must be greater than or equal to 0",
        )),
        (Some(n), Some(o)) if n > o => {
            out.push(FieldError::invalid(
                field,
                &n.into(),
                "must be less than or equal to previous value",
            ));
        }
        (None, Some(_)) => out.push(FieldError::invalid(
            field,
            &Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }
}

/// The new spec with everything that may change taken from the old one.
fn with_changeable_of(new: &Value, old: &Value) -> Value {
    let mut out = new.clone();
    let fields = ["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    for field in fields {
        out[field] = old[field].clone();
    }
    if !items(old, "schedulingGates").is_empty() {
        for field in ["nodeSelector", "affinity"] {
            out[field] = old[field].clone();
        }
    }
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|n| n < 0) && new["terminationGracePeriodSeconds"] == 1
    {
        out["terminationGracePeriodSeconds"] = old["terminationGracePeriodSeconds"].clone();
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in items(old, list).iter().enumerate() {
            if let Some(slot) = out.get_mut(list).and_then(|l| l.get_mut(i)) {
                slot["image"] = c["image"].clone();
            }
        }
    }
    out
}

/// A changed pod through `ephemeralcontainers`: they may be added, not altered.
pub(super) fn ephemeral_update(out: &mut Errors, new: &Value, old: &Value) {
    let (n, o) = (&new["spec"], &old["spec"]);
    let volumes = volume::volumes(&mut Vec::new(), n, "spec.volumes");
    container::ephemeral(out, n, "spec", &volumes);
    let known = |c: &&Value| {
        items(o, "ephemeralContainers")
            .iter()
            .any(|x| text(x, "name") == text(c, "name"))
    };
    if !items(n, "ephemeralContainers").iter().all(|c| known(&c)) {
        let why = "ephemeral containers are not supported: the node agents do not start them";
        out.push(FieldError::forbidden("spec.ephemeralContainers", why));
    }
    for (i, c) in items(o, "ephemeralContainers").iter().enumerate() {
        let at = "spec.ephemeralContainers";
        match items(n, "ephemeralContainers")
            .iter()
            .find(|x| text(x, "name") == text(c, "name"))
        {
            None => out.push(FieldError::forbidden(
                at,
                format!("existing ephemeral containers {:?} may not be removed", text(c, "name")),
            )),
            Some(x) if !same(x, c) => out.push(FieldError::forbidden(
                format!("{at}[{i}]"),
                format!("existing ephemeral containers {:?} may not be changed", text(c, "name")),
            )),
            Some(_) => {}
        }
    }
}
