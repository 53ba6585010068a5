//! OpenAPI documents (v3 by group version, v2 in one) from the table of kinds and the schema: enough for clients to validate,
//! to merge (`x-kubernetes-patch-merge-key`), to see which parameters a write takes, and to explain types. Descriptions are not part of it.

use crate::kinds::{Kind, groups, join_api_version, kinds};
use crate::schema::{Field, Message, Shape, Type, message, messages};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;

/// Which of the two dialects is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        let at = if self == Self::V2 {
            "#/definitions/"
        } else {
            "#/components/schemas/"
        };
        json!({"$ref": format!("{at}{}", definition_name(name))})
    }
}

/// Relative paths and hashes of `/openapi/v3`.
pub fn v3_index() -> &'static Value {
    static INDEX: OnceLock<Value> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut paths = Map::new();
        for (group, version) in group_versions() {
            let path = document_path(group, version);
            let Some(document) = v3_document(group, version) else {
                continue;
            };
            let mut hasher = DefaultHasher::new();
            document.to_string().hash(&mut hasher);
            let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
        json!({"paths": paths})
    })
}

fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    let named = groups()
        .iter()
        .flat_map(|(group, versions)| versions.iter().map(|v| (*group, *v)));
    std::iter::once(("", "v1")).chain(named)
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION`.
pub fn v3_document(group: &str, version: &str) -> Option<Value> {
    let served: Vec<&Kind> = kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    if served.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    let mut needed = BTreeSet::from(["meta.v1.DeleteOptions".to_owned(), "meta.v1.Status".to_owned()]);
    for kind in served {
        paths.extend(kind_paths(Dialect::V3, kind));
        needed.insert(kind.message.to_owned());
        needed.insert(format!("{}List", kind.message));
    }
    let schemas = definitions(Dialect::V3, closure(needed));
    Some(json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}}))
}

/// `/openapi/v2`.
pub fn v2() -> Value {
    let mut paths = Map::new();
    for kind in kinds() {
        paths.extend(kind_paths(Dialect::V2, kind));
    }
    let all = messages().iter().map(|m| m.name.to_owned()).collect();
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions(Dialect::V2, all)})
}

/// All messages that these lead to.
fn closure(mut needed: BTreeSet<String>) -> BTreeSet<String> {
    let mut queue: Vec<String> = needed.iter().cloned().collect();
    while let Some(name) = queue.pop() {
        let fields = message(&name).map(Message::json_fields).unwrap_or_default();
        for inner in fields.iter().filter_map(|f| f.ty.message()) {
            if needed.insert(inner.name.to_owned()) {
                queue.push(inner.name.to_owned());
            }
        }
    }
    needed
}

/// `core.v1.Pod` → `io.k8s.api.core.v1.Pod`.
fn definition_name(name: &str) -> String {
    if name.starts_with("meta.") {
        format!("io.k8s.apimachinery.pkg.apis.{name}")
    } else {
        format!("io.k8s.api.{name}")
    }
}

fn definitions(dialect: Dialect, names: BTreeSet<String>) -> Map<String, Value> {
    let mut kinds_of: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let mut list_kinds: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for kind in kinds() {
        kinds_of
            .entry(kind.message)
            .or_default()
            .push(group_version_kind(kind, kind.kind));
        list_kinds
            .entry(format!("{}List", kind.message))
            .or_default()
            .push(group_version_kind(kind, &kind.list_kind()));
    }
    let mut out = Map::new();
    for message in names.iter().filter_map(|name| message(name)) {
        let mut schema = object_schema(dialect, message);
        let gvk = kinds_of.get(message.name).or_else(|| list_kinds.get(message.name));
        if let Some(gvk) = gvk {
            schema["x-kubernetes-group-version-kind"] = gvk.clone().into();
        }
        out.insert(definition_name(message.name), schema);
    }
    out
}

fn group_version_kind(kind: &Kind, name: &str) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": name})
}

fn object_schema(dialect: Dialect, message: &'static Message) -> Value {
    let fields = message.json_fields();
    let mut properties = Map::new();
    if fields.iter().any(|f| f.name == "metadata") || matches!(message.name, "meta.v1.DeleteOptions" | "meta.v1.Status")
    {
        properties.insert("apiVersion".to_owned(), json!({"type": "string"}));
        properties.insert("kind".to_owned(), json!({"type": "string"}));
    }
    for field in &fields {
        properties.insert(field.name.to_owned(), field_schema(dialect, field));
    }
    let required: Vec<&str> = fields
        .iter()
        .filter(|f| f.required && f.name != "metadata")
        .map(|f| f.name)
        .collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn field_schema(dialect: Dialect, field: &Field) -> Value {
    let inner = value_schema(dialect, field.ty);
    let mut schema = match field.shape {
        Shape::One => inner,
        Shape::List => json!({"type": "array", "items": inner}),
        Shape::Map => json!({"type": "object", "additionalProperties": inner}),
    };
    let merge = field.merge;
    let strategy = match (merge.key.is_some() || merge.set, merge.retain_keys) {
        (true, true) => Some("merge,retainKeys"),
        (true, false) => Some("merge"),
        (false, true) => Some("retainKeys"),
        (false, false) => None,
    };
    if let Some(strategy) = strategy {
        // A schema that is only a reference may have no neighbours, so it goes one level down.
        if schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        schema["x-kubernetes-patch-strategy"] = strategy.into();
    }
    if let Some(key) = merge.key {
        schema["x-kubernetes-patch-merge-key"] = key.into();
    }
    schema
}

fn value_schema(dialect: Dialect, ty: Type) -> Value {
    match ty {
        Type::String | Type::Quantity => json!({"type": "string"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::IntOrString if dialect == Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
        Type::IntOrString => json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
        Type::Time | Type::MicroTime => json!({"type": "string", "format": "date-time"}),
        Type::Raw | Type::Fields => json!({"type": "object"}),
        Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Type::Message(_) => ty.message().map_or(Value::Null, |m| dialect.reference(m.name)),
    }
}

/// The paths of a kind: its collection, its objects, and its subresources.
fn kind_paths(dialect: Dialect, kind: &'static Kind) -> Map<String, Value> {
    let group_version = join_api_version(kind.group, kind.version);
    let root = if kind.group.is_empty() {
        format!("/api/{group_version}")
    } else {
        format!("/apis/{group_version}")
    };
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", kind.plural);
    let gvk = group_version_kind(kind, kind.kind);
    let operation = |verb: &str, method: &str| operation(dialect, kind, verb, method, &gvk, kind.message);
    let mut paths = Map::new();
    let mut add = |path: String, methods: &[(&str, &str)]| {
        let served = methods.iter().filter(|(verb, _)| kind.verbs.contains(verb));
        let item: Map<String, Value> = served
            .map(|(verb, method)| ((*method).to_owned(), operation(verb, method)))
            .collect();
        if !item.is_empty() {
            paths.insert(path, item.into());
        }
    };
    add(
        collection.clone(),
        &[("list", "get"), ("create", "post"), ("deletecollection", "delete")],
    );
    add(
        format!("{collection}/{{name}}"),
        &[
            ("get", "get"),
            ("update", "put"),
            ("patch", "patch"),
            ("delete", "delete"),
        ],
    );
    for sub in kind.subresources {
        let gvk = json!({"group": sub.group, "version": sub.version, "kind": sub.kind});
        let methods = [
            ("get", "get"),
            ("create", "post"),
            ("update", "put"),
            ("patch", "patch"),
            ("delete", "delete"),
        ];
        let item: Map<String, Value> = methods
            .iter()
            .filter(|(verb, _)| sub.verbs.contains(verb))
            .map(|(verb, method)| {
                (
                    (*method).to_owned(),
                    self::operation(dialect, kind, verb, method, &gvk, kind.message),
                )
            })
            .collect();
        paths.insert(format!("{collection}/{{name}}/{}", sub.name), item.into());
    }
    paths
}

fn operation(dialect: Dialect, kind: &Kind, verb: &str, method: &str, gvk: &Value, message: &str) -> Value {
    let mut parameters: Vec<Value> = vec![parameter(dialect, "pretty", "query", false)];
    if kind.namespaced {
        parameters.push(parameter(dialect, "namespace", "path", true));
    }
    if !matches!(verb, "list" | "create" | "deletecollection") {
        parameters.push(parameter(dialect, "name", "path", true));
    }
    if matches!(method, "post" | "put" | "patch") {
        parameters.extend(["dryRun", "fieldManager", "fieldValidation"].map(|p| parameter(dialect, p, "query", false)));
    }
    if matches!(verb, "list" | "deletecollection") {
        let selectors = [
            "labelSelector",
            "fieldSelector",
            "limit",
            "continue",
            "resourceVersion",
            "resourceVersionMatch",
        ];
        parameters.extend(selectors.map(|p| parameter(dialect, p, "query", false)));
    }
    if verb == "list" {
        let watch = ["watch", "allowWatchBookmarks", "sendInitialEvents", "timeoutSeconds"];
        parameters.extend(watch.map(|p| parameter(dialect, p, "query", false)));
    }
    let schema = dialect.reference(message);
    let mut operation = json!({
        "tags": [definition_tag(kind)],
        "operationId": format!("{verb}{}{}{}", capitalised(kind.group), capitalised(kind.version), kind.kind),
        "responses": {"200": response(dialect, &schema), "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": match verb { "update" => "put", "create" => "post", other => other },
        "x-kubernetes-group-version-kind": gvk,
    });
    let body = match method {
        "patch" => Some(json!({"type": "object"})),
        "post" | "put" => Some(schema),
        _ => None,
    };
    match (dialect, body) {
        (Dialect::V2, Some(schema)) => {
            parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}))
        }
        (Dialect::V3, Some(schema)) => {
            let types: &[&str] = if method == "patch" {
                &[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ]
            } else {
                &["*/*"]
            };
            let content: Map<String, Value> = types
                .iter()
                .map(|t| ((*t).to_owned(), json!({"schema": schema})))
                .collect();
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        (_, None) => {}
    }
    operation["parameters"] = parameters.into();
    operation
}

fn response(dialect: Dialect, schema: &Value) -> Value {
    match dialect {
        Dialect::V2 => json!({"description": "OK", "schema": schema}),
        Dialect::V3 => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
    }
}

fn parameter(dialect: Dialect, name: &str, place: &str, required: bool) -> Value {
    let kind = match name {
        "limit" | "timeoutSeconds" => "integer",
        "watch" | "allowWatchBookmarks" | "sendInitialEvents" => "boolean",
        _ => "string",
    };
    let mut parameter = json!({"name": name, "in": place});
    if required {
        parameter["required"] = true.into();
    }
    match dialect {
        Dialect::V2 => {
            parameter["type"] = kind.into();
            parameter["uniqueItems"] = true.into();
        }
        Dialect::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    parameter
}

fn definition_tag(kind: &Kind) -> String {
    let group = if kind.group.is_empty() {
        "core"
    } else {
        kind.group.split('.').next().unwrap_or_default()
    };
    format!("{group}_{}", kind.version)
}

fn capitalised(word: &str) -> String {
    word.split(['.', '-'])
        .map(|part| {
            part.chars()
                .take(1)
                .flat_map(char::to_uppercase)
                .chain(part.chars().skip(1))
                .collect::<String>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for (group, version) in group_versions() {
            let document = v3_document(group, version).unwrap();
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for name in found {
                let name = name.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"][name].is_object(), "{group} {name}");
            }
        }
    }

    #[test]
    fn writes_advertise_field_validation() {
        let document = v3_document("apps", "v1").unwrap();
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
            assert!(
                operation["parameters"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|p| p["name"] == "fieldValidation"),
                "{path}"
            );
        }
    }

    #[test]
    fn merge_keys_are_told() {
        let document = v3_document("", "v1").unwrap();
        let containers = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert!(
            v3_index()["paths"]["apis/apps/v1"]["serverRelativeURL"]
                .as_str()
                .unwrap()
                .contains("?hash=")
        );
        assert!(v3_document("example.com", "v1").is_none());
    }
}
