//! Refusals, word for word, over objects as clients send them.

use serde_json::{Value, json};

use super::*;
use crate::kinds::find;
use crate::{defaults, strategy};

fn kind(group: &str, plural: &str) -> &'static Kind {
    find(group, "v1", plural).unwrap()
}

fn texts(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Creates as the server does: prepared, defaulted, then validated.
fn create(group: &str, plural: &str, mut object: Value, expected: &[&str]) -> Value {
    let kind = kind(group, plural);
    strategy::prepare_create(kind, &mut object);
    defaults::apply(kind, &mut object);
    assert_eq!(texts(validate_create(kind, &object)), expected, "{object}");
    object
}

fn update(group: &str, plural: &str, old: &Value, change: impl Fn(&mut Value), expected: &[&str]) {
    let kind = kind(group, plural);
    let mut new = old.clone();
    change(&mut new);
    strategy::prepare_update(kind, &mut new, old, None);
    defaults::apply(kind, &mut new);
    assert_eq!(texts(validate_update(kind, &new, old, None)), expected);
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "a", "namespace": "default"}, "spec": spec})
}

#[test]
fn a_container_needs_name_and_image() {
    create("", "pods", pod(json!({})), &["spec.containers: Required value"]);
    create(
        "",
        "pods",
        pod(json!({"containers": [{}]})),
        &[
            "spec.containers[0].name: Required value",
            "spec.containers[0].image: Required value",
        ],
    );
    create(
        "",
        "pods",
        pod(json!({"containers": [{"name": "a", "image": "b"}]})),
        &[],
    );
}

#[test]
fn names_are_refused_in_kubernetes_words() {
    create(
        "",
        "configmaps",
        json!({"metadata": {"name": "A_b", "namespace": "default"}}),
        &[
            "metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ],
    );
    create(
        "",
        "configmaps",
        json!({"metadata": {"namespace": "default"}}),
        &["metadata.name: Required value: name or generateName is required"],
    );
}

#[test]
fn mounts_name_volumes_and_volumes_have_one_source() {
    create(
        "",
        "pods",
        pod(json!({
            "containers": [{"name": "a", "image": "b", "volumeMounts": [{"name": "x", "mountPath": "/x"}, {"name": "v", "mountPath": "/x"}]}],
            "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}],
        })),
        &[
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            "spec.containers[0].volumeMounts[0].name: Not found: \"x\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/x\": must be unique",
        ],
    );
}

#[test]
fn pods_are_refused_for_what_cannot_work() {
    let one = |extra: Value| {
        let mut c = json!({"name": "a", "image": "b"});
        c.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod(json!({"containers": [c]}))
    };
    for (container, expected) in [
        (
            json!({"ports": [{"containerPort": 70000}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"imagePullPolicy": "Sometimes"}),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"livenessProbe": {}}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}}),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"env": [{"name": "a=b"}]}),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '=' (regex used for validation is '[ -<>-~]+')",
        ),
    ] {
        create("", "pods", one(container), &[expected]);
    }
    let mut p = pod(json!({"containers": [{"name": "a", "image": "b"}], "restartPolicy": "Maybe"}));
    create(
        "",
        "pods",
        p.clone(),
        &["spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\""],
    );
    p["spec"] = json!({"containers": [{"name": "a", "image": "b"}], "initContainers": [{"name": "a", "image": "b"}]});
    create("", "pods", p, &["spec.initContainers[0].name: Duplicate value: \"a\""]);
}

#[test]
fn a_pod_may_change_its_image_and_little_else() {
    let p = create(
        "",
        "pods",
        pod(json!({"containers": [{"name": "a", "image": "b:1"}]})),
        &[],
    );
    update(
        "",
        "pods",
        &p,
        |p| p["spec"]["containers"][0]["image"] = "b:2".into(),
        &[],
    );
    update(
        "",
        "pods",
        &p,
        |p| p["spec"]["tolerations"] = json!([{"operator": "Exists"}]),
        &[],
    );
    update("", "pods", &p, |p| p["metadata"]["labels"] = json!({"a": "b"}), &[]);
    let kind = kind("", "pods");
    let mut new = p.clone();
    new["spec"]["containers"][0]["command"] = json!(["x"]);
    let errors = texts(validate_update(kind, &new, &p, None));
    assert!(
        errors[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
        "{errors:?}"
    );
}

fn deployment() -> Value {
    json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}},
    }})
}

