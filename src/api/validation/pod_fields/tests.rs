//! Every field of a pod is acted on or refused, and `docs/pod-fields.md` says which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::schema::Message;
use crate::validation::{validate_create, validate_update};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A part of a pod's spec that is refused: the field of the schema, the spec, and the path that is complained of.
fn refusals() -> Vec<(&'static str, Value, &'static str)> {
    let container = |part: Value| {
        let mut c = json!({"name": "c", "image": "i"});
        c.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        json!({"containers": [c]})
    };
    let pod = |part: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        spec.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        spec
    };
    let volume = |source: Value| {
        let mut v = json!({"name": "v"});
        v.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        pod(json!({"volumes": [v]}))
    };
    let projected = |source: Value| volume(json!({"projected": {"sources": [source]}}));
    vec![
        ("PodSpec.hostUsers", pod(json!({"hostUsers": false})), "spec.hostUsers"),
        ("PodSpec.os", pod(json!({"os": {"name": "windows"}})), "spec.os.name"),
        (
            "PodSpec.resourceClaims",
            pod(json!({"resourceClaims": [{"name": "r", "resourceClaimName": "x"}]})),
            "spec.resourceClaims",
        ),
        (
            "PodSpec.ephemeralContainers",
            pod(json!({"ephemeralContainers": [{"name": "e", "image": "i"}]})),
            "spec.ephemeralContainers",
        ),
        (
            "PodSecurityContext.windowsOptions",
            pod(json!({"securityContext": {"windowsOptions": {"hostProcess": true}}})),
            "spec.securityContext.windowsOptions",
        ),
        (
            "PodSecurityContext.seLinuxChangePolicy",
            pod(json!({"securityContext": {"seLinuxChangePolicy": "Recursive"}})),
            "spec.securityContext.seLinuxChangePolicy",
        ),
        (
            "Container.volumeDevices",
            container(json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]})),
            "spec.containers[0].volumeDevices",
        ),
        (
            "ResourceRequirements.claims",
            container(json!({"resources": {"claims": [{"name": "r"}]}})),
            "spec.containers[0].resources.claims",
        ),
        (
            "Lifecycle.stopSignal",
            container(json!({"lifecycle": {"stopSignal": "SIGINT"}})),
            "spec.containers[0].lifecycle.stopSignal",
        ),
        (
            "SecurityContext.windowsOptions",
            container(json!({"securityContext": {"windowsOptions": {"runAsUserName": "x"}}})),
            "spec.containers[0].securityContext.windowsOptions",
        ),
        (
            "SecurityContext.procMount",
            container(json!({"securityContext": {"procMount": "Unmasked"}})),
            "spec.containers[0].securityContext.procMount",
        ),
        (
            "VolumeMount.recursiveReadOnly",
            container(
                json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Enabled"}]}),
            ),
            "spec.containers[0].volumeMounts[0].recursiveReadOnly",
        ),
        (
            "EnvVarSource.fileKeyRef",
            container(
                json!({"env": [{"name": "E", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}}]}),
            ),
            "spec.containers[0].env[0].valueFrom.fileKeyRef",
        ),
        (
            "ContainerRestartRule.action",
            container(json!({"restartPolicy": "Never", "restartPolicyRules": [
                {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]})),
            "spec.containers[0].restartPolicyRules[0].action",
        ),
        (
            "EmptyDirVolumeSource.medium",
            volume(json!({"emptyDir": {"medium": "HugePages"}})),
            "spec.volumes[0].emptyDir.medium",
        ),
        (
            "VolumeProjection.clusterTrustBundle",
            projected(json!({"clusterTrustBundle": {"path": "x"}})),
            "spec.volumes[0].projected.sources[0].clusterTrustBundle",
        ),
        (
            "VolumeProjection.podCertificate",
            projected(json!({"podCertificate": {"keyType": "ED25519"}})),
            "spec.volumes[0].projected.sources[0].podCertificate",
        ),
    ]
}

fn kind(group: &str, plural: &str) -> &'static Kind {
    crate::kinds::find(group, "v1", plural).unwrap()
}

