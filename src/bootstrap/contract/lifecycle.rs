//! Contract with a real API server about the life of a cluster: nodes leave it or are gone, and somebody changes what was applied.

use super::{MAP, NAMESPACE, SECRET, Server, start, with_app};
use crate::{
    cluster::{Applier, Cluster, api, launch, nodes::give_metadata, record},
    drift, phases, reset,
    rolling::work,
};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Node, Pod, Secret},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, api::Patch};
use serde_json::{Value, json};
use std::time::Duration;

async fn apply(server: &Server, objects: &[Value]) {
    let applier = Applier::new(server.client.clone());
    for object in objects {
        applier.apply(object).await.unwrap();
    }
}

fn node(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

/// A pod that runs on a node, as far as the API server can tell.
async fn pod(server: &Server, name: &str, node: &str, ready: bool) {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"nodeName": node, "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x:1"}]},
    });
    apply(server, &[object]).await;
    let status = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}});
    let pods: Api<Pod> = Api::namespaced(server.client.clone(), "default");
    pods.patch_status(name, &Default::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

async fn two_nodes(server: &Server) {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    apply(server, &[account, node("n1", "10.0.0.1"), node("n2", "10.0.0.2")]).await;
    let nodes: Api<Node> = Api::all(server.client.clone());
    for (name, ip) in [("n1", "10.0.0.1"), ("n2", "10.0.0.2")] {
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
        nodes
            .patch_status(name, &Default::default(), &Patch::Merge(&status))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_let_go_is_waited_for_until_its_taint_is_gone() {
    let Some(server) = start().await else { return };
    two_nodes(&server).await;
    let nodes: Api<Node> = Api::all(server.client.clone());
    let taints = |taints: Value| json!({"spec": {"unschedulable": null, "taints": taints}});
    let mirrored = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
    let patch = async |patch: Value| {
        let patched = nodes.patch("n1", &Default::default(), &Patch::Merge(&patch)).await;
        patched.unwrap();
    };
    patch(taints(mirrored)).await;
    let seat = crate::testing::seat("10.0.0.1", "n1", false);
    let in_vain = work::await_placement(&nodes, &seat, Duration::from_millis(300)).await;
    assert!(
        in_vain
            .unwrap_err()
            .to_string()
            .contains("that its node can be given pods again")
    );
    let (waited, ()) = tokio::join!(
        work::await_placement(&nodes, &seat, Duration::from_secs(60)),
        patch(taints(Value::Null))
    );
    waited.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_the_cluster_that_the_clusterfile_lacks_are_found_before_a_reset() {
    let Some(server) = start().await else { return };
    two_nodes(&server).await;
    apply(&server, &[node("late", "10.0.0.9")]).await;
    let nodes: Api<Node> = Api::all(server.client.clone());
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.9"}]}});
    nodes
        .patch_status("late", &Default::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    let known = reset::unlisted::all(&Cluster::direct(server.client.clone())).await;
    let missing = reset::unlisted::lacking(known.unwrap(), &crate::testing::clusterfile(""));
    assert_eq!(missing, [("late".to_owned(), Some("10.0.0.9".parse().unwrap()))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_ends_in_vain_names_every_pod_and_budget_in_the_way() {
    let Some(server) = start().await else { return };
    two_nodes(&server).await;
    pod(&server, "guarded", "n1", true).await;
    pod(&server, "slow", "n1", true).await;
    pod(&server, "elsewhere", "n2", true).await;
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "keep", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}});
    apply(&server, &[budget]).await;
    // As the controller says it, which does not run here: the budget has been looked at, and is used up.
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    Api::<PodDisruptionBudget>::namespaced(server.client.clone(), "default")
        .patch_status("keep", &Default::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    let patience = Duration::from_secs(3);
    let begun = std::time::Instant::now();
    let error = reset::drain::drain(&Cluster::direct(server.client.clone()), "n1", patience)
        .await
        .unwrap_err()
        .to_string();
    assert!(begun.elapsed() < patience * 5);
    assert!(
        error.contains("pod default/guarded: The disruption budget keep needs"),
        "{error}"
    );
    // There is no agent that would end it.
    assert!(
        error.contains("pod default/slow: it is told to end and has not ended yet"),
        "{error}"
    );
    assert!(!error.contains("elsewhere"), "{error}");
    let pods: Api<Pod> = Api::namespaced(server.client.clone(), "default");
    let told = |name: &'static str| {
        let pods = pods.clone();
        async move { pods.get(name).await.unwrap().metadata.deletion_timestamp.is_some() }
    };
    assert!(told("slow").await && !told("guarded").await && !told("elsewhere").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_labels_and_taints_even_if_it_changed_since_it_was_seen() {
    let Some(server) = start().await else { return };
    two_nodes(&server).await;
    let nodes: Api<Node> = Api::all(server.client.clone());
    let seen = nodes.get("n1").await.unwrap();
    let theirs = json!({"spec": {"taints": [{"key": "theirs", "effect": "NoExecute"}]}});
    nodes
        .patch("n1", &Default::default(), &Patch::Merge(&theirs))
        .await
        .unwrap();
    let mut seat = crate::testing::seat("10.0.0.1", "n1", true);
    seat.labels.insert("disk".to_owned(), "ssd".to_owned());
    assert!(give_metadata(&nodes, seen, &seat).await.unwrap());
    let node = nodes.get("n1").await.unwrap();
    assert!(!give_metadata(&nodes, node.clone(), &seat).await.unwrap());
    assert_eq!(node.metadata.labels.unwrap()["disk"], "ssd");
    let taints = node.spec.unwrap().taints.unwrap();
    let keys: Vec<&str> = taints.iter().map(|taint| taint.key.as_str()).collect();
    assert_eq!(keys, ["theirs", "node-role.kubernetes.io/control-plane"]);
    // What the server refuses is told in its own words, once.
    let gone = crate::testing::seat("10.0.0.9", "n9", true);
    let error = give_metadata(&nodes, Node::default(), &gone).await.unwrap_err();
    assert_eq!(error.to_string(), "labelling node n9: nodes \"n9\" not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_host_is_gone_leaves_with_all_that_is_its_own_and_comes_back_anew() {
    let Some(server) = start().await else { return };
    two_nodes(&server).await;
    pod(&server, "lost", "n1", false).await;
    pod(&server, "kept", "n2", true).await;
    let lease = |name: &str| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-node-lease"}});
    apply(&server, &[namespace, lease("n1"), lease("n2")]).await;
    let cluster = Cluster::direct(server.client.clone());
    let ips = ["10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap()];
    let nodes = reset::remove::with_addresses(&cluster, &ips).await.unwrap();
    assert!(nodes.iter().all(|(_, ip)| *ip == ips[0]), "{nodes:?}");
    let names: Vec<String> = nodes.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["n1"]);
    let removed = reset::remove::nodes(&cluster, &names).await;
    assert_eq!((removed[0].pods, &removed[0].failed), (1, &None));
    // Whatever is gone already is no failure.
    assert_eq!(reset::remove::nodes(&cluster, &names).await[0].failed, None);
    let names = |list: Vec<String>| list.join(" ");
    let nodes: Api<Node> = Api::all(server.client.clone());
    let listed = nodes.list(&Default::default()).await.unwrap();
    assert_eq!(
        names(listed.items.iter().map(kube::ResourceExt::name_any).collect()),
        "n2"
    );
    let leases: Api<Lease> = Api::namespaced(server.client.clone(), "kube-node-lease");
    let listed = leases.list(&Default::default()).await.unwrap();
    assert_eq!(
        names(listed.items.iter().map(kube::ResourceExt::name_any).collect()),
        "n2"
    );
    let pods: Api<Pod> = Api::namespaced(server.client.clone(), "default");
    let listed = pods.list(&Default::default()).await.unwrap();
    assert_eq!(
        names(listed.items.iter().map(kube::ResourceExt::name_any).collect()),
        "kept"
    );
    // Under the old name, with nothing left of what it was.
    apply(&server, &[node("n1", "10.0.0.1")]).await;
    let back = nodes.get("n1").await.unwrap();
    assert!(back.spec.and_then(|spec| spec.unschedulable).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changed_in_the_cluster_is_told_and_an_apply_mends_it() {
    let Some(server) = start().await else { return };
    let phase = phases::named("applications").unwrap();
    let files = [("0.yaml", NAMESPACE), ("a.yaml", MAP), ("b.yaml", SECRET)];
    let apply_all = || async {
        let (run, _) = server.run(with_app(&files));
        apply(&server, &api::bindings()).await;
        apply(&server, &[record::object(&run.site, &run.record).unwrap()]).await;
        launch::applications(run, phase, None).await.unwrap();
    };
    apply_all().await;
    let cluster = Cluster::direct(server.client.clone());
    let look = || async {
        let drift = drift::objects(&cluster).await.unwrap();
        let told = |one: &drift::ObjectDrift| format!("{} {} {}", one.object, one.gone, one.fields.join(","));
        drift.iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(look().await, Vec::<String>::new());
    let maps: Api<ConfigMap> = Api::namespaced(server.client.clone(), "shop");
    let secrets: Api<Secret> = Api::namespaced(server.client.clone(), "shop");
    let theirs = json!({"data": {"x": "2", "y": "theirs"}});
    maps.patch("a", &Default::default(), &Patch::Merge(&theirs))
        .await
        .unwrap();
    let theirs = json!({"data": {"x": "Mg=="}});
    secrets
        .patch("b", &Default::default(), &Patch::Merge(&theirs))
        .await
        .unwrap();
    let binding = "kubeadm:kubelet-bootstrap";
    let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(server.client.clone());
    bindings.delete(binding, &Default::default()).await.unwrap();
    assert_eq!(
        look().await,
        [
            "clusterrolebinding kubeadm:kubelet-bootstrap true ",
            "configmap shop/a false data.x",
            "secret shop/b false data (secret)",
        ]
    );
    apply_all().await;
    assert_eq!(look().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_whose_ports_share_a_number_is_mended_and_gets_new_images() {
    let Some(server) = start().await else { return };
    let deployment = |image: &str| {
        let ports = json!([{"containerPort": 53, "name": "dns", "protocol": "UDP"}, {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"}]);
        let pod = json!({"metadata": {"labels": {"app": "dns"}}, "spec": {"containers": [{"name": "dns", "image": image, "ports": ports}]}});
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "dns", "namespace": "default"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "dns"}}, "template": pod}})
    };
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::namespaced(server.client.clone(), "default");
    apply(&server, &[deployment("i:1")]).await;
    let scaled = json!({"spec": {"replicas": 5}});
    deployments
        .patch("dns", &Default::default(), &Patch::Merge(&scaled))
        .await
        .unwrap();
    apply(&server, &[deployment("i:2")]).await;
    let spec = deployments.get("dns").await.unwrap().spec.unwrap();
    let containers = spec.template.spec.unwrap().containers;
    assert_eq!((spec.replicas, containers[0].image.as_deref()), (Some(2), Some("i:2")));
    assert_eq!(containers[0].ports.as_ref().map(Vec::len), Some(2));
    let applier = Applier::new(server.client.clone());
    let (again, _) = applier.apply(&deployment("i:2")).await.unwrap();
    assert_eq!(again, crate::cluster::Applied::Same);
}
