//! Stock kubectl against the server. Skipped where none is found: `KUBECTL` names it, else `kubectl` of PATH is taken.

use super::*;
use std::io::Write as _;

fn kubectl() -> Option<PathBuf> {
    if let Some(p) = std::env::var_os("KUBECTL") {
        return Some(p.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|d| d.join("kubectl"))
        .find(|p| p.is_file())
}

struct Kubectl<'a> {
    program: PathBuf,
    cluster: &'a Cluster,
}

impl Kubectl<'_> {
    /// Runs it; standard output if it succeeds, standard error if not.
    async fn run(&self, line: &str, stdin: &str) -> Result<String, String> {
        let dir = self.cluster.dir.path();
        let path = |f: &str| dir.join(f).to_str().unwrap().to_owned();
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("HOME", dir)
            .args(["--server", &format!("https://127.0.0.1:{}", self.cluster.port)])
            .args(["--certificate-authority", &path("ca.crt")])
            .args([
                "--client-certificate",
                &path("admin.crt"),
                "--client-key",
                &path("admin.key"),
            ])
            .args(line.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let stdin = stdin.to_owned();
        let out = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if out.status.success() {
            Ok(text(&out.stdout))
        } else {
            Err(text(&out.stderr))
        }
    }

    async fn check(&self, line: &str, stdin: &str, expected: &[&str]) {
        let out = self
            .run(line, stdin)
            .await
            .unwrap_or_else(|e| panic!("kubectl {line}: {e}"));
        for e in expected {
            assert!(out.contains(e), "kubectl {line}: no {e:?} in\n{out}");
        }
    }
}

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
async fn stock_kubectl_works() {
    let Some(program) = kubectl() else {
        eprintln!("no kubectl found: skipped");
        return;
    };
    let cluster = Cluster::start().await;
    let k = Kubectl {
        program,
        cluster: &cluster,
    };
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
