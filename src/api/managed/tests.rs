//! The laws of ownership, by example and by chance.

use super::*;
use crate::kinds::find;
use proptest::prelude::*;

const NOON: i64 = 1_767_268_800;

fn writing(plural: &str, manager: &'static str) -> Writing<'static> {
    let group = if plural == "deployments" { "apps" } else { "" };
    Writing {
        kind: find(group, "v1", plural).unwrap(),
        subresource: "",
        manager,
        now: Timestamp::from_second(NOON).unwrap(),
    }
}

fn later(writing: Writing<'static>) -> Writing<'static> {
    Writing {
        now: Timestamp::from_second(NOON + 60).unwrap(),
        ..writing
    }
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

/// What is stored of a result: without nulls, with a UID.
fn stored(mut object: Value, kind: &Kind) -> Value {
    crate::fieldcheck::prune(kind.message, &mut object).unwrap();
    object["metadata"]["uid"] = "u".into();
    object
}

fn apply(manager: &'static str, plural: &str, live: &Value, config: &Value) -> Value {
    let w = writing(plural, manager);
    stored(w.apply(live, config, false).unwrap(), w.kind)
}

fn update(manager: &'static str, plural: &str, live: &Value, mut new: Value) -> Value {
    let w = writing(plural, manager);
    w.update(live, &mut new);
    stored(new, w.kind)
}

/// Managers and what they own.
fn owners(object: &Value) -> Vec<(String, Vec<String>)> {
    let list = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .map(|e| {
            let name = format!(
                "{} {}",
                e["operation"].as_str().unwrap(),
                e["manager"].as_str().unwrap()
            );
            (name, FieldSet::decode(&e["fieldsV1"]).unwrap().paths())
        })
        .collect()
}

fn owned(name: &str, paths: &[&str]) -> (String, Vec<String>) {
    (name.to_owned(), paths.iter().map(|p| (*p).to_owned()).collect())
}

#[test]
fn the_first_apply_creates_and_owns_what_it_sets() {
    let made = apply("a", "configmaps", &Value::Null, &map(json!({"x": "1"})));
    assert_eq!(made["data"], json!({"x": "1"}));
    assert_eq!(
        made["metadata"]["managedFields"],
        json!([{"manager": "a", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T12:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:x": {}}}}])
    );
}

#[test]
fn fields_no_longer_applied_go_unless_somebody_else_owns_them() {
    let live = apply(
        "a",
        "configmaps",
        &Value::Null,
        &map(json!({"x": "1", "y": "2", "z": "3"})),
    );
    let live = apply("b", "configmaps", &live, &map(json!({"y": "2", "w": "4"})));
    let live = apply("a", "configmaps", &live, &map(json!({"x": "1"})));
    assert_eq!(live["data"], json!({"w": "4", "x": "1", "y": "2"}));
    assert_eq!(
        owners(&live),
        [
            owned("Apply a", &[".data.x"]),
            owned("Apply b", &[".data.w", ".data.y"])
        ]
    );
    let live = apply("b", "configmaps", &live, &map(Value::Null));
    assert_eq!(live["data"], json!({"x": "1"}));
}

#[test]
fn what_others_own_is_not_changed_but_by_force() {
    let live = apply(
        "a",
        "deployments",
        &Value::Null,
        &deployment(json!({"replicas": 1, "paused": true})),
    );
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 3.into();
    let live = update("scaler", "deployments", &live, scaled);
    assert_eq!(
        owners(&live),
        [
            owned("Apply a", &[".spec.paused"]),
            owned("Update scaler", &[".spec.replicas"])
        ]
    );
    let w = writing("deployments", "a");
    let config = deployment(json!({"replicas": 1, "paused": false}));
    let refused = w.apply(&live, &config, false).unwrap_err();
    assert_eq!((refused.code, refused.reason), (409, "Conflict"));
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas"
    );
    assert_eq!(
        refused.details["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"scaler\" using apps/v1", "field": ".spec.replicas"}])
    );
    let forced = stored(w.apply(&live, &config, true).unwrap(), w.kind);
    assert_eq!(forced["spec"], json!({"replicas": 1, "paused": false}));
    assert_eq!(owners(&forced), [owned("Apply a", &[".spec.paused", ".spec.replicas"])]);
    let other = writing("deployments", "b").apply(&live, &deployment(json!({"replicas": 9, "paused": false})), false);
    assert_eq!(
        other.unwrap_err().message,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.paused\nconflicts with \"scaler\" using apps/v1:\n- .spec.replicas"
    );
    // The same value is no conflict: it is owned together.
    let shared = apply("b", "deployments", &forced, &deployment(json!({"replicas": 1})));
    assert_eq!(owners(&shared)[1], owned("Apply b", &[".spec.replicas"]));
}

#[test]
fn a_null_takes_a_field_away() {
    let live = apply(
        "a",
        "deployments",
        &Value::Null,
        &deployment(json!({"replicas": 1, "paused": true})),
    );
    let gone = apply(
        "a",
        "deployments",
        &live,
        &deployment(json!({"replicas": null, "paused": true})),
    );
    assert_eq!(gone["spec"], json!({"paused": true}));
    let refused = writing("deployments", "b").apply(&live, &deployment(json!({"replicas": null})), false);
    assert_eq!(refused.unwrap_err().code, 409);
}

#[test]
fn items_of_lists_belong_to_whoever_applied_them() {
    let pod = |containers: Value| deployment(json!({"template": {"spec": {"containers": containers}}}));
    let main = pod(json!([{"name": "web", "image": "web:1", "ports": [{"containerPort": 80}]}]));
    let live = apply("a", "deployments", &Value::Null, &main);
    let sidecar =
        pod(json!([{"name": "mesh", "image": "mesh:1"}, {"name": "web", "env": [{"name": "X", "value": "1"}]}]));
    let live = apply("mesh", "deployments", &live, &sidecar);
    let names = |live: &Value| -> Vec<String> {
        let list = live["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&live), ["mesh", "web"]);
    let web = live["spec"]["template"]["spec"]["containers"][1].clone();
    assert_eq!(
        web,
        json!({"name": "web", "image": "web:1", "ports": [{"containerPort": 80}], "env": [{"name": "X", "value": "1"}]})
    );
    let live = apply("mesh", "deployments", &live, &pod(json!([])));
    assert_eq!(names(&live), ["web"]);
    assert_eq!(live["spec"]["template"]["spec"]["containers"][0]["env"], Value::Null);
    assert_eq!(owners(&live).len(), 1);
}

#[test]
fn an_object_from_before_is_owned_by_its_past() {
    let old = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "uid": "u"}, "data": {"x": "1", "y": "2"}});
    let mut touched = old.clone();
    touched["data"]["x"] = "5".into();
    assert_eq!(
        update("b", "configmaps", &old, touched)["metadata"]["managedFields"],
        Value::Null
    );
    let refused = writing("configmaps", "a")
        .apply(&old, &map(json!({"x": "9"})), false)
        .unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.x"
    );
    let same = apply("a", "configmaps", &old, &map(json!({"x": "1"})));
    assert_eq!(owners(&same)[1].0, "Update before-first-apply");
}

#[test]
fn kubectl_goes_on_from_client_side_apply() {
    let config = map(json!({"x": "1"}));
    let annotated = |data: Value| {
        let mut object = map(data);
        object["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{config}\n"), "note": "n"});
        object
    };
    let live = update(
        "kubectl-client-side-apply",
        "configmaps",
        &Value::Null,
        annotated(json!({"x": "1"})),
    );
    let next = map(json!({"x": "2", "y": "3"}));
    let done = apply("kubectl", "configmaps", &live, &next);
    assert_eq!(done["data"], json!({"x": "2", "y": "3"}));
    assert_eq!(
        done["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"],
        format!("{next}\n")
    );
    // What somebody else has changed since is a conflict all the same, as it is for every other manager.
    let mut changed = live.clone();
    changed["data"]["x"] = "7".into();
    let changed = update("edit", "configmaps", &live, changed);
    assert_eq!(
        writing("configmaps", "kubectl")
            .apply(&changed, &next, false)
            .unwrap_err()
            .code,
        409
    );
    assert_eq!(
        writing("configmaps", "other")
            .apply(&live, &next, false)
            .unwrap_err()
            .code,
        409
    );
}

