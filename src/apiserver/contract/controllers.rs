//! Controllers against a real API server: what comes about only because both do their part.

use super::*;
use serde_json::json;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[derive(Parser)]
struct ControllerFlags {
    #[command(flatten)]
    args: ::controllers::Args,
}

/// Some controllers, running until this is dropped.
struct Controllers(CancellationToken);

impl Drop for Controllers {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Cluster {
    /// Starts the named controllers as the identity that the controller manager has.
    fn control(&self, names: &str) -> Controllers {
        let user = "system:kube-controller-manager";
        self.pki.issue("controllers", user, &[], false);
        let path = |file: &str| self.dir.path().join(file);
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "certificate-authority": path("ca.crt")}}],
            "users": [{"name": "test", "user": {
                "client-certificate": path("controllers.crt"), "client-key": path("controllers.key")}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}]});
        let file = path("controllers.conf");
        std::fs::write(&file, kubeconfig.to_string()).unwrap();
        let args = ControllerFlags::parse_from([
            "controllers",
            "--secure-port=0",
            "--leader-elect=false",
            &format!("--kubeconfig={}", file.display()),
            &format!("--controllers={names}"),
        ]);
        let stop = CancellationToken::new();
        tokio::spawn(::controllers::serve(args.args, stop.clone()));
        Controllers(stop)
    }

    /// Waits until an object is as wanted; `None` when it is gone.
    async fn until(&self, path: &str, is_wanted: impl Fn(Option<&Value>) -> bool) {
        let mut last = None;
        for _ in 0..600 {
            let answer = self.get(path).await;
            last = (answer.code == 200).then(|| answer.json());
            if is_wanted(last.as_ref()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} does not come to be as wanted: {last:?}");
    }
}

fn cluster_role(name: &str, label: &str, selected: Option<&str>, resources: &[&str]) -> Value {
    let mut role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {label: "true"}}, "rules": []});
    if !resources.is_empty() {
        role["rules"] = json!([{"verbs": ["list"], "apiGroups": [""], "resources": resources}]);
    }
    if let Some(label) = selected {
        role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    }
    role
}

fn holds(role: Option<&Value>, resources: &[&str]) -> bool {
    let rules = role.and_then(|r| r["rules"].as_array()).into_iter().flatten();
    rules
        .flat_map(|r| r["resources"].as_array().into_iter().flatten())
        .eq(resources)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_of_an_aggregated_role_are_those_that_a_controller_wrote_into_it() {
    let c = Cluster::start().await;
    let roles = format!("{RBAC}/clusterroles");
    // The built-in ones hold their rules as soon as the server is ready, without any controller.
    for name in ["admin", "edit", "view"] {
        let role = c.get(&format!("{roles}/{name}")).await.expect(200);
        assert!(!role["rules"].as_array().unwrap().is_empty(), "{role}");
    }
    c.pki.issue("eve", "eve", &[], false);
    let eve = As::Cert("eve".into());
    let secrets = "/api/v1/secrets";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "eve"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "whole"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
    c.post(&roles, cluster_role("whole", "x", Some("part"), &[]))
        .await
        .expect(201);
    c.post(&roles, cluster_role("part", "part", None, &["secrets"]))
        .await
        .expect(201);
    c.post(&format!("{RBAC}/clusterrolebindings"), binding)
        .await
        .expect(201);
    c.get(&format!("{RBAC}/clusterrolebindings")).await.expect(200);
    c.call(Method::GET, secrets, &eve, None).await.expect(403);

    let whole = format!("{roles}/whole");
    let running = c.control("clusterrole-aggregation-controller");
    c.until(&whole, |r| holds(r, &["secrets"])).await;
    c.call(Method::GET, secrets, &eve, None).await.expect(200);
    // Rules of its own do not last, and neither do those of a role that is no longer selected.
    let merge = "application/merge-patch+json";
    let own = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["nodes"]}]);
    c.patch(&whole, merge, json!({"rules": own})).await.expect(200);
    c.until(&whole, |r| holds(r, &["secrets"])).await;
    c.patch(
        &format!("{roles}/part"),
        merge,
        json!({"metadata": {"labels": {"part": null}}}),
    )
    .await
    .expect(200);
    c.until(&whole, |r| holds(r, &[])).await;
    c.call(Method::GET, secrets, &eve, None).await.expect(403);
    // With nothing selected, too, what is written by hand goes.
    c.patch(&whole, merge, json!({"rules": own})).await.expect(200);
    c.until(&whole, |r| holds(r, &[])).await;
    c.call(Method::GET, "/api/v1/nodes", &eve, None).await.expect(403);
    drop(running);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_over_older_objects_writes_the_rules_of_aggregated_roles() {
    let mut c = Cluster::start().await;
    let roles = format!("{RBAC}/clusterroles");
    c.post(&roles, cluster_role("part", "part", None, &["pods"]))
        .await
        .expect(201);
    c.post(&roles, cluster_role("middle", "middle", Some("part"), &["secrets"]))
        .await
        .expect(201);
    c.post(&roles, cluster_role("whole", "x", Some("middle"), &[]))
        .await
        .expect(201);
    c.patch(
        &format!("{roles}/view"),
        "application/merge-patch+json",
        json!({"rules": []}),
    )
    .await
    .expect(200);
    c.restart().await;
    for name in ["middle", "whole"] {
        let role = c.get(&format!("{roles}/{name}")).await.expect(200);
        assert!(holds(Some(&role), &["pods"]), "{role}");
    }
    let view = c.get(&format!("{roles}/view")).await.expect(200);
    assert!(!view["rules"].as_array().unwrap().is_empty());
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_own_each_other_in_a_circle_go_in_the_foreground() {
    let c = Cluster::start().await;
    let running = c.control("garbage-collector-controller");
    for at_once in [false, true] {
        let names = ["one", "two", "three"];
        let mut uids = Vec::new();
        for name in names {
            uids.push(c.post(MAPS, config_map(name)).await.expect(201)["metadata"]["uid"].clone());
        }
        for (i, name) in names.iter().enumerate() {
            let owner = (i + 2) % 3;
            let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": names[owner], "uid": uids[owner],
                "controller": true, "blockOwnerDeletion": true});
            let patch = json!({"metadata": {"ownerReferences": [reference]}});
            c.patch(&format!("{MAPS}/{name}"), "application/merge-patch+json", patch)
                .await
                .expect(200);
        }
        for name in names.iter().take(if at_once { 3 } else { 1 }) {
            let answer = c
                .delete(&format!("{MAPS}/{name}"), json!({"propagationPolicy": "Foreground"}))
                .await;
            assert!(
                matches!(answer.code, 200 | 404),
                "{}",
                String::from_utf8_lossy(&answer.bytes)
            );
        }
        for name in names {
            c.until(&format!("{MAPS}/{name}"), |o| o.is_none()).await;
        }
    }
    drop(running);
    c.end().await;
}

