//! The bootstrap policy: roles and bindings every cluster starts with, as tables. Reconciled at each start: missing
//! rules and subjects are added again unless an object is annotated `rbac.authorization.kubernetes.io/autoupdate: "false"`.
//!
//! The controller manager runs all controllers under one identity, so its role is the union of what upstream's separate
//! controllers may do: named resources and verbs, not everything.

use serde_json::{Value, json};

mod rules;

use rules::{ADMIN, CONTROLLER_MANAGER, EDIT, NODE, R, READ, SCHEDULER, VIEW};

const GROUP: &str = "rbac.authorization.k8s.io";

fn words(s: &str) -> Vec<&str> {
    s.split_whitespace().map(|w| if w == "-" { "" } else { w }).collect()
}

fn rule(r: &R) -> Value {
    let mut v = json!({"verbs": words(r.0), "apiGroups": words(r.1), "resources": words(r.2)});
    if !r.3.is_empty() {
        v["resourceNames"] = json!(r.3);
    }
    v
}

fn paths(verbs: &str, urls: &[&str]) -> Value {
    json!({"verbs": words(verbs), "nonResourceURLs": urls})
}

fn meta(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn cluster_role(name: &str, rules: Vec<Value>) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": meta(name), "rules": rules})
}

/// A ClusterRole whose rules are those of labelled parts; `own` parts are the built-in ones.
fn aggregated(name: &str, to: &[&str], rules: &[R]) -> [Value; 2] {
    let mut part = cluster_role(&format!("system:aggregate-to-{name}"), rules.iter().map(rule).collect());
    part["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{name}")] = "true".into();
    let mut whole = cluster_role(name, Vec::new());
    whole["aggregationRule"] = json!({"clusterRoleSelectors": [
        {"matchLabels": {format!("rbac.authorization.k8s.io/aggregate-to-{name}"): "true"}}
    ]});
    for t in to {
        whole["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{t}")] = "true".into();
    }
    [part, whole]
}

fn subject(s: &str) -> Value {
    match s.split_once(':') {
        Some(("user", name)) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        Some(("group", name)) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        _ => {
            let (ns, name) = s
                .trim_start_matches("sa:")
                .split_once('/')
                .unwrap_or(("kube-system", s));
            json!({"kind": "ServiceAccount", "namespace": ns, "name": name})
        }
    }
}

fn binding(kind: &str, name: &str, namespace: &str, role_kind: &str, role: &str, subjects: &[&str]) -> Value {
    let mut m = meta(name);
    if !namespace.is_empty() {
        m["namespace"] = namespace.into();
    }
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": m,
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role},
        "subjects": subjects.iter().map(|s| subject(s)).collect::<Vec<_>>(),
    })
}

