use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec})).unwrap()
}

fn slice(endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
    .unwrap()
}

fn addresses(endpoints: &BTreeSet<Endpoint>) -> Vec<String> {
    endpoints
        .iter()
        .map(|end| format!("{}:{}", end.address, end.port))
        .collect()
}

fn one(service: &Service, slices: &[EndpointSlice]) -> ServicePort {
    let mut ports = service_ports([service], slices, "here");
    assert_eq!(ports.len(), 1);
    ports.remove(0)
}

fn plain() -> Service {
    service(json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}))
}

#[test]
fn only_ready_endpoints_serve_and_a_missing_condition_means_ready() {
    let slice = slice(json!([
        {"addresses": ["100.64.0.1"], "conditions": {"ready": true}, "nodeName": "here"},
        {"addresses": ["100.64.1.2"], "conditions": {}, "nodeName": "there"},
        {"addresses": ["100.64.1.3"], "conditions": {"ready": false, "serving": true}},
    ]));
    let port = one(&plain(), &[slice]);
    assert_eq!(port.id, "ns/web/tcp/80");
    assert_eq!(addresses(&port.all), ["100.64.0.1:8080", "100.64.1.2:8080"]);
    assert_eq!(addresses(&port.local), ["100.64.0.1:8080"]);
}

#[test]
fn endpoints_that_end_but_still_serve_are_the_fallback_for_each_set() {
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    let slice = slice(json!([
        {"addresses": ["100.64.0.1"], "conditions": ending, "nodeName": "here"},
        {"addresses": ["100.64.1.2"], "conditions": {"ready": true}, "nodeName": "there"},
        {"addresses": ["100.64.0.3"], "conditions": {"ready": false, "serving": false, "terminating": true}, "nodeName": "here"},
    ]));
    let port = one(&plain(), &[slice]);
    assert_eq!(addresses(&port.all), ["100.64.1.2:8080"]);
    assert_eq!(addresses(&port.local), ["100.64.0.1:8080"]);
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let service = service(json!({"clusterIP": "10.96.0.5", "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}, {"name": "x", "port": 9},
    ]}));
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "dns", "port": 1053, "protocol": "UDP"}, {"name": "dns-tcp", "port": 2053, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["100.64.0.1"]}],
    }))
    .unwrap();
    let ports = service_ports([&service], [&slice], "here");
    let found: Vec<_> = ports
        .iter()
        .map(|port| (port.id.as_str(), addresses(&port.all)))
        .collect();
    assert_eq!(
        found,
        [
            ("ns/web/tcp/dns-tcp", vec!["100.64.0.1:2053".to_owned()]),
            ("ns/web/tcp/x", vec![]),
            ("ns/web/udp/dns", vec!["100.64.0.1:1053".to_owned()]),
        ]
    );
}

#[test]
fn headless_external_name_and_foreign_services_are_left_out() {
    let mut foreign = plain();
    foreign.metadata.labels = Some(BTreeMap::from([(OTHER_PROXY.to_owned(), "other".to_owned())]));
    let services = [
        foreign,
        service(json!({"clusterIP": "None", "ports": [{"port": 80}]})),
        service(json!({"type": "ExternalName", "externalName": "a.b"})),
        service(json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]})),
    ];
    assert!(service_ports(&services, [], "here").is_empty());
}

#[test]
fn the_outer_side_of_a_service_is_read() {
    let mut service = service(json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.5", "externalIPs": ["1.2.3.4"],
        "ports": [{"port": 80, "nodePort": 30080}], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "loadBalancerSourceRanges": [" 10.0.0.0/8 "],
    }));
    service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
        {"ip": "5.6.7.8"}, {"ip": "5.6.7.9", "ipMode": "Proxy"}, {"hostname": "x"},
    ]}}))
    .unwrap();
    let port = one(&service, &[]);
    assert_eq!((port.node_port, port.affinity), (Some(30080), Some(60)));
    assert!(port.external_local && port.internal_local);
    assert_eq!(port.external_ips, BTreeSet::from(["1.2.3.4".parse().unwrap()]));
    assert_eq!(port.balancer_ips, BTreeSet::from(["5.6.7.8".parse().unwrap()]));
    assert_eq!(port.source_ranges, BTreeSet::from(["10.0.0.0/8".parse().unwrap()]));
}