fn service(name: &str, selector: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": 80}]}})
}

fn endpoints(name: &str, ips: &[&str]) -> Value {
    let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "labels": {"app": name}},
        "subsets": [{"addresses": addresses, "ports": [{"port": 8080}]}]})
}

/// The addresses in the slices of a list, sorted.
fn addresses(list: Option<&Value>) -> Vec<String> {
    let slices = list.and_then(|l| l["items"].as_array()).into_iter().flatten();
    let endpoints = slices.flat_map(|s| s["endpoints"].as_array().into_iter().flatten());
    let mut all: Vec<String> = endpoints
        .filter_map(|e| Some(e["addresses"][0].as_str()?.to_owned()))
        .collect();
    all.sort();
    all
}

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_of_a_service_without_selector_are_mirrored_in_slices() {
    let c = Cluster::start().await;
    let running = c.control("endpoints-controller,endpointslice-controller,endpointslice-mirroring-controller");
    let slices =
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Ddb";
    c.post(SERVICES, service("db", Value::Null)).await.expect(201);
    c.post(ENDPOINTS, endpoints("db", &["192.0.2.1"])).await.expect(201);
    c.until(slices, |l| addresses(l) == ["192.0.2.1"]).await;
    let slice = c.get(slices).await.expect(200)["items"][0].clone();
    assert_eq!(slice["ports"][0]["port"], 8080);
    assert_eq!(slice["metadata"]["labels"]["app"], "db");
    let manager = "endpointslicemirroring-controller.k8s.io";
    assert_eq!(
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        manager
    );
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
    // The other family comes in a slice of its own.
    let more = endpoints("db", &["192.0.2.2", "2001:db8::1"]);
    c.put(&format!("{ENDPOINTS}/db"), more).await.expect(200);
    c.until(slices, |l| addresses(l) == ["192.0.2.2", "2001:db8::1"]).await;
    assert_eq!(c.get(slices).await.expect(200)["items"].as_array().unwrap().len(), 2);
    let merge = "application/merge-patch+json";
    let skip = |value: Value| json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": value}}});
    c.patch(&format!("{ENDPOINTS}/db"), merge, skip("true".into()))
        .await
        .expect(200);
    c.until(slices, |l| addresses(l).is_empty()).await;
    c.patch(&format!("{ENDPOINTS}/db"), merge, skip(Value::Null))
        .await
        .expect(200);
    c.until(slices, |l| addresses(l).len() == 2).await;
    // A Service that gets a selector has slices of its pods instead.
    let path = format!("{SERVICES}/db");
    c.patch(&path, merge, json!({"spec": {"selector": {"app": "db"}}}))
        .await
        .expect(200);
    c.until(slices, |l| {
        let mirrored = |s: &Value| s["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == manager;
        l.is_some_and(|l| {
            l["items"]
                .as_array()
                .is_some_and(|a| !a.is_empty() && !a.iter().any(mirrored))
        })
    })
    .await;
    drop(running);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_go_with_their_service_whoever_wrote_them() {
    let c = Cluster::start().await;
    let record = json!({"metadata": {"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}});
    for name in ["leftover", "election"] {
        c.post(ENDPOINTS, endpoints(name, &["192.0.2.1"])).await.expect(201);
    }
    c.patch(&format!("{ENDPOINTS}/election"), "application/merge-patch+json", record)
        .await
        .expect(200);
    let running = c.control("endpoints-controller,endpointslice-mirroring-controller");
    // What a Service has left behind while no controller ran.
    c.until(&format!("{ENDPOINTS}/leftover"), |e| e.is_none()).await;
    // Endpoints may come before their Service.
    c.post(ENDPOINTS, endpoints("early", &["192.0.2.1"])).await.expect(201);
    for (name, selector) in [("own", Value::Null), ("selecting", json!({"app": "x"}))] {
        c.post(SERVICES, service(name, selector)).await.expect(201);
        if name == "own" {
            c.post(ENDPOINTS, endpoints(name, &["192.0.2.1"])).await.expect(201);
        }
        c.until(&format!("{ENDPOINTS}/{name}"), |e| e.is_some()).await;
        c.delete(&format!("{SERVICES}/{name}"), json!({})).await.expect(200);
        c.until(&format!("{ENDPOINTS}/{name}"), |e| e.is_none()).await;
    }
    let slices =
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Down";
    c.until(slices, |l| addresses(l).is_empty()).await;
    for name in ["early", "election"] {
        c.get(&format!("{ENDPOINTS}/{name}")).await.expect(200);
    }
    drop(running);
    c.end().await;
}
