//! A real etcd and a real API server for a test's agent, and what it needs there to join.

use crate::support::{Agent, Host};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DynamicObject, Patch, PostParams};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// etcd, API server and a CA.
pub struct Cluster {
    dir: PathBuf,
    etcd: Child,
    server: tokio::task::JoinHandle<()>,
    issuer: Issuer<'static, KeyPair>,
    /// As an administrator.
    pub client: kube::Client,
    port: u16,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

fn issue(dir: &Path, issuer: &Issuer<'static, KeyPair>, file: &str, name: &str, group: Option<&str>) {
    let names = if group.is_none() {
        vec!["127.0.0.1".to_owned()]
    } else {
        vec![]
    };
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(g) = group {
        params.distinguished_name.push(DnType::OrganizationName, g);
    }
    let usage = if group.is_none() {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    };
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    std::fs::write(
        dir.join(format!("{file}.crt")),
        params.signed_by(&key, issuer).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

impl Cluster {
    /// Starts both below the host's folder; `None` (said on stderr) where there is no etcd.
    pub async fn start(host: &Host) -> Option<Cluster> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("SKIPPED: etcd is not installed");
            return None;
        }
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = host.path("cluster");
        std::fs::create_dir_all(&dir).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        issue(&dir, &issuer, "server", "kube-apiserver", None);
        issue(&dir, &issuer, "admin", "admin", Some("system:masters"));
        issue(
            &dir,
            &issuer,
            "kubelet",
            "kube-apiserver-kubelet-client",
            Some("system:masters"),
        );
        std::fs::write(dir.join("sa.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let free = || {
            std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port()
        };
        let (client, peer) = (
            format!("http://127.0.0.1:{}", free()),
            format!("http://127.0.0.1:{}", free()),
        );
        let etcd = Command::new("etcd")
            .args([
                "--data-dir",
                dir.join("etcd").to_str().unwrap(),
                "--name",
                "t",
                "--log-level",
                "error",
            ])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &format!("t={peer}"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let port = free();
        let path = |f: &str| dir.join(f).display().to_string();
        let mut line = vec!["apiserver".to_owned()];
        for (k, v) in [
            ("advertise-address", "127.0.0.1".to_owned()),
            ("bind-address", "127.0.0.1".to_owned()),
            ("secure-port", port.to_string()),
            ("etcd-servers", client),
            ("client-ca-file", path("ca.crt")),
            ("tls-cert-file", path("server.crt")),
            ("tls-private-key-file", path("server.key")),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-signing-key-file", path("sa.key")),
            ("service-account-key-file", path("sa.key")),
            ("kubelet-client-certificate", path("kubelet.crt")),
            ("kubelet-client-key", path("kubelet.key")),
            ("enable-bootstrap-token-auth", "true".to_owned()),
            ("etcd-compaction-interval-seconds", "0".to_owned()),
        ] {
            line.push(format!("--{k}={v}"));
        }
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            args: apiserver::Args,
        }
        let args = <Flags as clap::Parser>::parse_from(line).args;
        let server = tokio::spawn(async move { apiserver::run(args).await.unwrap() });
        let user = json!({"client-certificate": path("admin.crt"), "client-key": path("admin.key")});
        std::fs::write(dir.join("admin.conf"), kubeconfig(port, &path("ca.crt"), &user)).unwrap();
        let config = kube::config::Kubeconfig::read_from(dir.join("admin.conf")).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
            .await
            .unwrap();
        let client = kube::Client::try_from(config).unwrap();
        Some(Cluster {
            dir,
            etcd,
            server,
            issuer,
            client,
            port,
        })
    }

    /// Creates an object of any kind; a namespace or account that is there already is fine.
    pub async fn create(&self, value: Value) {
        let object: DynamicObject = serde_json::from_value(value.clone()).unwrap();
        let (group, version) = value["apiVersion"]
            .as_str()
            .unwrap()
            .rsplit_once('/')
            .unwrap_or(("", value["apiVersion"].as_str().unwrap()));
        let resource = kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk(
            group,
            version,
            value["kind"].as_str().unwrap(),
        ));
        let api: Api<DynamicObject> = match value["metadata"]["namespace"].as_str() {
            Some(ns) => Api::namespaced_with(self.client.clone(), ns, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        until(&format!("creating {value}"), 20, || async {
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(s)) if s.code == 409 => Ok(()),
                Err(e) => Err(e.to_string()),
            }
        })
        .await;
    }

    /// Approves and signs every request, as the controllers do.
    pub async fn sign_all(&self) {
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        for csr in api.list(&Default::default()).await.map(|l| l.items).unwrap_or_default() {
            let name = csr.metadata.name.clone().unwrap_or_default();
            if csr.status.as_ref().is_some_and(|s| s.certificate.is_some()) {
                continue;
            }
            let text = String::from_utf8(csr.spec.request.0.clone()).unwrap();
            let params = rcgen::CertificateSigningRequestParams::from_pem(&text).unwrap();
            let pem = params.signed_by(&self.issuer).unwrap().pem();
            let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]}});
            api.patch_approval(&name, &Default::default(), &Patch::Merge(&approve))
                .await
                .unwrap();
            let mut fresh = api.get(&name).await.unwrap();
            fresh.status.get_or_insert_default().certificate = Some(k8s_openapi::ByteString(pem.into_bytes()));
            api.replace_status(&name, &Default::default(), &fresh).await.unwrap();
        }
    }

    /// Makes what a node needs, and starts its agent, which joins with a bootstrap token.
    pub async fn join(&self, host: &Host) -> Agent {
        for ns in ["default", "kube-system", "kube-node-lease"] {
            self.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}}))
                .await;
            self.create(
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": ns}}),
            )
            .await;
        }
        self.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt", "namespace": "default"}, "data": {"ca.crt": "CA"}})).await;
        self.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "default"}, "data": {"color": "red"}})).await;
        self.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "password", "namespace": "default"}, "stringData": {"word": "xyzzy"}})).await;
        self.create(json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:test"}})).await;
        self.create(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "test-bootstrap"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers:test"}]})).await;
        let ca = self.dir.join("ca.crt").display().to_string();
        let bootstrap = self.dir.join("bootstrap.conf");
        std::fs::write(
            &bootstrap,
            kubeconfig(self.port, &ca, &json!({"token": "abcdef.0123456789abcdef"})),
        )
        .unwrap();
        let more = json!({"authentication": {"x509": {"clientCAFile": ca}, "anonymous": {"enabled": false}}, "authorization": {"mode": "Webhook"},
            "serverTLSBootstrap": true, "syncFrequency": "2s", "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local"});
        let flags = [
            format!("--bootstrap-kubeconfig={}", bootstrap.display()),
            format!("--kubeconfig={}", host.path("kubelet.conf").display()),
            "--node-labels=role=test".to_owned(),
        ];
        host.agent_with(more, &flags)
    }

    /// Gives the node a network, and waits until it is ready.
    pub async fn wait_ready(&self, host: &Host) {
        let net = host.path("net.d");
        std::fs::create_dir_all(&net).unwrap();
        std::fs::write(
            net.join("10-lo.conflist"),
            r#"{"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]}"#,
        )
        .unwrap();
        let nodes: Api<Node> = Api::all(self.client.clone());
        until("node ready", 45, || async {
            self.sign_all().await;
            let node = nodes.get("node").await.map_err(|e| e.to_string())?;
            match ready(&node) {
                Some((status, _)) if status == "True" => Ok(()),
                other => Err(format!("{other:?}\n{}", host.agent_log())),
            }
        })
        .await;
    }
}