#[test]
fn host_ports_are_those_of_running_pods_of_this_node() {
    let pod = |node: &str, phase: &str, host_network: bool, port: Value| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "pod"},
            "spec": {"nodeName": node, "hostNetwork": host_network, "containers": [{"name": "c", "ports": [port]}]},
            "status": {"phase": phase, "podIP": "100.64.0.9"},
        }))
        .unwrap()
    };
    let port = json!({"containerPort": 80, "hostPort": 8080});
    let bound = json!({"containerPort": 53, "hostPort": 53, "hostIP": "127.0.0.1", "protocol": "UDP"});
    let pods = [
        pod("here", "Running", false, port.clone()),
        pod("here", "Running", false, bound),
        pod("here", "Running", false, json!({"containerPort": 81})),
        pod("there", "Running", false, port.clone()),
        pod("here", "Succeeded", false, port.clone()),
        pod("here", "Running", true, port),
    ];
    let found = host_ports(&pods, "here");
    let ids: Vec<_> = found.iter().map(|port| port.id.as_str()).collect();
    assert_eq!(ids, ["ns/pod/tcp/8080", "ns/pod/udp/53/127.0.0.1"]);
    assert_eq!(
        found[0].endpoint,
        Endpoint {
            address: "100.64.0.9".parse().unwrap(),
            port: 80
        }
    );
}

#[test]
fn whoever_still_serves_keeps_its_flows() {
    let slice = slice(json!([
        {"addresses": ["100.64.0.1"], "conditions": {"ready": true}, "nodeName": "here"},
        {"addresses": ["100.64.1.2"], "nodeName": "there"},
        {"addresses": ["100.64.1.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["100.64.1.4"], "conditions": {"ready": false, "serving": false}},
    ]));
    let port = one(&plain(), &[slice]);
    let serving: Vec<String> = port.serving.iter().map(ToString::to_string).collect();
    assert_eq!(serving, ["100.64.0.1", "100.64.1.2", "100.64.1.3"]);
}

#[test]
fn health_checks_count_the_ready_endpoints_of_this_node() {
    let spec = |port: i32| json!({"type": "LoadBalancer", "clusterIP": "10.96.0.5", "externalTrafficPolicy": "Local", "healthCheckNodePort": port, "ports": [{"port": 80}]});
    let endpoints = |conditions: Value| {
        slice(json!([
            {"addresses": ["100.64.0.1"], "conditions": conditions, "nodeName": "here"},
            {"addresses": ["100.64.0.2"], "conditions": conditions, "nodeName": "here"},
            {"addresses": ["100.64.1.2"], "conditions": {"ready": true}, "nodeName": "there"},
        ]))
    };
    // The same pods behind a second port are the same endpoints.
    let twice = |conditions: Value| vec![endpoints(conditions.clone()), endpoints(conditions)];
    for (conditions, count) in [
        (json!({"ready": true}), 2),
        (json!({}), 2),
        (json!({"ready": false}), 0),
        (json!({"ready": false, "serving": true, "terminating": true}), 0),
    ] {
        let checks = health_checks(&[service(spec(30100))], &twice(conditions.clone()), "here");
        let expected = HealthCheck {
            namespace: "ns".into(),
            name: "web".into(),
            local_endpoints: count,
        };
        assert_eq!(checks, BTreeMap::from([(30100, expected)]), "{conditions}");
    }
    let mut others = service(spec(30100));
    others.metadata.labels = Some([(OTHER_PROXY.to_owned(), "x".to_owned())].into());
    let with = |field: &str, value: &str| {
        let mut spec = spec(30100);
        spec[field] = json!(value);
        service(spec)
    };
    let spread = with("externalTrafficPolicy", "Cluster");
    for service in [service(spec(0)), plain(), others, spread, with("type", "NodePort")] {
        assert_eq!(health_checks(&[service], &[], "here"), BTreeMap::new());
    }
}
