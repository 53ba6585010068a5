//! Contract with a real API server about applying: whatever was applied before, afterwards an object is as its manifest says, a plan is
//! empty, and there is no drift.

use super::{Server, start};
use crate::cluster::{Applied, Applier, ownership};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use proptest::{
    collection::{btree_map, vec},
    option, prop_oneof,
    sample::{select, subsequence},
    strategy::{BoxedStrategy, Just, Strategy},
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Map, Value, json};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn api_of(server: &Server, object: &Value) -> Api<DynamicObject> {
    let (group, version) = api::kinds::split_api_version(object["apiVersion"].as_str().unwrap());
    let kind = object["kind"].as_str().unwrap();
    let known = api::kinds::find_by_kind(group, version, kind).unwrap();
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), known.plural);
    match known.namespaced {
        true => Api::namespaced_with(server.client.clone(), "default", &resource),
        false => Api::all_with(server.client.clone(), &resource),
    }
}

async fn live(server: &Server, object: &Value) -> Value {
    let name = object["metadata"]["name"].as_str().unwrap();
    serde_json::to_value(api_of(server, object).get(name).await.unwrap()).unwrap()
}

/// Creates an object as versions before did: by a plain write, with itself in an annotation.
async fn create_the_old_way(server: &Server, object: &Value) {
    let mut annotated = object.clone();
    if object["kind"] != "Secret" {
        annotated["metadata"]["annotations"][LAST_APPLIED] = object.to_string().into();
    }
    let params = PostParams {
        field_manager: Some("installer".to_owned()),
        ..PostParams::default()
    };
    let annotated: DynamicObject = serde_json::from_value(annotated).unwrap();
    api_of(server, object).create(&params, &annotated).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_larger_than_annotations_may_be_is_applied() {
    let Some(server) = start().await else { return };
    let map = |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"text": text.repeat(700 << 10)}});
    let applier = Applier::new(server.client.clone());
    assert_eq!(applier.apply(&map("a")).await.unwrap().0, Applied::Created);
    assert_eq!(applier.preview(&map("a")).await.unwrap(), Applied::Same);
    assert_eq!(applier.preview(&map("b")).await.unwrap(), Applied::Changed);
    assert_eq!(applier.apply(&map("b")).await.unwrap().0, Applied::Changed);
    assert_eq!(applier.apply(&map("b")).await.unwrap().0, Applied::Same);
    let made = live(&server, &map("b")).await;
    assert_eq!(made["metadata"]["annotations"], Value::Null);
    assert_eq!(made["data"]["text"].as_str().map(str::len), Some(700 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_applied_on_the_clients_side_is_taken_over() {
    let Some(server) = start().await else { return };
    let labels = json!({"app": "dns"});
    let container = |name: &str, ports: Value| json!({"name": name, "image": "i:1", "ports": ports});
    let deployment = |meta: Value, containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "dns", "namespace": "default", "labels": meta},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}}})
    };
    let port = |protocol: &str| json!({"containerPort": 53, "name": protocol.to_lowercase(), "protocol": protocol});
    let before = deployment(
        json!({"a": "1", "b": "2"}),
        json!([
            container("dns", json!([port("UDP"), port("TCP")])),
            container("side", json!([]))
        ]),
    );
    create_the_old_way(&server, &before).await;
    let theirs = json!({"metadata": {"labels": {"theirs": "x"}}, "spec": {"replicas": 3}});
    let params = PatchParams {
        field_manager: Some("kubectl-edit".to_owned()),
        ..PatchParams::default()
    };
    let api = api_of(&server, &before);
    api.patch("dns", &params, &Patch::Merge(&theirs)).await.unwrap();

    let after = deployment(json!({"a": "1"}), json!([container("dns", json!([port("TCP")]))]));
    let applier = Applier::new(server.client.clone());
    assert_eq!(applier.preview(&after).await.unwrap(), Applied::Changed);
    assert_eq!(applier.apply(&after).await.unwrap().0, Applied::Changed);
    assert_eq!(applier.preview(&after).await.unwrap(), Applied::Same);
    let made = live(&server, &after).await;
    assert_eq!(made["metadata"]["labels"], json!({"a": "1", "theirs": "x"}));
    assert_eq!(made["metadata"]["annotations"], Value::Null);
    assert_eq!(made["spec"]["replicas"], 3);
    let containers = made["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0]["ports"], json!([port("TCP")]));
    let managers: Vec<String> = made["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| format!("{} {}", entry["operation"], entry["manager"]))
        .collect();
    assert_eq!(managers, [r#""Apply" "installer""#, r#""Update" "kubectl-edit""#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_had_by_number_alone_is_mended() {
    let Some(server) = start().await else { return };
    let service = |ports: &[(&str, &str)]| {
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, protocol)| json!({"name": name, "port": 53, "protocol": protocol}))
            .collect();
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns"}, "spec": {"selector": {"app": "dns"}, "ports": ports}})
    };
    let applier = Applier::new(server.client.clone());
    let both = service(&[("dns", "UDP"), ("dns-tcp", "TCP")]);
    create_the_old_way(&server, &service(&[("dns", "UDP")])).await;
    applier.apply(&both).await.unwrap();
    assert_eq!(
        live(&server, &both).await["spec"]["ports"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(applier.preview(&both).await.unwrap(), Applied::Same);
    let one = service(&[("dns-tcp", "TCP")]);
    applier.apply(&one).await.unwrap();
    assert_eq!(live(&server, &one).await["spec"]["ports"][0]["protocol"], "TCP");
}

/// What an apply decides of an object, without what is each object's own.
fn decided(object: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.retain(|field, _| ["labels", "annotations"].contains(&field.as_str()));
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            port.as_object_mut().unwrap().remove("nodePort");
        }
    }
    object
}

/// Applies one manifest, then another; what is wrong afterwards.
async fn pair(server: &Server, number: usize, old_way: bool, pair: &(Value, Value)) -> Result<(), String> {
    let applier = Applier::new(server.client.clone());
    let named = |object: &Value, name: String| {
        let mut object = object.clone();
        object["metadata"]["name"] = name.into();
        object
    };
    let (first, second) = (
        named(&pair.0, format!("x{number}")),
        named(&pair.1, format!("x{number}")),
    );
    let told = |error: crate::Error| error.to_string();
    if old_way {
        create_the_old_way(server, &first).await;
    } else {
        applier.apply(&first).await.map_err(told)?;
        if applier.preview(&first).await.map_err(told)? != Applied::Same {
            return Err("a plan after the first apply is not empty".to_owned());
        }
    }
    let (_, owned) = applier.apply(&second).await.map_err(told)?;
    let differences = applier.differences(&second).await.map_err(told)?.unwrap_or_default();
    if applier.preview(&second).await.map_err(told)? != Applied::Same || !differences.is_empty() {
        return Err(format!("a plan after the second apply is not empty: {differences:?}"));
    }
    let made = live(server, &second).await;
    let drift = ownership::drifted(&made, &owned.fingerprint(), Some(&owned.fields));
    if !drift.is_empty() {
        return Err(format!("drift after an apply: {drift:?}"));
    }
    let alone = named(&pair.1, format!("y{number}"));
    applier.apply(&alone).await.map_err(told)?;
    let alone = live(server, &alone).await;
    match decided(&made) == decided(&alone) {
        true => Ok(()),
        false => Err(format!(
            "it is\n{}\nand alone it would be\n{}",
            decided(&made),
            decided(&alone)
        )),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_two_applies_an_object_is_as_the_second_alone_would_make_it() {
    let Some(server) = start().await else { return };
    let handle = tokio::runtime::Handle::current();
    let number = std::sync::atomic::AtomicUsize::new(0);
    let check = |(both, old_way): ((Value, Value), bool)| {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let done = handle.block_on(pair(&server, number, old_way, &both));
        done.map_err(TestCaseError::fail)
    };
    let config = Config {
        cases: 96,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    };
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(config);
        let result = runner.run(&(pairs(), proptest::bool::weighted(0.3)), check);
        assert!(result.is_ok(), "{}", result.unwrap_err());
    });
}

/// Two manifests of one kind that differ in what may be changed.
fn pairs() -> BoxedStrategy<(Value, Value)> {
    let two = |one: BoxedStrategy<Value>| (one.clone(), one);
    prop_oneof![
        2 => two(service()),
        3 => two(workload("Deployment")),
        1 => two(workload("DaemonSet")),
        1 => two(config_map()),
        1 => two(secret()),
        1 => two(cluster_role()),
        1 => two(budget()),
        1 => two(account()),
    ]
    .boxed()
}

/// A mapping with a few of these keys.
fn words() -> BoxedStrategy<Value> {
    btree_map(select(vec!["a", "b", "c/d"]), select(vec!["", "1", "2"]), 0..3)
        .prop_map(|map| json!(map))
        .boxed()
}

fn object(api_version: &'static str, kind: &'static str, more: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    (option::of(words()), option::of(words()), more)
        .prop_map(move |(labels, annotations, more)| {
            let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {}});
            for (field, words) in [("labels", labels), ("annotations", annotations)] {
                if let Some(words) = words {
                    object["metadata"][field] = words;
                }
            }
            crate::render::merge(&mut object, more);
            object
        })
        .boxed()
}

