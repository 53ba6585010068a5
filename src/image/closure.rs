//! The closure proof: every image that a rootfs names must be carried.
//!
//! Looked at are the PodSpecs of every YAML or JSON document in `manifests/`, `application/apps/` and `etc/kubernetes/`
//! (templates included), wherever in an object they stand, and the sandbox image of containerd's configuration. Images
//! named inside strings (a ConfigMap's script, say) cannot be seen.

use std::collections::BTreeMap;

use clusterfile::names::nearest;
use clusterfile::yaml::{self, Node};
use clusterfile::{DEFAULT_REGISTRY_DOMAIN, DEFAULT_REGISTRY_PORT, Env, Problems};
use oci::{Digest, Reference};

use crate::error::{Error, MissingImage};

/// A place that names an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) line: u64,
    pub(crate) reference: String,
}

/// Fields of a PodSpec whose items have an `image`.
const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Stands for a template's value that only the cluster knows.
const UNKNOWN: &str = "template-value";

/// Whether a rootfs file can name images, and so must be looked at.
pub(crate) fn is_relevant(path: &str) -> bool {
    is_runtime_config(path) || is_manifest(path)
}

fn is_runtime_config(path: &str) -> bool {
    let name = path.strip_suffix(".tmpl").unwrap_or(path);
    name.starts_with("etc/containerd/") && name.ends_with(".toml")
}

fn is_manifest(path: &str) -> bool {
    let name = path.strip_suffix(".tmpl").unwrap_or(path);
    let folders = ["manifests/", "application/apps/", "etc/kubernetes/"];
    folders.iter().any(|folder| name.starts_with(folder))
        && [".yaml", ".yml", ".json"].iter().any(|suffix| name.ends_with(suffix))
}

/// The images a file names. `shown` is the file's name in messages.
pub(crate) fn named_images(path: &str, shown: &str, text: &str, env: &Env) -> Result<Vec<Named>, Error> {
    let rendered;
    let text = if path.ends_with(".tmpl") {
        rendered = render(text, env);
        &rendered
    } else {
        text
    };
    if is_runtime_config(path) {
        return Ok(sandbox_images(text));
    }
    let documents = yaml::parse(text).map_err(|error| Problems::one(shown, error.at, error.message))?;
    let mut named = Vec::new();
    for document in documents.iter().filter(|document| document.get("kind").is_some()) {
        walk(document, &mut named);
    }
    Ok(named)
}

fn walk(node: &Node, named: &mut Vec<Named>) {
    for (key, value) in node.entries() {
        if CONTAINER_LISTS.contains(&key.name.as_str()) {
            named.extend(
                value
                    .items()
                    .iter()
                    .filter_map(|container| container.get("image"))
                    .filter_map(named_at),
            );
        } else if key.name == "volumes" {
            let images = value
                .items()
                .iter()
                .filter_map(|volume| volume.get("image")?.get("reference"));
            named.extend(images.filter_map(named_at));
        }
        walk(value, named);
    }
    for item in node.items() {
        walk(item, named);
    }
}

fn named_at(node: &Node) -> Option<Named> {
    node.as_str().map(|text| Named {
        line: node.at.line,
        reference: text.to_string(),
    })
}

/// `sandbox_image = "…"` (containerd 1) and `sandbox = "…"` (containerd 2), read by line: templates are no TOML yet.
fn sandbox_images(text: &str) -> Vec<Named> {
    let mut named = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if ["sandbox_image", "sandbox"].contains(&key.trim()) {
            let value = value
                .split('#')
                .next()
                .unwrap_or_default()
                .trim()
                .trim_matches(['"', '\'']);
            named.push(Named {
                line: index as u64 + 1,
                reference: value.to_string(),
            });
        }
    }
    named
}

/// Replaces `{{ … }}` so that the result parses and lines keep their numbers: known values in lines that speak of
/// images, a placeholder elsewhere, nothing for lines that hold only actions.
fn render(text: &str, env: &Env) -> String {
    let mut rendered = String::with_capacity(text.len());
    for line in text.lines() {
        if !line.contains("{{") {
            rendered.push_str(line);
        } else if !is_only_actions(line) {
            rendered.push_str(&render_line(line, env));
        }
        rendered.push('\n');
    }
    rendered
}