#[test]
fn clients_may_rewrite_the_managers_but_not_through_a_subresource() {
    let live = update("a", "configmaps", &Value::Null, map(json!({"x": "1"})));
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    assert_eq!(
        update("b", "configmaps", &live, reset)["metadata"]["managedFields"],
        Value::Null
    );
    let mut renamed = live.clone();
    renamed["metadata"]["managedFields"][0]["manager"] = "c".into();
    assert_eq!(owners(&update("b", "configmaps", &live, renamed))[0].0, "Update c");
    for forgotten in [json!([]), Value::Null, json!([{"manager": "x"}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = forgotten;
        assert_eq!(owners(&update("b", "configmaps", &live, new)), owners(&live));
    }
    let w = Writing {
        subresource: "status",
        ..writing("deployments", "b")
    };
    let live = update("a", "deployments", &Value::Null, deployment(json!({"replicas": 1})));
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    new["status"] = json!({"replicas": 1});
    new["spec"]["replicas"] = 2.into();
    w.update(&live, &mut new);
    assert_eq!(
        owners(&new),
        [
            owned("Update a", &[".spec.replicas"]),
            owned("Update b", &[".status.replicas"])
        ]
    );
    assert_eq!(new["metadata"]["managedFields"][1]["subresource"], "status");
}

#[test]
fn nobody_owns_status_through_the_object_itself() {
    let mut config = deployment(json!({"replicas": 1}));
    config["status"] = json!({"replicas": 1});
    let live = apply("a", "deployments", &Value::Null, &config);
    assert_eq!(owners(&live), [owned("Apply a", &[".spec.replicas"])]);
}

#[test]
fn a_write_that_changes_nothing_changes_no_owner() {
    let live = update("a", "configmaps", &Value::Null, map(json!({"x": "1"})));
    let mut new = live.clone();
    later(writing("configmaps", "b")).update(&live, &mut new);
    assert_eq!(new, live);
    let applied = apply("c", "configmaps", &live, &map(json!({"x": "1"})));
    let w = later(writing("configmaps", "c"));
    let again = stored(w.apply(&applied, &map(json!({"x": "1"})), false).unwrap(), w.kind);
    assert_ne!(again, applied);
    assert!(only_times_differ(&applied, &again));
    assert!(!only_times_differ(&live, &applied));
}

#[test]
fn configurations_of_something_else_are_refused() {
    let w = writing("configmaps", "a");
    let mut managed = map(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    for (config, why) in [
        (
            json!({"kind": "ConfigMap", "apiVersion": "v2"}),
            "Incorrect version specified in apply patch. Specified patch version: v2, expected: v1",
        ),
        (
            json!({"kind": "Secret", "apiVersion": "v1"}),
            "does not match the expected kind (ConfigMap)",
        ),
        (managed, "metadata.managedFields must be nil"),
        (json!([]), "Incorrect version"),
        (
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"namespace": "d", "name": "m", "foo": 1}, "bar": 1}),
            "failed to create typed patch object (d/m; v1, Kind=ConfigMap): errors:\n  .bar: field not declared in schema\n  .metadata.foo: field not declared in schema",
        ),
    ] {
        let refused = w.apply(&Value::Null, &config, false).unwrap_err();
        assert_eq!(refused.code, 400);
        assert!(refused.message.contains(why), "{refused}");
    }
}

