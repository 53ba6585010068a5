//! The images of one Kubernetes object.
//!
//! Built-in kinds have their PodSpecs at known places; other built-in kinds have none. A custom resource is read by its
//! rule (`image-paths.yaml`); without one, whatever is shaped like a PodSpec counts, wherever it stands. Images in
//! arguments and environment variables are seen where an annotation names them.

use clusterfile::names::did_you_mean;
use clusterfile::yaml::{Node, Value};

use super::Found;
use super::path::FieldPath;
use super::rules::Rules;
use super::suspect::{self, Suspect};

/// Fields of a PodSpec whose items have an `image`. Sidecars are restartable init containers.
const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// Group, kind, and where its PodSpec is.
const WORKLOADS: [(&str, &str, &[&str]); 12] = [
    ("", "Pod", &["spec"]),
    ("", "PodTemplate", &["template", "spec"]),
    ("", "ReplicationController", TEMPLATE),
    ("apps", "Deployment", TEMPLATE),
    ("apps", "StatefulSet", TEMPLATE),
    ("apps", "DaemonSet", TEMPLATE),
    ("apps", "ReplicaSet", TEMPLATE),
    ("extensions", "Deployment", TEMPLATE),
    ("extensions", "DaemonSet", TEMPLATE),
    ("extensions", "ReplicaSet", TEMPLATE),
    ("batch", "Job", TEMPLATE),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template", "spec"]),
];
const TEMPLATE: &[&str] = &["spec", "template", "spec"];
/// Groups whose every kind is built in: what is not a workload there has no PodSpec.
const BUILT_IN: [&str; 6] = ["", "apps", "batch", "extensions", "autoscaling", "policy"];
/// Its `images` change what other documents say.
const KUSTOMIZE: &str = "kustomize.config.k8s.io";

/// References that the object's programs will ask for, separated by commas or blanks.
pub(super) const IMAGES: &str = "installer.internal/images";
/// Arguments of its containers that hold an image: `--flag=REF` or `--flag REF`.
pub(super) const IMAGE_ARGS: &str = "installer.internal/image-args";
/// Environment variables of its containers that hold an image.
pub(super) const IMAGE_ENV: &str = "installer.internal/image-env";

/// An object of a document.
struct Object<'a> {
    node: &'a Node,
    api_version: Option<&'a str>,
    kind: &'a str,
}

/// The images that an object names; a document without a kind is no object and names none.
pub(super) fn images(document: &Node, rules: &Rules) -> Vec<Found> {
    let mut found = Vec::new();
    for object in objects(document) {
        let rule = object.rule(rules);
        let pods = object.pods(rule.is_some());
        if object.group() == Some(KUSTOMIZE) && rule.is_none() {
            kustomization(object.node, &mut found);
        }
        pods.iter().for_each(|pod| pod_spec(pod, &mut found));
        for path in rule.unwrap_or_default() {
            let values = path.find(object.node).into_iter();
            values.for_each(|value| image_value(value, &mut found));
        }
        annotated(object.node, &pods, &mut found);
    }
    found
}

/// What in a document's containers may be an image's name though nothing says so.
pub(super) fn suspects(document: &Node, rules: &Rules) -> Vec<Suspect> {
    let objects = objects(document);
    let pods = objects
        .iter()
        .flat_map(|object| object.pods(object.rule(rules).is_some()));
    pods.flat_map(|pod| containers(pod).collect::<Vec<_>>())
        .flat_map(suspect::of_container)
        .collect()
}

/// The objects of a document, lists opened.
fn objects(document: &Node) -> Vec<Object<'_>> {
    let text = |field: &str| document.get(field).and_then(Node::as_str);
    let mut found = Vec::new();
    if let Some(kind) = text("kind") {
        collect_objects(document, text("apiVersion"), kind, &mut found);
    }
    found
}

