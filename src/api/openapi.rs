//! OpenAPI documents (v3 by group version, v2 in one) from the table of kinds and the schema: enough for clients to validate, to
//! merge, to apply, to see which parameters a write takes, and to explain types.
//!
//! They are large and rarely asked for, so they are written piece by piece each time and nothing of them is kept but their hashes.

mod describe;
mod gnostic;
mod paths;
mod schemas;

use crate::kinds::{Kind, groups, kinds};
use serde_json::{Map, Value, json};
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::OnceLock;

/// Which of the two dialects is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        let at = match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{at}{name}")})
    }
}

/// `core.v1.Pod` → `io.k8s.api.core.v1.Pod`.
fn definition_name(message: &str) -> String {
    if message.starts_with("meta.") {
        format!("io.k8s.apimachinery.pkg.apis.{message}")
    } else {
        format!("io.k8s.api.{message}")
    }
}

fn group_version_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// Relative paths and hashes of `/openapi/v3`.
pub fn v3_index() -> &'static Value {
    static INDEX: OnceLock<Value> = OnceLock::new();
    INDEX.get_or_init(|| {
        let documents = hashes().iter().map(|(group, version, hash)| {
            let path = document_path(group, version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        });
        json!({"paths": documents.collect::<Map<_, _>>()})
    })
}

/// The hash of `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION`.
pub fn v3_hash(group: &str, version: &str) -> Option<&'static str> {
    let found = hashes().iter().find(|(g, v, _)| *g == group && *v == version)?;
    Some(&found.2)
}

fn hashes() -> &'static [(&'static str, &'static str, String)] {
    static HASHES: OnceLock<Vec<(&'static str, &'static str, String)>> = OnceLock::new();
    HASHES.get_or_init(|| {
        let hash = |group, version| {
            let mut hasher = DefaultHasher::new();
            write_v3(group, version, &mut |piece| hasher.write(piece.as_bytes()));
            (group, version, format!("{:016X}", hasher.finish()))
        };
        group_versions().map(|(group, version)| hash(group, version)).collect()
    })
}

