//! From cached objects to bytes on the wire. Whole objects in JSON, the common case, are the cached bytes themselves.

use std::collections::VecDeque;
use std::sync::Arc;

use api::Kind;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::format::{Encoding, Format, View};
use crate::body::Body;
use crate::cache::Object;
use crate::error::{ApiError, Result};
use crate::model;
use crate::server::{Response, negotiated};

/// A list's metadata.
#[derive(Debug, Clone, Default)]
pub struct ListMeta {
    /// Revision of the list.
    pub rev: i64,
    /// Token of the next page; empty at the end.
    pub token: String,
    /// Items after this page, if known.
    pub remaining: Option<i64>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut m = json!({"resourceVersion": self.rev.to_string()});
        if !self.token.is_empty() {
            m["continue"] = self.token.as_str().into();
        }
        if let Some(r) = self.remaining {
            m["remainingItemCount"] = r.into();
        }
        m
    }
}

/// The document in the version asked for.
pub fn document(kind: &Kind, object: &Object) -> Value {
    in_version(kind, object.value())
}

/// Converts from the stored version.
pub fn in_version(kind: &Kind, mut value: Value) -> Value {
    if kind.group != kind.storage_group || kind.version != kind.storage_version {
        model::from_storage(kind, &mut value);
    }
    value
}

fn native(kind: &Kind) -> bool {
    kind.group == kind.storage_group && kind.version == kind.storage_version
}

/// Bytes of a document in an encoding; `message` names its protobuf message.
///
/// # Errors
/// 406 if the kind has no protobuf form.
pub fn encode(encoding: Encoding, value: &Value) -> Result<Bytes> {
    match encoding {
        Encoding::Json => Ok(Bytes::from(value.to_string())),
        Encoding::Yaml => model::to_yaml(value).map(Bytes::from),
        Encoding::Protobuf => model::to_protobuf(value).map(Bytes::from),
    }
}

fn partial(value: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": value["metadata"],
    })
}

/// Answers with one object.
///
/// # Errors
/// 406 if the form asked for does not exist.
pub fn object(kind: &Kind, format: Format, code: u16, value: &Value) -> Result<Response> {
    let shown = match format.view {
        View::Whole => {
            return Ok(negotiated(
                code,
                format.encoding.media_type(),
                encode(format.encoding, value)?.into(),
            ));
        }
        View::Partial { version } => partial(value, version),
        View::Table { version, include } => {
            let row = api::table::row(kind, value, include, version, Timestamp::now());
            let meta = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
            api::table::table(kind, vec![row], meta, version, true)
        }
    };
    Ok(negotiated(
        code,
        format.encoding.media_type(),
        encode(format.encoding, &shown)?.into(),
    ))
}

/// Answers with a cached object.
///
/// # Errors
/// As [`object`].
pub fn cached(kind: &Kind, format: Format, o: &Object) -> Result<Response> {
    if format == Format::JSON && native(kind) {
        return Ok(negotiated(200, format.encoding.media_type(), o.raw.clone().into()));
    }
    object(kind, format, 200, &document(kind, o))
}

/// Answers with a list.
///
/// # Errors
/// As [`object`].
pub fn list(kind: &Kind, format: Format, meta: &ListMeta, items: &[Arc<Object>]) -> Result<Response> {
    if format == Format::JSON && native(kind) {
        return Ok(negotiated(
            200,
            format.encoding.media_type(),
            raw_list(kind, meta, items),
        ));
    }
    let documents = items.iter().map(|o| document(kind, o));
    let value = match format.view {
        View::Whole => json!({
            "kind": kind.list_kind(),
            "apiVersion": kind.api_version(),
            "metadata": meta.value(),
            "items": documents.collect::<Vec<_>>(),
        }),
        View::Partial { version } => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": meta.value(),
            "items": documents.map(|d| partial(&d, version)).collect::<Vec<_>>(),
        }),
        View::Table { version, include } => {
            let now = Timestamp::now();
            let rows = documents
                .map(|d| api::table::row(kind, &d, include, version, now))
                .collect();
            api::table::table(kind, rows, meta.value(), version, true)
        }
    };
    Ok(negotiated(
        200,
        format.encoding.media_type(),
        encode(format.encoding, &value)?.into(),
    ))
}

