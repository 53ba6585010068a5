//! What holds for every kind that is stored: applied, applied again, and read in every encoding.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// The least that makes an object of a kind valid, without its name.
fn least(kind: &api::Kind) -> Value {
    let labels = json!({"app": "x"});
    let containers = json!([{"name": "a", "image": "x"}]);
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": containers}});
    let workload = json!({"spec": {"selector": {"matchLabels": labels}, "template": template}});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    match kind.message {
        "core.v1.ConfigMap" => json!({"data": {"k": "v"}}),
        "core.v1.Secret" => json!({"stringData": {"k": "v"}}),
        "core.v1.Endpoints" => json!({"subsets": [{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 80}]}]}),
        "core.v1.Event" => {
            json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R", "message": "m", "type": "Normal"})
        }
        "events.v1.Event" => {
            json!({"regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R", "note": "m", "type": "Normal",
            "action": "A", "reportingController": "example.com/c", "reportingInstance": "i", "eventTime": "2026-01-02T03:04:05.000000Z"})
        }
        "core.v1.Node" => json!({"spec": {"podCIDRs": ["100.64.0.0/24"], "podCIDR": "100.64.0.0/24"}}),
        "core.v1.Pod" => json!({"spec": {"containers": containers}}),
        "core.v1.PodTemplate" => json!({"template": template}),
        "core.v1.Service" => json!({"spec": {"selector": labels, "ports": [{"port": 80}]}}),
        "apps.v1.ControllerRevision" => json!({"revision": 1, "data": {"spec": {"x": null}}}),
        "apps.v1.Deployment" | "apps.v1.ReplicaSet" | "apps.v1.DaemonSet" => workload,
        "policy.v1.PodDisruptionBudget" => json!({"spec": {"minAvailable": 0, "selector": {"matchLabels": labels}}}),
        "rbac.v1.Role" | "rbac.v1.ClusterRole" => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        "rbac.v1.RoleBinding" | "rbac.v1.ClusterRoleBinding" => {
            json!({"roleRef": role, "subjects": [{"kind": "User", "name": "u"}]})
        }
        "certificates.v1.CertificateSigningRequest" => {
            let key = KeyPair::generate().unwrap();
            let request = CertificateParams::default()
                .serialize_request(&key)
                .unwrap()
                .pem()
                .unwrap();
            json!({"spec": {"request": STANDARD.encode(request), "signerName": "example.com/s", "usages": ["client auth"]}})
        }
        "storage.v1.StorageClass" => json!({"provisioner": "example.com/p"}),
        "scheduling.v1.PriorityClass" => json!({"value": 7}),
        "coordination.v1.Lease" => json!({"spec": {"holderIdentity": "h", "renewTime": "2026-01-02T03:04:05.123456Z"}}),
        "node.v1.RuntimeClass" => json!({"handler": "h"}),
        "discovery.v1.EndpointSlice" => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.9"]}], "ports": [{"port": 80}]})
        }
        _ => json!({}),
    }
}

