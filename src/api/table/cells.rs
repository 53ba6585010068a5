//! The cells of every kind: small functions from an object to what people read.

mod network;
mod storage;

use super::pod;
use crate::time;
use jiff::Timestamp;
use serde_json::Value;

/// The cells of an object, in the order of the kind's columns.
pub(super) fn of(group: &str, kind: &str, o: &Value, now: Timestamp) -> Vec<Value> {
    let name: Value = o["metadata"]["name"].as_str().unwrap_or_default().into();
    let age: Value = time::ago(o["metadata"]["creationTimestamp"].as_str(), now).into();
    let (spec, status) = (&o["spec"], &o["status"]);
    match (group, kind) {
        ("", "Pod") => pod::cells(o, name, age, now),
        ("", "Node") => node(o, name, age),
        ("", "Service") => vec![
            name,
            word(&spec["type"], "ClusterIP"),
            word(&spec["clusterIP"], "None"),
            network::external_addresses(o).into(),
            network::service_ports(spec).into(),
            age,
            labels(&spec["selector"]).into(),
        ],
        ("", "Endpoints") => vec![name, network::endpoints(&o["subsets"]).into(), age],
        ("", "Namespace") => vec![name, word(&status["phase"], ""), age],
        ("", "ConfigMap") => vec![name, (size(&o["data"]) + size(&o["binaryData"])).into(), age],
        ("", "Secret") => vec![name, word(&o["type"], ""), size(&o["data"]).into(), age],
        ("", "ServiceAccount") => vec![name, size(&o["secrets"]).into(), age],
        ("autoscaling", "Scale") => vec![name, int(&spec["replicas"]), int(&status["replicas"]), age],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            let mut cells = vec![
                name,
                int(&spec["replicas"]),
                int(&status["replicas"]),
                int(&status["readyReplicas"]),
                age,
            ];
            cells.extend(template(spec));
            cells
        }
        ("", "PersistentVolume") => storage::persistent_volume(o, name, age),
        ("", "PersistentVolumeClaim") => storage::persistent_volume_claim(o, name, age),
        ("", "PodTemplate") => {
            let (containers, images) = containers(&o["template"]["spec"]);
            vec![
                name,
                containers.into(),
                images.into(),
                labels(&o["template"]["metadata"]["labels"]).into(),
            ]
        }
        ("" | "events.k8s.io", "Event") => event(o, name, now),
        ("apps", "Deployment") => {
            let ready = format!(
                "{}/{}",
                status["readyReplicas"].as_i64().unwrap_or(0),
                spec["replicas"].as_i64().unwrap_or(0)
            );
            let mut cells = vec![
                name,
                ready.into(),
                int(&status["updatedReplicas"]),
                int(&status["availableReplicas"]),
                age,
            ];
            cells.extend(template(spec));
            cells
        }
        ("apps", "DaemonSet") => {
            let counts = [
                "desiredNumberScheduled",
                "currentNumberScheduled",
                "numberReady",
                "updatedNumberScheduled",
                "numberAvailable",
            ];
            let mut cells = vec![name];
            cells.extend(counts.iter().map(|field| int(&status[field])));
            cells.extend([labels(&spec["template"]["spec"]["nodeSelector"]).into(), age]);
            cells.extend(template(spec));
            cells
        }
        ("apps", "ControllerRevision") => vec![name, controller(o).into(), int(&o["revision"]), age],
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            let role = format!(
                "{}/{}",
                o["roleRef"]["kind"].as_str().unwrap_or(""),
                o["roleRef"]["name"].as_str().unwrap_or("")
            );
            let mut cells = vec![name, role.into(), age];
            cells.extend(["User", "Group", "ServiceAccount"].map(|kind| Value::from(subjects(o, kind))));
            cells
        }
        ("coordination.k8s.io", "Lease") => vec![name, word(&spec["holderIdentity"], ""), age],
        ("discovery.k8s.io", "EndpointSlice") => {
            vec![
                name,
                word(&o["addressType"], ""),
                network::slice_ports(o).into(),
                network::slice_addresses(o).into(),
                age,
            ]
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            let duration = spec["expirationSeconds"].as_i64();
            let duration = duration.map_or("<none>".to_owned(), |s| time::human(jiff::SignedDuration::from_secs(s)));
            vec![
                name,
                age,
                word(&spec["signerName"], "<none>"),
                word(&spec["username"], ""),
                duration.into(),
                csr_condition(status).into(),
            ]
        }
        ("policy", "PodDisruptionBudget") => {
            let allowed = int(&status["disruptionsAllowed"]);
            vec![
                name,
                int_or_string(&spec["minAvailable"]),
                int_or_string(&spec["maxUnavailable"]),
                allowed,
                age,
            ]
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            let default = o["globalDefault"].as_bool().unwrap_or(false).to_string();
            vec![
                name,
                int(&o["value"]),
                default.into(),
                age,
                word(&o["preemptionPolicy"], "PreemptLowerPriority"),
            ]
        }
        ("node.k8s.io", "RuntimeClass") => vec![name, word(&o["handler"], ""), age],
        ("storage.k8s.io", "StorageClass") => storage::storage_class(o, name, age),
        _ => vec![name, word(&o["metadata"]["creationTimestamp"], "<unknown>")],
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value, otherwise: &str) -> Value {
    value.as_str().filter(|s| !s.is_empty()).unwrap_or(otherwise).into()
}

