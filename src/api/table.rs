//! `meta.k8s.io/v1` Tables: how the server prints objects for `kubectl get`, column by column as kube-apiserver prints them.

mod cells;
mod columns;
mod pod;

use crate::kinds::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type of the cells: `string`, `integer`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the column that names the object.
    pub format: &'static str,
    /// 0: always shown; 1: only in wide output.
    pub priority: i64,
}

/// What of each object travels along with its row (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    /// Its metadata, as `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// All of it.
    Object,
    /// Nothing.
    None,
}

impl std::str::FromStr for Include {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            "None" => Ok(Self::None),
            other => Err(format!("unrecognized includeObject value: {other:?}")),
        }
    }
}

/// The columns of a kind.
pub fn columns(kind: &Kind) -> &'static [Column] {
    columns::of(kind.group, kind.kind)
}

/// The cells of one object, as many as the kind has columns.
pub fn cells(kind: &Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    cells::of(kind.group, kind.kind, object, now)
}

/// One row, in the version of the table that travels (`meta.k8s.io/v1` or `v1beta1`).
pub fn row(kind: &Kind, object: &Value, include: Include, version: &str, now: Timestamp) -> Value {
    let mut row = json!({"cells": cells(kind, object, now)});
    match include {
        Include::None => {}
        Include::Object => row["object"] = object.clone(),
        Include::Metadata => {
            row["object"] = json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": object["metadata"],
            });
        }
    }
    row
}

/// A table of rows. `metadata` is the list's, or for a single object its `resourceVersion`; a watch leaves the columns out of
/// all tables but its first.
pub fn table(kind: &Kind, rows: Vec<Value>, metadata: Value, version: &str, with_columns: bool) -> Value {
    let definitions: Vec<Value> = if with_columns {
        columns(kind).iter().map(definition).collect()
    } else {
        Vec::new()
    };
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": columns::describe(column.name),
        "priority": column.priority,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::kinds;

    #[test]
    fn every_kind_fills_each_of_its_columns() {
        for kind in kinds().iter().chain([&crate::kinds::SCALE]) {
            for object in [json!({}), json!({"metadata": {"name": "x"}, "spec": {}, "status": {}})] {
                let cells = cells(kind, &object, Timestamp::UNIX_EPOCH);
                assert_eq!(cells.len(), columns(kind).len(), "{}", kind.kind);
                for (cell, column) in cells.iter().zip(columns(kind)) {
                    assert_eq!(
                        cell.is_number(),
                        column.kind == "integer",
                        "{} {}",
                        kind.kind,
                        column.name
                    );
                }
            }
            assert!(columns(kind).iter().any(|c| c.format == "name"), "{}", kind.kind);
        }
    }

    #[test]
    fn a_row_carries_what_was_asked_for() {
        let kind = crate::kinds::find("", "v1", "configmaps").unwrap();
        let object = json!({"metadata": {"name": "c"}, "data": {"a": "1"}});
        let row = |include| row(kind, &object, include, "v1", Timestamp::UNIX_EPOCH);
        assert_eq!(row(Include::Metadata)["object"]["kind"], "PartialObjectMetadata");
        assert!(row(Include::Metadata)["object"]["data"].is_null());
        assert_eq!(row(Include::Object)["object"], object);
        assert!(row(Include::None)["object"].is_null());
        assert_eq!(row(Include::None)["cells"], json!(["c", 1, "<unknown>"]));
    }
}
