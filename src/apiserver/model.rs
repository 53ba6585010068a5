//! The seam to crate `api`: its pure functions with this server's errors.

use api::Kind;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::error::{ApiError, Result};

/// From the stored form to the one a client asked for.
pub fn from_storage(kind: &Kind, value: &mut Value) {
    *value = api::convert::from_storage(kind, value.take());
}

/// From a client's form to the stored one.
pub fn to_storage(kind: &Kind, value: &mut Value) {
    *value = api::convert::to_storage(kind, value.take());
}

/// The kind in whose form objects are stored.
///
/// # Errors
/// 404 for kinds that are not stored.
pub fn storage(kind: &'static Kind) -> Result<&'static Kind> {
    kind.storage().ok_or_else(ApiError::no_such_path)
}

/// Writes YAML.
///
/// # Errors
/// 500 for what YAML cannot express.
pub fn to_yaml(value: &Value) -> Result<String> {
    serde_saphyr::to_string(value).map_err(ApiError::internal)
}

/// Whether a media type is YAML's.
pub fn is_yaml(media: &str) -> bool {
    matches!(media, "application/yaml" | "text/yaml" | "application/x-yaml")
}

/// Reads YAML (one document); a field that occurs twice is an error.
///
/// # Errors
/// 400 for malformed text.
pub fn from_yaml(bytes: &[u8]) -> Result<Value> {
    yaml(bytes, DuplicateKeyPolicy::Error)
}

/// Reads YAML (one document); of a field that occurs twice the last one counts.
///
/// # Errors
/// 400 for malformed text.
pub fn from_lax_yaml(bytes: &[u8]) -> Result<Value> {
    yaml(bytes, DuplicateKeyPolicy::LastWins)
}

fn yaml(bytes: &[u8], duplicate_keys: DuplicateKeyPolicy) -> Result<Value> {
    let text = std::str::from_utf8(bytes).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_events: 1_000_000, max_nodes: 500_000, max_documents: 1 },
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| ApiError::bad_request(format!("error parsing YAML: {e}")))
}

/// Writes protobuf.
///
/// # Errors
/// 406 for kinds without a protobuf form.
pub fn to_protobuf(value: &Value) -> Result<Vec<u8>> {
    api::proto::encode(value).map_err(|e| match e {
        api::proto::ProtoError::UnknownKind { .. } => ApiError::not_acceptable("application/json, application/yaml"),
        e => ApiError::internal(e),
    })
}

/// One frame of a protobuf watch.
///
/// # Errors
/// As [`to_protobuf`].
pub fn protobuf_event(event: &str, value: &Value) -> Result<Vec<u8>> {
    api::proto::encode_watch_event(event, value).map_err(ApiError::internal)
}

/// Reads protobuf.
///
/// # Errors
/// 400 for malformed bytes and unknown kinds.
pub fn from_protobuf(bytes: &[u8]) -> Result<Value> {
    api::proto::decode(bytes).map_err(|e| ApiError::bad_request(e.to_string()))
}

/// Drops unknown fields and says which; `raw` is the text the object was read from, for duplicates.
///
/// # Errors
/// 400 for fields of the wrong type.
pub fn check_fields(kind: &Kind, value: &mut Value, raw: Option<(&str, &[u8])>) -> Result<Vec<String>> {
    let unknown = api::fieldcheck::prune(kind.message, value)?;
    if let Some(("application/json", bytes)) = raw {
        let odd = api::fieldcheck::odd_fields(bytes, unknown)?;
        return Ok(odd.iter().map(ToString::to_string).collect());
    }
    // YAML does not tell paths of fields that occur twice, but what and where.
    let twice = raw.and_then(|(media, bytes)| is_yaml(media).then(|| from_yaml(bytes).err())?);
    let unknown = unknown.iter().map(|p| format!("unknown field {p:?}"));
    Ok(twice.map(|e| e.message).into_iter().chain(unknown).collect())
}

/// 422 if there are errors.
///
/// # Errors
/// That one.
pub fn refuse_invalid(kind: &Kind, name: &str, errors: &[api::validation::FieldError]) -> Result<()> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(kind.group, kind.kind, name, errors))
    }
}
