//! Server-side apply and who owns what, over the wire.

use super::*;
use serde_json::json;

const APPLY: &str = "application/apply-patch+yaml";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn web(replicas: i64, image: &str) -> Value {
    let labels = json!({"app": "web"});
    deployment(
        json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
        "spec": {"containers": [{"name": "web", "image": image, "ports": [{"containerPort": 80}]}]}}}),
    )
}

/// Managers of an object, each as `Operation manager subresource`.
fn managers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let text = |e: &Value, f: &str| e[f].as_str().unwrap_or_default().to_owned();
    let entry = |e: &Value| {
        format!(
            "{} {} {}",
            text(e, "operation"),
            text(e, "manager"),
            text(e, "subresource")
        )
    };
    list.iter().map(|e| entry(e).trim_end().to_owned()).collect()
}

impl Cluster {
    async fn apply(&self, path: &str, manager: &str, config: Value) -> Answer {
        self.patch(&format!("{path}?fieldManager={manager}"), APPLY, config)
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_created_applied_again_and_taken_back() {
    let c = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let refused = c.patch(&path, APPLY, web(1, "web:1")).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "fieldManager");
    let dry = format!("{path}?dryRun=All&fieldManager=a");
    assert_eq!(
        c.patch(&dry, APPLY, web(1, "web:1")).await.expect(201)["spec"]["replicas"],
        1
    );
    c.get(&path).await.expect(404);
    let made = c.apply(&path, "a", web(1, "web:1")).await.expect(201);
    assert_eq!(
        made["spec"]["strategy"]["type"], "RollingUpdate",
        "defaults are filled in"
    );
    assert_eq!(managers(&made), ["Apply a"]);
    let again = c.apply(&path, "a", web(1, "web:1")).await.expect(200);
    assert_eq!(again, made, "nothing changed, not even the resource version");
    let mut labelled = web(1, "web:2");
    labelled["metadata"]["labels"] = json!({"x": "1"});
    let changed = c.apply(&path, "a", labelled).await.expect(200);
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(changed["metadata"]["labels"], json!({"x": "1"}));
    let taken = c.apply(&path, "a", web(1, "web:2")).await.expect(200);
    assert_eq!(taken["metadata"]["labels"], Value::Null);
    assert_eq!(taken["metadata"]["generation"], 2);
    let stale = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "resourceVersion": made["metadata"]["resourceVersion"]}});
    c.apply(&path, "b", stale).await.expect(409);
    let mut other = web(1, "web:2");
    other["metadata"]["name"] = "other".into();
    c.apply(&path, "a", other).await.expect(400);
    let mut uid = web(1, "web:1");
    uid["metadata"] = json!({"name": "ghost", "uid": "x"});
    assert_eq!(
        c.apply(&format!("{DEPLOYMENTS}/ghost"), "a", uid).await.expect(409)["reason"],
        "Conflict"
    );
    let mut ghost = web(1, "web:1");
    ghost["metadata"]["name"] = "ghost".into();
    let nowhere = c.apply(&format!("{DEPLOYMENTS}/ghost/status"), "a", ghost).await;
    assert_eq!(nowhere.code, 404, "a status is not created alone");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_names_each_field_and_force_resolves_it() {
    let c = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    c.apply(&path, "a", web(1, "web:1")).await.expect(201);
    let refused = c.apply(&path, "b", web(2, "web:2")).await.expect(409);
    assert_eq!(refused["reason"], "Conflict");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.starts_with("Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.replicas"),
        "{message}"
    );
    let fields: Vec<_> = refused["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["field"].clone())
        .collect();
    assert_eq!(
        fields,
        [".spec.replicas", ".spec.template.spec.containers[name=\"web\"].image"]
    );
    let forced = c
        .patch(&format!("{path}?fieldManager=b&force=true"), APPLY, web(2, "web:2"))
        .await
        .expect(200);
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(managers(&forced), ["Apply a", "Apply b"]);
    let lost = c.apply(&path, "a", web(1, "web:1")).await.expect(409);
    assert!(
        lost["message"].as_str().unwrap().contains("conflicts with \"b\""),
        "{lost}"
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_writing_is_noted() {
    let c = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let as_program = [
        ("content-type", "application/json"),
        ("user-agent", "robot/1.0 (linux)"),
    ];
    let body = web(1, "web:1").to_string().into_bytes();
    let made = c
        .raw(Method::POST, DEPLOYMENTS, &As::Admin, &as_program, body)
        .await
        .expect(201);
    assert_eq!(managers(&made), ["Update robot"]);
    let scale = c
        .patch(
            &format!("{path}/scale?fieldManager=scaler"),
            "application/merge-patch+json",
            json!({"spec": {"replicas": 3}}),
        )
        .await;
    scale.expect(200);
    let mut status = c.get(&path).await.expect(200);
    status["status"] = json!({"replicas": 3});
    c.put(&format!("{path}/status?fieldManager=controller"), status)
        .await
        .expect(200);
    let paused = json!([{"op": "add", "path": "/spec/paused", "value": true}]);
    let now = c
        .patch(
            &format!("{path}?fieldManager=hand"),
            "application/json-patch+json",
            paused,
        )
        .await
        .expect(200);
    let mut expected = vec![
        "Update controller status",
        "Update hand",
        "Update robot",
        "Update scaler scale",
    ];
    let mut found = managers(&now);
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let refused = c
        .apply(&path, "a", deployment(json!({"replicas": 9})))
        .await
        .expect(409);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("\"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas"),
        "{refused}"
    );
    let unchanged = c
        .put(&format!("{path}?fieldManager=other"), now.clone())
        .await
        .expect(200);
    assert_eq!(unchanged, now);
    let long = "x".repeat(129);
    c.put(&format!("{path}?fieldManager={long}"), now.clone())
        .await
        .expect(422);
    // The server's own objects have an owner too.
    let namespace = c.get("/api/v1/namespaces/kube-system").await.expect(200);
    assert_eq!(managers(&namespace), ["Update kube-apiserver"]);
    // A client may give everything up.
    let mut reset = now;
    reset["metadata"]["managedFields"] = json!([{}]);
    assert!(managers(&c.put(&path, reset).await.expect(200)).is_empty());
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_applied_through_scale() {
    let c = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    c.apply(&path, "a", web(1, "web:1")).await.expect(201);
    let scale = |n: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": n}});
    c.apply(&format!("{path}/scale"), "s", scale(4)).await.expect(409);
    let forced = format!("{path}/scale?fieldManager=s&force=true");
    assert_eq!(
        c.patch(&forced, APPLY, scale(4)).await.expect(200)["spec"]["replicas"],
        4
    );
    let now = c.get(&path).await.expect(200);
    assert_eq!(managers(&now), ["Apply a", "Apply s scale"]);
    let unknown = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 4, "foo": 1}});
    c.apply(&format!("{path}/scale"), "s", unknown).await.expect(400);
    // Whoever no longer speaks of the replicas leaves them as they are.
    let mut silent = web(1, "web:1");
    silent["spec"].as_object_mut().unwrap().remove("replicas");
    assert_eq!(c.apply(&path, "a", silent).await.expect(200)["spec"]["replicas"], 4);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_schema_is_refused_and_duplicates_are_told() {
    let c = Cluster::start().await;
    let path = format!("{MAPS}/a");
    let mut odd = config_map("a");
    odd["colour"] = "red".into();
    let refused = c.apply(&path, "a", odd).await.expect(400);
    assert_eq!(
        refused["message"],
        "failed to create typed patch object (default/a; v1, Kind=ConfigMap): .colour: field not declared in schema"
    );
    let twice = b"{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"data\": {\"k\": \"1\", \"k\": \"2\"}}";
    let yaml = b"apiVersion: v1\nkind: ConfigMap\ndata:\n  k: '1'\n  k: '2'\n";
    for body in [&twice[..], yaml] {
        let send = async |query: &str| {
            let path = format!("{path}?fieldManager=a{query}");
            c.raw(
                Method::PATCH,
                &path,
                &As::Admin,
                &[("content-type", APPLY)],
                body.to_vec(),
            )
            .await
        };
        assert_eq!(send("&fieldValidation=Strict").await.code, 400);
        let warned = send("").await;
        assert!(
            warned.headers["warning"].to_str().unwrap().contains("duplicate"),
            "{:?}",
            warned.headers
        );
        assert!(warned.code < 300);
        assert_eq!(warned.json()["data"]["k"], "2");
        assert!(!send("&fieldValidation=Ignore").await.headers.contains_key("warning"));
    }
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_give_way_to_objects_that_would_be_too_large_with_them() {
    let c = Cluster::start().await;
    let data: serde_json::Map<_, _> = (0..4000).map(|i| (format!("{i:0>250}"), "x".into())).collect();
    let mut big = config_map("big");
    big["data"] = data.into();
    let refused = c.apply(&format!("{MAPS}/big"), "a", big.clone()).await.expect(413);
    assert_eq!(refused["reason"], "RequestEntityTooLarge");
    let mut made = c.post(MAPS, big).await.expect(201);
    assert_eq!(made["metadata"]["managedFields"], Value::Null);
    made["data"]["more"] = "y".into();
    c.put(&format!("{MAPS}/big"), made).await.expect(200);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_what_is_not_there_needs_the_right_to_create_it() {
    let c = Cluster::start().await;
    c.pki.issue("patcher", "patcher", &[], false);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "p"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "p"},
        "roleRef": {"kind": "ClusterRole", "name": "p"}, "subjects": [{"kind": "User", "name": "patcher"}]});
    c.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
        .await
        .expect(201);
    c.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        .await
        .expect(201);
    let who = As::Cert("patcher".to_owned());
    let apply = async || {
        let body = config_map("a").to_string().into_bytes();
        c.raw(
            Method::PATCH,
            &format!("{MAPS}/a?fieldManager=p"),
            &who,
            &[("content-type", APPLY)],
            body,
        )
        .await
    };
    let mut code = 0;
    for _ in 0..100 {
        code = apply().await.code;
        if code != 403 {
            break;
        }
        // Until the authorizer has seen the role, it refuses the patch itself; after that, the creation.
        if String::from_utf8_lossy(&apply().await.bytes).contains("cannot create") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code, 403);
    c.post(MAPS, config_map("a")).await.expect(201);
    let applied = apply().await;
    assert_eq!(applied.code, 200, "{}", String::from_utf8_lossy(&applied.bytes));
    c.end().await;
}
