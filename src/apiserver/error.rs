//! Refusals as Kubernetes clients know them: a `Status` object with a code, a reason and details.

use serde_json::{Value, json};

use crate::cache::{Behind, ConsistentError, TooOld};
use crate::store::StoreError;

/// A request that is answered with a `Status` of failure.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason (`metav1.StatusReason`).
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// `details` of the Status.
    pub details: Value,
    /// Seconds to wait before trying again.
    pub retry_after: Option<u32>,
    /// `metadata.continue`: where an expired list may go on inconsistently.
    pub continue_token: Option<String>,
}

/// Result of handling a request.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// One violated field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason, e.g. `FieldValueRequired`.
    pub reason: String,
    /// Path of the field.
    pub field: String,
    /// Text for people.
    pub message: String,
}

impl ApiError {
    /// Any refusal.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            retry_after: None,
            continue_token: None,
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = json!({"kind": kind});
        if !group.is_empty() {
            self.details["group"] = group.into();
        }
        if !name.is_empty() {
            self.details["name"] = name.into();
        }
        self
    }

    /// 404 for an object; `resource` is the plural.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(404, "NotFound", message).about(group, resource, name)
    }

    /// 404 for a path nobody serves.
    pub fn no_such_path() -> Self {
        let mut e = Self::new(404, "NotFound", "the server could not find the requested resource");
        e.details = json!({});
        e
    }

    /// 409 for a name that is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::new(409, "AlreadyExists", message).about(group, resource, name)
    }

    /// 409 for a write based on an old version, or against a precondition.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            qualified(group, resource)
        );
        Self::new(409, "Conflict", message).about(group, resource, name)
    }

    /// 422 with one cause per violated field.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let list: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let text = if list.len() == 1 {
            list[0].clone()
        } else {
            format!("[{}]", list.join(", "))
        };
        let title = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let mut e = Self::new(422, "Invalid", format!("{title} {name:?} is invalid: {text}")).about(group, kind, name);
        e.details["causes"] = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect::<Vec<_>>()
            .into();
        e
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 about an object.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!("{} {name:?} is forbidden: {why}", qualified(group, resource))
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406.
    pub fn not_acceptable(offered: &str) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {offered}"),
        )
    }

    /// 410: history is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        let mut e = Self::new(429, "TooManyRequests", message);
        e.retry_after = Some(seconds);
        e.details = json!({"retryAfterSeconds": seconds});
        e
    }

    /// 504 for a revision that this server has not reached.
    pub fn too_large_resource_version(behind: Behind) -> Self {
        let message = format!(
            "Timeout: Too large resource version: {}, current: {}",
            behind.want, behind.have
        );
        let mut e = Self::new(504, "Timeout", message);
        e.retry_after = Some(1);
        e.details = json!({
            "retryAfterSeconds": 1,
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        });
        e
    }

    /// The object on the wire.
    pub fn status(&self) -> Value {
        let mut metadata = json!({});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        let mut status = json!({
            "apiVersion": "v1",
            "kind": "Status",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// `pods` or `deployments.apps`.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Compacted => Self::expired("The provided resource version is too old; start again without it"),
            StoreError::Timeout => Self::new(504, "Timeout", format!("the store does not answer: {e}")),
            StoreError::Etcd(_) => Self::internal(e),
            StoreError::Future | StoreError::File { .. } | StoreError::Damaged { .. } => Self::internal(e),
        }
    }
}

impl From<ConsistentError> for ApiError {
    fn from(e: ConsistentError) -> Self {
        match e {
            ConsistentError::Store(e) => e.into(),
            ConsistentError::Behind(b) => Self::too_large_resource_version(b),
        }
    }
}

impl From<TooOld> for ApiError {
    fn from(e: TooOld) -> Self {
        Self::expired(e.to_string())
    }
}
