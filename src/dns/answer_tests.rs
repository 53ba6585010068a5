use k8s_openapi::api::{
    core::v1::{Namespace, Service as ServiceObject},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

use super::*;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn zone() -> Zone {
    let namespace: Namespace = object(json!({"metadata": {"name": "default"}}));
    let service = |name: &str, spec: Value| -> ServiceObject {
        object(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
    };
    let slice = |service: &str, ports: Value, endpoints: Value| -> EndpointSlice {
        object(json!({
            "metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
    };
    let services = [
        service(
            "web",
            json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::5"], "ports": [
                {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 99},
            ]}),
        ),
        service(
            "db",
            json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
        ),
        service(
            "empty",
            json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
        ),
        service("out", json!({"type": "ExternalName", "externalName": "example.com"})),
        service(
            "alias",
            json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}),
        ),
        service(
            "loop",
            json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"}),
        ),
    ];
    let slices = [
        slice(
            "web",
            json!([{"name": "http", "port": 8080}]),
            json!([{"addresses": ["100.64.0.2"]}]),
        ),
        slice(
            "db",
            json!([{"name": "sql", "port": 15432}]),
            json!([
                {"addresses": ["100.64.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["100.64.0.8"]},
                {"addresses": ["100.64.0.9"], "hostname": "db-2", "conditions": {"ready": false}},
            ]),
        ),
    ];
    Zone::new("cluster.local", [&namespace], &services, &slices)
}

/// A question and its answer as text: code, then the records' data.
fn ask(name: &str, kind: RecordType) -> String {
    let question = Query::query(Name::from_ascii(name).unwrap(), kind);
    match zone().answer(&question) {
        Answer::NotOurs => "not ours".to_owned(),
        Answer::Elsewhere { answers, target } => format!("{} then {target}", data(&answers)),
        Answer::Final {
            code,
            answers,
            authorities,
            ..
        } => {
            assert_eq!(
                answers.is_empty() || code != ResponseCode::NoError,
                !authorities.is_empty(),
                "{name}"
            );
            match code {
                ResponseCode::NoError if answers.is_empty() => "no data".to_owned(),
                ResponseCode::NoError => data(&answers),
                code => format!("{code:?}"),
            }
        }
    }
}

fn data(records: &[Record]) -> String {
    records
        .iter()
        .map(|record| record.data.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn every_kind_of_name_is_answered_as_the_specification_says() {
    use RecordType::{A, AAAA, ANY, CNAME, NS, PTR, SOA, SRV, TXT};
    for (name, kind, expected) in [
        // Services.
        ("web.default.svc.cluster.local.", A, "10.96.0.5"),
        ("WEB.Default.svc.Cluster.LOCAL.", A, "10.96.0.5"),
        ("web.default.svc.cluster.local.", AAAA, "fd00::5"),
        ("web.default.svc.cluster.local.", TXT, "no data"),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            "0 100 80 web.default.svc.cluster.local.",
        ),
        (
            "_dns._udp.web.default.svc.cluster.local.",
            SRV,
            "0 100 53 web.default.svc.cluster.local.",
        ),
        ("_http._tcp.web.default.svc.cluster.local.", A, "no data"),
        ("_tcp.web.default.svc.cluster.local.", A, "no data"),
        ("_sctp.web.default.svc.cluster.local.", A, "NXDomain"),
        ("_http._udp.web.default.svc.cluster.local.", SRV, "NXDomain"),
        ("nothing.default.svc.cluster.local.", A, "NXDomain"),
        ("web.other.svc.cluster.local.", A, "NXDomain"),
        // Headless services.
        ("db.default.svc.cluster.local.", A, "100.64.0.7, 100.64.0.8"),
        ("db.default.svc.cluster.local.", AAAA, "no data"),
        ("db-0.db.default.svc.cluster.local.", A, "100.64.0.7"),
        ("100-64-0-8.db.default.svc.cluster.local.", A, "100.64.0.8"),
        ("db-2.db.default.svc.cluster.local.", A, "NXDomain"),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            SRV,
            "0 100 15432 db-0.db.default.svc.cluster.local., 0 100 15432 100-64-0-8.db.default.svc.cluster.local.",
        ),
        ("empty.default.svc.cluster.local.", A, "no data"),
        // Aliases.
        ("out.default.svc.cluster.local.", A, "example.com. then example.com."),
        ("out.default.svc.cluster.local.", CNAME, "example.com."),
        (
            "alias.default.svc.cluster.local.",
            A,
            "web.default.svc.cluster.local., 10.96.0.5",
        ),
        // Pods.
        ("100-64-0-2.default.pod.cluster.local.", A, "100.64.0.2"),
        ("fd00--2.default.pod.cluster.local.", AAAA, "fd00::2"),
        ("100-64-0-2.default.pod.cluster.local.", AAAA, "no data"),
        ("100-64-0.default.pod.cluster.local.", A, "NXDomain"),
        ("100-64-0-2.other.pod.cluster.local.", A, "NXDomain"),
        // Reverse.
        ("5.0.96.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
        ("7.0.64.100.in-addr.arpa.", PTR, "db-0.db.default.svc.cluster.local."),
        ("5.0.96.10.in-addr.arpa.", A, "no data"),
        ("1.0.0.127.in-addr.arpa.", PTR, "not ours"),
        ("0.96.10.in-addr.arpa.", PTR, "not ours"),
        // The zone itself, and names that only lead to others.
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("cluster.local.", A, "no data"),
        ("svc.cluster.local.", A, "no data"),
        ("default.svc.cluster.local.", A, "no data"),
        ("default.pod.cluster.local.", A, "no data"),
        ("other.svc.cluster.local.", A, "NXDomain"),
        ("x.cluster.local.", A, "NXDomain"),
        ("example.com.", A, "not ours"),
        ("local.", A, "not ours"),
    ] {
        assert_eq!(ask(name, kind), expected, "{name} {kind}");
    }
    assert!(ask("cluster.local.", SOA).starts_with("ns.dns.cluster.local. hostmaster.cluster.local."));
    assert!(ask("web.default.svc.cluster.local.", ANY).contains("10.96.0.5"));
}

#[test]
fn an_alias_to_itself_ends() {
    assert!(ask("loop.default.svc.cluster.local.", RecordType::A).contains("loop.default"));
}

#[test]
fn srv_answers_bring_the_addresses_of_their_targets() {
    let name = Name::from_ascii("_sql._tcp.db.default.svc.cluster.local.").unwrap();
    let Answer::Final { additionals, .. } = zone().answer(&Query::query(name, RecordType::SRV)) else {
        panic!()
    };
    assert_eq!(data(&additionals), "100.64.0.7, 100.64.0.8");
}