fn cluster_roles() -> Vec<Value> {
    let simple = |name: &str, rules: &[R]| cluster_role(name, rules.iter().map(rule).collect());
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let signer = |name: &str, verb: &'static str, s: &'static [&'static str]| {
        let status = if verb == "approve" {
            "certificatesigningrequests/approval"
        } else {
            "certificatesigningrequests/status"
        };
        cluster_role(
            name,
            vec![
                rule(&(READ, "certificates.k8s.io", "certificatesigningrequests", &[])),
                rule(&("update", "certificates.k8s.io", status, &[])),
                rule(&(verb, "certificates.k8s.io", "signers", s)),
            ],
        )
    };
    let mut roles = vec![
        cluster_role("cluster-admin", vec![rule(&("*", "*", "*", &[])), paths("*", &["*"])]),
        cluster_role("system:discovery", vec![paths("get", &discovery)]),
        cluster_role(
            "system:public-info-viewer",
            vec![paths(
                "get",
                &["/healthz", "/livez", "/readyz", "/version", "/version/"],
            )],
        ),
        cluster_role(
            "system:monitoring",
            vec![paths(
                "get",
                &[
                    "/healthz",
                    "/healthz/*",
                    "/livez",
                    "/livez/*",
                    "/metrics",
                    "/metrics/*",
                    "/readyz",
                    "/readyz/*",
                ],
            )],
        ),
        simple(
            "system:basic-user",
            &[
                (
                    "create",
                    "authorization.k8s.io",
                    "selfsubjectaccessreviews selfsubjectrulesreviews",
                    &[],
                ),
                ("create", "authentication.k8s.io", "selfsubjectreviews", &[]),
            ],
        ),
        cluster_role(
            "system:service-account-issuer-discovery",
            vec![paths(
                "get",
                &[
                    "/.well-known/openid-configuration",
                    "/.well-known/openid-configuration/",
                    "/openid/v1/jwks",
                    "/openid/v1/jwks/",
                ],
            )],
        ),
        simple("system:node", NODE),
        simple(
            "system:node-bootstrapper",
            &[(
                "create get list watch",
                "certificates.k8s.io",
                "certificatesigningrequests",
                &[],
            )],
        ),
        simple(
            "system:node-proxier",
            &[
                (READ, "-", "endpoints nodes services", &[]),
                (READ, "discovery.k8s.io", "endpointslices", &[]),
                (READ, "networking.k8s.io", "servicecidrs", &[]),
                ("create patch update", "- events.k8s.io", "events", &[]),
            ],
        ),
        simple(
            "system:node-problem-detector",
            &[
                ("get", "-", "nodes", &[]),
                ("patch", "-", "nodes/status", &[]),
                ("create patch update", "- events.k8s.io", "events", &[]),
            ],
        ),
        simple(
            "system:kube-dns",
            &[
                (READ, "-", "endpoints services namespaces pods", &[]),
                (READ, "discovery.k8s.io", "endpointslices", &[]),
            ],
        ),
        simple(
            "system:kubelet-api-admin",
            &[
                (READ, "-", "nodes", &[]),
                ("proxy", "-", "nodes", &[]),
                (
                    "*",
                    "-",
                    "nodes/log nodes/metrics nodes/proxy nodes/stats nodes/configz nodes/healthz nodes/pods nodes/checkpoint",
                    &[],
                ),
            ],
        ),
        simple(
            "system:auth-delegator",
            &[
                ("create", "authentication.k8s.io", "tokenreviews", &[]),
                ("create", "authorization.k8s.io", "subjectaccessreviews", &[]),
            ],
        ),
        simple(
            "system:heapster",
            &[
                (READ, "-", "events namespaces nodes pods", &[]),
                (READ, "apps", "deployments", &[]),
            ],
        ),
        simple(
            "system:persistent-volume-provisioner",
            &[
                ("create delete get list watch", "-", "persistentvolumes", &[]),
                ("get list update watch", "-", "persistentvolumeclaims", &[]),
                (READ, "storage.k8s.io", "storageclasses", &[]),
                ("create get list patch update watch", "-", "events", &[]),
            ],
        ),
        simple("system:kube-scheduler", SCHEDULER),
        simple("system:kube-controller-manager", CONTROLLER_MANAGER),
        simple(
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            &[(
                "create",
                "certificates.k8s.io",
                "certificatesigningrequests/nodeclient",
                &[],
            )],
        ),
        simple(
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            &[(
                "create",
                "certificates.k8s.io",
                "certificatesigningrequests/selfnodeclient",
                &[],
            )],
        ),
        signer(
            "system:certificates.k8s.io:kube-apiserver-client-approver",
            "approve",
            &["kubernetes.io/kube-apiserver-client"],
        ),
        signer(
            "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
            "approve",
            &["kubernetes.io/kube-apiserver-client-kubelet"],
        ),
        signer(
            "system:certificates.k8s.io:kubelet-serving-approver",
            "approve",
            &["kubernetes.io/kubelet-serving"],
        ),
        signer(
            "system:certificates.k8s.io:legacy-unknown-approver",
            "approve",
            &["kubernetes.io/legacy-unknown"],
        ),
    ];
    roles.extend(aggregated("admin", &[], ADMIN));
    roles.extend(aggregated("edit", &["admin"], EDIT));
    roles.extend(aggregated("view", &["edit"], VIEW));
    roles
}

fn cluster_bindings() -> Vec<Value> {
    let b = |name: &str, role: &str, subjects: &[&str]| {
        binding("ClusterRoleBinding", name, "", "ClusterRole", role, subjects)
    };
    let everybody = &["group:system:authenticated", "group:system:unauthenticated"][..];
    let same = |role: &str, subjects: &[&str]| b(role, role, subjects);
    vec![
        same("cluster-admin", &["group:system:masters"]),
        same("system:discovery", &["group:system:authenticated"]),
        same("system:basic-user", &["group:system:authenticated"]),
        same("system:public-info-viewer", everybody),
        same("system:monitoring", &["group:system:monitoring"]),
        same(
            "system:service-account-issuer-discovery",
            &["group:system:serviceaccounts"],
        ),
        same(
            "system:node-proxier",
            &["user:system:kube-proxy", "sa:kube-system/kube-proxy"],
        ),
        same("system:kube-dns", &["sa:kube-system/kube-dns"]),
        same(
            "system:kube-controller-manager",
            &["user:system:kube-controller-manager"],
        ),
        same("system:kube-scheduler", &["user:system:kube-scheduler"]),
        // The Node authorizer serves nodes; the role exists for those who bind it on purpose.
        same("system:node", &[]),
    ]
}

