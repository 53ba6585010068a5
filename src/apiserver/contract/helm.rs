//! Stock helm against the server: a chart with a subchart through its life. Nothing runs its pods, so what helm waits for is played.

use super::programs::{Program, find};
use super::*;
use serde_json::json;

const FILES: &[(&str, &str)] = &[
    (
        "Chart.yaml",
        "{apiVersion: v2, name: demo, version: 0.1.0, dependencies: [{name: sub, version: 0.1.0}]}",
    ),
    ("values.yaml", "{replicas: 1, image: 'web:1', sub: {greeting: hello}}"),
    (
        "templates/web.yaml",
        r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Release.Name }}-web
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      containers:
      - {name: web, image: {{ .Values.image | quote }}, ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}-web}
spec: {selector: {app: {{ .Release.Name }}}, ports: [{port: 80}]}
"#,
    ),
    ("charts/sub/Chart.yaml", "{apiVersion: v2, name: sub, version: 0.1.0}"),
    ("charts/sub/values.yaml", "{greeting: hi}"),
    (
        "charts/sub/templates/map.yaml",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Release.Name }}-sub}, data: {greeting: {{ .Values.greeting | quote }}}}",
    ),
];

fn chart(cluster: &Cluster) {
    for (file, text) in FILES {
        let path = cluster.dir.path().join("demo").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

const SHOP: &str = "/apis/apps/v1/namespaces/shop/deployments/r-web";

async fn image(c: &Cluster) -> String {
    let web = c.get(SHOP).await.expect(200);
    web["spec"]["template"]["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_installed_upgraded_rolled_back_and_removed() {
    let Some(path) = find("helm") else { return };
    let cluster = Cluster::start().await;
    chart(&cluster);
    let h = Program::new("helm", path, &cluster);
    h.check(
        "upgrade --install r demo -n shop --create-namespace --set sub.greeting=moin",
        "",
        &["STATUS: deployed", "REVISION: 1"],
    )
    .await;
    let map = cluster
        .get("/api/v1/namespaces/shop/configmaps/r-sub")
        .await
        .expect(200);
    assert_eq!(map["data"]["greeting"], "moin");
    assert_eq!(map["metadata"]["managedFields"][0]["manager"], "helm");
    assert_eq!(map["metadata"]["managedFields"][0]["operation"], "Apply");
    h.check("list -n shop", "", &["r ", "demo-0.1.0", "deployed"]).await;
    h.check(
        "upgrade --install r demo -n shop --reuse-values --set image=web:2",
        "",
        &["REVISION: 2"],
    )
    .await;
    assert_eq!(image(&cluster).await, "web:2");
    let map = cluster
        .get("/api/v1/namespaces/shop/configmaps/r-sub")
        .await
        .expect(200);
    assert_eq!(map["data"]["greeting"], "moin");
    h.check("rollback r 1 -n shop", "", &["Rollback was a success"]).await;
    assert_eq!(image(&cluster).await, "web:1");
    h.check("history r -n shop", "", &["superseded", "Rollback to 1"]).await;
    h.check("status r -n shop", "", &["REVISION: 3"]).await;
    h.check("get manifest r -n shop", "", &["kind: Deployment"]).await;
    let secrets =
        "/api/v1/namespaces/shop/secrets?labelSelector=owner%3Dhelm,name%3Dr&fieldSelector=type%3Dhelm.sh/release.v1";
    assert_eq!(
        cluster.get(secrets).await.expect(200)["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    h.check(
        "upgrade r demo -n shop --dry-run=server --set image=web:9",
        "",
        &["web:9"],
    )
    .await;
    assert_eq!(image(&cluster).await, "web:1");
    h.check("uninstall r -n shop", "", &["release \"r\" uninstalled"]).await;
    cluster.get(SHOP).await.expect(404);
    assert!(
        cluster.get(secrets).await.expect(200)["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    drop(h);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_changed_is_a_conflict_unless_forced() {
    let Some(path) = find("helm") else { return };
    let cluster = Cluster::start().await;
    chart(&cluster);
    let h = Program::new("helm", path, &cluster);
    h.check(
        "upgrade --install r demo -n shop --create-namespace",
        "",
        &["REVISION: 1"],
    )
    .await;
    let scaled = json!({"spec": {"replicas": 7}});
    let scale = format!("{SHOP}/scale?fieldManager=hand");
    cluster
        .patch(&scale, "application/merge-patch+json", scaled)
        .await
        .expect(200);
    h.refused(
        "upgrade r demo -n shop --set replicas=3",
        "",
        &["conflict with \"hand\" with subresource \"scale\" using apps/v1: .spec.replicas"],
    )
    .await;
    h.check(
        "upgrade r demo -n shop --set replicas=3 --force-conflicts",
        "",
        &["STATUS: deployed"],
    )
    .await;
    assert_eq!(cluster.get(SHOP).await.expect(200)["spec"]["replicas"], 3);
    // A release that was installed from the client goes over to the server.
    h.check(
        "upgrade --install old demo -n shop --server-side=false",
        "",
        &["REVISION: 1"],
    )
    .await;
    h.check(
        "upgrade old demo -n shop --server-side=true --set replicas=2",
        "",
        &["REVISION: 2"],
    )
    .await;
    let web = cluster
        .get("/apis/apps/v1/namespaces/shop/deployments/old-web")
        .await
        .expect(200);
    assert_eq!(web["spec"]["replicas"], 2);
    let managers = web["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!((managers.len(), &managers[0]["operation"]), (1, &json!("Apply")));
    drop(h);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_waits_until_everything_is_ready() {
    let Some(path) = find("helm") else { return };
    let cluster = Cluster::start().await;
    chart(&cluster);
    let h = Program::new("helm", path, &cluster);
    h.refused(
        "upgrade --install r demo -n shop --create-namespace --wait --timeout 2s",
        "",
        &["Deployment/shop/r-web not ready"],
    )
    .await;
    let waiting = h.start(
        "upgrade --install r demo -n shop --wait --timeout 60s --set image=web:2",
        "",
    );
    let ended = tokio::task::spawn_blocking(move || waiting.wait_with_output().unwrap());
    // As its controller would, once helm has written it.
    loop {
        let mut web = cluster.get(SHOP).await.expect(200);
        if web["spec"]["template"]["spec"]["containers"][0]["image"] == "web:2" {
            let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason});
            web["status"] = json!({
                "observedGeneration": web["metadata"]["generation"], "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
                "conditions": [condition("Available", "MinimumReplicasAvailable"), condition("Progressing", "NewReplicaSetAvailable")],
            });
            cluster.put(&format!("{SHOP}/status"), web).await.expect(200);
            break;
        }
        assert!(!ended.is_finished(), "helm ended before anything was ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let out = ended.await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    h.check("uninstall r -n shop --wait --timeout 20s", "", &["uninstalled"])
        .await;
    drop(h);
    cluster.end().await;
}
