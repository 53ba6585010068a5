//! One object as the watch cache keeps it: its encoded bytes, shared by every reader, and the few parsed facts that
//! selectors need. The parsed document is not kept; it costs several times the bytes.

use bytes::Bytes;
use serde_json::Value;

use crate::store::StoreError;

/// An immutable version of an object.
#[derive(Debug)]
pub struct Object {
    /// Revision of the write that made this version: its `resourceVersion`.
    pub rev: i64,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// UID.
    pub uid: Box<str>,
    /// JSON with `metadata.resourceVersion` set.
    pub raw: Bytes,
    /// Labels, sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the kind's order.
    pub fields: Box<[Box<str>]>,
}

impl Object {
    /// Parses stored bytes; `fields` are the selectable field paths of the kind.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the bytes are no JSON object.
    pub fn parse(key: &str, bytes: &[u8], rev: i64, fields: &[&str]) -> Result<(Self, Value), StoreError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| StoreError::Damaged {
            key: key.to_owned(),
            reason: e.to_string(),
        })?;
        Ok(Self::from_value(value, rev, fields))
    }

    /// Takes a document, stamps the revision on it and encodes it once.
    pub fn from_value(mut value: Value, rev: i64, fields: &[&str]) -> (Self, Value) {
        value["metadata"]["resourceVersion"] = Value::String(rev.to_string());
        // The buffer that a document is written to grows by doubling; what it has too much would stay as long as the object.
        let raw = Bytes::from(value.to_string().into_boxed_str().into_boxed_bytes());
        let meta = &value["metadata"];
        let text = |k: &str| meta[k].as_str().unwrap_or_default().into();
        let labels = match meta["labels"].as_object() {
            Some(m) => m
                .iter()
                .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into()))
                .collect(),
            None => Box::default(),
        };
        let object = Self {
            rev,
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
            raw,
            labels,
            fields: fields.iter().map(|f| field(&value, f).into()).collect(),
        };
        (object, value)
    }

    /// The document; parsed anew each time.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.raw).unwrap_or_default()
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}

/// A scalar at a dotted path as field selectors see it: absent is empty, booleans and numbers are spelt out.
pub fn field(value: &Value, path: &str) -> String {
    // An event's source is selected by its component, a pod's addresses by the list of them.
    if path == "source" {
        return field(value, "source.component");
    }
    if path == "status.podIPs" {
        let ips = value["status"]["podIPs"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        return ips
            .iter()
            .filter_map(|i| i["ip"].as_str())
            .collect::<Vec<_>>()
            .join(",");
    }
    let found = path.split('.').try_fold(value, |v, k| v.get(k));
    match found {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Number(n)) => n.to_string(),
        _ => String::new(),
    }
}
