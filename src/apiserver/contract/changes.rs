//! What clients may change of objects, and what they are told about what they send.

use super::*;
use base64::Engine as _;
use serde_json::json;

const PODS: &str = "/api/v1/namespaces/default/pods";
const EVENTS: &str = "/api/v1/namespaces/default/events";

async fn with_account(c: &Cluster) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    c.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
}

fn pod(spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "c", "image": "i"}]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_more_tolerations_and_loses_none() {
    let c = Cluster::start().await;
    with_account(&c).await;
    let made = c.post(PODS, pod(json!({}))).await.expect(201);
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let path = format!("{PODS}/p");
    let own = json!({"key": "own", "operator": "Exists"});
    let change = json!({"spec": {"tolerations": [own]}});
    for media in ["application/strategic-merge-patch+json", "application/merge-patch+json"] {
        let changed = c.patch(&path, media, change.clone()).await.expect(200);
        let list = changed["spec"]["tolerations"].as_array().unwrap();
        assert_eq!((list.len(), &list[0]), (3, &own), "{changed}");
    }
    let seconds = json!({"spec": {"tolerations": [own,
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}});
    let changed = c
        .patch(&path, "application/merge-patch+json", seconds)
        .await
        .expect(200);
    assert_eq!(changed["spec"]["tolerations"][1]["tolerationSeconds"], 5);
    let less = json!({"spec": {"tolerations": []}});
    let refused = c.patch(&path, "application/merge-patch+json", less).await.expect(422);
    let why = "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds";
    assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_ask_for_what_nobody_gives_are_refused() {
    let c = Cluster::start().await;
    with_account(&c).await;
    let refused = c.post(PODS, pod(json!({"hostUsers": false}))).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.hostUsers");
    assert_eq!(refused["details"]["causes"][0]["reason"], "FieldValueForbidden");
    c.post(PODS, pod(json!({}))).await.expect(201);
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "i"}]}});
    let refused = c
        .patch(
            &format!("{PODS}/p/ephemeralcontainers"),
            "application/strategic-merge-patch+json",
            debug,
        )
        .await
        .expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("ephemeral containers are not supported"),
        "{refused}"
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_certificate_is_annotated_with_its_decision_and_its_status() {
    let c = Cluster::start().await;
    let pem = CertificateParams::default()
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    let csr = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "r"}, "spec": {
        "request": base64::engine::general_purpose::STANDARD.encode(pem), "signerName": "example.com/own", "usages": ["client auth"]}});
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    c.post(csrs, csr).await.expect(201);
    let media = "application/merge-patch+json";
    let early = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]}});
    c.patch(&format!("{csrs}/r/status"), media, early.clone())
        .await
        .expect(422);
    let mut decision = early;
    decision["metadata"] = json!({"annotations": {"approval": "yes"}});
    let approved = c
        .patch(&format!("{csrs}/r/approval"), media, decision)
        .await
        .expect(200);
    assert_eq!(approved["metadata"]["annotations"]["approval"], "yes");
    let status = json!({"metadata": {"annotations": {"status": "yes"}, "labels": {"status": "yes"}}, "spec": {"expirationSeconds": 900},
        "status": {"certificate": base64::engine::general_purpose::STANDARD.encode("x")}});
    let issued = c.patch(&format!("{csrs}/r/status"), media, status).await.expect(200);
    assert_eq!(
        issued["metadata"]["annotations"],
        json!({"approval": "yes", "status": "yes"})
    );
    assert_eq!(issued["metadata"]["labels"]["status"], "yes");
    assert!(issued["status"]["certificate"].is_string() && issued["spec"]["expirationSeconds"].is_null());
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_validation_tells_odd_fields_in_their_order() {
    let c = Cluster::start().await;
    let text = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "unknownField": "foo", "replicas": 2, "replicas": 3, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}"#;
    let path = "/apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict";
    let json = [("content-type", "application/json")];
    let refused = c
        .raw(Method::POST, path, &As::Admin, &json, text.into())
        .await
        .expect(400);
    assert_eq!(
        refused["message"],
        "strict decoding error: unknown field \"spec.unknownField\", duplicate field \"spec.replicas\""
    );
    c.post(MAPS, config_map("a")).await.expect(201);
    let path = format!("{MAPS}/a?fieldValidation=Strict");
    for (media, text, told) in [
        (
            "application/merge-patch+json",
            r#"{"data": {"k": "1", "k": "2"}, "odd": 1}"#,
            "duplicate field \"data.k\", unknown field \"odd\"",
        ),
        (
            "application/json-patch+json",
            r#"[{"op": "add", "op": "add", "path": "/data/x", "value": "y"}]"#,
            "json patch duplicate field \"[0].op\"",
        ),
    ] {
        let typed = [("content-type", media)];
        let refused = c
            .raw(Method::PATCH, &path, &As::Admin, &typed, text.into())
            .await
            .expect(400);
        assert_eq!(refused["message"], format!("strict decoding error: {told}"));
    }
    let yaml = [("content-type", "application/yaml")];
    let text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: twice}, data: {k: v, k: w}, odd: 1}";
    let path = format!("{MAPS}?fieldValidation=Strict");
    let refused = c
        .raw(Method::POST, &path, &As::Admin, &yaml, text.into())
        .await
        .expect(400);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.starts_with("strict decoding error: error parsing YAML: ") && message.contains("\"odd\""),
        "{message}"
    );
    let made = c.raw(Method::POST, MAPS, &As::Admin, &yaml, text.into()).await;
    assert_eq!(made.headers.get_all("warning").iter().count(), 2);
    assert_eq!(made.expect(201)["data"]["k"], "w");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_selected_by_who_reports_them() {
    let c = Cluster::start().await;
    for (name, component, controller) in [("a", "one", ""), ("b", "", "one"), ("c", "two", "one")] {
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "source": {"component": component},
            "reportingComponent": controller, "reason": "Test", "message": "m", "type": "Normal"});
        c.post(EVENTS, event).await.expect(201);
    }
    let found = c.get(&format!("{EVENTS}?fieldSelector=source%3Done")).await.expect(200);
    let names: Vec<_> = found["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "b"]);
    c.end().await;
}
