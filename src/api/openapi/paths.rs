//! The paths of kinds and what can be done there.

use super::schemas::travelling;
use super::{Dialect, definition_name, group_version_kind};
use crate::kinds::{Kind, join_api_version};
use serde_json::{Map, Value, json};

/// Verbs on a collection, on an object, on a subresource, each with its method.
const COLLECTION: &[(&str, &str)] = &[("list", "get"), ("create", "post"), ("deletecollection", "delete")];
const OBJECT: &[(&str, &str)] = &[
    ("get", "get"),
    ("update", "put"),
    ("patch", "patch"),
    ("delete", "delete"),
];
const SUBRESOURCE: &[(&str, &str)] = &[
    ("get", "get"),
    ("create", "post"),
    ("update", "put"),
    ("patch", "patch"),
    ("delete", "delete"),
];

const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// What travels along a path.
struct Object {
    gvk: Value,
    /// Its message, if it has one.
    message: Option<&'static str>,
    /// The end of the operations' names.
    suffix: String,
}

/// The paths of a kind: its collection, its objects, and its subresources.
pub(super) fn of(dialect: Dialect, kind: &'static Kind) -> Vec<(String, Value)> {
    let group_version = join_api_version(kind.group, kind.version);
    let root = if kind.group.is_empty() { "/api" } else { "/apis" };
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}/{group_version}{scope}/{}", kind.plural);
    let object = Object {
        gvk: group_version_kind(kind.group, kind.version, kind.kind),
        message: Some(kind.message),
        suffix: String::new(),
    };
    let mut paths = Vec::new();
    let mut add = |path: String, object: &Object, verbs: &[&str], methods: &[(&str, &str)]| {
        let served = methods.iter().filter(|(verb, _)| verbs.contains(verb));
        let item: Map<String, Value> = served
            .map(|(verb, method)| ((*method).to_owned(), operation(dialect, kind, verb, method, object)))
            .collect();
        if !item.is_empty() {
            paths.push((path, item.into()));
        }
    };
    add(collection.clone(), &object, kind.verbs, COLLECTION);
    add(format!("{collection}/{{name}}"), &object, kind.verbs, OBJECT);
    for sub in kind.subresources {
        let object = Object {
            gvk: group_version_kind(sub.group, sub.version, sub.kind),
            message: travelling(sub.group, sub.version, sub.kind),
            suffix: capitalised(sub.name),
        };
        add(
            format!("{collection}/{{name}}/{}", sub.name),
            &object,
            sub.verbs,
            SUBRESOURCE,
        );
    }
    paths
}

fn operation(dialect: Dialect, kind: &Kind, verb: &str, method: &str, object: &Object) -> Value {
    let schema = match object.message {
        Some(message) if verb == "list" => dialect.reference(&definition_name(&format!("{message}List"))),
        Some(_) if verb.starts_with("delete") => dialect.reference(&definition_name("meta.v1.Status")),
        Some(message) => dialect.reference(&definition_name(message)),
        None => json!({"type": "string"}),
    };
    let name = format!(
        "{verb}{}{}{}{}",
        capitalised(if kind.group.is_empty() { "core" } else { kind.group }),
        capitalised(kind.version),
        kind.kind,
        object.suffix
    );
    let mut operation = json!({
        "tags": [tag(kind)],
        "operationId": name,
        "responses": {"200": response(dialect, &schema), "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": match verb { "update" => "put", "create" => "post", other => other },
        "x-kubernetes-group-version-kind": object.gvk,
    });
    let mut parameters = parameters(dialect, kind, verb, method);
    let body = match method {
        "patch" => Some(json!({"type": "object"})),
        "post" | "put" if object.message.is_some() => Some(schema),
        _ => None,
    };
    match (dialect, body) {
        (Dialect::V2, Some(schema)) => {
            parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
        }
        (Dialect::V3, Some(schema)) => {
            let types = if method == "patch" { PATCHES } else { &["*/*"] };
            let content: Map<String, Value> = types
                .iter()
                .map(|t| ((*t).to_owned(), json!({"schema": schema})))
                .collect();
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        (_, None) => {}
    }
    if dialect == Dialect::V2 && method == "patch" {
        operation["consumes"] = json!(PATCHES);
    }
    operation["parameters"] = parameters.into();
    operation
}

fn parameters(dialect: Dialect, kind: &Kind, verb: &str, method: &str) -> Vec<Value> {
    let mut names: Vec<(&str, &str)> = vec![("pretty", "query")];
    if kind.namespaced {
        names.push(("namespace", "path"));
    }
    if !matches!(verb, "list" | "create" | "deletecollection") {
        names.push(("name", "path"));
    }
    let mut query = |more: &[&'static str]| names.extend(more.iter().map(|n| (*n, "query")));
    if matches!(method, "post" | "put" | "patch") {
        query(&["dryRun", "fieldManager", "fieldValidation"]);
    }
    if method == "patch" {
        query(&["force"]);
    }
    if matches!(verb, "list" | "deletecollection") {
        query(&[
            "labelSelector",
            "fieldSelector",
            "limit",
            "continue",
            "resourceVersion",
            "resourceVersionMatch",
        ]);
    }
    if verb == "list" {
        query(&["watch", "allowWatchBookmarks", "sendInitialEvents", "timeoutSeconds"]);
    }
    names
        .into_iter()
        .map(|(name, place)| parameter(dialect, name, place))
        .collect()
}

fn response(dialect: Dialect, schema: &Value) -> Value {
    match dialect {
        Dialect::V2 => json!({"description": "OK", "schema": schema}),
        Dialect::V3 => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
    }
}

fn parameter(dialect: Dialect, name: &str, place: &str) -> Value {
    let kind = match name {
        "limit" | "timeoutSeconds" => "integer",
        "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "force" => "boolean",
        _ => "string",
    };
    let mut parameter = json!({"name": name, "in": place});
    if place == "path" {
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

fn tag(kind: &Kind) -> String {
    let group = match kind.group {
        "" => "core",
        group => group.split('.').next().unwrap_or_default(),
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
