//! Contract with a real containerd: each test has its own containerd, a cgroup root of its own, and an image made of
//! Debian's static busybox; pods use the host's network. Skipped, with a message, where containerd is absent.

use crate::support::Host;
use serde_json::json;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn pod(name: &str, spec: serde_json::Value) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

#[test]
fn a_static_pod_starts_is_probed_restarted_and_removed() {
    let Some(host) = Host::start("life") else { return };
    host.write_pod(
        "live",
        &pod(
            "live",
            json!({"hostNetwork": true, "terminationGracePeriodSeconds": 1,
                "initContainers": [{"name": "first", "image": "test/busybox:1", "command": ["sh", "-c", "echo one > /data/x"], "volumeMounts": [{"name": "d", "mountPath": "/data"}]},
                                   {"name": "second", "image": "test/busybox:1", "command": ["sh", "-c", "cat /data/x && echo two >> /data/x"], "volumeMounts": [{"name": "d", "mountPath": "/data"}]}],
                "containers": [{"name": "c", "image": "test/busybox:1", "command": ["sh", "-c", "touch /healthy; cat /data/x; echo NAME=$NAME; trap 'exit 3' TERM; while true; do sleep 0.1; done"],
                    "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [{"name": "d", "mountPath": "/data"}],
                    "livenessProbe": {"exec": {"command": ["test", "-e", "/healthy"]}, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 1},
                    "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}],
                "volumes": [{"name": "d", "emptyDir": {}}]}),
        ),
    );
    let mut agent = host.agent();
    let first = host.wait_running("c", 0, 20 * SECOND);
    let log = host.wait_log("c", 0, "NAME=live-", 10 * SECOND);
    assert!(log.contains("one") && log.contains("two"), "{log}");
    // A restarted agent adopts what runs.
    agent.stop();
    assert!(host.is_running(&first), "containers outlive the agent");
    let agent = host.agent();
    std::thread::sleep(3 * SECOND);
    assert!(host.is_running(&first), "adopted, not restarted");
    host.exec(&first, &["rm", "/healthy"]);
    let second = host.wait_running("c", 1, 20 * SECOND);
    assert_ne!(first, second);
    host.remove_pod("live");
    host.wait_empty(20 * SECOND);
    assert!(host.pod_dirs().is_empty(), "{:?}", host.pod_dirs());
    assert!(host.pod_cgroups().is_empty(), "{:?}", host.pod_cgroups());
    drop(agent);
}

#[test]
fn a_pod_is_cleaned_up_that_vanished_while_the_agent_was_down() {
    let Some(host) = Host::start("orphan") else { return };
    let spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "test/busybox:1", "command": ["sleep", "1000"]}]});
    host.write_pod("gone", &pod("gone", spec));
    let mut agent = host.agent();
    host.wait_running("c", 0, 20 * SECOND);
    agent.stop();
    host.remove_pod("gone");
    let _agent = host.agent();
    host.wait_empty(60 * SECOND);
}

#[test]
fn a_crashing_container_is_restarted_with_growing_delays_and_keeps_its_count() {
    let Some(host) = Host::start("crash") else { return };
    let spec = json!({"hostNetwork": true, "containers": [{"name": "c", "image": "test/busybox:1", "command": ["sh", "-c", "echo fail > /dev/termination-log; exit 7"]}]});
    host.write_pod("crash", &pod("crash", spec));
    let mut agent = host.agent();
    host.wait_attempt("c", 1, 20 * SECOND);
    agent.stop();
    let _agent = host.agent();
    host.wait_attempt("c", 2, 30 * SECOND);
    assert!(host.agent_log().contains("CrashLoopBackOff") || host.attempts("c") >= 2);
}

#[test]
fn logs_and_commands_are_served_with_the_close_signal() {
    let Some(host) = Host::start("serve") else { return };
    let spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "test/busybox:1", "command": ["sh", "-c", "echo hello; sleep 0.5; echo bad >&2; sleep 1000"],
            "lifecycle": {"postStart": {"exec": {"command": ["touch", "/hooked"]}}}}]});
    host.write_pod("s", &pod("s", spec));
    let _agent = host.agent();
    host.wait_running("c", 0, 20 * SECOND);
    host.wait_log("c", 0, "bad", 10 * SECOND);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (code, text) = host.get("/containerLogs/default/s-node/c").await;
        assert_eq!((code, text.as_str()), (200, "hello\nbad\n"));
        let (_, text) = host.get("/containerLogs/default/s-node/c?tailLines=1&timestamps=true").await;
        assert!(text.ends_with(" bad\n") && text.len() > 30, "{text}");
        assert_eq!(host.get("/containerLogs/default/s-node/c?previous=true").await.0, 400);
        assert_eq!(host.get("/containerLogs/default/nope/c").await.0, 404);
        assert!(host.get("/pods").await.1.contains("s-node"));
        let (code, text) = host.get("/stats/summary").await;
        assert!(code == 200 && text.contains("workingSetBytes"), "{text}");
        // Input that ends: only v5 can say so, and cat ends with it.
        let out = host.remote("/exec/default/s-node/c?command=cat&input=1&output=1", "v5.channel.k8s.io", b"some input").await;
        assert_eq!(out.stdout, "some input");
        assert!(out.status.contains("Success"), "{}", out.status);
        let out = host.remote("/exec/default/s-node/c?command=sh&command=-c&command=ls+/hooked;+echo+err+%3E%262;+exit+5&output=1&error=1", "v5.channel.k8s.io", b"").await;
        assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("/hooked\n", "err\n"));
        assert!(out.status.contains("NonZeroExitCode") && out.status.contains("\"5\""), "{}", out.status);
        let out = host.remote("/exec/default/s-node/c?command=echo&command=old&output=1", "v4.channel.k8s.io", b"").await;
        assert_eq!(out.stdout, "old\n");
        // A port of the pod, which is one of the host.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&[&request[..], b" pong"].concat()).await.unwrap();
        };
        let path = format!("/portForward/default/s-node?port={port}");
        let (answer, ()) = tokio::join!(host.forward(&path, port, b"ping"), server);
        assert_eq!(answer, "ping pong");
    });
}

#[test]
fn safe_sysctls_are_set_and_a_pod_without_its_isolation_does_not_start() {
    let Some(host) = Host::start("sysctl") else { return };
    let spec = |more: serde_json::Value| {
        let mut spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let container = |name: &str| {
        json!([{"name": name, "image": "test/busybox:1",
            "command": ["sh", "-c", "echo forced=$(cat /proc/sys/kernel/shm_rmid_forced); sleep 1000"]}])
    };
    let sysctls = json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]});
    let alone = spec(json!({"hostUsers": false, "containers": container("alone")}));
    host.write_pod("alone", &pod("alone", alone));
    host.write_pod(
        "set",
        &pod(
            "set",
            spec(json!({"securityContext": sysctls, "containers": container("set")})),
        ),
    );
    let agent = host.agent();
    let log = host.wait_log("set", 0, "forced=", 20 * SECOND);
    assert!(log.contains("forced=1"), "{log}");
    host.wait_agent_log("user namespaces are not supported", 20 * SECOND);
    assert!(host.was_started("set") && !host.was_started("alone"));
    drop(agent);
}