fn namespaced() -> Vec<Value> {
    let role = |ns: &str, name: &str, rules: &[R]| {
        let mut r = cluster_role(name, rules.iter().map(rule).collect());
        r["kind"] = "Role".into();
        r["metadata"]["namespace"] = ns.into();
        r
    };
    let bind = |ns: &str, role: &str, subjects: &[&str]| binding("RoleBinding", role, ns, "Role", role, subjects);
    let leader = |name: &'static [&'static str]| -> Vec<R> {
        vec![
            ("watch get update", "-", "configmaps", name),
            ("create get list watch", "coordination.k8s.io", "leases", &[]),
            ("get patch update", "coordination.k8s.io", "leases", name),
        ]
    };
    let authentication: &[R] = &[(READ, "-", "configmaps", &["extension-apiserver-authentication"])];
    let signer: &[R] = &[
        (READ, "-", "configmaps", &[]),
        ("get list watch delete", "-", "secrets", &[]),
    ];
    vec![
        role(
            "kube-system",
            "extension-apiserver-authentication-reader",
            authentication,
        ),
        bind(
            "kube-system",
            "extension-apiserver-authentication-reader",
            &["user:system:kube-controller-manager", "user:system:kube-scheduler"],
        ),
        role(
            "kube-system",
            "system::leader-locking-kube-controller-manager",
            &leader(&["kube-controller-manager"]),
        ),
        bind(
            "kube-system",
            "system::leader-locking-kube-controller-manager",
            &["user:system:kube-controller-manager"],
        ),
        role(
            "kube-system",
            "system::leader-locking-kube-scheduler",
            &leader(&["kube-scheduler"]),
        ),
        bind(
            "kube-system",
            "system::leader-locking-kube-scheduler",
            &["user:system:kube-scheduler"],
        ),
        role("kube-system", "system:controller:token-cleaner", signer),
        bind(
            "kube-system",
            "system:controller:token-cleaner",
            &["user:system:kube-controller-manager"],
        ),
        role(
            "kube-public",
            "system:controller:bootstrap-signer",
            &[
                ("get list watch", "-", "configmaps", &[]),
                ("update", "-", "configmaps", &["cluster-info"]),
            ],
        ),
        bind(
            "kube-public",
            "system:controller:bootstrap-signer",
            &["user:system:kube-controller-manager"],
        ),
    ]
}

/// All objects of the policy; plural and object.
pub fn objects() -> Vec<(&'static str, Value)> {
    let mut out: Vec<(&'static str, Value)> = Vec::new();
    out.extend(cluster_roles().into_iter().map(|r| ("clusterroles", r)));
    out.extend(cluster_bindings().into_iter().map(|r| ("clusterrolebindings", r)));
    for o in namespaced() {
        let plural = if o["kind"] == "Role" { "roles" } else { "rolebindings" };
        out.push((plural, o));
    }
    out
}

/// Adds an item to the list at a pointer unless it is there; whether it was missing.
fn add_missing(object: &mut Value, pointer: &str, item: &Value) -> bool {
    let list = pointer.split('/').skip(1).fold(object, |at, field| &mut at[field]);
    if list.as_array().is_some_and(|a| a.contains(item)) {
        return false;
    }
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(a) = list.as_array_mut() {
        a.push(item.clone());
    }
    true
}

/// Adds to `found` the rules, subjects or selectors of `wanted` that it lacks; whether anything was missing.
pub fn reconcile(found: &mut Value, wanted: &Value) -> bool {
    if found["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] == "false" {
        return false;
    }
    let mut changed = false;
    for list in ["/rules", "/subjects", "/aggregationRule/clusterRoleSelectors"] {
        let items = wanted.pointer(list).and_then(Value::as_array);
        for item in items.into_iter().flatten() {
            changed |= add_missing(found, list, item);
        }
    }
    for (k, v) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
        if found["metadata"]["labels"].get(k) != Some(v) {
            found["metadata"]["labels"][k] = v.clone();
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_refers_to_a_role_of_the_policy() {
        let all = objects();
        for (_, b) in all.iter().filter(|(p, _)| p.ends_with("bindings")) {
            let role = &b["roleRef"];
            assert!(
                all.iter()
                    .any(|(_, r)| r["kind"] == role["kind"] && r["metadata"]["name"] == role["name"]),
                "{role}"
            );
        }
    }

    #[test]
    fn reconciling_restores_what_is_missing_and_keeps_what_was_added() {
        let wanted = cluster_role("x", vec![rule(&("get", "-", "pods", &[]))]);
        let mut found = cluster_role("x", vec![rule(&("get", "-", "secrets", &[]))]);
        assert!(reconcile(&mut found, &wanted));
        assert_eq!(found["rules"].as_array().unwrap().len(), 2);
        assert!(!reconcile(&mut found, &wanted));
        found["rules"] = json!([]);
        found["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "false".into();
        assert!(!reconcile(&mut found, &wanted));
    }

    #[test]
    fn selectors_that_were_added_to_a_built_in_role_stay() {
        let [_, wanted] = aggregated("view", &["edit"], VIEW);
        let mut found = wanted.clone();
        assert!(!reconcile(&mut found, &wanted));
        found["aggregationRule"]["clusterRoleSelectors"] = json!([{"matchLabels": {"mine": "true"}}]);
        assert!(reconcile(&mut found, &wanted));
        assert_eq!(
            found["aggregationRule"]["clusterRoleSelectors"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        found["aggregationRule"] = Value::Null;
        assert!(reconcile(&mut found, &wanted));
        assert_eq!(found["aggregationRule"], wanted["aggregationRule"]);
    }

    #[test]
    fn the_controller_manager_is_no_administrator() {
        let role = cluster_roles()
            .into_iter()
            .find(|r| r["metadata"]["name"] == "system:kube-controller-manager")
            .unwrap();
        for r in role["rules"].as_array().unwrap() {
            assert!(!r["verbs"].as_array().unwrap().contains(&"*".into()));
        }
    }
}