fn create(kind: &Kind, spec: Value) -> Vec<String> {
    let mut object = match kind.plural {
        "pods" => json!({"metadata": {"name": "a", "namespace": "default"}, "spec": spec}),
        _ => json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}}}),
    };
    crate::strategy::prepare_create(kind, &mut object);
    validate_create(kind, &object).into_iter().map(|e| e.field).collect()
}

#[test]
fn what_nothing_acts_on_is_refused_in_pods_and_in_templates() {
    for (field, spec, path) in refusals() {
        let refused = create(kind("", "pods"), spec.clone());
        assert!(refused.contains(&path.to_owned()), "{field}: {refused:?}");
        let refused = create(kind("apps", "deployments"), spec);
        let path = format!("spec.template.{path}");
        assert!(refused.contains(&path), "{field}: {refused:?}");
    }
    for source in [
        "nfs",
        "csi",
        "image",
        "ephemeral",
        "persistentVolumeClaim",
        "gitRepo",
        "iscsi",
    ] {
        let spec = json!({"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", source: {}}]});
        let refused = create(kind("apps", "daemonsets"), spec);
        assert!(
            refused.contains(&format!("spec.template.spec.volumes[0].{source}")),
            "{source}: {refused:?}"
        );
    }
}

#[test]
fn isolation_that_is_not_given_is_refused_with_the_reason() {
    let mut pod = json!({"metadata": {"name": "a", "namespace": "default"},
        "spec": {"hostUsers": false, "containers": [{"name": "c", "image": "i"}]}});
    crate::strategy::prepare_create(kind("", "pods"), &mut pod);
    let errors: Vec<_> = validate_create(kind("", "pods"), &pod)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        errors,
        [
            "spec.hostUsers: Forbidden: user namespaces are not supported: the pod would run as users of the host; leave the field out or set it to true"
        ]
    );
}

#[test]
fn what_an_object_asks_for_already_does_not_hold_it_fast() {
    let deployments = kind("apps", "deployments");
    let mut old = json!({"metadata": {"name": "a", "namespace": "default", "resourceVersion": "1", "finalizers": ["x/y"]},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"hostUsers": false, "containers": [{"name": "c", "image": "i"}]}}}});
    crate::strategy::prepare_create(deployments, &mut old);
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!([]);
    assert_eq!(validate_update(deployments, &new, &old, None), []);
    new["spec"]["template"]["spec"]["os"] = json!({"name": "windows"});
    let refused = validate_update(deployments, &new, &old, None);
    assert_eq!(
        refused.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(),
        ["spec.template.spec.os.name"]
    );
}

#[test]
fn every_kind_with_a_pod_is_found() {
    let found = |message| pod_spec_path(message).map(|p| p.join("."));
    for (message, path) in [
        ("core.v1.Pod", Some("spec")),
        ("core.v1.PodTemplate", Some("template.spec")),
        ("apps.v1.Deployment", Some("spec.template.spec")),
        ("core.v1.ReplicationController", Some("spec.template.spec")),
        ("apps.v1.StatefulSet", Some("spec.template.spec")),
        ("core.v1.Service", None),
    ] {
        assert_eq!(found(message).as_deref(), path, "{message}");
    }
}

/// The page: state of a field by `Message.field`, and the messages that are read as a whole.
fn page() -> (BTreeMap<String, String>, BTreeSet<String>) {
    let text = std::fs::read_to_string(root().join("docs/pod-fields.md")).unwrap();
    let (mut states, mut message) = (BTreeMap::new(), "");
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            message = name;
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ["", field, state, ..] = cells[..]
            && let Some(field) = field.strip_prefix('`').and_then(|f| f.strip_suffix('`'))
        {
            let entry = format!("{message}.{field}");
            assert!(
                states.insert(entry.clone(), state.to_owned()).is_none(),
                "{entry} twice"
            );
        }
    }
    let list = text
        .split_once("read as a whole")
        .unwrap()
        .1
        .split_once("\n\n")
        .unwrap()
        .0;
    let whole = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    (states, whole)
}

