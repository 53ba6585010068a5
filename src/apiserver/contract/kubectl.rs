//! Stock kubectl against the server.

use super::programs::{Program, find};
use super::*;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: 'web:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_drain_tells_which_budget_holds_it_up() {
    let Some(path) = find("kubectl") else { return };
    let cluster = Cluster::start().await;
    let k = Program::new("kubectl", path, &cluster);
    let object =
        |kind: &str, name: &str| serde_json::json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    cluster.post("/api/v1/nodes", object("Node", "n")).await.expect(201);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster
        .post(accounts, object("ServiceAccount", "default"))
        .await
        .expect(201);
    let pods = "/api/v1/namespaces/default/pods";
    let mut pod = object("Pod", "p");
    pod["metadata"]["labels"] = serde_json::json!({"app": "web"});
    pod["spec"] = serde_json::json!({"nodeName": "n", "containers": [{"name": "a", "image": "x"}]});
    let mut pod = cluster.post(pods, pod).await.expect(201);
    pod["status"] = serde_json::json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    cluster.put(&format!("{pods}/p/status"), pod).await.expect(200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = serde_json::json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    let mut budget = cluster.post(budgets, budget).await.expect(201);
    budget["status"] = serde_json::json!({"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1,
        "observedGeneration": budget["metadata"]["generation"]});
    cluster.put(&format!("{budgets}/b/status"), budget).await.expect(200);
    let reason = "Cannot evict pod as it would violate the pod's disruption budget.";
    k.refused("drain n --force --timeout=2s", "", &["(will retry after 5s)", reason])
        .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_kubectl_works() {
    let Some(path) = find("kubectl") else { return };
    let cluster = Cluster::start().await;
    let k = Program::new("kubectl", path, &cluster);
    k.check("create ns x", "", &["namespace/x created"]).await;
    k.check("get ns", "", &["NAME", "STATUS", "AGE", "x ", "Active"]).await;
    k.check(
        "-n x apply -f -",
        DEPLOYMENT,
        &["deployment.apps/web created", "service/web created"],
    )
    .await;
    k.check(
        "-n x apply -f -",
        DEPLOYMENT,
        &["deployment.apps/web unchanged", "service/web unchanged"],
    )
    .await;
    let changed = DEPLOYMENT.replace("web:1", "web:2");
    k.check("-n x apply -f -", &changed, &["deployment.apps/web configured"])
        .await;
    k.check(
        "-n x get deploy,svc -o wide",
        "",
        &[
            "deployment.apps/web",
            "0/2",
            "web:2",
            "app=web",
            "service/web",
            "ClusterIP",
        ],
    )
    .await;
    k.check("-n x get deploy web -o json", "", &["\"kind\": \"Deployment\""])
        .await;
    k.check(
        "-n x get deploy web -o yaml",
        "",
        &["kind: Deployment", "terminationGracePeriodSeconds: 30"],
    )
    .await;
    k.check("-n x get deploy -o name", "", &["deployment.apps/web"]).await;
    k.check("-n x describe deploy web", "", &["Name:", "web:2", "RollingUpdate"])
        .await;
    k.check("-n x label deploy web tier=front", "", &["labeled"]).await;
    k.check("-n x annotate deploy web note=hi", "", &["annotated"]).await;
    k.check("-n x get deploy -l tier=front", "", &["web"]).await;
    k.check("-n x scale deploy web --replicas=5", "", &["scaled"]).await;
    k.check("-n x get deploy web -o jsonpath={.spec.replicas}", "", &["5"])
        .await;
    k.check(
        "-n x get deploy web --subresource=scale",
        "",
        &["NAME", "DESIRED", "AVAILABLE", "web ", "5 "],
    )
    .await;
    k.check(
        "-n x patch deploy web -p {\"spec\":{\"paused\":true}}",
        "",
        &["patched"],
    )
    .await;
    k.check(
        "-n x patch deploy web --type=json -p [{\"op\":\"remove\",\"path\":\"/spec/paused\"}]",
        "",
        &["patched"],
    )
    .await;
    k.check("-n x set image deploy/web web=web:3", "", &["image updated"])
        .await;
    k.check("-n x rollout restart deploy web", "", &["restarted"]).await;
    k.check(
        "-n x create configmap c --from-literal=a=b",
        "",
        &["configmap/c created"],
    )
    .await;
    k.check(
        "-n x create secret generic s --from-literal=a=b",
        "",
        &["secret/s created"],
    )
    .await;
    k.check("-n x create sa robot", "", &["serviceaccount/robot created"])
        .await;
    k.check("-n x create token robot", "", &["eyJ"]).await;
    k.check(
        "-n x create role r --verb=get --resource=pods",
        "",
        &["role.rbac.authorization.k8s.io/r created"],
    )
    .await;
    k.check(
        "-n x create rolebinding rb --role=r --serviceaccount=x:robot",
        "",
        &["created"],
    )
    .await;
    k.check("auth can-i create pods", "", &["yes"]).await;
    k.check(
        "-n x auth can-i get pods --as=system:serviceaccount:x:robot",
        "",
        &["yes"],
    )
    .await;
    let no = k
        .run("-n x auth can-i delete pods --as=system:serviceaccount:x:robot", "")
        .await;
    assert!(no.is_err(), "{no:?}");
    k.check("auth whoami", "", &["admin", "system:masters"]).await;
    k.check("api-resources", "", &["deployments", "deploy", "apps/v1", "Deployment"])
        .await;
    k.check("api-versions", "", &["apps/v1", "rbac.authorization.k8s.io/v1"])
        .await;
    k.check("version", "", &["Server Version: v1.36"]).await;
    k.check("explain deployment.spec.replicas", "", &["FIELD: replicas"])
        .await;
    k.check(
        "get --raw /readyz?verbose",
        "",
        &["[+]etcd ok", "[+]poststarthook/rbac/bootstrap-roles ok"],
    )
    .await;
    k.check(
        "-n x wait --for=jsonpath={.spec.replicas}=5 deploy/web --timeout=10s",
        "",
        &["condition met"],
    )
    .await;
    k.check("-n x get all", "", &["deployment.apps/web", "service/web"])
        .await;
    k.check("get clusterroles", "", &["cluster-admin", "system:node"]).await;
    k.check("-n x delete deploy web", "", &["deleted"]).await;
    k.check(
        "-n x delete svc,configmap --all",
        "",
        &["service \"web\" deleted", "configmap \"c\" deleted"],
    )
    .await;
    let missing = k.run("-n x get deploy web", "").await.unwrap_err();
    assert!(
        missing.contains("Error from server (NotFound): deployments.apps \"web\" not found"),
        "{missing}"
    );
    drop(k);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_kubectl_applies_on_the_server() {
    let Some(path) = find("kubectl") else { return };
    let cluster = Cluster::start().await;
    let k = Program::new("kubectl", path, &cluster);
    let version = "get deploy web -o jsonpath={.metadata.resourceVersion}";
    k.check(
        "apply --server-side -f -",
        DEPLOYMENT,
        &["deployment.apps/web serverside-applied"],
    )
    .await;
    let before = k.run(version, "").await.unwrap();
    k.check(
        "apply --server-side -f -",
        DEPLOYMENT,
        &["service/web serverside-applied"],
    )
    .await;
    assert_eq!(k.run(version, "").await.unwrap(), before);
    k.check("diff --server-side -f -", DEPLOYMENT, &[]).await;
    let changed = DEPLOYMENT.replace("web:1", "web:2");
    k.refused(
        "diff --server-side -f -",
        &changed,
        &["-      - image: web:1", "+      - image: web:2"],
    )
    .await;
    k.refused(
        "apply --server-side --field-manager=other -f -",
        &changed,
        &[
            "Apply failed with 1 conflict: conflict with \"kubectl\": .spec.template.spec.containers[name=\"web\"].image",
            "--force-conflicts",
        ],
    )
    .await;
    k.check(
        "apply --server-side --field-manager=other --force-conflicts -f -",
        &changed,
        &["deployment.apps/web serverside-applied"],
    )
    .await;
    k.check(
        "get deploy web -o yaml --show-managed-fields",
        "",
        &["manager: kubectl", "manager: other", "f:image: {}"],
    )
    .await;
    k.refused("apply --server-side -f -", DEPLOYMENT, &["conflict with \"other\""])
        .await;
    k.check("scale deploy web --replicas=4", "", &["scaled"]).await;
    k.refused(
        "apply --server-side -f -",
        &changed,
        &["with subresource \"scale\" using apps/v1: .spec.replicas"],
    )
    .await;
    drop(k);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_kubectl_goes_over_from_client_side_apply() {
    let Some(path) = find("kubectl") else { return };
    let cluster = Cluster::start().await;
    let k = Program::new("kubectl", path, &cluster);
    let labelled = DEPLOYMENT.replace(
        "labels: {app: web}}\nspec:\n  rep",
        "labels: {app: web, old: 'yes'}}\nspec:\n  rep",
    );
    assert_ne!(labelled, DEPLOYMENT);
    k.check("apply -f -", &labelled, &["deployment.apps/web created"]).await;
    let managers = "get deploy web --show-managed-fields -o jsonpath={.metadata.managedFields[*].manager}";
    assert_eq!(k.run(managers, "").await.unwrap(), "kubectl-client-side-apply");
    let changed = DEPLOYMENT.replace("web:1", "web:2");
    k.check(
        "apply --server-side -f -",
        &changed,
        &["deployment.apps/web serverside-applied"],
    )
    .await;
    // The client hands the old manager's fields over, so that what is no longer applied goes.
    k.check("apply --server-side -f -", &changed, &["serverside-applied"])
        .await;
    assert_eq!(k.run(managers, "").await.unwrap(), "kubectl kubectl-last-applied");
    let labels = k
        .run("get deploy web -o jsonpath={.metadata.labels}", "")
        .await
        .unwrap();
    assert_eq!(labels, r#"{"app":"web"}"#);
    // And back again.
    k.check("apply -f -", &labelled, &["deployment.apps/web configured"])
        .await;
    k.check("get deploy web -o jsonpath={.metadata.labels.old}", "", &["yes"])
        .await;
    drop(k);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_kubectl_explains_and_validates() {
    let Some(path) = find("kubectl") else { return };
    let cluster = Cluster::start().await;
    let k = Program::new("kubectl", path, &cluster);
    k.check(
        "explain deploy.spec.template",
        "",
        &[
            "KIND:       Deployment",
            "FIELD: template <PodTemplateSpec>",
            "Template describes the pods that will be created",
        ],
    )
    .await;
    k.check(
        "explain pod.spec.containers.resources",
        "",
        &["limits\t<map[string]Quantity>", "<ResourceRequirements>"],
    )
    .await;
    k.check(
        "explain svc.spec.ports --recursive",
        "",
        &["targetPort\t<IntOrString>", "port\t<integer> -required-"],
    )
    .await;
    k.check(
        "explain deploy.spec.template --output plaintext-openapiv2",
        "",
        &[
            "RESOURCE: template <Object>",
            "Template describes the pods that will be created",
        ],
    )
    .await;
    for kind in api::kinds::kinds().iter().filter(|k| k.stored()) {
        let version = format!("--api-version={}", kind.api_version());
        k.check(
            &format!("explain {} {version}", kind.plural),
            "",
            &[&format!("KIND:       {}", kind.kind), "apiVersion\t<string>"],
        )
        .await;
    }
    let odd = "{apiVersion: v1, kind: ConfigMap, metadata: {name: odd}, datta: {a: b}}";
    k.refused("create --validate=strict -f -", odd, &["unknown field \"datta\""])
        .await;
    k.check("create --validate=warn -f -", odd, &["configmap/odd created"])
        .await;
    k.refused(
        "apply --server-side -f -",
        odd,
        &[".datta: field not declared in schema"],
    )
    .await;
    k.check(
        "create secret generic s --type=helm.sh/release.v1 --from-literal=a=b",
        "",
        &["created"],
    )
    .await;
    k.check(
        "get secrets --field-selector type=helm.sh/release.v1 -o name",
        "",
        &["secret/s"],
    )
    .await;
    drop(k);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_are_not_there_are_told_as_such() {
    let Some(path) = find("kubectl") else { return };
    let cluster = Cluster::start().await;
    let k = Program::new("kubectl", path, &cluster);
    for (version, kind) in [
        ("example.com/v1", "Widget"),
        ("apps/v1beta1", "Deployment"),
        ("apps/v1", "Widget"),
        ("v1", "Widget"),
        ("policy/v1", "PodSecurityPolicy"),
    ] {
        let manifest = format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: a}}}}");
        let told = format!("no matches for kind \"{kind}\" in version \"{version}\"");
        for verb in ["apply", "create"] {
            k.refused(&format!("{verb} -f -"), &manifest, &[&told]).await;
        }
    }
    drop(k);
    cluster.end().await;
}