/// The collection of a kind, in the default namespace.
fn collection(kind: &api::Kind) -> String {
    let root = if kind.group.is_empty() { "/api" } else { "/apis" };
    let scope = if kind.namespaced { "/namespaces/default" } else { "" };
    format!("{root}/{}{scope}/{}", kind.api_version(), kind.plural)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_applied_and_applied_again_without_a_change() {
    let c = Cluster::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    c.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
    for kind in api::kinds::kinds().iter().filter(|k| k.stored()) {
        let mut config = least(kind);
        let name = format!("x-{}", kind.group.split('.').next().unwrap_or_default());
        let name = name.trim_end_matches('-');
        config["apiVersion"] = kind.api_version().into();
        config["kind"] = kind.kind.into();
        config["metadata"] = json!({"name": name, "labels": {"l": "1"}});
        let path = format!("{}/{name}?fieldManager=test", collection(kind));
        let apply = async |config: &Value| c.patch(&path, "application/apply-patch+yaml", config.clone()).await;
        let made = apply(&config).await.expect(201);
        let entry = &made["metadata"]["managedFields"][0];
        assert_eq!(
            (entry["manager"].as_str(), entry["operation"].as_str()),
            (Some("test"), Some("Apply")),
            "{}",
            kind.kind
        );
        assert_eq!(entry["apiVersion"], kind.api_version());
        assert_eq!(apply(&config).await.expect(200), made, "{}", kind.kind);
        config["metadata"].as_object_mut().unwrap().remove("labels");
        let taken = apply(&config).await.expect(200);
        assert_eq!(taken["metadata"]["labels"]["l"], Value::Null, "{}", kind.kind);
        assert_eq!(taken["spec"], made["spec"], "{}", kind.kind);
    }
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_created_listed_and_watched_in_protobuf() {
    let c = Cluster::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    c.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
    let headers = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
    for kind in api::kinds::kinds().iter().filter(|k| k.stored()) {
        let mut object = least(kind);
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.into();
        let name = format!("p{}", kind.group.len());
        object["metadata"] = json!({"name": name, "labels": {"l": "1"}});
        let path = collection(kind);
        let bytes = api::proto::encode(&object).unwrap();
        let made = c.raw(Method::POST, &path, &As::Admin, &headers, bytes).await;
        assert_eq!(
            made.code,
            201,
            "{}: {}",
            kind.kind,
            String::from_utf8_lossy(&made.bytes)
        );
        assert_eq!(made.headers["content-type"], PROTOBUF);
        let made = api::proto::decode(&made.bytes).unwrap();
        assert_eq!(made["metadata"]["name"], name.as_str());
        assert!(
            made["metadata"]["managedFields"][0]["fieldsV1"].is_object(),
            "{}",
            kind.kind
        );
        // What a client reads it may write back, and that changes nothing.
        let back = api::proto::encode(&made).unwrap();
        let same = c
            .raw(Method::PUT, &format!("{path}/{name}"), &As::Admin, &headers, back)
            .await;
        assert_eq!(
            same.code,
            200,
            "{}: {}",
            kind.kind,
            String::from_utf8_lossy(&same.bytes)
        );
        let same = api::proto::decode(&same.bytes).unwrap();
        assert_eq!(
            same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"],
            "{}",
            kind.kind
        );
        let list = c.raw(Method::GET, &path, &As::Admin, &headers, vec![]).await;
        let list = api::proto::decode(&list.bytes).unwrap();
        assert_eq!(list["kind"], kind.list_kind());
        assert!(
            list["items"]
                .as_array()
                .unwrap()
                .iter()
                .any(|i| i["metadata"]["uid"] == made["metadata"]["uid"])
        );
        let request = format!("{path}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3D{name}");
        let event = first_frame(&c, &request).await;
        let (kind_of, raw) = frame_parts(&event);
        assert_eq!(kind_of, "ADDED");
        assert_eq!(
            api::proto::decode(&raw).unwrap()["metadata"]["uid"],
            made["metadata"]["uid"],
            "{}",
            kind.kind
        );
        let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        let partial = c
            .raw(Method::GET, &path, &As::Admin, &[("accept", &partial)], vec![])
            .await;
        assert_eq!(
            api::proto::decode(&partial.bytes).unwrap()["kind"],
            "PartialObjectMetadataList"
        );
    }
    let missing = c
        .raw(Method::GET, &format!("{MAPS}/none"), &As::Admin, &headers, vec![])
        .await;
    assert_eq!(missing.code, 404);
    c.end().await;
}

/// The first frame of a protobuf watch.
async fn first_frame(c: &Cluster, path: &str) -> Vec<u8> {
    let accept = format!("{PROTOBUF};stream=watch");
    let mut watch = c.watch_as(path, &accept).await;
    while watch.buffer.len() < 4 || watch.buffer.len() < 4 + length(&watch.buffer) {
        let frame = tokio::time::timeout(Duration::from_secs(20), watch.body.frame()).await;
        let frame = frame.expect("an event comes").unwrap().unwrap();
        watch.buffer.extend_from_slice(frame.data_ref().unwrap());
    }
    watch.buffer[4..4 + length(&watch.buffer)].to_vec()
}

fn length(buffer: &[u8]) -> usize {
    u32::from_be_bytes(buffer[..4].try_into().unwrap()) as usize
}

/// Type and object of a `meta.v1.WatchEvent`, whose two fields are of less than 2^21 bytes.
fn frame_parts(bytes: &[u8]) -> (String, Vec<u8>) {
    fn field(bytes: &[u8]) -> (&[u8], &[u8]) {
        let (mut size, mut at) = (0_usize, 1);
        for shift in [0, 7, 14] {
            let byte = usize::from(bytes[at]);
            at += 1;
            size |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        bytes[at..].split_at(size)
    }
    let (kind, rest) = field(bytes);
    let (extension, _) = field(rest);
    let (raw, _) = field(extension);
    (String::from_utf8(kind.to_vec()).unwrap(), raw.to_vec())
}
