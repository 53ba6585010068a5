//! `meta/v1` Status objects of failure, with the codes, reasons, messages and details that clients test.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::validation::FieldError;

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason (`metav1.StatusReason`).
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// `details`; null if there are none.
    pub details: Value,
    /// `metadata.continue`: where an expired list may go on inconsistently.
    pub continue_token: Option<String>,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// Any refusal.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            continue_token: None,
        }
    }

    /// The same refusal with what it is about: a resource, and the name of an object of it.
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let mut details = json!({"kind": kind});
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !group.is_empty() {
            details["group"] = group.into();
        }
        self.details = details;
        self
    }

    /// Seconds to wait before trying again, for the `Retry-After` header.
    pub fn retry_after(&self) -> Option<u32> {
        self.details
            .get("retryAfterSeconds")
            .and_then(Value::as_u64)
            .and_then(|s| u32::try_from(s).ok())
    }

    /// The object on the wire.
    pub fn to_value(&self) -> Value {
        let mut v = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(token) = &self.continue_token {
            v["metadata"]["continue"] = token.as_str().into();
        }
        if !self.details.is_null() {
            v["details"] = self.details.clone();
        }
        v
    }

    /// 404 for an object; `resource` is the plural.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(404, "NotFound", message).about(group, resource, name)
    }

    /// 404 for a path nobody serves.
    pub fn no_such_path() -> Self {
        let mut s = Self::new(404, "NotFound", "the server could not find the requested resource");
        s.details = json!({});
        s
    }

    /// 409 for a name that is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::new(409, "AlreadyExists", message).about(group, resource, name)
    }

    /// 409 for a write based on an old version or against a precondition.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            qualified(group, resource)
        );
        Self::new(409, "Conflict", message).about(group, resource, name)
    }

    /// 409 of an optimistic lock.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind.group,
            kind.plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with one cause per violated field.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for e in errors {
            let text = e.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = if texts.len() == 1 {
            texts.concat()
        } else {
            format!("[{}]", texts.join(", "))
        };
        let message = format!("{} {name:?} is invalid: {list}", qualified(group, kind));
        let mut s = Self::new(422, "Invalid", message).about(group, kind, name);
        s.details["causes"] = errors.iter().map(FieldError::cause).collect();
        s
    }

    /// 403 about an object.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let subject = qualified(group, resource);
        let message = if name.is_empty() {
            format!("{subject} is forbidden: {why}")
        } else {
            format!("{subject} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 410: history is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 429 with the seconds to wait; 0 says nothing of them, and then clients do not try again by themselves.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        let mut s = Self::new(429, "TooManyRequests", message);
        s.details = if seconds == 0 {
            json!({})
        } else {
            json!({"retryAfterSeconds": seconds})
        };
        s
    }

    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 406; `offered` are the media types that would do.
    pub fn not_acceptable(offered: &str) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {offered}"),
        )
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 500.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504 for a resource version that the server has not reached.
    pub fn too_large_resource_version(want: i64, have: i64) -> Self {
        let message = format!("Timeout: Too large resource version: {want}, current: {have}");
        let mut s = Self::new(504, "Timeout", message);
        s.details = json!({
            "retryAfterSeconds": 1,
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        });
        s
    }
}

/// `pods` or `deployments.apps`.
fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    #[test]
    fn invalid_lists_every_cause() {
        let kind = find("apps", "v1", "deployments").unwrap();
        let errors = [
            FieldError::required("spec.selector", ""),
            FieldError::invalid("spec.replicas", &json!(-1), "must be greater than or equal to 0"),
        ];
        let v = Status::invalid(kind.group, kind.kind, "web", &errors).to_value();
        assert_eq!(
            v["message"],
            "Deployment.apps \"web\" is invalid: [spec.selector: Required value, spec.replicas: Invalid value: -1: must be greater than or equal to 0]"
        );
        assert_eq!(v["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(v["details"]["causes"][0]["field"], "spec.selector");
        assert_eq!(v["details"]["group"], "apps");
        assert_eq!(v["code"], 422);
    }

    #[test]
    fn not_found_reads_as_clients_expect() {
        let v = Status::not_found("", "pods", "a").to_value();
        assert_eq!(v["message"], "pods \"a\" not found");
        assert_eq!(v["details"], json!({"name": "a", "kind": "pods"}));
    }

    #[test]
    fn an_expired_list_says_where_it_may_go_on() {
        let mut s = Status::expired("gone");
        assert_eq!(s.to_value()["metadata"], json!({}));
        s.continue_token = Some("t".to_owned());
        assert_eq!(s.to_value()["metadata"], json!({"continue": "t"}));
    }

    #[test]
    fn too_large_resource_version_names_its_cause() {
        let s = Status::too_large_resource_version(9, 3);
        assert_eq!(s.retry_after(), Some(1));
        assert_eq!(s.details["causes"][0]["reason"], "ResourceVersionTooLarge");
    }
}
