//! Reading and writing objects.

use super::*;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_created_read_updated_and_deleted() {
    let c = Cluster::start().await;
    let made = c.post(MAPS, config_map("a")).await.expect(201);
    assert!(!made["metadata"]["uid"].as_str().unwrap().is_empty());
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(
        c.post(MAPS, config_map("a")).await.expect(409)["reason"],
        "AlreadyExists"
    );
    let path = format!("{MAPS}/a");
    assert_eq!(c.get(&path).await.expect(200), made);
    let mut changed = made.clone();
    changed["data"]["k"] = "w".into();
    let updated = c.put(&path, changed.clone()).await.expect(200);
    assert_ne!(
        updated["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    assert_eq!(updated["metadata"]["uid"], made["metadata"]["uid"]);
    let stale = c.put(&path, changed).await.expect(409);
    assert_eq!(
        (stale["reason"].as_str(), stale["details"]["name"].as_str()),
        (Some("Conflict"), Some("a"))
    );
    let same = c.put(&path, updated.clone()).await.expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"],
        "nothing changed"
    );
    let wrong = json!({"preconditions": {"uid": "other"}});
    c.delete(&path, wrong).await.expect(409);
    let gone = c
        .delete(&path, json!({"kind": "DeleteOptions", "apiVersion": "v1"}))
        .await
        .expect(200);
    assert_eq!(gone["status"], "Success");
    assert_eq!(c.get(&path).await.expect(404)["details"]["kind"], "configmaps");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_generated_and_dry_runs_store_nothing() {
    let c = Cluster::start().await;
    let mut map = config_map("");
    map["metadata"] = json!({"generateName": "x-"});
    let made = c.post(MAPS, map).await.expect(201);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
    c.post(&format!("{MAPS}?dryRun=All"), config_map("dry"))
        .await
        .expect(201);
    c.get(&format!("{MAPS}/dry")).await.expect(404);
    c.post(&format!("{MAPS}?dryRun=Some"), config_map("dry"))
        .await
        .expect(422);
    c.post("/api/v1/namespaces/none/configmaps", config_map("a"))
        .await
        .expect(404);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_change_an_object() {
    let c = Cluster::start().await;
    c.post(MAPS, config_map("a")).await.expect(201);
    let path = format!("{MAPS}/a");
    let json_patch = json!([{"op": "replace", "path": "/data/k", "value": "1"}]);
    assert_eq!(
        c.patch(&path, "application/json-patch+json", json_patch)
            .await
            .expect(200)["data"]["k"],
        "1"
    );
    let merge = json!({"data": {"k": null, "m": "2"}});
    assert_eq!(
        c.patch(&path, "application/merge-patch+json", merge).await.expect(200)["data"],
        json!({"m": "2"})
    );
    let strategic = json!({"metadata": {"labels": {"a": "b"}}});
    let patched = c
        .patch(&path, "application/strategic-merge-patch+json", strategic)
        .await
        .expect(200);
    assert_eq!(patched["metadata"]["labels"], json!({"a": "b"}));
    c.patch(&path, "text/plain", json!({})).await.expect(415);
    c.patch(&format!("{path}?force=true"), "application/merge-patch+json", json!({}))
        .await
        .expect(422);
    let failed = json!([{"op": "test", "path": "/data/m", "value": "no"}]);
    assert!(c.patch(&path, "application/json-patch+json", failed).await.code >= 400);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let c = Cluster::start().await;
    let mut map = config_map("held");
    map["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.post(MAPS, map).await.expect(201);
    let path = format!("{MAPS}/held");
    let marked = c.delete(&path, json!({})).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    c.get(&path).await.expect(200);
    let release = json!({"metadata": {"finalizers": null}});
    c.patch(&path, "application/merge-patch+json", release)
        .await
        .expect(200);
    c.get(&path).await.expect(404);
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        let name = policy.to_lowercase();
        c.post(MAPS, config_map(&name)).await.expect(201);
        let marked = c
            .delete(&format!("{MAPS}/{name}"), json!({"propagationPolicy": policy}))
            .await
            .expect(200);
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
    }
    c.end().await;
}

fn pod(name: &str, node: Option<&str>) -> Value {
    let mut p = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
    if let Some(n) = node {
        p["spec"]["nodeName"] = n.into();
    }
    p
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_is_deleted_gracefully_and_bindings_assign_it() {
    let c = Cluster::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    c.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
    let pods = "/api/v1/namespaces/default/pods";
    c.post(pods, pod("p", None)).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    c.post(&format!("{pods}/p/binding"), binding.clone()).await.expect(201);
    c.post(&format!("{pods}/p/binding"), binding).await.expect(409);
    let bound = c.get(&format!("{pods}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let marked = c.delete(&format!("{pods}/p"), json!({})).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    c.get(&format!("{pods}/p")).await.expect(200);
    c.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 0}))
        .await
        .expect(200);
    c.get(&format!("{pods}/p")).await.expect(404);
    c.post(pods, pod("q", None)).await.expect(201);
    c.delete(&format!("{pods}/q"), json!({})).await.expect(200);
    c.get(&format!("{pods}/q")).await.expect(404);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_events_the_oldest_go() {
    let c = Cluster::with(&["--max-events=10"]).await;
    let events = "/api/v1/namespaces/default/events";
    let about = json!({"kind": "Pod", "namespace": "default", "name": "p"});
    for i in 0..15 {
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("e{i:02}")}, "involvedObject": about,
            "reason": "Test", "message": "x", "type": "Normal"});
        c.post(events, event).await.expect(201);
    }
    for _ in 0..600 {
        let list = c.get(events).await.expect(200);
        let names: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| &e["metadata"]["name"])
            .collect();
        if names.len() <= 10 {
            // Those that were written last are there.
            assert_eq!((names.len(), names[0].as_str()), (9, Some("e06")));
            return c.end().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("surplus events stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_respects_a_disruption_budget() {
    let c = Cluster::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    c.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
    let pods = "/api/v1/namespaces/default/pods";
    let mut p = pod("p", Some("n"));
    p["metadata"]["labels"] = json!({"app": "web"});
    let made = c.post(pods, p).await.expect(201);
    let mut running = made;
    running["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    c.put(&format!("{pods}/p/status"), running).await.expect(200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    let mut made = c.post(budgets, budget).await.expect(201);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let evict = format!("{pods}/p/eviction");
    let refused = c.post(&evict, eviction.clone()).await;
    assert_eq!(refused.headers["retry-after"], "10", "the budget was not looked at yet");
    assert_eq!(
        refused.expect(429)["details"]["causes"][0]["reason"],
        "DisruptionBudget"
    );
    made["status"] = json!({"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1,
        "observedGeneration": made["metadata"]["generation"]});
    let mut made = c.put(&format!("{budgets}/b/status"), made).await.expect(200);
    let refused = c.post(&evict, eviction.clone()).await;
    assert!(!refused.headers.contains_key("retry-after"));
    let refused = refused.expect(429);
    assert!(refused["details"]["retryAfterSeconds"].is_null());
    let cause = "The disruption budget b needs 1 healthy pods and has 1 currently";
    assert_eq!(refused["details"]["causes"][0]["message"], cause);
    made["status"] = json!({"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2,
        "observedGeneration": made["metadata"]["generation"]});
    c.put(&format!("{budgets}/b/status"), made).await.expect(200);
    c.post(&evict, eviction).await.expect(201);
    assert!(c.get(&format!("{pods}/p")).await.expect(200)["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(
        c.get(&format!("{budgets}/b")).await.expect(200)["status"]["disruptionsAllowed"],
        0
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_warned_of_or_refused_and_yaml_is_read() {
    let c = Cluster::start().await;
    let mut odd = config_map("odd");
    odd["colour"] = "red".into();
    let strict = c
        .post(&format!("{MAPS}?fieldValidation=Strict"), odd.clone())
        .await
        .expect(400);
    assert!(
        strict["message"].as_str().unwrap().contains("unknown field \"colour\""),
        "{strict}"
    );
    let warned = c.post(MAPS, odd).await;
    assert!(warned.headers["warning"].to_str().unwrap().contains("unknown field"));
    assert!(warned.expect(201)["colour"].is_null());
    let yaml = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  k: v\n".to_vec();
    let made = c
        .raw(
            Method::POST,
            MAPS,
            &As::Admin,
            &[("content-type", "application/yaml")],
            yaml,
        )
        .await
        .expect(201);
    assert_eq!(made["data"]["k"], "v");
    let big = vec![b' '; crate::rest::body::LIMIT + 1];
    c.raw(
        Method::POST,
        MAPS,
        &As::Admin,
        &[("content-type", "application/json")],
        big,
    )
    .await
    .expect(413);
    c.raw(
        Method::POST,
        MAPS,
        &As::Admin,
        &[("content-type", "text/plain")],
        vec![b'x'],
    )
    .await
    .expect(415);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_stands_for_replicas_and_status_is_written_apart() {
    let c = Cluster::start().await;
    let all = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({"app": "web"});
    let d = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "x"}]}}}});
    let made = c.post(all, d).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["spec"]["strategy"]["type"], "RollingUpdate");
    let scale = c.get(&format!("{all}/d/scale")).await.expect(200);
    assert_eq!(
        (scale["kind"].as_str(), scale["status"]["selector"].as_str()),
        (Some("Scale"), Some("app=web"))
    );
    let patched = c
        .patch(
            &format!("{all}/d/scale"),
            "application/merge-patch+json",
            json!({"spec": {"replicas": 3}}),
        )
        .await
        .expect(200);
    assert_eq!(patched["spec"]["replicas"], 3);
    let mut now = c.get(&format!("{all}/d")).await.expect(200);
    assert_eq!(
        (now["spec"]["replicas"].as_i64(), now["metadata"]["generation"].as_i64()),
        (Some(3), Some(2))
    );
    now["status"] = json!({"replicas": 2});
    now["spec"]["replicas"] = 9.into();
    let status = c.put(&format!("{all}/d/status"), now).await.expect(200);
    assert_eq!(
        (
            status["spec"]["replicas"].as_i64(),
            status["status"]["replicas"].as_i64()
        ),
        (Some(3), Some(2))
    );
    assert_eq!(status["metadata"]["generation"], 2);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses_and_the_server_publishes_itself() {
    let c = Cluster::start().await;
    let own = c
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .expect(200);
    assert_eq!(own["spec"]["clusterIP"], "10.96.0.1");
    let endpoints = c
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .expect(200);
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.1");
    c.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .expect(200);
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    let (a, b) = tokio::join!(c.post(services, service("a")), c.post(services, service("b")));
    let (a, b) = (a.expect(201), b.expect(201));
    assert_ne!(a["spec"]["clusterIP"], b["spec"]["clusterIP"]);
    assert_eq!(a["spec"]["clusterIPs"][0], a["spec"]["clusterIP"]);
    let mut taken = service("c");
    taken["spec"]["clusterIP"] = a["spec"]["clusterIP"].clone();
    c.post(services, taken).await.expect(422);
    for ns in crate::system::NAMESPACES {
        c.get(&format!("/api/v1/namespaces/{ns}")).await.expect(200);
    }
    c.get("/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical")
        .await
        .expect(200);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_waits_for_its_content_to_be_finalized() {
    let c = Cluster::start().await;
    let ns = c
        .post(
            "/api/v1/namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
        )
        .await
        .expect(201);
    assert_eq!(ns["spec"]["finalizers"], json!(["kubernetes"]));
    let mut going = c.delete("/api/v1/namespaces/x", json!({})).await.expect(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = c
        .post("/api/v1/namespaces/x/configmaps", config_map("late"))
        .await
        .expect(403);
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    going["spec"]["finalizers"] = json!([]);
    c.put("/api/v1/namespaces/x/finalize", going).await.expect(200);
    c.get("/api/v1/namespaces/x").await.expect(404);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_survives_its_store() {
    let mut c = Cluster::start().await;
    c.post(MAPS, config_map("a")).await.expect(201);
    let list = c.get(MAPS).await.expect(200);
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = c.watch(&format!("{MAPS}?watch=true&resourceVersion={version}")).await;
    c.etcd.kill();
    let sick = c.call(Method::GET, "/readyz", &As::Anonymous, None).await;
    assert_eq!(sick.code, 500);
    assert!(String::from_utf8_lossy(&sick.bytes).contains("[-]etcd failed"));
    assert_eq!(c.call(Method::GET, "/livez", &As::Anonymous, None).await.code, 200);
    let cached = c.get(&format!("{MAPS}?resourceVersion=0")).await.expect(200);
    assert!(!cached["items"].as_array().unwrap().is_empty());
    c.etcd.launch();
    c.until_ready().await;
    c.post(MAPS, config_map("b")).await.expect(201);
    assert_eq!(watch.brief().await, pair("ADDED", "b"));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_masters_publish_the_union_and_withdraw_at_their_end() {
    let c = Cluster::start().await;
    let addresses = async || {
        let e = c
            .get("/api/v1/namespaces/default/endpoints/kubernetes")
            .await
            .expect(200);
        let list = e["subsets"][0]["addresses"].as_array().unwrap().clone();
        list.iter()
            .map(|a| a["ip"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let args = Args {
        advertise_address: "192.0.2.2".parse().unwrap(),
        ..c.args.clone()
    };
    let stop = CancellationToken::new();
    let second = Server::start(args, stop.clone()).await.unwrap();
    let ready = second.app.clone();
    let all_done = async || ready.hooks.all().iter().all(|(_, done)| *done);
    for _ in 0..200 {
        if all_done().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(addresses().await, ["192.0.2.1", "192.0.2.2"]);
    stop.cancel();
    second.wait().await;
    assert_eq!(addresses().await, ["192.0.2.1"]);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_takes_no_pods_yet() {
    let c = Cluster::start().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    let made = c.post("/api/v1/nodes", node).await.expect(201);
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    c.end().await;
}