/// The path of a document below `/openapi/v3/`.
pub fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    let named = groups()
        .iter()
        .flat_map(|(group, versions)| versions.iter().map(|v| (*group, *v)));
    std::iter::once(("", "v1")).chain(named)
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::KUBERNETES_VERSION})
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION` as JSON.
pub fn v3_document(group: &str, version: &str) -> Option<String> {
    v3_hash(group, version)?;
    let mut out = String::new();
    write_v3(group, version, &mut |piece| out.push_str(piece));
    Some(out)
}

/// `/openapi/v2` as JSON.
pub fn v2() -> String {
    let mut out = String::new();
    let sink = &mut |piece: &str| out.push_str(piece);
    let all: Vec<&'static Kind> = kinds().iter().collect();
    sink(&format!(r#"{{"swagger":"2.0","info":{},"paths":{{"#, info()));
    write_members(sink, all.iter().flat_map(|k| paths::of(Dialect::V2, k)));
    sink(r#"},"definitions":{"#);
    write_members(sink, schemas::all(Dialect::V2));
    sink("}}");
    out
}

/// `/openapi/v2` in protobuf.
pub fn v2_protobuf() -> Vec<u8> {
    let paths = kinds().iter().flat_map(|k| paths::of(Dialect::V2, k));
    gnostic::document(&info(), paths, schemas::all(Dialect::V2))
}

fn write_v3(group: &str, version: &str, sink: &mut impl FnMut(&str)) {
    let served: Vec<&'static Kind> = kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    sink(&format!(r#"{{"openapi":"3.0.0","info":{},"paths":{{"#, info()));
    write_members(sink, served.iter().flat_map(|k| paths::of(Dialect::V3, k)));
    sink(r#"},"components":{"schemas":{"#);
    write_members(sink, schemas::of(Dialect::V3, &served));
    sink("}}}");
}

fn write_members(sink: &mut impl FnMut(&str), members: impl Iterator<Item = (String, Value)>) {
    for (i, (name, value)) in members.enumerate() {
        if i > 0 {
            sink(",");
        }
        sink(&Value::from(name).to_string());
        sink(":");
        sink(&value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn v3(group: &str, version: &str) -> Value {
        serde_json::from_str(&v3_document(group, version).unwrap()).unwrap()
    }

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map
                .iter()
                .for_each(|(key, inner)| match inner.as_str().filter(|_| key == "$ref") {
                    Some(name) => drop(found.insert(name.to_owned())),
                    None => references(inner, found),
                }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_a_document_is_defined_in_it() {
        let v2: Value = serde_json::from_str(&v2()).unwrap();
        let v3s = group_versions().map(|(group, version)| v3(group, version));
        for document in v3s.chain([v2]) {
            let (prefix, definitions) = match document["definitions"].as_object() {
                Some(definitions) => ("#/definitions/", definitions),
                None => (
                    "#/components/schemas/",
                    document["components"]["schemas"].as_object().unwrap(),
                ),
            };
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for name in found {
                let name = name.strip_prefix(prefix).unwrap();
                assert!(definitions.contains_key(name), "{name}");
            }
        }
    }

    #[test]
    fn every_kind_is_found_by_its_path_and_by_its_name() {
        for kind in kinds() {
            let document = v3(kind.group, kind.version);
            let gvk = group_version_kind(kind.group, kind.version, kind.kind);
            let named = document["components"]["schemas"]
                .as_object()
                .unwrap()
                .values()
                .any(|s| {
                    let list = s["x-kubernetes-group-version-kind"].as_array();
                    list.is_some_and(|l| l.contains(&gvk))
                });
            assert!(named, "{}", kind.kind);
            let pathed = document["paths"].as_object().unwrap().iter().any(|(path, item)| {
                let mut operations = item.as_object().unwrap().values();
                path.ends_with(&format!("/{}", kind.plural))
                    && operations.any(|o| o["x-kubernetes-group-version-kind"] == gvk)
            });
            assert!(pathed, "{}", kind.kind);
        }
    }

    #[test]
    fn writes_advertise_field_validation_and_apply() {
        let document = v3("apps", "v1");
        for (path, method) in [
            ("deployments", "post"),
            ("deployments/{name}", "patch"),
            ("deployments/{name}", "put"),
        ] {
            let operation = &document["paths"][format!("/apis/apps/v1/namespaces/{{namespace}}/{path}")][method];
            assert_eq!(
                operation["x-kubernetes-group-version-kind"]["kind"], "Deployment",
                "{path}"
            );
            let parameters = operation["parameters"].as_array().unwrap();
            assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"), "{path}");
            let applies = !operation["requestBody"]["content"]["application/apply-patch+yaml"].is_null();
            assert_eq!(applies, method == "patch", "{path}");
            assert_eq!(
                parameters.iter().any(|p| p["name"] == "force"),
                method == "patch",
                "{path}"
            );
        }
        let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"];
        assert_eq!(
            scale["requestBody"]["content"]["*/*"]["schema"]["$ref"],
            "#/components/schemas/io.k8s.api.autoscaling.v1.Scale"
        );
    }

    #[test]
    fn how_lists_are_merged_and_owned_is_told() {
        let document = v3("", "v1");
        let property = |message: &str, field: &str| {
            document["components"]["schemas"][format!("io.k8s.api.core.v1.{message}")]["properties"][field].clone()
        };
        let containers = property("PodSpec", "containers");
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(
            property("ServiceSpec", "ports")["x-kubernetes-list-map-keys"],
            json!(["port", "protocol"])
        );
        assert_eq!(property("ServiceSpec", "selector")["x-kubernetes-map-type"], "atomic");
        assert_eq!(property("PodSpec", "tolerations")["x-kubernetes-list-type"], "atomic");
        assert_eq!(property("ContainerPort", "protocol")["default"], "TCP");
        assert_eq!(
            document["components"]["schemas"]["io.k8s.api.core.v1.ConfigMapKeySelector"]["x-kubernetes-map-type"],
            "atomic"
        );
    }

    #[test]
    fn types_and_fields_are_described() {
        let document = v3("apps", "v1");
        let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            deployment["description"],
            "Deployment enables declarative updates for Pods and ReplicaSets."
        );
        let described = |schema: &Value| schema["description"].as_str().is_some_and(|d| !d.is_empty());
        for (field, schema) in deployment["properties"].as_object().unwrap() {
            assert!(described(schema), "{field}");
        }
        assert_eq!(
            deployment["properties"]["spec"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
        );
    }

    #[test]
    fn the_index_names_each_document_by_its_hash() {
        let index = v3_index()["paths"].as_object().unwrap();
        for (group, version) in group_versions() {
            let url = index[&document_path(group, version)]["serverRelativeURL"]
                .as_str()
                .unwrap();
            let hash = v3_hash(group, version).unwrap();
            assert_eq!(
                url,
                format!("/openapi/v3/{}?hash={hash}", document_path(group, version))
            );
        }
        assert!(v3_document("example.com", "v1").is_none());
    }
}