/// Some of these fields, each with one of its values.
fn some(fields: Vec<(&'static str, Vec<Value>)>) -> BoxedStrategy<Value> {
    let one = |(name, values): (&'static str, Vec<Value>)| {
        option::of(select(values)).prop_map(move |value| value.map(|value| (name.to_owned(), value)))
    };
    let all: Vec<_> = fields.into_iter().map(one).collect();
    all.prop_map(|fields| Value::Object(fields.into_iter().flatten().collect::<Map<_, _>>()))
        .boxed()
}

fn service() -> BoxedStrategy<Value> {
    let numbers = vec![(53, "UDP"), (53, "TCP"), (80, "TCP"), (8080, "TCP")];
    let port = some(vec![
        ("targetPort", vec![json!(1), json!("web")]),
        ("appProtocol", vec![json!("http")]),
    ]);
    let ports = (subsequence(numbers, 1..4).prop_shuffle(), vec(port, 4)).prop_map(|(numbers, more)| {
        let port = |((number, protocol), more): ((u16, &str), Value)| {
            let mut port = json!({"name": format!("p{number}{}", protocol.to_lowercase()), "port": number});
            if protocol == "UDP" || more.get("appProtocol").is_some() {
                port["protocol"] = protocol.into();
            }
            crate::render::merge(&mut port, more);
            port
        };
        numbers.into_iter().zip(more).map(port).collect::<Vec<_>>()
    });
    let more = some(vec![
        ("publishNotReadyAddresses", vec![json!(true), json!(false)]),
        ("sessionAffinity", vec![json!("None")]),
        ("internalTrafficPolicy", vec![json!("Local"), json!("Cluster")]),
        (
            "externalIPs",
            vec![json!(["192.0.2.1"]), json!(["192.0.2.2", "192.0.2.1"])],
        ),
        ("type", vec![json!("NodePort"), json!("ClusterIP")]),
    ]);
    let spec = (ports, option::of(words()), more).prop_map(|(ports, selector, more)| {
        let mut spec = json!({"ports": ports});
        if let Some(selector) = selector {
            spec["selector"] = selector;
        }
        crate::render::merge(&mut spec, more);
        json!({"spec": spec})
    });
    object("v1", "Service", spec.boxed())
}

fn container(name: &'static str) -> BoxedStrategy<Value> {
    let ports = vec![
        json!({"containerPort": 53, "protocol": "UDP"}),
        json!({"containerPort": 53}),
        json!({"containerPort": 80, "name": "web"}),
    ];
    let env = vec![
        json!([{"name": "X", "value": "1"}]),
        json!([{"name": "Y", "value": "2"}, {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
    ];
    let probes = vec![
        json!({"httpGet": {"port": 80, "path": "/x"}}),
        json!({"tcpSocket": {"port": 80}}),
        json!({"exec": {"command": ["x"]}, "periodSeconds": 3}),
    ];
    let mounts = vec![
        json!([{"name": "v", "mountPath": "/v"}]),
        json!([{"name": "v", "mountPath": "/w", "readOnly": true}]),
    ];
    let more = some(vec![
        ("args", vec![json!(["a"]), json!(["b", "c"])]),
        ("env", env),
        ("livenessProbe", probes),
        ("volumeMounts", mounts),
        (
            "resources",
            vec![
                json!({}),
                json!({"limits": {"cpu": "1000m", "memory": "64Mi"}}),
                json!({"requests": {"cpu": "0.1"}}),
            ],
        ),
        (
            "securityContext",
            vec![json!({"runAsUser": 0}), json!({"capabilities": {"drop": ["ALL"]}})],
        ),
    ]);
    (
        select(vec!["i:1", "i:2"]),
        option::of(subsequence(ports, 0..4).prop_shuffle()),
        more,
    )
        .prop_map(move |(image, ports, more)| {
            let mut container = json!({"name": name, "image": image});
            if let Some(ports) = ports {
                container["ports"] = json!(ports);
            }
            crate::render::merge(&mut container, more);
            container
        })
        .boxed()
}

fn workload(kind: &'static str) -> BoxedStrategy<Value> {
    let containers = subsequence(vec!["a", "b", "c"], 1..4)
        .prop_shuffle()
        .prop_flat_map(|names| names.into_iter().map(container).collect::<Vec<_>>());
    let volume = select(vec![
        json!({"emptyDir": {}}),
        json!({"configMap": {"name": "c"}}),
        json!({"hostPath": {"path": "/x"}}),
        json!({"secret": {"secretName": "s", "optional": true}}),
    ]);
    let pod = some(vec![
        (
            "tolerations",
            vec![
                json!([{"operator": "Exists"}]),
                json!([{"key": "a", "effect": "NoSchedule"}, {"key": "b"}]),
            ],
        ),
        ("nodeSelector", vec![json!({"a": "1"}), json!({"b": "1", "a": "2"})]),
        ("hostNetwork", vec![json!(false)]),
        ("serviceAccountName", vec![json!("x"), json!("y")]),
        ("terminationGracePeriodSeconds", vec![json!(0), json!(5)]),
        (
            "imagePullSecrets",
            vec![json!([{"name": "a"}]), json!([{"name": "b"}, {"name": "a"}])],
        ),
    ]);
    let strategy = match kind {
        "Deployment" => (
            "strategy",
            vec![
                json!({"type": "Recreate"}),
                json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
            ],
        ),
        _ => (
            "updateStrategy",
            vec![
                json!({"type": "OnDelete"}),
                json!({"rollingUpdate": {"maxUnavailable": 2}}),
            ],
        ),
    };
    let replicas = match kind {
        "Deployment" => vec![("replicas", vec![json!(1), json!(3)]), ("paused", vec![json!(true)])],
        _ => Vec::new(),
    };
    let spec = some([vec![strategy, ("minReadySeconds", vec![json!(0), json!(5)])], replicas].concat());
    let all = (containers, volume, pod, spec, option::of(words()));
    let more = all.prop_map(|(containers, volume, mut pod, mut spec, annotations)| {
        let labels = json!({"app": "x"});
        let mut volume = volume;
        volume["name"] = "v".into();
        pod["containers"] = json!(containers);
        pod["volumes"] = json!([volume]);
        let mut metadata = json!({"labels": labels});
        if let Some(annotations) = annotations {
            metadata["annotations"] = annotations;
        }
        spec["selector"] = json!({"matchLabels": labels});
        spec["template"] = json!({"metadata": metadata, "spec": pod});
        json!({"spec": spec})
    });
    object("apps/v1", kind, more.boxed())
}

fn config_map() -> BoxedStrategy<Value> {
    let binary = option::of(Just(json!({"z": "AAE="})));
    let more = (option::of(words()), binary).prop_map(|(data, binary)| {
        let mut more = json!({});
        if let Some(data) = data {
            let keys = data
                .as_object()
                .unwrap()
                .iter()
                .map(|(key, value)| (key.replace('/', "."), value.clone()));
            more["data"] = Value::Object(keys.collect());
        }
        if let Some(binary) = binary {
            more["binaryData"] = binary;
        }
        more
    });
    object("v1", "ConfigMap", more.boxed())
}

fn secret() -> BoxedStrategy<Value> {
    let strings = vec![json!({"a": "1"}), json!({"a": "2", "b": ""}), json!({})];
    object(
        "v1",
        "Secret",
        some(vec![
            ("stringData", strings),
            ("data", vec![json!({"a": "MQ=="}), json!({"c": "Mg=="})]),
        ]),
    )
}

fn cluster_role() -> BoxedStrategy<Value> {
    let rules = vec![
        json!([]),
        json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]),
        json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}, {"nonResourceURLs": ["/x"], "verbs": ["get"]}]),
    ];
    object(
        "rbac.authorization.k8s.io/v1",
        "ClusterRole",
        some(vec![("rules", rules)]),
    )
}

fn budget() -> BoxedStrategy<Value> {
    let bound = select(vec![
        json!({"minAvailable": 1}),
        json!({"maxUnavailable": "50%"}),
        json!({"minAvailable": "10%", "unhealthyPodEvictionPolicy": "AlwaysAllow"}),
    ]);
    let spec = (bound, words()).prop_map(|(mut spec, labels)| {
        spec["selector"] = json!({"matchLabels": labels});
        json!({"spec": spec})
    });
    object("policy/v1", "PodDisruptionBudget", spec.boxed())
}

fn account() -> BoxedStrategy<Value> {
    let fields = vec![
        ("automountServiceAccountToken", vec![json!(true), json!(false)]),
        (
            "imagePullSecrets",
            vec![json!([{"name": "a"}]), json!([{"name": "b"}, {"name": "a"}])],
        ),
        ("secrets", vec![json!([{"name": "a"}]), json!([{"name": "c"}])]),
    ];
    object("v1", "ServiceAccount", some(fields))
}
