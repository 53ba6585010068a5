//! The protobuf form of an OpenAPI v2 document (gnostic's `openapi.v2.Document`), which Kubernetes' Go clients ask for.

use crate::proto::wire::Writer;
use serde_json::Value;

/// Encodes a document given by its paths and definitions in the v2 dialect.
pub(super) fn document(
    info: &Value,
    paths: impl Iterator<Item = (String, Value)>,
    definitions: impl Iterator<Item = (String, Value)>,
) -> Vec<u8> {
    let mut out = Writer::default();
    text(&mut out, 1, &Value::from("2.0"));
    message(&mut out, 2, |w| {
        text(w, 1, &info["title"]);
        text(w, 2, &info["version"]);
    });
    message(&mut out, 8, |w| {
        for (name, item) in paths {
            named(w, 2, &name, |w| path_item(w, &item));
        }
    });
    message(&mut out, 9, |w| {
        for (name, definition) in definitions {
            named(w, 1, &name, |w| schema(w, &definition));
        }
    });
    out.finish()
}

fn message(out: &mut Writer, number: u32, write: impl FnOnce(&mut Writer)) {
    let mut inner = Writer::default();
    write(&mut inner);
    out.bytes(number, &inner.finish());
}

fn text(out: &mut Writer, number: u32, value: &Value) {
    if let Some(text) = value.as_str() {
        out.bytes(number, text.as_bytes());
    }
}

fn texts(out: &mut Writer, number: u32, list: &Value) {
    for item in list.as_array().into_iter().flatten() {
        text(out, number, item);
    }
}

fn flag(out: &mut Writer, number: u32, value: &Value) {
    if value == true {
        out.varint(number, 1);
    }
}

/// An entry of a map: its name and its value.
fn named(out: &mut Writer, number: u32, name: &str, value: impl FnOnce(&mut Writer)) {
    message(out, number, |w| {
        w.bytes(1, name.as_bytes());
        message(w, 2, value);
    });
}

/// Any JSON travels as YAML text.
fn any(out: &mut Writer, value: &Value) {
    out.bytes(2, value.to_string().as_bytes());
}

fn extensions(out: &mut Writer, number: u32, object: &Value) {
    for (name, value) in object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("x-"))
    {
        named(out, number, name, |w| any(w, value));
    }
}

fn path_item(out: &mut Writer, item: &Value) {
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            message(out, number, |w| operation(w, found));
        }
    }
}

fn operation(out: &mut Writer, operation: &Value) {
    texts(out, 1, &operation["tags"]);
    text(out, 5, &operation["operationId"]);
    texts(out, 7, &operation["consumes"]);
    for found in operation["parameters"].as_array().into_iter().flatten() {
        message(out, 8, |w| message(w, 1, |w| parameter(w, found)));
    }
    message(out, 9, |w| {
        for (code, response) in operation["responses"].as_object().into_iter().flatten() {
            named(w, 1, code, |w| {
                message(w, 1, |w| {
                    text(w, 1, &response["description"]);
                    if let Some(found) = response.get("schema") {
                        message(w, 2, |w| message(w, 1, |w| schema(w, found)));
                    }
                });
            });
        }
    });
    extensions(out, 13, operation);
}

fn parameter(out: &mut Writer, parameter: &Value) {
    let place = parameter["in"].as_str().unwrap_or_default();
    if place == "body" {
        return message(out, 1, |w| {
            text(w, 2, &parameter["name"]);
            text(w, 3, &parameter["in"]);
            flag(w, 4, &parameter["required"]);
            message(w, 5, |w| schema(w, &parameter["schema"]));
        });
    }
    // Both messages begin alike; a query's has one field more before its type.
    let (number, kind, unique) = if place == "query" { (3, 6, 20) } else { (4, 5, 19) };
    message(out, 2, |w| {
        message(w, number, |w| {
            flag(w, 1, &parameter["required"]);
            text(w, 2, &parameter["in"]);
            text(w, 4, &parameter["name"]);
            text(w, kind, &parameter["type"]);
            flag(w, unique, &parameter["uniqueItems"]);
        });
    });
}

fn schema(out: &mut Writer, schema: &Value) {
    text(out, 1, &schema["$ref"]);
    text(out, 2, &schema["format"]);
    text(out, 4, &schema["description"]);
    if let Some(default) = schema.get("default") {
        message(out, 5, |w| any(w, default));
    }
    texts(out, 19, &schema["required"]);
    if let Some(values) = schema.get("additionalProperties") {
        message(out, 21, |w| message(w, 1, |w| self::schema(w, values)));
    }
    if schema["type"].is_string() {
        message(out, 22, |w| text(w, 1, &schema["type"]));
    }
    if let Some(items) = schema.get("items") {
        message(out, 23, |w| message(w, 1, |w| self::schema(w, items)));
    }
    if let Some(properties) = schema["properties"].as_object() {
        message(out, 25, |w| {
            for (name, property) in properties {
                named(w, 1, name, |w| self::schema(w, property));
            }
        });
    }
    extensions(out, 31, schema);
}