fn is_only_actions(line: &str) -> bool {
    let mut rest = line.trim();
    // `{{ .X }}` alone may be a value; control words are not.
    let control = [
        "if", "else", "end", "range", "with", "define", "block", "template", "/*",
    ];
    while let Some(inner) = rest.strip_prefix("{{") {
        let Some((action, tail)) = inner.split_once("}}") else {
            return false;
        };
        let word = action
            .trim_matches(['-', ' '])
            .split_whitespace()
            .next()
            .unwrap_or_default();
        if !control.iter().any(|c| word.starts_with(c)) {
            return false;
        }
        rest = tail.trim_start();
    }
    rest.is_empty()
}

fn render_line(line: &str, env: &Env) -> String {
    let mut result = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((action, tail)) = after.split_once("}}") else {
            break;
        };
        result.push_str(before);
        let name = action.trim_matches(['-', ' ']).trim_start_matches('.');
        match line.contains("image").then(|| known_value(name, env)).flatten() {
            Some(value) => result.push_str(&value),
            None => result.push_str(UNKNOWN),
        }
        rest = tail;
    }
    result.push_str(rest);
    result
}

/// What a template variable will be, as far as it's known before there is a cluster.
fn known_value(name: &str, env: &Env) -> Option<String> {
    if let Some(value) = env.get(name) {
        return Some(value.clone());
    }
    match name {
        "RegistryDomain" | "LocalRegistryDomain" => Some(DEFAULT_REGISTRY_DOMAIN.to_string()),
        "RegistryPort" | "LocalRegistryPort" => Some(DEFAULT_REGISTRY_PORT.to_string()),
        "RegistryURL" | "LocalRegistryURL" => Some(format!("{DEFAULT_REGISTRY_DOMAIN}:{DEFAULT_REGISTRY_PORT}")),
        _ => None,
    }
}

/// Judges one named image against the carried ones.
pub(crate) fn judge(file: &str, named: &Named, carried: &BTreeMap<Reference, Digest>) -> Option<MissingImage> {
    let missing = |nearest, malformed| {
        let (file, reference) = (file.to_string(), named.reference.clone());
        Some(MissingImage {
            file,
            line: named.line,
            reference,
            nearest,
            malformed,
        })
    };
    if named.reference.contains(UNKNOWN) {
        let why = "the image's name depends on a template value that the image's ENV does not set";
        return missing(None, Some(why.to_string()));
    }
    let reference: Reference = match named.reference.parse() {
        Ok(reference) => reference,
        Err(error) => return missing(None, Some(error.to_string())),
    };
    if meanings(&reference).iter().any(|meaning| is_carried(meaning, carried)) {
        return None;
    }
    let texts: Vec<String> = carried.keys().map(ToString::to_string).collect();
    let full = reference.to_string();
    let similar = nearest(&full, texts.iter().map(String::as_str)).and_then(|text| text.parse().ok());
    let same_repository = || {
        carried
            .keys()
            .find(|c| c.repository() == reference.repository())
            .cloned()
    };
    missing(similar.or_else(same_repository), None)
}

/// The full names a reference may mean: the private registry's own domain may stand in front of any carried name.
fn meanings(reference: &Reference) -> Vec<Reference> {
    let mut meanings = vec![reference.clone()];
    if reference.domain() == format!("{DEFAULT_REGISTRY_DOMAIN}:{DEFAULT_REGISTRY_PORT}") {
        let full = reference.to_string();
        let rest = full
            .strip_prefix(reference.domain())
            .and_then(|rest| rest.strip_prefix('/'));
        meanings.extend(rest.and_then(|rest| rest.parse::<Reference>().ok()));
    }
    meanings
}