fn raw_list(kind: &Kind, meta: &ListMeta, items: &[Arc<Object>]) -> Body {
    let mut pieces = VecDeque::with_capacity(items.len() * 2 + 1);
    let head = format!(
        "{{\"kind\":{:?},\"apiVersion\":{:?},\"metadata\":{},\"items\":[",
        kind.list_kind(),
        kind.api_version(),
        meta.value()
    );
    pieces.push_back(Bytes::from(head));
    for (i, o) in items.iter().enumerate() {
        if i > 0 {
            pieces.push_back(Bytes::from_static(b","));
        }
        pieces.push_back(o.raw.clone());
    }
    pieces.push_back(Bytes::from_static(b"]}"));
    Body::Pieces(pieces)
}

/// Writes the events of one watch.
pub struct EventWriter {
    kind: &'static Kind,
    format: Format,
    columns_sent: bool,
}

impl EventWriter {
    /// A writer for a format.
    pub fn new(kind: &'static Kind, format: Format) -> Self {
        Self {
            kind,
            format,
            columns_sent: false,
        }
    }

    /// `Content-Type` of the stream.
    pub fn media_type(&self) -> String {
        match self.format.encoding {
            Encoding::Protobuf => format!("{};stream=watch", Encoding::Protobuf.media_type()),
            e => e.media_type().to_owned(),
        }
    }

    /// An object's event.
    ///
    /// # Errors
    /// 406 if the object has no form in this encoding.
    pub fn event(&mut self, name: &str, o: &Object, rev: Option<i64>, out: &mut Vec<u8>) -> Result<()> {
        if self.format == Format::JSON && native(self.kind) && rev.is_none_or(|r| r == o.rev) {
            out.extend_from_slice(b"{\"type\":\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\",\"object\":");
            out.extend_from_slice(&o.raw);
            out.extend_from_slice(b"}\n");
            return Ok(());
        }
        let mut value = document(self.kind, o);
        if let Some(rev) = rev {
            value["metadata"]["resourceVersion"] = rev.to_string().into();
        }
        self.value(name, &value, out)
    }

    /// A bookmark at a revision; `end` marks the end of the initial events.
    ///
    /// # Errors
    /// As [`EventWriter::event`].
    pub fn bookmark(&mut self, rev: i64, end: bool, out: &mut Vec<u8>) -> Result<()> {
        let mut meta = json!({"resourceVersion": rev.to_string(), "creationTimestamp": null});
        if end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let value = json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": meta});
        if let View::Table { version, .. } = self.format.view {
            // A table without rows could not carry the annotation.
            let object = partial(&value, version);
            let row = json!({"cells": vec![Value::Null; api::table::columns(self.kind).len()], "object": object});
            let table = api::table::table(
                self.kind,
                vec![row],
                json!({"resourceVersion": rev.to_string()}),
                version,
                !self.columns_sent,
            );
            self.columns_sent = true;
            return self.frame("BOOKMARK", &table, out);
        }
        self.value("BOOKMARK", &value, out)
    }

    /// The error that ends a watch.
    ///
    /// # Errors
    /// As [`EventWriter::event`].
    pub fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) -> Result<()> {
        self.frame("ERROR", &error.to_value(), out)
    }

    fn value(&mut self, name: &str, value: &Value, out: &mut Vec<u8>) -> Result<()> {
        match self.format.view {
            View::Whole => self.frame(name, value, out),
            View::Partial { version } => self.frame(name, &partial(value, version), out),
            View::Table { version, include } => {
                let row = api::table::row(self.kind, value, include, version, Timestamp::now());
                let meta = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let table = api::table::table(self.kind, vec![row], meta, version, !self.columns_sent);
                self.columns_sent = true;
                self.frame(name, &table, out)
            }
        }
    }

    fn frame(&self, name: &str, value: &Value, out: &mut Vec<u8>) -> Result<()> {
        match self.format.encoding {
            Encoding::Protobuf => {
                let frame = model::protobuf_event(name, value)?;
                out.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                out.extend_from_slice(&frame);
            }
            Encoding::Json => {
                out.extend_from_slice(json!({"type": name, "object": value}).to_string().as_bytes());
                out.push(b'\n');
            }
            Encoding::Yaml => {
                out.extend_from_slice(b"---\n");
                out.extend_from_slice(model::to_yaml(&json!({"type": name, "object": value}))?.as_bytes());
            }
        }
        Ok(())
    }
}