fn collect_objects<'a>(node: &'a Node, api_version: Option<&'a str>, kind: &'a str, found: &mut Vec<Object<'a>>) {
    if let (Some(of), Some(items)) = (kind.strip_suffix("List"), node.get("items")) {
        for item in items.items() {
            let text = |field: &str| item.get(field).and_then(Node::as_str);
            // Items of a typed list need not repeat what they are.
            let kind = text("kind").unwrap_or(of);
            collect_objects(item, text("apiVersion").or(api_version), kind, found);
        }
        return;
    }
    found.push(Object {
        node,
        api_version,
        kind,
    });
}

impl<'a> Object<'a> {
    fn group(&self) -> Option<&'a str> {
        let version = self.api_version?;
        Some(version.split_once('/').map_or("", |(group, _)| group))
    }

    fn rule<'r>(&self, rules: &'r Rules) -> Option<&'r [FieldPath]> {
        rules.paths(self.api_version.unwrap_or_default(), self.kind)
    }

    /// Its PodSpecs.
    fn pods(&self, has_rule: bool) -> Vec<&'a Node> {
        let group = self.group();
        let is_workload =
            |(of, name, _): &&(&str, &str, &[&str])| *name == self.kind && group.is_none_or(|group| group == *of);
        let mut pods = Vec::new();
        match WORKLOADS.iter().find(is_workload) {
            Some((_, _, path)) => pods.extend(path.iter().try_fold(self.node, |node, field| node.get(field))),
            None if group.is_some_and(|group| BUILT_IN.contains(&group)) => {}
            None if has_rule || group == Some(KUSTOMIZE) => {}
            None => pod_shaped(self.node, &mut pods),
        }
        pods
    }
}

fn kustomization(node: &Node, found: &mut Vec<Found>) {
    if let Some((key, _)) = node.entry("images") {
        let why = "a kustomization that replaces images can't be followed: put the output of `kubectl kustomize` here";
        found.push(Found::fault(key.at.line, why));
    }
}

/// Every mapping that has a field of PodSpecs.
fn pod_shaped<'a>(node: &'a Node, pods: &mut Vec<&'a Node>) {
    let is_list = |field: &str| node.get(field).is_some_and(|list| matches!(list.value, Value::List(_)));
    if CONTAINER_LISTS.into_iter().chain(["volumes"]).any(is_list) {
        pods.push(node);
    }
    let below = node.entries().iter().map(|(_, value)| value).chain(node.items());
    below.for_each(|child| pod_shaped(child, pods));
}

fn containers(pod: &Node) -> impl Iterator<Item = &Node> {
    CONTAINER_LISTS
        .iter()
        .filter_map(|list| pod.get(list))
        .flat_map(|list| list.items())
}

fn pod_spec(pod: &Node, found: &mut Vec<Found>) {
    let volumes = pod.get("volumes").map(Node::items).unwrap_or_default();
    let mounted = volumes
        .iter()
        .filter_map(|volume| volume.get("image")?.get("reference"));
    let images = containers(pod).filter_map(|container| container.get("image"));
    for image in images.chain(mounted) {
        found.push(match image.as_str() {
            Some("") => Found::fault(image.at.line, "the image's name is empty"),
            Some(text) => Found::image(image.at.line, text),
            None => Found::fault(
                image.at.line,
                format!("an image's name is expected, not {}", image.kind()),
            ),
        });
    }
}

/// What a rule's path leads to: a reference, a list of them, or a mapping of a reference's parts.
fn image_value(value: &Node, found: &mut Vec<Found>) {
    let line = value.at.line;
    match &value.value {
        Value::String(text) if !text.is_empty() => found.push(Found::image(line, text)),
        Value::List(items) => items.iter().for_each(|item| image_value(item, found)),
        Value::Map(_) if value.get("repository").is_some() => found.push(Found::of(line, composed(value))),
        _ => {
            let why = format!(
                "{} instead of an image's name, a list of them, or a mapping with a repository",
                value.kind()
            );
            found.push(Found::fault(line, why));
        }
    }
}

