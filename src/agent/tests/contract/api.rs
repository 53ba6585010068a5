//! Contract with a real API server and a real containerd: bootstrap by token and CSR, Node, lease, mirror pods, pods with
//! objects of the API, logs and commands through the API server, deletion. Skipped, with a message, where etcd or
//! containerd is absent.

use crate::support::Host;
use futures::StreamExt;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PostParams};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// etcd, API server and a CA.
struct Cluster {
    etcd: Child,
    server: tokio::task::JoinHandle<()>,
    issuer: Issuer<'static, KeyPair>,
    client: kube::Client,
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
    async fn start(dir: &Path) -> Option<Cluster> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("SKIPPED: etcd is not installed");
            return None;
        }
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        issue(dir, &issuer, "server", "kube-apiserver", None);
        issue(dir, &issuer, "admin", "admin", Some("system:masters"));
        issue(
            dir,
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
            etcd,
            server,
            issuer,
            client,
            port,
        })
    }

    /// Creates an object of any kind; a namespace or account that is there already is fine.
    async fn create(&self, value: Value) {
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
    async fn sign_all(&self) {
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
}

fn kubeconfig(port: u16, ca: &str, user: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": ca}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}], "users": [{"name": "u", "user": user}]})
    .to_string()
}

async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, seconds: u64, mut look: impl FnMut() -> F) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look().await {
            Ok(found) => return found,
            Err(e) if Instant::now() > end => panic!("{what}: not within {seconds} s: {e}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> &'a str {
    let all = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    all.into_iter()
        .find(|c| c.type_ == kind)
        .map(|c| c.status.as_str())
        .unwrap_or("none")
}

async fn ready_pod(api: &Api<Pod>, name: &str, host: &Host) -> Pod {
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

async fn failed_pod(api: &Api<Pod>, name: &str) -> Pod {
    until(&format!("pod {name} failed"), 60, || async {
        let pod = api.get(name).await.map_err(|e| e.to_string())?;
        match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
            Some("Failed") => Ok(pod),
            _ => Err(format!("{:?}", pod.status)),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_and_runs_pods_of_the_api() {
    let Some(host) = Host::start("api") else { return };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = host.path("cluster");
    std::fs::create_dir_all(&dir).unwrap();
    let Some(cluster) = Cluster::start(&dir).await else {
        return;
    };
    for ns in ["default", "kube-system", "kube-node-lease"] {
        cluster
            .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}}))
            .await;
        cluster
            .create(
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": ns}}),
            )
            .await;
    }
    cluster.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt", "namespace": "default"}, "data": {"ca.crt": "CA"}})).await;
    cluster.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "default"}, "data": {"color": "red"}})).await;
    cluster.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "password", "namespace": "default"}, "stringData": {"word": "xyzzy"}})).await;
    cluster.create(json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:test"}})).await;
    cluster.create(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "test-bootstrap"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers:test"}]})).await;
    let ca = dir.join("ca.crt").display().to_string();
    let bootstrap = dir.join("bootstrap.conf");
    std::fs::write(
        &bootstrap,
        kubeconfig(cluster.port, &ca, &json!({"token": "abcdef.0123456789abcdef"})),
    )
    .unwrap();
    host.write_pod("mirrored", &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mirrored", "namespace": "kube-system"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "test/busybox:1", "command": ["sleep", "1000"]}]}}));
    let more = json!({"authentication": {"x509": {"clientCAFile": ca}, "anonymous": {"enabled": false}}, "authorization": {"mode": "Webhook"},
        "serverTLSBootstrap": true, "syncFrequency": "2s", "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local"});
    let flags = [
        format!("--bootstrap-kubeconfig={}", bootstrap.display()),
        format!("--kubeconfig={}", host.path("kubelet.conf").display()),
        "--node-labels=role=test".to_owned(),
    ];
    let agent = host.agent_with(more, &flags);

    // The identity, the Node, its readiness with the network, its lease.
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let ready = |node: &Node| {
        let all = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        all.into_iter()
            .find(|c| c.type_ == "Ready")
            .map(|c| (c.status.clone(), c.message.clone().unwrap_or_default()))
    };
    let node = until("node", 30, || async {
        cluster.sign_all().await;
        let node = nodes
            .get("node")
            .await
            .map_err(|e| format!("{e}\n{}", host.agent_log()))?;
        ready(&node)
            .map(|_| node.clone())
            .ok_or_else(|| "no condition".to_owned())
    })
    .await;
    assert_eq!(node.metadata.labels.as_ref().unwrap()["role"], "test");
    let (status, message) = ready(&node).unwrap();
    assert!(status == "False" && message.contains("network"), "{message}");
    let net = host.path("net.d");
    std::fs::create_dir_all(&net).unwrap();
    std::fs::write(
        net.join("10-lo.conflist"),
        r#"{"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]}"#,
    )
    .unwrap();
    until("node ready", 15, || async {
        cluster.sign_all().await;
        let node = nodes.get("node").await.map_err(|e| e.to_string())?;
        ready(&node)
            .filter(|(s, _)| s == "True")
            .ok_or_else(|| "not ready".to_owned())
    })
    .await;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    until("lease", 15, || async {
        leases.get("node").await.map_err(|e| e.to_string())
    })
    .await;

    // The static pod's mirror.
    let system: Api<Pod> = Api::namespaced(cluster.client.clone(), "kube-system");
    let mirror = ready_pod(&system, "mirrored-node", &host).await;
    assert!(
        mirror
            .metadata
            .annotations
            .as_ref()
            .unwrap()
            .contains_key("kubernetes.io/config.mirror")
    );

    // A pod with everything from the API.
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    cluster.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rich", "namespace": "default", "labels": {"a": "b"}},
        "spec": {"nodeName": "node", "hostNetwork": true, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "test/busybox:1",
                "command": ["sh", "-c", "echo color=$COLOR word=$WORD host=$KUBERNETES_SERVICE_HOST; cat /m/color /s/word /d/labels; test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; trap exit TERM; while true; do sleep 0.2; done"],
                "env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}}, {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "password", "key": "word"}}}],
                "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s"}, {"name": "d", "mountPath": "/d"}]}],
            "volumes": [{"name": "m", "configMap": {"name": "settings"}}, {"name": "s", "secret": {"secretName": "password"}},
                        {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}})).await;
    let rich = ready_pod(&pods, "rich", &host).await;
    assert_eq!(rich.status.as_ref().unwrap().qos_class.as_deref(), Some("BestEffort"));
    let text = until("log", 10, || async {
        pods.logs("rich", &Default::default()).await.map_err(|e| e.to_string())
    })
    .await;
    for part in ["color=red word=xyzzy host=10.96.0.1", "redxyzzya=\"b\"", "token"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    let mut exec = pods
        .exec(
            "rich",
            ["cat", "/m/color"],
            &kube::api::AttachParams::default().stderr(false),
        )
        .await
        .unwrap();
    let out: Vec<u8> = tokio_util::io::ReaderStream::new(exec.stdout().unwrap())
        .filter_map(|c| async { c.ok() })
        .fold(vec![], |mut a, c| async move {
            a.extend_from_slice(&c);
            a
        })
        .await;
    assert_eq!(String::from_utf8_lossy(&out), "red");
    exec.join().await.unwrap();

    // A changed object reaches the volume.
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    maps.patch(
        "settings",
        &Default::default(),
        &Patch::Merge(json!({"data": {"color": "blue"}})),
    )
    .await
    .unwrap();
    let file = until("updated file", 15, || async {
        let dir = host.path(&format!(
            "kubelet/pods/{}/volumes/kubernetes.io~configmap/m/color",
            rich.metadata.uid.as_deref().unwrap()
        ));
        std::fs::read_to_string(dir)
            .ok()
            .filter(|t| t == "blue")
            .ok_or_else(|| "old".to_owned())
    });
    assert_eq!(file.await, "blue");

    // A pod that ends, with its message.
    cluster.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ends", "namespace": "default"},
        "spec": {"nodeName": "node", "hostNetwork": true, "restartPolicy": "Never", "containers": [{"name": "c", "image": "test/busybox:1", "command": ["sh", "-c", "echo bye > /dev/termination-log; exit 3"]}]}})).await;
    let ended = failed_pod(&pods, "ends").await;
    let state = ended.status.unwrap().container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (state.exit_code, state.message.as_deref(), state.reason.as_deref()),
        (3, Some("bye\n"), Some("Error"))
    );

    // A pod that wants to change the kernel, and one that takes more room than it asked for.
    let busy = |name: &str, more: Value| {
        let mut spec = json!({"nodeName": "node", "hostNetwork": true, "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
            "containers": [{"name": "c", "image": "test/busybox:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "command": ["sh", "-c", "dd if=/dev/zero of=/v/x bs=1M count=3; sleep 1000"]}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    };
    let sysctls = json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "65536"}]}});
    cluster.create(busy("unsafe", sysctls)).await;
    cluster.create(busy("full", json!({}))).await;
    for (name, reason, message) in [
        (
            "unsafe",
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            "full",
            "Evicted",
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ",
        ),
    ] {
        let status = failed_pod(&pods, name).await.status.unwrap();
        let told = (status.reason.as_deref(), status.message.as_deref());
        assert_eq!(told, (Some(reason), Some(message)), "{name}");
    }

    // A pod whose image is nowhere.
    cluster.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "never", "namespace": "default"},
        "spec": {"nodeName": "node", "hostNetwork": true, "containers": [{"name": "c", "image": "test/none:1", "imagePullPolicy": "Never"}]}})).await;
    until("ErrImageNeverPull", 20, || async {
        let pod = pods.get("never").await.map_err(|e| e.to_string())?;
        let text = format!("{:?}", pod.status);
        if text.contains("ErrImageNeverPull") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;

    // What the agent itself needs, without the pages of its (unstripped) file.
    let anonymous = host.anonymous_memory(agent.pid());
    assert!(anonymous < 40 << 20, "{anonymous} bytes");

    // Deletion, graceful and complete.
    for name in ["rich", "ends", "unsafe", "full", "never"] {
        pods.delete(name, &DeleteParams::default()).await.unwrap();
    }
    for name in ["rich", "ends", "unsafe", "full", "never"] {
        until(&format!("{name} gone"), 20, || async {
            match pods.get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!(
                    "{other:?}\n{}",
                    host.agent_log().lines().rev().take(30).collect::<Vec<_>>().join("\n")
                )),
            }
        })
        .await;
    }
    assert_eq!(host.pod_dirs().len(), 1, "only the static pod is left");
}
