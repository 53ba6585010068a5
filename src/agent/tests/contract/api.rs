//! Contract with a real API server and a real containerd: bootstrap by token and CSR, Node, lease, mirror pods, pods with
//! objects of the API, logs and commands through the API server, deletion. Skipped, with a message, where etcd or
//! containerd is absent.

use crate::cluster::{Cluster, ready, ready_pod, until};
use crate::support::Host;
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Api, DeleteParams, Patch};
use serde_json::{Value, json};

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
    let Some(cluster) = Cluster::start(&host).await else {
        return;
    };
    host.write_pod("mirrored", &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mirrored", "namespace": "kube-system"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "test/busybox:1", "command": ["sleep", "1000"]}]}}));
    let agent = cluster.join(&host).await;

    // The identity, the Node, its readiness with the network, its lease.
    let nodes: Api<Node> = Api::all(cluster.client.clone());
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
    cluster.wait_ready(&host).await;
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

    // The streams as other clients open them.
    let port = host.free_port();
    cluster.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "site", "namespace": "default"},
        "spec": {"nodeName": "node", "hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "test/busybox:1",
            "command": ["sh", "-c", format!("echo serving; exec httpd -f -p 127.0.0.1:{port} -h /")]}]}})).await;
    ready_pod(&pods, "site", &host).await;
    crate::clients::check_streams(&host.path("cluster").join("admin.conf"), "site", "c", port).await;

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
    for name in ["rich", "site", "ends", "unsafe", "full", "never"] {
        pods.delete(name, &DeleteParams::default()).await.unwrap();
    }
    for name in ["rich", "site", "ends", "unsafe", "full", "never"] {
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