fn is_carried(reference: &Reference, carried: &BTreeMap<Reference, Digest>) -> bool {
    carried.iter().any(|(name, digest)| {
        let same_repository = name.domain() == reference.domain() && name.path() == reference.path();
        same_repository
            && match reference.digest() {
                // A digest decides alone, as it does for the runtime.
                Some(wanted) => wanted == digest || name.digest() == Some(wanted),
                None => name.tag() == reference.tag(),
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(path: &str, text: &str) -> Vec<(u64, String)> {
        let env = Env::from([("Tag".into(), "v9".into())]);
        let named = named_images(path, path, text, &env).unwrap();
        named.into_iter().map(|named| (named.line, named.reference)).collect()
    }

    #[test]
    fn images_of_every_workload_kind_are_seen() {
        let text = "\
apiVersion: apps/v1
kind: Deployment
spec: {template: {spec: {initContainers: [{image: a:1}], containers: [{name: x, image: b:1}]}}}
---
apiVersion: batch/v1
kind: CronJob
spec:
  jobTemplate:
    spec:
      template:
        spec:
          containers:
          - image: c:1
          volumes: [{name: v, image: {reference: d:1}}]
---
kind: List
apiVersion: v1
items:
- kind: Pod
  apiVersion: v1
  spec: {containers: [{image: e:1}], ephemeralContainers: [{image: f:1}]}
---
image: not-an-object
containers: [{image: no}]
";
        let expected = [
            (3, "a:1"),
            (3, "b:1"),
            (13, "c:1"),
            (14, "d:1"),
            (21, "e:1"),
            (21, "f:1"),
        ];
        assert_eq!(
            images("manifests/a.yaml", text),
            expected.map(|(line, name)| (line, name.to_string()))
        );
    }

    #[test]
    fn templates_are_rendered_as_far_as_values_are_known() {
        let text = "kind: Pod\n{{ if .X }}\nspec:\n{{- end }}\n  containers:\n  - image: \"{{ .RegistryURL }}/a:{{ .Tag }}\"\n    \
                    args: [{{ .Y }}]\n  - image: {{ .Who }}\n";
        assert_eq!(
            images("manifests/a.yaml.tmpl", text),
            [(6, "sea.hub:5000/a:v9".to_string()), (8, UNKNOWN.to_string())]
        );
        let config = "[x]\n  sandbox_image = \"a.b/pause:1\" # why\n";
        assert_eq!(
            images("etc/containerd/config.toml.tmpl", config),
            [(2, "a.b/pause:1".to_string())]
        );
    }

    #[test]
    fn what_is_not_carried_is_named_with_the_nearest() {
        let digest = Digest::of(b"m");
        let carried = BTreeMap::from([("a.b/web:v1".parse::<Reference>().unwrap(), digest.clone())]);
        let verdict = |text: &str| {
            judge(
                "m.yaml",
                &Named {
                    line: 4,
                    reference: text.to_string(),
                },
                &carried,
            )
        };
        for good in [
            "a.b/web:v1",
            "sea.hub:5000/a.b/web:v1",
            &format!("a.b/web@{digest}"),
            &format!("a.b/web:x@{digest}"),
        ] {
            assert_eq!(verdict(good), None, "{good}");
        }
        for (bad, nearest, malformed) in [
            ("a.b/web:v2", Some("a.b/web:v1"), false),
            ("a.b/wbe:v1", Some("a.b/web:v1"), false),
            ("web:v1", None, false),
            ("A B", None, true),
            (UNKNOWN, None, true),
        ] {
            let missing = verdict(bad).unwrap();
            let shown = missing.nearest.as_ref().map(ToString::to_string);
            assert_eq!(
                (shown.as_deref(), missing.malformed.is_some()),
                (nearest, malformed),
                "{bad}"
            );
        }
        let text = Error::NotClosed(vec![verdict("a.b/web:v2").unwrap()]).to_string();
        assert!(
            text.starts_with("m.yaml:4: the image a.b/web:v2 is not carried, nearest carried one: a.b/web:v1\n"),
            "{text}"
        );
    }
}
