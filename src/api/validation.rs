//! Which objects are refused, field by field.

use serde_json::Value;

use crate::kinds::Kind;

mod error;
pub mod names;
pub use error::{FieldError, Reason};

/// Errors of an object that is to be created (after defaulting and preparing).
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let _ = (kind, object);
    Vec::new()
}

/// Errors of a change; `subresource` is the one written through, if any.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<FieldError> {
    let _ = (kind, new, old, subresource);
    Vec::new()
}
