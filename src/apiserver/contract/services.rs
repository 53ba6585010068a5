//! Services over their changes of type, and what they get of addresses, families and ports.

use super::*;
use serde_json::json;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_changes_its_type_with_all_fields_sent_back() {
    let c = Cluster::start().await;
    let ports = json!([{"name": "web", "port": 80}]);
    let spec =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports, "selector": {"a": "b"}});
    let made = c.post(SERVICES, service("s", spec)).await.expect(201);
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(made["spec"]["ipFamilyPolicy"], "SingleStack");
    assert!(made["spec"]["healthCheckNodePort"].as_u64().unwrap() >= 30000);
    let path = format!("{SERVICES}/s");
    let mut service = made;
    for (to, gone) in [
        (
            "NodePort",
            &["healthCheckNodePort", "allocateLoadBalancerNodePorts"][..],
        ),
        ("ClusterIP", &["externalTrafficPolicy"]),
        ("LoadBalancer", &[]),
        (
            "ExternalName",
            &[
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "externalTrafficPolicy",
            ],
        ),
        ("ClusterIP", &["healthCheckNodePort"]),
    ] {
        service["spec"]["type"] = to.into();
        service["spec"]["externalName"] = if to == "ExternalName" {
            "a.example".into()
        } else {
            Value::Null
        };
        service = c.put(&path, service).await.expect(200);
        for field in gone {
            assert!(service["spec"].get(*field).is_none(), "{to} keeps {field}: {service}");
        }
        let node_port = &service["spec"]["ports"][0]["nodePort"];
        assert_eq!(
            node_port.is_u64(),
            matches!(to, "NodePort" | "LoadBalancer"),
            "{service}"
        );
    }
    assert!(service["spec"]["clusterIP"].is_string());
    service["spec"]["type"] = "ExternalName".into();
    service["spec"]["externalName"] = "a.example".into();
    service["spec"]["clusterIP"] = "10.96.0.99".into();
    c.put(&path, service).await.expect(422);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_one_number_for_two_protocols_and_no_family_that_is_not_there() {
    let c = Cluster::start().await;
    let ports = json!([{"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"}]);
    let dns = c
        .post(SERVICES, service("dns", json!({"type": "NodePort", "ports": ports})))
        .await
        .expect(201);
    assert_eq!(dns["spec"]["ports"][0]["nodePort"], dns["spec"]["ports"][1]["nodePort"]);
    let both = json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]});
    let refused = c.post(SERVICES, service("both", both)).await.expect(422);
    assert_eq!(
        refused["message"],
        "Service \"both\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
    );
    let six = json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]});
    let refused = c.post(SERVICES, service("six", six)).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.ipFamilies[0]");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_uses_endpoints_is_told_that_they_are_deprecated() {
    let c = Cluster::start().await;
    const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
    let told = "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
    let made = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"}});
    for answer in [
        c.post(ENDPOINTS, made).await,
        c.get(ENDPOINTS).await,
        c.get(&format!("{ENDPOINTS}/e")).await,
        c.delete(&format!("{ENDPOINTS}/e"), json!({})).await,
    ] {
        assert!(answer.code < 300, "{}", answer.code);
        assert_eq!(answer.headers["warning"], told);
    }
    let slices = c.get("/apis/discovery.k8s.io/v1/endpointslices").await;
    assert!(slices.headers.get("warning").is_none());
    c.end().await;
}