fn int(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}

fn int_or_string(value: &Value) -> Value {
    match value {
        Value::Number(n) => n.to_string().into(),
        Value::String(s) => s.as_str().into(),
        _ => "N/A".into(),
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

fn join<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(",")
}

fn labels(map: &Value) -> String {
    let pairs = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()));
    or_none(pairs.collect::<Vec<_>>().join(","))
}

/// A LabelSelector as `kubectl` writes it.
fn selector(selector: &Value) -> String {
    if !selector["matchLabels"].is_object() && !selector["matchExpressions"].is_array() {
        return labels(selector);
    }
    let mut parts: Vec<String> = Vec::new();
    for (k, v) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{k}={}", v.as_str().unwrap_or_default()));
    }
    for e in list(&selector["matchExpressions"]) {
        let key = e["key"].as_str().unwrap_or_default();
        let values = join(list(&e["values"]).iter().filter_map(Value::as_str));
        parts.push(match e["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(parts.join(","))
}

fn containers(pod_spec: &Value) -> (String, String) {
    let all = list(&pod_spec["containers"]);
    let of = |field: &str| join(all.iter().filter_map(|c| c[field].as_str()));
    (of("name"), of("image"))
}

fn template(spec: &Value) -> [Value; 3] {
    let (names, images) = containers(&spec["template"]["spec"]);
    [names.into(), images.into(), selector(&spec["selector"]).into()]
}

fn node(o: &Value, name: Value, age: Value) -> Vec<Value> {
    let conditions = list(&o["status"]["conditions"]);
    let ready = conditions.iter().find(|c| c["type"] == "Ready");
    let mut state = match ready.map(|c| c["status"].as_str()) {
        Some(Some("True")) => "Ready",
        Some(Some("False")) | None => {
            if ready.is_some() {
                "NotReady"
            } else {
                "Unknown"
            }
        }
        Some(_) => "NotReady",
    }
    .to_owned();
    if o["spec"]["unschedulable"] == true {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in o["metadata"]["labels"].as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|v| !v.is_empty()));
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = list(&o["status"]["addresses"]).iter().find(|a| a["type"] == kind);
        word(found.map_or(&Value::Null, |a| &a["address"]), "<none>")
    };
    let info = &o["status"]["nodeInfo"];
    vec![
        name,
        state.into(),
        or_none(roles.join(",")).into(),
        age,
        word(&info["kubeletVersion"], ""),
        address("InternalIP"),
        address("ExternalIP"),
        word(&info["osImage"], "<unknown>"),
        word(&info["kernelVersion"], "<unknown>"),
        word(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}

fn event(o: &Value, name: Value, now: Timestamp) -> Vec<Value> {
    // Core and events.k8s.io spell some fields differently.
    let either = |a: &str, b: &str| if o[a].is_null() { o[b].clone() } else { o[a].clone() };
    let object = either("involvedObject", "regarding");
    let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    let event_time = text(&o["eventTime"]);
    let first = text(&either("firstTimestamp", "deprecatedFirstTimestamp")).or_else(|| event_time.clone());
    let last = text(&o["series"]["lastObservedTime"])
        .or_else(|| text(&either("lastTimestamp", "deprecatedLastTimestamp")))
        .or(event_time);
    let source = either("source", "deprecatedSource");
    let source = [
        text(&source["component"]).or_else(|| text(&either("reportingComponent", "reportingController"))),
        text(&source["host"]),
    ];
    let count = o["series"]["count"]
        .as_i64()
        .or(either("count", "deprecatedCount").as_i64())
        .filter(|c| *c > 0)
        .unwrap_or(1);
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    vec![
        time::ago(last.as_deref(), now).into(),
        word(&o["type"], ""),
        word(&o["reason"], ""),
        format!("{kind}/{}", object["name"].as_str().unwrap_or_default()).into(),
        word(&object["fieldPath"], ""),
        source.into_iter().flatten().collect::<Vec<_>>().join(", ").into(),
        either("message", "note").as_str().unwrap_or_default().trim().into(),
        time::ago(first.as_deref(), now).into(),
        count.to_string().into(),
        name,
    ]
}

fn controller(o: &Value) -> String {
    let owner = list(&o["metadata"]["ownerReferences"])
        .iter()
        .find(|r| r["controller"] == true);
    let Some(owner) = owner else { return "<none>".to_owned() };
    let kind = owner["kind"].as_str().unwrap_or_default().to_lowercase();
    let api = owner["apiVersion"].as_str().unwrap_or_default();
    match api.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", owner["name"].as_str().unwrap_or_default()),
        None => format!("{kind}/{}", owner["name"].as_str().unwrap_or_default()),
    }
}

fn subjects(o: &Value, kind: &str) -> String {
    let name = |s: &Value| {
        let name = s["name"].as_str().unwrap_or_default();
        if kind == "ServiceAccount" {
            format!("{}/{name}", s["namespace"].as_str().unwrap_or_default())
        } else {
            name.to_owned()
        }
    };
    list(&o["subjects"])
        .iter()
        .filter(|s| s["kind"] == kind)
        .map(name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn csr_condition(status: &Value) -> String {
    let has = |kind: &str| list(&status["conditions"]).iter().any(|c| c["type"] == kind);
    let mut words = vec![match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }];
    if has("Failed") {
        words.push("Failed");
    }
    if status["certificate"].as_str().is_some_and(|c| !c.is_empty()) {
        words.push("Issued");
    }
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(group: &str, kind: &str, object: Value) -> String {
        let now = time::parse("2026-01-01T00:10:00Z").unwrap();
        let text = |v: Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        of(group, kind, &object, now)
            .into_iter()
            .map(text)
            .collect::<Vec<_>>()
            .join("|")
    }

    #[test]
    fn objects_read_as_kubectl_users_know_them() {
        let meta = json!({"name": "x", "creationTimestamp": "2026-01-01T00:05:00Z"});
        for (group, kind, object, expected) in [
            (
                "",
                "Node",
                json!({"metadata": {"name": "m1", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1"}}}),
                "m1|Ready,SchedulingDisabled|control-plane|<unknown>|v1|10.0.0.1|<none>|<unknown>|<unknown>|<unknown>",
            ),
            (
                "",
                "Service",
                json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}], "selector": {"app": "w"}}}),
                "x|NodePort|10.96.0.7|<none>|80:30080/TCP,53/UDP|5m|app=w",
            ),
            (
                "",
                "Endpoints",
                json!({"metadata": meta, "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}], "ports": [{"port": 80}, {"port": 81}]}]}),
                "x|1.1.1.1:80,1.1.1.1:81,1.1.1.2:80 + 1 more...|5m",
            ),
            (
                "apps",
                "Deployment",
                json!({"metadata": meta, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}}}, "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
                "x|2/3|3|2|5m|c|i:1|a=b",
            ),
            (
                "certificates.k8s.io",
                "CertificateSigningRequest",
                json!({"metadata": meta, "spec": {"signerName": "s", "username": "u", "expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved"}], "certificate": "eA=="}}),
                "x|5m|s|u|60m|Approved,Issued",
            ),
            (
                "",
                "Event",
                json!({"metadata": meta, "type": "Normal", "reason": "R", "message": "m\n", "involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": "2026-01-01T00:09:00Z", "firstTimestamp": "2026-01-01T00:08:30Z", "count": 2, "source": {"component": "k", "host": "h"}}),
                "60s|Normal|R|pod/p||k, h|m|90s|2|x",
            ),
            (
                "",
                "Namespace",
                json!({"metadata": meta, "status": {"phase": "Active"}}),
                "x|Active|5m",
            ),
            (
                "rbac.authorization.k8s.io",
                "RoleBinding",
                json!({"metadata": meta, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": "n"}]}),
                "x|Role/r|5m|||n/a",
            ),
        ] {
            assert_eq!(shown(group, kind, object), expected);
        }
    }
}