/// Status and message of a node's Ready condition.
pub fn ready(node: &Node) -> Option<(String, String)> {
    let all = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    all.into_iter()
        .find(|c| c.type_ == "Ready")
        .map(|c| (c.status.clone(), c.message.clone().unwrap_or_default()))
}

fn kubeconfig(port: u16, ca: &str, user: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": ca}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}], "users": [{"name": "u", "user": user}]})
    .to_string()
}

/// Tries until it succeeds.
pub async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> F,
) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look().await {
            Ok(found) => return found,
            Err(e) if Instant::now() > end => panic!("{what}: not within {seconds} s: {e}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Status of a pod's condition.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> &'a str {
    let all = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    all.into_iter()
        .find(|c| c.type_ == kind)
        .map(|c| c.status.as_str())
        .unwrap_or("none")
}

/// Waits until a pod is ready.
pub async fn ready_pod(api: &Api<Pod>, name: &str, host: &Host) -> Pod {
    let log = || host.agent_log().lines().rev().take(40).collect::<Vec<_>>().join("\n");
    until(&format!("pod {name} ready"), 40, || async {
        let pod = api.get(name).await.map_err(|e| e.to_string())?;
        if condition(&pod, "Ready") == "True" {
            Ok(pod)
        } else {
            Err(format!("{:?}\n{}", pod.status, log()))
        }
    })
    .await
}
