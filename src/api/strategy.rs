//! What a server sets, keeps and resets around a write.
use crate::kinds::Kind;
use jiff::Timestamp;
use serde_json::Value;
/// Prepares an object for creation, before defaults and validation (name, UID and times are the caller's).
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    let _ = (kind, object);
}
/// Prepares a change: keeps what this way of writing may not touch, bumps the generation.
pub fn prepare_update(kind: &Kind, new: &mut Value, old: &Value, subresource: Option<&str>) {
    let _ = (kind, new, old, subresource);
}
/// Whether an update without a resource version is allowed.
pub fn allows_unconditional_update(kind: &Kind) -> bool {
    let _ = kind;
    true
}
/// What a delete request leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Deletion {
    /// The object goes now.
    Now,
    /// The object is kept, marked like this.
    Marked(Value),
    /// It is marked as asked already.
    Unchanged,
}
/// Decides a delete request; `options` is a `DeleteOptions` object.
pub fn delete(kind: &Kind, object: &Value, options: &Value, now: Timestamp) -> Deletion {
    let _ = (kind, object, options, now);
    Deletion::Now
}