#[test]
fn a_deployment_selects_its_own_pods_for_ever() {
    let d = create("apps", "deployments", deployment(), &[]);
    update("apps", "deployments", &d, |d| d["spec"]["replicas"] = 3.into(), &[]);
    update(
        "apps",
        "deployments",
        &d,
        |d| d["spec"]["replicas"] = (-1).into(),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    update(
        "apps",
        "deployments",
        &d,
        |d| {
            d["spec"]["selector"]["matchLabels"] = json!({"x": "y"});
            d["spec"]["template"]["metadata"]["labels"] = json!({"x": "y"});
        },
        &["spec.selector: Invalid value: {\"matchLabels\":{\"x\":\"y\"}}: field is immutable"],
    );
    let mut other = deployment();
    other["spec"]["template"]["metadata"]["labels"] = json!({"c": "d"});
    create(
        "apps",
        "deployments",
        other,
        &["spec.template.metadata.labels: Invalid value: {\"c\":\"d\"}: `selector` does not match template `labels`"],
    );
    let mut never = deployment();
    never["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    create(
        "apps",
        "deployments",
        never,
        &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
    );
    let mut stuck = deployment();
    stuck["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
    create(
        "apps",
        "deployments",
        stuck,
        &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
    );
}

#[test]
fn a_service_keeps_its_address() {
    let s = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80}]}});
    let s = create("", "services", s, &[]);
    update(
        "",
        "services",
        &s,
        |s| {
            s["spec"]["clusterIP"] = "10.0.0.2".into();
            s["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
        },
        &["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"],
    );
    create(
        "",
        "services",
        json!({"metadata": {"name": "1a", "namespace": "default"}, "spec": {"clusterIP": "None"}}),
        &[
            "metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
        ],
    );
    create(
        "",
        "services",
        json!({"metadata": {"name": "a", "namespace": "default"}}),
        &["spec.ports: Required value"],
    );
    create(
        "",
        "services",
        json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]}}),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value",
            "spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ],
    );
}

#[test]
fn immutable_configuration_stays() {
    let c = json!({"metadata": {"name": "a", "namespace": "default"}, "data": {"k": "v"}, "immutable": true});
    let c = create("", "configmaps", c, &[]);
    update(
        "",
        "configmaps",
        &c,
        |c| c["data"]["k"] = "w".into(),
        &["data: Forbidden: field is immutable when `immutable` is set"],
    );
    let s = json!({"metadata": {"name": "a", "namespace": "default"}, "stringData": {"k": "v"}});
    let s = create("", "secrets", s, &[]);
    assert_eq!(s["data"]["k"], "dg==");
    assert!(s.get("stringData").is_none());
    update(
        "",
        "secrets",
        &s,
        |s| s["type"] = "x".into(),
        &["type: Invalid value: \"x\": field is immutable"],
    );
}

#[test]
fn roles_and_bindings_are_whole() {
    const RBAC: &str = "rbac.authorization.k8s.io";
    create(
        RBAC,
        "roles",
        json!({"metadata": {"name": "a:b", "namespace": "default"}, "rules": [{}]}),
        &[
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
        ],
    );
    let b = json!({"metadata": {"name": "a"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s"}]});
    create(
        RBAC,
        "clusterrolebindings",
        b,
        &["subjects[0].namespace: Required value"],
    );
    // In a namespace the subject's is the binding's.
    let b = json!({"metadata": {"name": "a", "namespace": "n"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s"}]});
    create(RBAC, "rolebindings", b, &[]);
    let b = json!({"metadata": {"name": "a"}, "roleRef": {"kind": "ClusterRole", "name": "r"}});
    let b = create(RBAC, "clusterrolebindings", b, &[]);
    update(
        RBAC,
        "clusterrolebindings",
        &b,
        |b| b["roleRef"]["name"] = "x".into(),
        &[
            "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"ClusterRole\",\"name\":\"x\"}: cannot change roleRef",
        ],
    );
}

#[test]
fn a_name_cannot_change_and_a_dying_object_takes_no_finalizer() {
    let c = json!({"metadata": {"name": "a", "namespace": "default", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/a"]}});
    update(
        "",
        "configmaps",
        &c,
        |c| c["metadata"]["name"] = "b".into(),
        &["metadata.name: Invalid value: \"b\": field is immutable"],
    );
    update(
        "",
        "configmaps",
        &c,
        |c| c["metadata"]["finalizers"] = json!(["x.io/b"]),
        &[
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x.io/b\"}",
        ],
    );
}
