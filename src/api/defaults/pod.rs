//! Defaults of pods and of the pod templates in workloads.

use serde_json::{Map, Value, json};

use crate::quantity::Quantity;

use super::{default, default_number, default_text, each, map_mut, text};

type Object = Map<String, Value>;

/// A pod.
pub(super) fn object(root: &mut Object) {
    default(root, "spec", json!({}));
    let Some(spec) = map_mut(root, "spec") else { return };
    default(spec, "enableServiceLinks", true);
    self::spec(spec);
    requests_from_limits(spec);
    host_ports(spec);
}

/// `template` of a workload.
pub(super) fn template(template: Option<&mut Value>) {
    let Some(spec) = template.and_then(|t| t.get_mut("spec")).and_then(Value::as_object_mut) else {
        return;
    };
    self::spec(spec);
    // Templates keep host ports explicit, so that two replicas on a node are seen to collide.
    host_ports(spec);
}

fn spec(spec: &mut Object) {
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", json!({}));
    default_text(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    for volume in each(spec, "volumes") {
        self::volume(volume);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in each(spec, list) {
            container(c);
        }
    }
}

/// The deprecated `serviceAccount` follows `serviceAccountName`, and stands in for it when only it is given.
fn mirror_service_account(spec: &mut Object) {
    let name = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        spec.insert("serviceAccountName".to_owned(), name.clone().into());
        spec.insert("serviceAccount".to_owned(), name.into());
    }
}

fn volume(volume: &mut Object) {
    if volume.keys().all(|k| k == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(s) = map_mut(volume, source) {
            default(s, "defaultMode", 0o644);
            field_refs(s);
        }
    }
    if let Some(s) = map_mut(volume, "hostPath") {
        default(s, "type", "");
    }
    if let Some(s) = map_mut(volume, "image") {
        let policy = pull_policy(text(s, "reference"));
        default_text(s, "pullPolicy", policy);
    }
    if let Some(s) = map_mut(volume, "iscsi") {
        default_text(s, "iscsiInterface", "default");
    }
    if let Some(template) = map_mut(volume, "ephemeral").and_then(|e| map_mut(e, "volumeClaimTemplate"))
        && let Some(claim) = map_mut(template, "spec")
    {
        default(claim, "volumeMode", "Filesystem");
    }
    let sources = map_mut(volume, "projected").map(|p| each(p, "sources"));
    for source in sources.into_iter().flatten() {
        if let Some(token) = map_mut(source, "serviceAccountToken") {
            default(token, "expirationSeconds", 3600);
        }
        if let Some(api) = map_mut(source, "downwardAPI") {
            field_refs(api);
        }
    }
}

fn field_refs(source: &mut Object) {
    for item in each(source, "items") {
        if let Some(r) = map_mut(item, "fieldRef") {
            default_text(r, "apiVersion", "v1");
        }
        if let Some(r) = map_mut(item, "resourceFieldRef") {
            default(r, "divisor", "0");
        }
    }
}

fn container(c: &mut Object) {
    let policy = pull_policy(text(c, "image"));
    default_text(c, "imagePullPolicy", policy);
    default_text(c, "terminationMessagePath", "/dev/termination-log");
    default_text(c, "terminationMessagePolicy", "File");
    default(c, "resources", json!({}));
    for port in each(c, "ports") {
        default_text(port, "protocol", "TCP");
    }
    for variable in each(c, "env") {
        if let Some(from) = map_mut(variable, "valueFrom") {
            if let Some(r) = map_mut(from, "fieldRef") {
                default_text(r, "apiVersion", "v1");
            }
            if let Some(r) = map_mut(from, "resourceFieldRef") {
                default(r, "divisor", "0");
            }
            if let Some(r) = map_mut(from, "fileKeyRef") {
                default(r, "optional", false);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = map_mut(c, name) {
            probe(p);
        }
    }
    if let Some(lifecycle) = map_mut(c, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(get) = map_mut(lifecycle, hook).and_then(|h| map_mut(h, "httpGet")) {
                http_get(get);
            }
        }
    }
}

fn probe(p: &mut Object) {
    default_number(p, "timeoutSeconds", 1);
    default_number(p, "periodSeconds", 10);
    default_number(p, "successThreshold", 1);
    default_number(p, "failureThreshold", 3);
    if let Some(get) = map_mut(p, "httpGet") {
        http_get(get);
    }
    if let Some(grpc) = map_mut(p, "grpc") {
        default(grpc, "service", "");
    }
}

fn http_get(get: &mut Object) {
    default_text(get, "path", "/");
    default_text(get, "scheme", "HTTP");
}

/// An image that names no fixed version is asked for anew each time.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let latest = match last.split_once('@') {
        Some(_) => false,
        None => last.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest"),
    };
    if latest { "Always" } else { "IfNotPresent" }
}

