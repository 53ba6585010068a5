//! What a running cluster tells: its Clusterfile, and what a bundle for support has of it.

use super::start;
use crate::{cluster::record, recover, support, testing};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

const PLANTED: &str = "Pl4nted";

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn node(client: &kube::Client, name: &str, ip: &str, notes: Value) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"disk": "ssd", "other": "x"}, "annotations": notes}});
    nodes.create(&PostParams::default(), &typed(node)).await.unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusterfile_of_a_running_cluster_comes_back_with_hosts_that_joined_since() {
    let Some(server) = start().await else { return };
    let clusterfile = testing::clusterfile("  ssh: {user: ann, passwd: Pl4nted}\n  env: [A=1]\n");
    let object = record::object(&testing::site(), &clusterfile.without_secrets()).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(server.client.clone(), "kube-system");
    maps.create(&PostParams::default(), &typed(object)).await.unwrap();
    node(&server.client, "m1", "10.0.0.1", json!({})).await;
    node(
        &server.client,
        "late",
        "10.0.0.9",
        json!({"installer.internal/labels": "disk"}),
    )
    .await;
    let found = recover::by_kubeconfig(Some(&server.dir.path().join("admin.conf")), None)
        .await
        .unwrap();
    let text = recover::compose(&found, None).unwrap();
    let again = clusterfile::Clusterfile::parse(&text, "again", std::path::Path::new("/")).unwrap();
    let hosts: Vec<String> = again.cluster.hosts.iter().map(|host| host.ip.to_string()).collect();
    assert_eq!(hosts, ["10.0.0.1", "10.0.0.2", "10.0.0.9"]);
    let labels = &again.cluster.hosts[2].labels;
    assert_eq!(
        (labels.len(), labels["disk"].as_str()),
        (1, "ssd"),
        "only what an installer gave it"
    );
    assert_eq!(
        (again.cluster.ssh.user.as_deref(), again.cluster.env["A"].as_str()),
        (Some("ann"), "1")
    );
    assert!(
        text.contains("# 10.0.0.2 is in the stored") && text.contains("# passwd: …"),
        "{text}"
    );
    assert!(!text.contains(PLANTED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_has_the_objects_of_the_cluster_and_none_of_its_secrets() {
    let Some(server) = start().await else { return };
    node(&server.client, "m1", "10.0.0.1", json!({"token": PLANTED})).await;
    let secrets: Api<Secret> = Api::namespaced(server.client.clone(), "kube-system");
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"word": PLANTED}});
    secrets.create(&PostParams::default(), &typed(secret)).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(server.client.clone(), "kube-system");
    let account = json!({"metadata": {"name": "default"}});
    accounts.create(&PostParams::default(), &typed(account)).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(server.client.clone(), "kube-system");
    let pod = json!({"metadata": {"name": "web"}, "spec": {"nodeName": "m1", "hostNetwork": true, "automountServiceAccountToken": false, "containers": [{
        "name": "web", "image": "a/b:1", "args": ["--db-password", PLANTED, "--level=info"],
        "env": [{"name": "DB_PASSWORD", "value": PLANTED}, {"name": "MODE", "value": "fast"}],
    }]}});
    pods.create(&PostParams::default(), &typed(pod)).await.unwrap();
    let files = support::of_client(&server.client).await;
    let of = |name: &str| {
        let file = files.iter().find(|file| file.path == format!("cluster/{name}"));
        file.unwrap_or_else(|| panic!("{name} is missing")).text.clone()
    };
    assert!(
        of("pods.jsonl").contains("\"web\"")
            && of("pods.jsonl").contains("fast")
            && of("pods.jsonl").contains("--level=info")
    );
    assert!(of("nodes.jsonl").contains("10.0.0.1") && of("version.json").contains("gitVersion"));
    for file in &files {
        assert!(
            !file.text.contains(PLANTED) && !file.text.contains("managedFields"),
            "{}: {}",
            file.path,
            file.text
        );
        assert!(!file.path.contains("failed"), "{}: {}", file.path, file.text);
    }
}