fn short(message: &Message) -> &'static str {
    message.name.rsplit('.').next().unwrap_or(message.name)
}

#[test]
fn every_field_of_a_pod_is_on_the_page() {
    let (states, whole) = page();
    let (mut open, mut seen, mut missing) = (vec![message("core.v1.PodSpec").unwrap()], BTreeSet::new(), Vec::new());
    let mut listed = BTreeSet::new();
    while let Some(m) = open.pop() {
        if !seen.insert(m.name) {
            continue;
        }
        for f in &m.fields {
            let entry = format!("{}.{}", short(m), f.name);
            match states.get(&entry).map(String::as_str) {
                Some("refused" | "nothing to do") => {}
                Some(_) => open.extend(f.ty.message()),
                None if whole.contains(short(m)) => open.extend(f.ty.message()),
                None => missing.push(entry.clone()),
            }
            listed.insert(entry);
        }
    }
    assert_eq!(
        missing,
        Vec::<String>::new(),
        "enter these fields in docs/pod-fields.md"
    );
    let gone: Vec<_> = states.keys().filter(|k| !listed.contains(*k)).collect();
    assert!(gone.is_empty(), "no such fields: {gone:?}");
    let seen: BTreeSet<_> = seen.iter().map(|n| n.rsplit('.').next().unwrap_or(n)).collect();
    let gone: Vec<_> = whole.iter().filter(|w| !seen.contains(w.as_str())).collect();
    assert!(gone.is_empty(), "no such messages: {gone:?}");
}

#[test]
fn refused_fields_have_a_case_and_cases_are_on_the_page() {
    let (states, _) = page();
    let cases: BTreeSet<_> = refusals().into_iter().map(|(field, ..)| field.to_owned()).collect();
    for (field, state) in &states {
        let source = field.strip_prefix("VolumeSource.");
        match state.as_str() {
            "refused" | "partly refused" if source.is_none() => assert!(cases.contains(field), "{field} has no case"),
            "refused" => assert!(!VOLUMES.contains(&source.unwrap_or_default()), "{field} is supported"),
            _ => assert!(!cases.contains(field), "{field} is refused, and the page says {state}"),
        }
        if let Some(source) = source {
            assert_eq!(VOLUMES.contains(&source), state == "agent", "{field}");
        }
    }
}

fn sources(of: &str) -> String {
    fn read(dir: &Path, out: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                read(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut out = String::new();
    read(&root().join("src").join(of), &mut out);
    out
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    let letters: Vec<char> = name.chars().collect();
    for (i, c) in letters.iter().enumerate() {
        let starts = i > 0
            && c.is_ascii_uppercase()
            && (letters[i - 1].is_ascii_lowercase() || letters.get(i + 1).is_some_and(char::is_ascii_lowercase));
        if starts {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[test]
fn whoever_acts_on_a_field_names_it_in_its_sources() {
    let parts: BTreeMap<&str, String> = [
        ("agent", sources("agent")),
        ("scheduler", sources("scheduler")),
        ("controllers", sources("controllers")),
        (
            "API server",
            ["apiserver/admission", "api/strategy", "api/defaults"]
                .map(sources)
                .concat(),
        ),
    ]
    .into();
    let (states, _) = page();
    for (field, state) in states {
        let (message_name, name) = field.split_once('.').unwrap();
        let inline = message(&format!("core.v1.{message_name}"))
            .and_then(|m| m.fields.iter().find(|f| f.name == name))
            .is_some_and(|f| f.inline);
        match state.as_str() {
            "refused" | "partly refused" | "nothing to do" => {}
            _ if inline => {}
            part => {
                let text = parts
                    .get(part)
                    .unwrap_or_else(|| panic!("{field}: nobody is called {part:?}"));
                let ident = snake(name);
                let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
                let named = text.contains(&format!("\"{name}\""))
                    || text.split(word).any(|w| w == ident || w == format!("{ident}_"));
                assert!(named, "{field}: the sources of the {part} do not name {ident}");
            }
        }
    }
}