/// What a pod is limited to it is also promised, unless it asks for less.
fn requests_from_limits(spec: &mut Object) {
    for list in ["initContainers", "containers"] {
        for c in each(spec, list) {
            let Some(resources) = map_mut(c, "resources") else {
                continue;
            };
            copy_limits(resources);
        }
    }
    // The pod as a whole is promised what its containers are, if it does not say; its limits only where they say nothing.
    for name in POD_RESOURCES {
        let of_containers = container_requests(spec, name);
        if let (Some(amount), Some(resources)) = (of_containers, map_mut(spec, "resources")) {
            default(resources, "requests", json!({}));
            if let Some(requests) = map_mut(resources, "requests") {
                default(requests, name, amount.to_string());
            }
        }
    }
    if let Some(resources) = map_mut(spec, "resources") {
        copy_limits(resources);
    }
}

/// Resources that a pod may ask for as a whole, huge pages apart.
const POD_RESOURCES: [&str; 2] = ["cpu", "memory"];

/// What the containers request at their peak: all main ones and sidecars together, or an init container beside the sidecars
/// that were started before it. None if none says.
fn container_requests(spec: &Object, name: &str) -> Option<Quantity> {
    let list = |field: &str| spec.get(field).and_then(Value::as_array).into_iter().flatten();
    let request = |c: &Value| c["resources"]["requests"][name].as_str()?.parse::<Quantity>().ok();
    let sum = |a: Option<Quantity>, b: Option<Quantity>| match (a, b) {
        (Some(a), Some(b)) => Some(a.plus(&b)),
        (a, b) => a.or(b),
    };
    let (mut sidecars, mut peak) = (None, None);
    for c in list("initContainers") {
        let together = sum(sidecars, request(c));
        if c["restartPolicy"] == "Always" {
            sidecars = together;
        }
        peak = peak.max(together);
    }
    let main = list("containers").map(request).fold(None, sum);
    peak.max(sum(main, sidecars))
}

fn copy_limits(resources: &mut Object) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    default(resources, "requests", json!({}));
    if let Some(requests) = map_mut(resources, "requests") {
        for (name, quantity) in limits {
            default(requests, &name, quantity);
        }
    }
}

/// In the host's network a container's port is the host's.
fn host_ports(spec: &mut Object) {
    if spec.get("hostNetwork").and_then(Value::as_bool) != Some(true) {
        return;
    }
    for list in ["initContainers", "containers"] {
        for c in each(spec, list) {
            for port in each(c, "ports") {
                if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
                    default_number(port, "hostPort", number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::tests::check;

    fn defaulted(mut pod: Value) -> Value {
        crate::defaults::apply(crate::kinds::find("", "v1", "pods").unwrap(), &mut pod);
        pod
    }

    #[test]
    fn a_bare_pod_gets_what_kubernetes_gives_it() {
        check(
            "",
            "pods",
            json!({"spec": {"containers": [{"name": "a", "image": "web:1", "ports": [{"containerPort": 80}]}]}}),
            json!({"spec": {
                "containers": [{
                    "name": "a", "image": "web:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
                "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true,
            }}),
        );
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("web", "Always"),
            ("web:latest", "Always"),
            ("web:1", "IfNotPresent"),
            ("host:5000/web", "Always"),
            ("host:5000/web:1", "IfNotPresent"),
            ("web@sha256:00", "IfNotPresent"),
            ("web:latest@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn limits_are_requests_and_host_network_ports_are_host_ports() {
        let pod = defaulted(json!({"spec": {"hostNetwork": true, "containers": [{
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            "ports": [{"containerPort": 80}],
        }]}}));
        let c = &pod["spec"]["containers"][0];
        assert_eq!(c["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert_eq!(c["ports"][0]["hostPort"], 80);
    }

    #[test]
    fn a_pod_as_a_whole_is_promised_what_its_containers_are() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = c("200m");
        sidecar["restartPolicy"] = "Always".into();
        for (resources, init, expected) in [
            (
                json!({"limits": {"cpu": "4", "memory": "1Gi"}}),
                json!([]),
                json!({"cpu": "1", "memory": "1Gi"}),
            ),
            (
                json!({"limits": {"cpu": "4"}}),
                json!([sidecar, c("2")]),
                json!({"cpu": "2200m"}),
            ),
            (
                json!({"limits": {"cpu": "4"}}),
                json!([c("2"), sidecar]),
                json!({"cpu": "2"}),
            ),
            (json!({"requests": {"cpu": "3"}}), json!([]), json!({"cpu": "3"})),
        ] {
            let pod = defaulted(
                json!({"spec": {"resources": resources, "initContainers": init, "containers": [c("500m"), c("500m")]}}),
            );
            assert_eq!(pod["spec"]["resources"]["requests"], expected, "{resources}");
        }
        let plain = defaulted(json!({"spec": {"containers": [c("1")]}}));
        assert!(plain["spec"].get("resources").is_none());
    }

    #[test]
    fn probes_and_volumes_are_completed() {
        let pod = defaulted(json!({"spec": {
            "containers": [{"livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [
                {"name": "a"},
                {"name": "b", "secret": {"secretName": "s"}},
                {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
                {"name": "d", "hostPath": {"path": "/x"}},
            ],
        }}));
        assert_eq!(
            pod["spec"]["containers"][0]["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
        let v = &pod["spec"]["volumes"];
        assert_eq!(v[0]["emptyDir"], json!({}));
        assert_eq!(v[1]["secret"]["defaultMode"], 420);
        assert_eq!(
            v[2]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            3600
        );
        assert_eq!(v[3]["hostPath"]["type"], "");
    }
}
