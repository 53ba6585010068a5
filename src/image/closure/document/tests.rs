use super::*;

fn check(text: &str, expected: &[(u64, &str)]) {
    check_with("[]", text, expected);
}

/// Images are given by name, faults by a part of their text after `!`.
fn check_with(rules: &str, text: &str, expected: &[(u64, &str)]) {
    let rules: Rules = serde_json::from_value(clusterfile::yaml::parse(rules).unwrap()[0].to_json()).unwrap();
    let documents = clusterfile::yaml::parse(text).unwrap();
    let found: Vec<Found> = documents.iter().flat_map(|document| images(document, &rules)).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (line, expected)) in found.iter().zip(expected) {
        let same = match (&found.what, expected.strip_prefix('!')) {
            (Err(why), Some(part)) => why.contains(part),
            (Ok(name), None) => name == expected,
            _ => false,
        };
        assert!(same && found.line == *line, "{found:?} is not {line}: {expected}");
    }
}

#[test]
fn every_workload_kind_is_known() {
    for (kind, prefix) in [
        ("v1, kind: Pod", "{"),
        ("v1, kind: ReplicationController", "{template: {spec: {"),
        ("apps/v1, kind: Deployment", "{template: {spec: {"),
        ("apps/v1, kind: StatefulSet", "{template: {spec: {"),
        ("apps/v1, kind: DaemonSet", "{template: {spec: {"),
        ("apps/v1, kind: ReplicaSet", "{template: {spec: {"),
        ("extensions/v1beta1, kind: Deployment", "{template: {spec: {"),
        ("batch/v1, kind: Job", "{template: {spec: {"),
        (
            "batch/v1beta1, kind: CronJob",
            "{jobTemplate: {spec: {template: {spec: {",
        ),
    ] {
        let close = "}".repeat(prefix.matches('{').count());
        let pod = "containers: [{image: a}],\n initContainers: [{image: b, restartPolicy: Always}], ephemeralContainers: [{image: c}],\n \
                   volumes: [{name: v, image: {reference: d}}, {name: w, emptyDir: {}}]";
        let text = format!("{{apiVersion: {kind}, spec: {prefix}{pod}{close}}}");
        check(&text, &[(1, "a"), (2, "b"), (2, "c"), (3, "d")]);
    }
    check(
        "{apiVersion: v1, kind: PodTemplate, template: {spec: {containers: [{image: a}]}}}",
        &[(1, "a")],
    );
}

#[test]
fn what_only_looks_like_a_workload_is_not_one() {
    for text in [
        "{apiVersion: v1, kind: ConfigMap, data: {containers: [{image: a}]}}",
        "{apiVersion: v1, kind: Service, spec: {template: {spec: {containers: [{image: a}]}}}}",
        "image: a\ncontainers: [{image: b}]",
        "{apiVersion: v1, kind: Deployment, spec: {template: {spec: {containers: [{image: a}]}}}}",
        "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, spec: {containers: {type: array, items: {properties: {image: {type: string}}}}}}",
    ] {
        check(text, &[]);
    }
    check(
        "{apiVersion: v1, kind: Pod, spec: {containers: [{image: 1.5}, {image: ''}, {name: x}]}}",
        &[(1, "!not a number"), (1, "!empty")],
    );
}

#[test]
fn lists_are_opened_whether_or_not_items_repeat_their_kind() {
    let pod = "spec: {containers: [{image: a}]}";
    check(
        &format!("kind: List\napiVersion: v1\nitems:\n- {{kind: Pod, apiVersion: v1, {pod}}}"),
        &[(4, "a")],
    );
    check(
        &format!("kind: PodList\napiVersion: v1\nitems:\n- {{{pod}}}"),
        &[(4, "a")],
    );
    check(
        "kind: DeploymentList\napiVersion: apps/v1\nitems:\n- spec: {template: {spec: {containers: [{image: a}]}}}",
        &[(4, "a")],
    );
    check(
        "kind: List\napiVersion: v1\nitems:\n- {kind: ConfigMap, apiVersion: v1, data: {}}",
        &[],
    );
}

#[test]
fn custom_resources_are_read_by_rule_or_by_shape() {
    let text = "apiVersion: a.b/v1\nkind: Db\nspec:\n  image: a\n  parts: [{image: b}, {image: {registry: r.x, repository: c, tag: v1}}]\n  \
                pod: {containers: [{image: d}]}\n";
    check(text, &[(6, "d")]);
    check_with(
        "[{apiVersion: a.b/*, kind: Db, paths: ['.spec.image', '.spec.parts[*].image', '.spec.pod.containers[*].image', .spec.none]}]",
        text,
        &[(4, "a"), (5, "b"), (5, "r.x/c:v1"), (6, "d")],
    );
    check_with("[{apiVersion: a.b/v1, kind: Db, paths: []}]", text, &[]);
    check_with("[{apiVersion: a.b/v2, kind: Db, paths: []}]", text, &[(6, "d")]);
    let bad = "apiVersion: a.b/v1\nkind: Db\nspec:\n  a: 1.5\n  b: {repository: x, tag: 1.10}\n  c: {name: x}\n  d: [x, '']\n";
    check_with(
        "[{apiVersion: a.b/v1, kind: Db, paths: [.spec.a, .spec.b, .spec.c, .spec.d]}]",
        bad,
        &[
            (4, "!a number instead"),
            (5, "!put it in quotes"),
            (6, "!a mapping instead"),
            (7, "x"),
            (7, "!a string instead"),
        ],
    );
    let kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n";
    check(kustomization, &[]);
    check(
        &format!("{kustomization}images: [{{name: a, newName: b}}]\n"),
        &[(4, "!kubectl kustomize")],
    );
}

#[test]
fn annotations_name_images_that_stand_in_strings() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  annotations: {installer.internal/images: 'a:1, b:1', other: x}
spec:
  template:
    metadata:
      annotations:
        installer.internal/image-args: --helper --sidecar
        installer.internal/image-env: HELPER,REST
    spec:
      containers:
      - image: main:1
        args: [--helper=c:1, --sidecar, d:1, --helpers=no]
        env:
        - {name: HELPER, value: e:1}
        - {name: REST, valueFrom: {}}
";
    check(
        text,
        &[
            (13, "main:1"),
            (4, "a:1"),
            (4, "b:1"),
            (14, "c:1"),
            (14, "d:1"),
            (16, "e:1"),
            (17, "!no value of its own"),
        ],
    );
    let text = "\
apiVersion: v1
kind: ConfigMap
metadata:
  annotations:
    installer.internal/images: a:1
    installer.internal/image-args: --x
    installer.internal/image-env: NONE
    installer.internal/image-evn: X
data: {}
";
    check(
        text,
        &[
            (5, "a:1"),
            (6, "!no container here has the argument --x"),
            (7, "!the environment variable NONE"),
            (8, "!did you mean"),
        ],
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {annotations: {installer.internal/image-args: --x}}\nspec: {containers: [{image: a, args: [--x]}]}",
        &[(4, "a"), (4, "!nothing follows")],
    );
}
