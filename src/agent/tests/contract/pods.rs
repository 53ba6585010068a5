//! What the API says about pods while they begin, wait, fail and end, seen by a client of a real API server.

use crate::cluster::{Cluster, condition, until};
use crate::support::{Agent, Host};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams, LogParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::time::Duration;

/// A cluster with a node that is ready.
struct Node {
    cluster: Cluster,
    pods: Api<Pod>,
    _agent: Agent,
    host: Host,
}

impl Node {
    async fn start(name: &str) -> Option<Node> {
        let host = Host::start(name)?;
        let cluster = Cluster::start(&host).await?;
        let agent = cluster.join(&host).await;
        cluster.wait_ready(&host).await;
        Some(Node {
            pods: Api::namespaced(cluster.client.clone(), "default"),
            cluster,
            _agent: agent,
            host,
        })
    }

    /// Creates a pod of one or more containers of the test image; `spec` says what is not the same for all of them.
    async fn create(&self, name: &str, containers: Value, mut spec: Value) {
        let mut containers = containers.as_array().unwrap().clone();
        for c in &mut containers {
            c["image"] = json!("test/busybox:1");
        }
        spec["containers"] = json!(containers);
        spec["nodeName"] = json!("node");
        spec["hostNetwork"] = json!(true);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec});
        self.cluster.create(pod).await;
    }

    /// Everything that is written about a pod that is yet to be created, up to what `last` accepts.
    fn follow(&self, name: &str, last: fn(&Pod) -> bool) -> tokio::task::JoinHandle<Vec<Pod>> {
        let pods = self.pods.clone();
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        tokio::spawn(async move {
            let mut seen = vec![];
            let mut events = pods.watch(&params, "0").await.unwrap().boxed();
            while let Some(event) = events.next().await {
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event.unwrap() {
                    let over = last(&pod);
                    seen.push(pod);
                    if over {
                        break;
                    }
                }
            }
            seen
        })
    }

    async fn all(&self, followed: tokio::task::JoinHandle<Vec<Pod>>) -> Vec<Pod> {
        match tokio::time::timeout(Duration::from_secs(60), followed).await {
            Ok(seen) => seen.unwrap(),
            Err(_) => panic!("not within a minute\n{}", self.host.agent_log()),
        }
    }

    /// Waits for a phase.
    async fn wait_phase(&self, name: &str, wanted: &str) {
        until(&format!("{name} {wanted}"), 40, || async {
            let pod = self.pods.get(name).await.map_err(|e| e.to_string())?;
            if phase(&pod) == wanted {
                Ok(())
            } else {
                Err(format!("{:?}\n{}", pod.status, self.host.agent_log()))
            }
        })
        .await;
    }

    /// Waits for a warning about a pod.
    async fn wait_event(&self, pod: &str, reason: &str, text: &str) {
        let events: Api<Event> = Api::namespaced(self.cluster.client.clone(), "default");
        until(&format!("{reason} of {pod}"), 20, || async {
            let params = ListParams::default().fields(&format!("involvedObject.name={pod},reason={reason}"));
            let list = events.list(&params).await.map_err(|e| e.to_string())?;
            let said = |e: &&Event| e.message.as_deref() == Some(text) && e.type_.as_deref() == Some("Warning");
            let found = list.items.iter().find(said);
            found
                .map(drop)
                .ok_or_else(|| format!("{:?}\n{}", list.items, self.host.agent_log()))
        })
        .await;
    }

    /// Waits until the first container waits for a reason; the message.
    async fn wait_waiting(&self, name: &str, reason: &str) -> String {
        until(&format!("{name} {reason}"), 40, || async {
            let pod = self.pods.get(name).await.map_err(|e| e.to_string())?;
            let status = pod.status.unwrap_or_default();
            let state = status
                .container_statuses
                .iter()
                .flatten()
                .next()
                .and_then(|s| s.state.clone());
            match state
                .and_then(|s| s.waiting)
                .filter(|w| w.reason.as_deref() == Some(reason))
            {
                Some(waiting) => Ok(waiting.message.unwrap_or_default()),
                None => Err(format!("{:?}", status.container_statuses)),
            }
        })
        .await
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready") == "True"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_about_a_pod_is_never_half_true() {
    let Some(node) = Node::start("told").await else { return };
    let wait = ["sh", "-c", "trap 'exit 4' TERM; while true; do sleep 0.2; done"];

    // Without probes a pod is ready in the very write that says that it runs, also where a hook takes its time.
    let began = node.follow("plain", is_ready);
    let hook = json!({"postStart": {"exec": {"command": ["sleep", "1"]}}});
    let containers = json!([{"name": "a", "command": wait}, {"name": "b", "command": wait, "lifecycle": hook}]);
    node.create("plain", containers, json!({"terminationGracePeriodSeconds": 1}))
        .await;
    // A deadline ends the containers before it ends the pod.
    let late = node.follow("late", |pod| phase(pod) == "Failed");
    node.create(
        "late",
        json!([{"name": "a", "command": wait}]),
        json!({"activeDeadlineSeconds": 2}),
    )
    .await;

    let seen = node.all(began).await;
    let said: Vec<_> = seen.iter().map(|p| (phase(p), condition(p, "Ready"))).collect();
    assert!(!said.iter().any(|s| s.0 == "Running" && s.1 != "True"), "{said:?}");
    let seen = node.all(late).await;
    let status = seen.last().and_then(|p| p.status.clone()).unwrap();
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(state.terminated.unwrap().exit_code, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_writable_for_whom_they_are_meant() {
    let Some(node) = Node::start("volumes").await else {
        return;
    };
    let never = |volumes: Value| json!({"restartPolicy": "Never", "volumes": volumes});

    // Objects of the API are only read, whole or in part.
    let script = "for d in /m /s /d /p; do touch $d/x && exit 1; done; echo x > /one && exit 2; exit 0";
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    let part = json!({"name": "m", "mountPath": "/one", "subPath": "color"});
    let mounts = json!([mount("m"), mount("s"), mount("d"), mount("p"), part]);
    let labels = json!({"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]});
    let volumes = json!([
        {"name": "m", "configMap": {"name": "settings"}},
        {"name": "s", "secret": {"secretName": "password"}},
        {"name": "d", "downwardAPI": labels},
        {"name": "p", "projected": {"sources": [{"downwardAPI": labels}]}},
    ]);
    let container = json!([{"name": "c", "command": ["sh", "-c", script], "volumeMounts": mounts}]);
    node.create("reads", container, never(volumes)).await;

    // A folder made for a subPath belongs to whoever may write into the volume.
    let part = json!([{"name": "e", "mountPath": "/w", "subPath": "new/deep"}]);
    let user = json!({"runAsUser": 1000});
    let container = json!([{"name": "c", "command": ["touch", "/w/x"], "volumeMounts": part, "securityContext": user}]);
    node.create("writes", container, never(json!([{"name": "e", "emptyDir": {}}])))
        .await;

    // What is missing is named.
    let part = json!([{"name": "m", "mountPath": "/one", "subPath": "colour"}]);
    let container = json!([{"name": "c", "command": ["true"], "volumeMounts": part}]);
    let volumes = json!([{"name": "m", "configMap": {"name": "settings"}}]);
    node.create("lacks", container, never(volumes)).await;

    node.wait_phase("reads", "Succeeded").await;
    node.wait_phase("writes", "Succeeded").await;
    let message = node.wait_waiting("lacks", "CreateContainerConfigError").await;
    assert!(
        message.contains("\"colour\"") && message.contains("\"settings\""),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_container_waits_is_told_by_logs_and_events() {
    let Some(node) = Node::start("waits").await else { return };
    node.create(
        "crash",
        json!([{"name": "c", "command": ["sh", "-c", "exit 1"]}]),
        json!({}),
    )
    .await;
    let absent = json!([{"name": "c", "command": ["true"], "imagePullPolicy": "Never"}]);
    node.create(
        "never",
        absent,
        json!({"initContainers": [{"name": "i", "image": "test/none:1", "imagePullPolicy": "Never"}]}),
    )
    .await;

    let refused = async |name: &str, params: LogParams| match node.pods.logs(name, &params).await {
        Err(kube::Error::Api(status)) => (status.code, status.message.trim_end().to_owned()),
        other => panic!("{name}: {other:?}"),
    };
    node.wait_waiting("never", "PodInitializing").await;
    let init = LogParams {
        container: Some("i".into()),
        ..Default::default()
    };
    for (params, message) in [
        (
            LogParams::default(),
            "container \"c\" in pod \"never\" is waiting to start: PodInitializing",
        ),
        (
            init,
            "container \"i\" in pod \"never\" is waiting to start: ErrImageNeverPull",
        ),
        (
            LogParams {
                previous: true,
                ..Default::default()
            },
            "previous terminated container \"c\" in pod \"never\" not found",
        ),
    ] {
        until(message, 20, || async {
            let got = refused("never", params.clone()).await;
            let expected = (400, message.to_owned());
            if got == expected {
                Ok(())
            } else {
                Err(format!("{got:?}"))
            }
        })
        .await;
    }

    let message = node.wait_waiting("crash", "CrashLoopBackOff").await;
    assert!(message.contains("restarting failed container=c"), "{message}");
    let uid = node.pods.get("crash").await.unwrap().metadata.uid.unwrap();
    let text = format!("Back-off restarting failed container c in pod crash_default({uid})");
    node.wait_event("crash", "BackOff", &text).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_sent_elsewhere_passes_and_warns() {
    let Some(node) = Node::start("moved").await else { return };
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let answer = "HTTP/1.1 302 Found\r\nlocation: http://example.invalid/login\r\ncontent-length: 2\r\n\r\nhi";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let probe = json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": "/"}, "periodSeconds": 1});
    let container = json!([{"name": "c", "command": ["sleep", "1000"], "readinessProbe": probe}]);
    let began = node.follow("moved", is_ready);
    node.create("moved", container, json!({"terminationGracePeriodSeconds": 0}))
        .await;
    node.all(began).await;
    let text = "Readiness probe warning: Probe terminated redirects, Response body: hi";
    node.wait_event("moved", "ProbeWarning", text).await;
}
