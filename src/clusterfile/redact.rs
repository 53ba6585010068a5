//! The Clusterfile as it may be stored in the cluster: without anything that lets somebody in.

use serde_json::{Map, Value};

use crate::yaml::Node;

/// Fields that hold a secret wherever they stand in our kinds.
const SECRET_FIELDS: [&str; 4] = ["passwd", "pkPasswd", "sudoPasswd", "password"];
/// A variable whose name says one of these is taken for a secret.
const SECRET_WORDS: [&str; 6] = ["PASSW", "PASSPHRASE", "SECRET", "TOKEN", "CREDENTIAL", "PRIVATEKEY"];

pub(crate) fn documents(documents: &[Node]) -> Value {
    documents.iter().map(|document| redact(document.to_json())).collect()
}

fn redact(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(fields.into_iter().filter_map(redact_field).collect::<Map<_, _>>()),
        Value::Array(items) => items.into_iter().map(redact).collect(),
        scalar => scalar,
    }
}

fn redact_field((name, value): (String, Value)) -> Option<(String, Value)> {
    if SECRET_FIELDS.contains(&name.as_str()) {
        return None;
    }
    let value = match (name.as_str(), value) {
        ("env", Value::Array(entries)) => entries.into_iter().filter(|entry| !is_secret_env(entry)).collect(),
        (_, value) => redact(value),
    };
    Some((name, value))
}

fn is_secret_env(entry: &Value) -> bool {
    let name = entry
        .as_str()
        .and_then(|text| text.split('=').next())
        .unwrap_or_default();
    is_secret_name(name)
}

/// Whether something of this name (a variable, a field, a flag) is taken for a secret.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let name: String = name
        .to_uppercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}