#[test]
fn managers_without_a_name_are_called_after_their_program() {
    assert_eq!(default_manager("kubectl/v1.36 (linux/amd64)"), "kubectl");
    assert_eq!(default_manager("odd\u{7}name"), "oddname");
    assert_eq!(default_manager(""), "unknown");
    assert_eq!(default_manager(&"ä".repeat(100)).len(), MAX_MANAGER);
}

/// A piece of a Deployment that sets things whose names begin with the given letter, and none that another letter's piece sets.
fn piece(letter: char) -> impl Strategy<Value = Value> {
    let name = move |n: u8| format!("{letter}{n}");
    let pairs = move |least| prop::collection::btree_map((0..3_u8).prop_map(name), "[0-9]", least..3);
    let container = (
        pairs(0),
        prop::collection::btree_set(1..4_u8, 0..3),
        prop::option::of("[x-z]"),
    );
    let containers = prop::collection::btree_map((0..3_u8).prop_map(name), container, 0..3);
    let set = prop::collection::btree_set((0..3_u8).prop_map(name), 0..3);
    (
        pairs(1),
        set,
        containers,
        prop::option::of(pairs(1)),
        prop::option::of(0..3_i64),
    )
        .prop_map(move |(labels, finalizers, containers, selector, number)| {
            let containers: Vec<Value> = containers
                .into_iter()
                .map(|(name, (env, ports, image))| {
                    let env: Vec<Value> = env.iter().map(|(k, v)| json!({"name": k, "value": v})).collect();
                    let ports: Vec<Value> = ports.iter().map(|p| json!({"containerPort": p})).collect();
                    let mut container = json!({"name": name, "env": env, "ports": ports});
                    if let Some(image) = image {
                        container["image"] = image.into();
                    }
                    container
                })
                .collect();
            let mut config = deployment(json!({"template": {"spec": {"containers": containers}}}));
            config["metadata"]["labels"] = json!(labels);
            config["metadata"]["finalizers"] = json!(finalizers);
            // Leaves have one owner in this test: a letter has its own.
            let (map, leaf) = if letter == 'a' {
                ("nodeSelector", "replicas")
            } else {
                ("overhead", "minReadySeconds")
            };
            if let Some(selector) = selector {
                config["spec"]["template"]["spec"][map] = json!(selector);
            }
            if let Some(number) = number {
                config["spec"][leaf] = number.into();
            }
            config
        })
}