/// `{registry, repository, tag, digest}`, as many operators write it.
fn composed(parts: &Node) -> Result<String, String> {
    let part = |field: &str| match parts.get(field) {
        None => Ok(None),
        Some(node) => match node.as_str() {
            Some("") => Ok(None),
            Some(text) => Ok(Some(text.to_string())),
            None => Err(format!("the image's {field} is {}: put it in quotes", node.kind())),
        },
    };
    let mut text = part("repository")?.ok_or("the image's repository is empty")?;
    if let Some(registry) = part("registry")? {
        text = format!("{registry}/{text}");
    }
    if let Some(tag) = part("tag")? {
        text = format!("{text}:{tag}");
    }
    if let Some(digest) = part("digest")? {
        text = format!("{text}@{digest}");
    }
    Ok(text)
}

/// A name that an annotation gave, and the annotation's line.
type Asked<'a> = (u64, &'a str);

fn annotated(node: &Node, pods: &[&Node], found: &mut Vec<Found>) {
    let mut annotations = Vec::new();
    collect_annotations(node, &mut annotations);
    for (name, value) in annotations {
        let line = value.at.line;
        let Some(text) = value.as_str() else {
            found.push(Found::fault(line, format!("the annotation {name} needs a text")));
            continue;
        };
        let words = text.split([',', ' ', '\t', '\n']).filter(|word| !word.is_empty());
        match name {
            IMAGES => found.extend(words.map(|word| Found::image(line, word))),
            IMAGE_ARGS => words.for_each(|word| argument((line, word), pods, found)),
            IMAGE_ENV => words.for_each(|word| variable((line, word), pods, found)),
            _ => {
                let hint = did_you_mean(name, [IMAGES, IMAGE_ARGS, IMAGE_ENV]);
                found.push(Found::fault(line, format!("unknown annotation {name}{hint}")));
            }
        }
    }
}

/// Our annotations, of the object and of the pods it makes.
fn collect_annotations<'a>(node: &'a Node, found: &mut Vec<(&'a str, &'a Node)>) {
    let own = node.get("metadata").and_then(|metadata| metadata.get("annotations"));
    for (key, value) in own.map(Node::entries).unwrap_or_default() {
        if key.name.starts_with("installer.internal/image") {
            found.push((&key.name, value));
        }
    }
    let below = node.entries().iter().map(|(_, value)| value).chain(node.items());
    below.for_each(|child| collect_annotations(child, found));
}

fn argument((line, flag): Asked<'_>, pods: &[&Node], found: &mut Vec<Found>) {
    let before = found.len();
    for container in pods.iter().flat_map(|pod| containers(pod)) {
        let words: Vec<&Node> = ["command", "args"]
            .iter()
            .filter_map(|field| container.get(field))
            .flat_map(|list| list.items())
            .collect();
        for (index, word) in words.iter().enumerate() {
            let text = word.as_str().unwrap_or_default();
            if let Some(reference) = text.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
                found.push(Found::image(word.at.line, reference));
            } else if text == flag {
                let value = words
                    .get(index + 1)
                    .and_then(|next| Some((next.at.line, next.as_str()?)));
                found.push(match value {
                    Some((line, reference)) => Found::image(line, reference),
                    None => Found::fault(word.at.line, format!("nothing follows the argument {flag}")),
                });
            }
        }
    }
    if found.len() == before {
        found.push(Found::fault(line, format!("no container here has the argument {flag}")));
    }
}

fn variable((line, name): Asked<'_>, pods: &[&Node], found: &mut Vec<Found>) {
    let before = found.len();
    for container in pods.iter().flat_map(|pod| containers(pod)) {
        for entry in container.get("env").map(Node::items).unwrap_or_default() {
            if entry.get("name").and_then(Node::as_str) == Some(name) {
                let value = entry
                    .get("value")
                    .and_then(|value| Some((value.at.line, value.as_str()?)));
                let why = || format!("the variable {name} has no value of its own that could be an image");
                found.push(match value {
                    Some((line, reference)) => Found::image(line, reference),
                    None => Found::fault(entry.at.line, why()),
                });
            }
        }
    }
    if found.len() == before {
        found.push(Found::fault(
            line,
            format!("no container here has the environment variable {name}"),
        ));
    }
}

#[cfg(test)]
mod tests;