/// Without order, managers, emptiness: what an object says.
fn essence(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map
                .iter()
                .filter(|(k, _)| *k != "managedFields")
                .map(|(k, v)| (k.clone(), essence(v)));
            let empty =
                |v: &Value| v.as_object().is_some_and(|m| m.is_empty()) || v.as_array().is_some_and(|l| l.is_empty());
            kept.filter(|(_, v)| !empty(v))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(essence).collect();
            list.sort_by_key(ToString::to_string);
            list.into()
        }
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(first in piece('a'), config in piece('a'), other in piece('b')) {
        let live = apply("a", "deployments", &Value::Null, &first);
        let live = apply("b", "deployments", &live, &other);
        let once = apply("a", "deployments", &live, &config);
        prop_assert!(only_times_differ(&once, &apply("a", "deployments", &once, &config)));
    }

    #[test]
    fn applying_nothing_takes_away_what_was_applied_and_nothing_else(own in piece('a'), other in piece('b')) {
        let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
        let alone = apply("b", "deployments", &Value::Null, &other);
        let both = apply("a", "deployments", &alone, &own);
        let left = apply("a", "deployments", &both, &nothing);
        prop_assert_eq!(essence(&left), essence(&alone));
        prop_assert_eq!(owners(&left), owners(&alone));
    }

    #[test]
    fn managers_that_share_nothing_may_come_in_any_order(a in piece('a'), b in piece('b')) {
        let ab = apply("b", "deployments", &apply("a", "deployments", &Value::Null, &a), &b);
        let ba = apply("a", "deployments", &apply("b", "deployments", &Value::Null, &b), &a);
        prop_assert_eq!(essence(&ab), essence(&ba));
        prop_assert_eq!(owners(&ab), owners(&ba));
    }

    #[test]
    fn the_last_configuration_counts_and_everything_has_an_owner(first in piece('a'), second in piece('a')) {
        let live = apply("a", "deployments", &Value::Null, &first);
        let live = apply("a", "deployments", &live, &second);
        let mut expected = stored(second, writing("deployments", "a").kind);
        expected["metadata"]["uid"] = "u".into();
        prop_assert_eq!(essence(&live), essence(&expected));
        let parts = Parts::Message(message("apps.v1.Deployment").unwrap());
        let mut bare = live.clone();
        metadata::set(&mut bare, "managedFields", Value::Null);
        let all = entries::ownable(&fields_of(parts, &bare));
        let managers = Managers::decode(writing("deployments", "a").kind, &live["metadata"]["managedFields"]).unwrap();
        let known = managers.0.values().fold(FieldSet::default(), |set, o| set.union(&o.fields));
        prop_assert_eq!(all, known);
    }

    #[test]
    fn a_writer_owns_what_it_changed_and_nobody_what_is_gone(a in piece('a'), b in piece('a')) {
        let live = apply("a", "deployments", &Value::Null, &a);
        let kind = writing("deployments", "a").kind;
        let mut new = stored(b, kind);
        new["metadata"]["managedFields"] = live["metadata"]["managedFields"].clone();
        let done = update("w", "deployments", &live, new);
        let mut bare = done.clone();
        metadata::set(&mut bare, "managedFields", Value::Null);
        let parts = Parts::Message(message("apps.v1.Deployment").unwrap());
        let there = Comparison::of(parts, &Value::Null, &bare, false).added.union(&fields_of(parts, &bare));
        let managers = Managers::decode(kind, &done["metadata"]["managedFields"]).unwrap();
        for (manager, owned) in &managers.0 {
            prop_assert!(owned.fields.minus(&there).is_empty(), "{} owns {:?}", manager, owned.fields.minus(&there).paths());
        }
        let before = Managers::decode(kind, &live["metadata"]["managedFields"]).unwrap();
        let changed = Comparison::of(parts, &live, &bare, false).written();
        for owned in before.0.keys().filter_map(|m| managers.0.get(m)) {
            prop_assert!(owned.fields.intersection(&changed).is_empty());
        }
    }

    #[test]
    fn no_rubbish_in_managed_fields_breaks_a_write(fields in super::set::tests::any_set(), config in piece('a')) {
        let entry = json!({"manager": "x", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields.encode()});
        let mut live = apply("a", "deployments", &Value::Null, &config);
        live["metadata"]["managedFields"] = json!([entry]);
        let w = writing("deployments", "x");
        prop_assert!(w.apply(&live, &config, true).is_ok());
    }
}
